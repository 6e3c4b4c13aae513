// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Huge pages that are split, and base pages that become huge ones, between prepare and freeze;
//! huge pages that a hostile previous kernel puts into places that are taken.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};

use crate::sys::collapse;
use crate::tests::expect::{expect_freed, expect_lost};
use crate::tests::held_open::HeldOpen;
use crate::tests::incoming;
use crate::tests::memfds::{allow_huge_pages, memfd, preserve, retrieve};
use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::records::{memory_of, sign_memfd_record, MemfdRecord};
use luo_bench::memory::{free_bytes, meminfo};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};
use luo_orchestrator::SharedMapping;
use rustix::io::Errno;

const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";

const HUGE: Workload = Workload {
    size: 32 << 20,
    pages: Pages::Thp,
    fill: Fill::Dense,
    seed: 1,
};
/// With holes in each huge page's worth.
const SPARSE: Workload = memfd(16 << 20, Fill::sparse(2000), 2);
/// Nothing of it is there at prepare.
const EMPTY: Workload = memfd(16 << 20, Fill::sparse(0), 3);
const FILLED: Workload = memfd(16 << 20, Fill::Dense, 3);

/// The folios that were preserved are asked to become others, and new ones do.
pub(super) fn split_and_collapse(session: &Session) -> Result<()> {
    allow_huge_pages()?;
    let huge = HUGE.make(|_| ())?;
    let sparse = SPARSE.make(|_| ())?;
    let empty = EMPTY.make(|_| ())?;
    for (workload, file) in [(&HUGE, &huge), (&SPARSE, &sparse), (&EMPTY, &empty)] {
        session.preserve(Token(workload.seed), file.as_fd())?;
    }

    fs::write(SPLIT, "1").context("splitting all huge pages; it takes debugfs")?;
    HUGE.verify(huge.as_fd(), |_| ())?;
    // Whether pages that are held can be collapsed is the kernel's affair; they must not get lost.
    let _ = collapse(&SharedMapping::new(&sparse, 0..SPARSE.size)?);
    SPARSE.verify(sparse.as_fd(), |_| ())?;

    FILLED.write(&empty, |_| ())?;
    let before = meminfo("ShmemHugePages:").unwrap_or(0);
    collapse(&SharedMapping::new(&empty, 0..FILLED.size)?)
        .context("collapsing pages that are new since prepare")?;
    let collapsed = meminfo("ShmemHugePages:").unwrap_or(0) - before;
    ensure!(
        collapsed == FILLED.size,
        "expected {} bytes in new huge pages, found {collapsed}",
        FILLED.size
    );
    Ok(())
}

pub(super) fn take_split_and_collapsed(session: &Session) -> Result<()> {
    for workload in [HUGE, SPARSE, FILLED] {
        retrieve(session, &workload)?;
    }
    Ok(session.finish()?)
}

/// Nothing else in memory begins so.
const FORGED: &str = "luo-lab forged folios";
const FIRST: Workload = Workload { seed: 4, ..HUGE };
const SECOND: Workload = Workload { seed: 5, ..HUGE };

pub(super) fn preserve_two(held: &mut HeldOpen) -> Result<()> {
    allow_huge_pages()?;
    let session = Device::open()?.create_session(FORGED)?;
    preserve(&session, &[FIRST, SECOND])?;
    held.hold(&session)
}

/// The huge pages of the second are said to be in the places of those of the first as well.
pub(super) fn refuse_taken_places(_held: &mut HeldOpen) -> Result<()> {
    let memory = PhysicalMemory::open()?;
    let entries = incoming::session_files(&memory, FORGED)?;
    let place = |workload: &Workload| {
        let mut tokens = entries.iter().map(|(_, entry)| entry);
        let entry = tokens.find(|entry| entry.token.get() == workload.seed);
        let entry = entry.context("a file is not in the list of the kernel")?;
        anyhow::Ok(memory_of(entry.data.get()).0)
    };
    let second: MemfdRecord = memory.load(place(&SECOND)?)?;
    let mut first: MemfdRecord = memory.load(place(&FIRST)?)?;
    first.late = second.chain;
    sign_memfd_record(&mut first);
    memory.store(place(&FIRST)?, &first)?;

    let session = Device::open()?.retrieve_session(FORGED)?;
    let before = free_bytes()?;
    expect_lost(&session, Token(FIRST.seed), Errno::EXIST)?;
    // Its memory is gone with the first.
    expect_lost(&session, Token(SECOND.seed), Errno::INVAL)?;
    session.finish()?;
    expect_freed(before, FIRST.size + SECOND.size)
}
