// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A memfd of 16 TiB with three pages: what a live update costs goes by the data, not by the size.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use rustix::fs::MemfdFlags;
use rustix::param::page_size;

use crate::tests::memfds::expect_memory;
use luo_handler_api::Token;
use luo_liveupdate::Session;
use luo_orchestrator::holes;

const SIZE: u64 = 16 << 40;
const TOKEN: Token = Token(1);

/// The first page, the last, and one in between.
fn filled() -> [Range<u64>; 3] {
    let page = page_size() as u64;
    [0, (5 << 40) + 7 * page, SIZE - page].map(|start| start..start + page)
}

/// No two pages are the same.
fn contents(range: &Range<u64>) -> Vec<u8> {
    let words = range.clone().step_by(8);
    words.flat_map(|offset| (!offset).to_le_bytes()).collect()
}

pub(super) fn preserve_far_apart(session: &Session) -> Result<()> {
    let file = File::from(rustix::fs::memfd_create("far-apart", MemfdFlags::CLOEXEC)?);
    file.set_len(SIZE).context("making a memfd of 16 TiB")?;
    let [first, middle, last] = filled();
    for range in [&first, &last] {
        file.write_all_at(&contents(range), range.start)?;
    }
    session.preserve(TOKEN, file.as_fd())?;
    // One of them is new since prepare.
    file.write_all_at(&contents(&middle), middle.start)?;
    Ok(())
}

pub(super) fn take_far_apart(session: &Session) -> Result<()> {
    let file = File::from(session.retrieve(TOKEN)?);
    ensure!(file.metadata()?.len() == SIZE, "the size is another one");
    let found = holes::data_ranges(&holes::reopen(file.as_fd())?, SIZE)?;
    ensure!(
        found == filled(),
        "expected data at {:x?}, found it at {found:x?}",
        filled()
    );
    for range in filled() {
        let mut bytes = vec![0; page_size()];
        file.read_exact_at(&mut bytes, range.start)?;
        ensure!(
            bytes == contents(&range),
            "the page at {:#x} has other contents",
            range.start
        );
    }
    expect_memory(&file, 3 * page_size() as u64, "after it was retrieved")?;
    Ok(session.finish()?)
}
