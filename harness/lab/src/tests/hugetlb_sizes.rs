// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Gigantic pages, those of a CMA area, kernels that do not have them or no huge pages at all, two
//! NUMA nodes.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};
use luo_bench::counters::moved_bytes;
use luo_bench::memory::{expect_meminfo, free_bytes};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::Device;
use rustix::fs::{fallocate, FallocateFlags};
use rustix::io::Errno;

use crate::build::variant::Variant;
use crate::tests::expect::{expect_freed, expect_lost};
use crate::tests::forged::change_extents;
use crate::tests::freeze::nanoseconds;
use crate::tests::held_open::HeldOpen;
use crate::tests::hugetlb::{huge_memfd, Counters, Pool, HUGE, POOL};
use crate::tests::incoming;
use crate::tests::memfds::{memfd, preserve, retrieve};
use crate::tests::missing::expect_check;
use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::records::MemfdKind;

const GIGANTIC: u64 = 1 << 30;
const GIGANTIC_POOL: Pool = Pool(GIGANTIC);
/// The first kernel reserves one at boot. Linux 7.2 takes that for memory of the kernel, and by
/// default wants twice that as scratch.
pub(super) const RESERVED: &str = "hugepagesz=1G hugepages=1 kho_scratch=64M,512M,256M";
/// A processor that has no pages of 1 GiB, as far as the kernel knows.
pub(super) const WITHOUT: &str = "clearcpuid=pdpe1gb";
/// Nothing else in memory begins so.
const SESSION: &str = "luo-lab gigantic page";
const BESIDE: &str = "huge-beside";
const DENSE: Workload = Workload {
    size: GIGANTIC,
    pages: Pages::HugetlbOf(GIGANTIC),
    fill: Fill::Dense,
    seed: 1,
};

pub(super) fn preserve_gigantic(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    let files = preserve(&session, &[DENSE])?;
    GIGANTIC_POOL.expect(
        Counters {
            total: 1,
            ..Counters::default()
        },
        "with its page in use",
    )?;
    drop(files);
    held.hold(&session)
}

/// As much in pages of 2 MiB. Those that are reserved at boot do not lie in scratch memory.
const HUGE_PAGES: u64 = GIGANTIC / HUGE;
pub(super) const BOTH_RESERVED: &str =
    "hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=513 kho_scratch=64M,512M,256M";
const IN_HUGE_PAGES: Token = Token(2);

/// The time that our handler spends in a phase while `call` runs.
fn timed<T>(phase: &str, what: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = nanoseconds(phase)?;
    let result = call()?;
    println!("{phase} of {what} took {} ns", nanoseconds(phase)? - before);
    Ok(result)
}

/// Emulated, a processor translates what it runs for the first time, which takes longer than to run
/// it: so all of it runs with a small file before anything is timed.
const REHEARSAL: &str = "huge-rehearsal";

fn rehearse(held: &mut HeldOpen) -> Result<()> {
    let file = huge_memfd("rehearsal", 1)?;
    fallocate(&file, FallocateFlags::empty(), 0, HUGE)?;
    let session = Device::open()?.create_session(REHEARSAL)?;
    timed("prepare", "one page of 2 MiB, for the first time", || {
        Ok(session.preserve(Token(1), file.as_fd())?)
    })?;
    held.hold(&session)
}

pub(super) fn preserve_both_sizes(held: &mut HeldOpen) -> Result<()> {
    rehearse(held)?;
    timed("prepare", "1 GiB in one page", || preserve_gigantic(held))?;
    let file = huge_memfd("huge", HUGE_PAGES)?;
    fallocate(&file, FallocateFlags::empty(), 0, GIGANTIC)?;
    let session = Device::open()?.create_session(BESIDE)?;
    timed("prepare", "1 GiB in pages of 2 MiB", || {
        Ok(session.preserve(IN_HUGE_PAGES, file.as_fd())?)
    })?;
    let moved = moved_bytes()?;
    ensure!(moved == 0, "{moved} bytes were moved");
    held.hold(&session)
}

pub(super) fn retrieve_both_sizes(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(REHEARSAL)?;
    timed("retrieve", "one page of 2 MiB, for the first time", || {
        Ok(session.retrieve(Token(1))?)
    })?;
    session.finish()?;
    let session = Device::open()?.retrieve_session(BESIDE)?;
    let file = timed("retrieve", "1 GiB in pages of 2 MiB", || {
        Ok(session.retrieve(IN_HUGE_PAGES)?)
    })?;
    POOL.expect(Counters::of_files(HUGE_PAGES), "with 1 GiB in its pages")?;
    session.finish()?;
    drop(file);
    retrieve_gigantic(held)
}

pub(super) fn retrieve_gigantic(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(SESSION)?;
    let file = timed("retrieve", "1 GiB in one page", || {
        retrieve(&session, &DENSE)
    })?;
    GIGANTIC_POOL.expect(Counters::of_files(1), "with a gigantic page")?;
    session.finish()?;
    let before = free_bytes()?;
    drop(file);
    GIGANTIC_POOL.expect(Counters::of_files(0), "after the last close")?;
    expect_freed(before, GIGANTIC)
}

