// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memory that lies where nothing can stay is moved by prepare, and counted.

use std::fs::{read_to_string, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use luo_bench::counters::moved_bytes;
use luo_bench::memory::expect_meminfo;
use luo_handler_api::Token;
use luo_liveupdate::Device;
use rustix::fs::{memfd_create, MemfdFlags};

use crate::tests::held_open::HeldOpen;

/// The memfd's name, with a byte that the list escapes.
const NAME: &str = "to move";
const ESCAPED: &str = r"to\040move";
const MOVED_FILES: &str = "/sys/kernel/debug/luo_handlers/moved_files";

/// Bytes that were moved for the memfd, by the list; `None` if it is not in it.
fn listed() -> Result<Option<u64>> {
    let text = read_to_string(MOVED_FILES).with_context(|| format!("reading {MOVED_FILES}"))?;
    let line = text.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (bytes, _inode, name) = (words.next()?, words.next()?, words.next()?);
        (name == ESCAPED).then_some(bytes)
    });
    line.map(|bytes| bytes.parse().context("the list has no number"))
        .transpose()
}

/// A memfd so large that some of it lies in the scratch memory of kexec handover.
pub(super) fn count(_held: &mut HeldOpen) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    // The kernel counts scratch memory as CMA's, and takes it where more of it is free than of the
    // rest. What it took has to find room in the rest.
    let scratch = expect_meminfo("CmaFree:")?;
    let size =
        expect_meminfo("MemAvailable:")?.saturating_sub(scratch + scratch / 2) / PIECE * PIECE;
    let file = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC)?);
    let piece = vec![1; PIECE as usize];
    for offset in (0..size).step_by(PIECE as usize) {
        file.write_all_at(&piece, offset)?;
    }
    let before = moved_bytes()?;
    ensure!(
        listed()?.is_none(),
        "{NAME} is listed before it is preserved"
    );
    let session = Device::open()?.create_session("moved")?;
    session.preserve(Token(1), file.as_fd())?;
    let moved = moved_bytes()? - before;
    println!("prepare moved {moved} of {size} bytes");
    ensure!(moved > 0, "of {size} bytes none was moved");
    ensure!(
        listed()? == Some(moved),
        "{moved} bytes were moved in all, {:?} for the only file",
        listed()?
    );
    drop(session);
    ensure!(
        listed()?.is_none(),
        "{NAME} is listed after it was released"
    );
    Ok(())
}
