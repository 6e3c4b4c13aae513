// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds of so many huge pages that several processors retrieve parts of them: what they take is
//! charged as if one did, and nothing is left if one of them fails.

use std::fs::{self, File};
use std::os::fd::AsFd;

use anyhow::{ensure, Result};
use luo_bench::memory::free_bytes;
use luo_handler_api::Token;
use luo_liveupdate::Device;
use rustix::io::Errno;
use rustix::param::page_size;

use crate::tests::blocks::{blocks_of, Block};
use crate::tests::expect::{expect_freed, expect_lost};
use crate::tests::held_open::HeldOpen;
use crate::tests::hugetlb::{huge_memfd, map, number, number_at, Counters, HUGE, POOL};
use crate::tests::hugetlb_limit::Group;
use crate::tests::incoming;
use crate::tests::limit::{charged, mount_cgroups, mount_cgroups_with};
use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::records::MemfdExtent;

const FIRST: &str = "huge-parts";
const SECOND: &str = "huge-parts-again";
/// Nothing else in memory begins so.
const FORGED: &str = "luo-lab forged huge parts";
const TOKEN: Token = Token(1);
/// A part is 128 of them, and the first is always the task's. A prime number: see [`place`].
const PAGES: u64 = 701;
/// What the kernel may move pages to.
const SPARE: u64 = 32;

/// Where the page is that comes after `count` others: in no order, so that many extents name them.
fn place(count: u64) -> u64 {
    count * 101 % PAGES
}

pub(super) fn preserve_large(held: &mut HeldOpen) -> Result<()> {
    POOL.resize(PAGES + SPARE)?;
    let file = huge_memfd("parts", PAGES)?;
    let mapping = map(&file, PAGES)?;
    (0..PAGES).for_each(|count| number(&mapping, place(count)));
    drop(mapping);
    preserve(FIRST, &file, held)
}

fn preserve(session: &str, file: &File, held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(session)?;
    session.preserve(TOKEN, file.as_fd())?;
    held.hold(&session)
}

/// Retrieves it, and compares each page.
fn retrieve(session: &str) -> Result<File> {
    let session = Device::open()?.retrieve_session(session)?;
    let file = File::from(session.retrieve(TOKEN)?);
    for page in 0..PAGES {
        let found = number_at(&file, page)?;
        ensure!(found == page + 1, "huge page {page} holds {found}");
    }
    POOL.expect(Counters::of_files(PAGES), "after it was retrieved")?;
    session.finish()?;
    Ok(file)
}

/// From a group whose memory includes huge pages.
pub(super) fn retrieve_in_parts(held: &mut HeldOpen) -> Result<()> {
    let root = mount_cgroups_with("memory", Some(c"memory_hugetlb_accounting"))?;
    let group = root.join("parts");
    fs::create_dir(&group)?;
    fs::write(group.join("cgroup.procs"), "0")?;
    let file = retrieve(FIRST)?;
    let found = charged(&group)?;
    ensure!(
        found.used >= PAGES * HUGE,
        "{PAGES} huge pages were retrieved: {found:?}"
    );
    preserve(SECOND, &file, held)
}

/// From a group of hugetlb's own, to which workers cannot charge.
pub(super) fn retrieve_alone(held: &mut HeldOpen) -> Result<()> {
    let group = Group::enter(&mount_cgroups("hugetlb")?, "parts")?;
    let file = retrieve(SECOND)?;
    group.expect(PAGES, PAGES, "after it was retrieved")?;
    preserve(FORGED, &file, held)
}

/// A page is named twice, in the part that is worked on first and in one of the last.
pub(super) fn refuse_forged(_held: &mut HeldOpen) -> Result<()> {
    let memory = PhysicalMemory::open()?;
    let entries = incoming::session_files(&memory, FORGED)?;
    let [(_, entry)] = &entries[..] else {
        anyhow::bail!("the session has {} files", entries.len());
    };
    let blocks = blocks_of(&memory, entry.data.get())?;
    let [last, .., first] = blocks[..] else {
        anyhow::bail!("it has {} blocks", blocks.len());
    };
    let (_, from) = Block::load(&memory, last)?.find(|_| true)?;
    let mut block = Block::load(&memory, first)?;
    let (_, to) = block.find(|_| true)?;
    block.change_folios(|to| {
        MemfdExtent::of_folios(to.index(), from.frame(), to.length(), to.order())
    })?;
    block.store(&memory)?;

    let before = free_bytes()?;
    let session = Device::open()?.retrieve_session(FORGED)?;
    expect_lost(&session, TOKEN, Errno::INVAL)?;
    POOL.expect(Counters::default(), "after it was refused")?;
    session.finish()?;
    // All but what no extent names any more.
    let named = PAGES * HUGE - to.length() * page_size() as u64;
    expect_freed(before, named)
}
