// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Failures that a test expects, and memory that becomes free.

use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use rustix::io::Errno;

use luo_bench::counters::Counters;
use luo_bench::memory::free_bytes;
use luo_handler_api::Token;
use luo_liveupdate::kexec::{self, KexecError};
use luo_liveupdate::Session;

/// Refuses anything but a failure with this errno.
pub(crate) fn expect_errno<T>(
    result: Result<T, luo_liveupdate::Error>,
    errno: Errno,
    what: &str,
) -> Result<()> {
    match result {
        Err(error) if error.errno() == Some(errno) => Ok(()),
        Err(error) => bail!("{what} should have failed with {errno:?}, but: {error}"),
        Ok(_) => bail!("{what} should have failed with {errno:?}, but did not"),
    }
}

/// Refuses a file that can be retrieved: its failure is for good.
pub(crate) fn expect_lost(session: &Session, token: Token, errno: Errno) -> Result<()> {
    for attempt in ["retrieving", "retrieving again"] {
        expect_errno(session.retrieve(token), errno, attempt)?;
    }
    Ok(())
}

/// Jumps, which the file after so many others has to refuse: they were frozen, and are not any
/// more.
pub(crate) fn expect_refused_jump(errno: Errno, frozen: u64) -> Result<()> {
    let refused = kexec::jump();
    ensure!(
        matches!(refused, KexecError::Refused(found) if found == errno),
        "expected a jump refused with {errno:?}, found: {refused}"
    );
    let counters = Counters::read()?;
    for (phase, successes, errors) in [("freeze", frozen, 1), ("unfreeze", frozen, 0)] {
        let found = (counters.successes(phase), counters.errors(phase));
        ensure!(
            found == (successes, errors),
            "{phase} succeeded and failed {found:?} times, not {successes} and {errors} times"
        );
    }
    Ok(())
}

/// What the allocator may hold back, and others take at the same time.
const SLACK: u64 = 1 << 20;

/// Since `before` so much has become free.
pub(crate) fn expect_freed(before: u64, bytes: u64) -> Result<()> {
    soon(
        || Ok(free_bytes()?.saturating_sub(before)),
        |freed| freed + SLACK >= bytes,
    )
    .with_context(|| format!("not all of {bytes} bytes are free"))
}

/// Looks until all is well: the nodes of page caches are freed a little later than the pages.
pub(crate) fn soon<T: fmt::Debug>(
    look: impl Fn() -> Result<T>,
    is_well: impl Fn(&T) -> bool,
) -> Result<()> {
    let mut found = look()?;
    for _ in 0..50 {
        if is_well(&found) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
        found = look()?;
    }
    bail!("found {found:?}")
}