/// In a kernel without pages of that size.
pub(super) fn lose_gigantic(_held: &mut HeldOpen) -> Result<()> {
    ensure!(
        GIGANTIC_POOL.counters().is_err(),
        "this kernel has pages of 1 GiB"
    );
    let session = Device::open()?.retrieve_session(SESSION)?;
    expect_lost(&session, Token(DENSE.seed), Errno::OPNOTSUPP)?;
    let before = free_bytes()?;
    session.finish()?;
    expect_freed(before, GIGANTIC)
}

/// Shmem has no folios of that size. Its record names one, in a kernel that has such pages.
pub(super) fn refuse_gigantic_folio(_held: &mut HeldOpen) -> Result<()> {
    let memory = PhysicalMemory::open()?;
    let entries = incoming::session_files(&memory, SESSION)?;
    let (_, entry) = entries.first().context("the session has no file")?;
    change_extents(&memory, entry.data.get(), |record, _| {
        record.kind = MemfdKind::Shmem as u8;
        record.file_page_shift = 12;
    })?;
    let session = Device::open()?.retrieve_session(SESSION)?;
    expect_lost(&session, Token(DENSE.seed), Errno::INVAL)?;
    let before = free_bytes()?;
    session.finish()?;
    expect_freed(before, GIGANTIC)
}

/// The first kernel takes one gigantic page at boot, which it allows from CMA areas alone.
pub(super) const CMA: &str = "hugetlb_cma=1G hugetlb_cma_only=1 hugepagesz=1G hugepages=1 \
                              kho_scratch=64M,512M,256M";

/// Neither prepare nor cancel moves it.
pub(super) fn preserve_from_cma(held: &mut HeldOpen) -> Result<()> {
    let areas = expect_meminfo("CmaTotal:")?;
    ensure!(areas >= GIGANTIC, "CMA areas have {areas} bytes");
    let in_pool = Counters {
        total: 1,
        free: 1,
        ..Counters::default()
    };
    GIGANTIC_POOL.expect(in_pool, "at first")?;
    let session = Device::open()?.create_session("cancelled")?;
    let file = DENSE.make(|_| ())?;
    session.preserve(Token(DENSE.seed), file.as_fd())?;
    drop((session, file));
    GIGANTIC_POOL.expect(in_pool, "after a cancel")?;
    preserve_gigantic(held)?;
    let moved = moved_bytes()?;
    ensure!(moved == 0, "{moved} bytes of a CMA area were moved");
    Ok(())
}

const WITH_OTHERS: &str = "huge-with-others";
const LOST: Token = Token(7);
const LOST_PAGES: u64 = 8;
const OTHER: Workload = memfd(1 << 20, Fill::sparse(5000), 8);

pub(super) fn preserve_with_others(held: &mut HeldOpen) -> Result<()> {
    POOL.resize(LOST_PAGES)?;
    let file = huge_memfd("lost", LOST_PAGES)?;
    fallocate(&file, FallocateFlags::empty(), 0, LOST_PAGES * HUGE)?;
    let session = Device::open()?.create_session(WITH_OTHERS)?;
    session.preserve(LOST, file.as_fd())?;
    preserve(&session, &[OTHER])?;
    held.hold(&session)?;
    // The same handler is there, but it cannot read this kind.
    let expected = [[WITH_OTHERS, "0x7", "no"], [WITH_OTHERS, "0x8", "yes"]];
    expect_check(Variant::WithoutHugetlb, &expected)
}

/// In a kernel that is built without huge pages.
pub(super) fn lose_huge_alone(_held: &mut HeldOpen) -> Result<()> {
    ensure!(POOL.counters().is_err(), "this kernel has huge pages");
    let session = Device::open()?.retrieve_session(WITH_OTHERS)?;
    expect_lost(&session, LOST, Errno::OPNOTSUPP)?;
    let other = retrieve(&session, &OTHER)?;
    let before = free_bytes()?;
    session.finish()?;
    expect_freed(before, LOST_PAGES * HUGE)?;
    drop(other);
    Ok(())
}

const NODES: [u64; 2] = [4, 7];
const TWO_NODES: &str = "huge-two-nodes";

fn on_node(node: usize, name: &str) -> String {
    format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/{name}_hugepages")
}

/// Each node has the pages of one memfd.
pub(super) fn preserve_on_both(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(TWO_NODES)?;
    for (node, pages) in NODES.into_iter().enumerate() {
        fs::write(on_node(node, "nr"), pages.to_string())?;
        let file = huge_memfd("node", pages)?;
        fallocate(&file, FallocateFlags::empty(), 0, pages * HUGE)?;
        session.preserve(Token(pages), file.as_fd())?;
    }
    held.hold(&session)
}

pub(super) fn take_from_both(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(TWO_NODES)?;
    let mut files = Vec::new();
    for pages in NODES {
        files.push(session.retrieve(Token(pages))?);
    }
    for (node, pages) in NODES.into_iter().enumerate() {
        for (name, expected) in [("nr", pages), ("surplus", pages), ("free", 0)] {
            let found = fs::read_to_string(on_node(node, name))?;
            ensure!(
                found.trim() == expected.to_string(),
                "node {node} has {name} {found}, expected {expected}"
            );
        }
    }
    session.finish()?;
    drop(files);
    POOL.expect(Counters::default(), "after the last close")
}
