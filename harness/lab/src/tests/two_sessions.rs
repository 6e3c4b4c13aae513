// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One memfd, offered in two sessions.

use std::os::fd::AsFd;

use anyhow::Result;
use rustix::io::Errno;

use crate::tests::expect::expect_errno;
use crate::tests::memfds::{memfd, retrieve};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};
use luo_orchestrator::holes::reopen;

const SHARED: Workload = memfd(4 << 20, Fill::sparse(3000), 1);

/// It belongs to the session that has it, until that one gives it up.
pub(super) fn offer_in_both(session: &Session) -> Result<()> {
    let file = SHARED.make(|_| ())?;
    let reopened = reopen(file.as_fd())?;
    let other = Device::open()?.create_session("two_sessions_other")?;
    let token = Token(SHARED.seed);
    other.preserve(token, file.as_fd())?;
    for (file, what) in [
        (file.as_fd(), "a memfd of another session"),
        (reopened.as_fd(), "another description of it"),
    ] {
        expect_errno(session.preserve(token, file), Errno::BUSY, what)?;
    }
    drop(other);
    session.preserve(token, file.as_fd())?;
    let other = Device::open()?.create_session("two_sessions_other")?;
    expect_errno(
        other.preserve(token, file.as_fd()),
        Errno::BUSY,
        "a memfd that this session took over",
    )?;
    SHARED.verify(file.as_fd(), |_| ())?;
    Ok(())
}

pub(super) fn take_from_one(session: &Session) -> Result<()> {
    retrieve(session, &SHARED)?;
    Ok(session.finish()?)
}
