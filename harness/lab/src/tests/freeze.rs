// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What freeze costs, and what it refuses.

use std::fs::{read_to_string, write, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use luo_bench::counters;
use luo_bench::memory::expect_meminfo;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::kexec::{self, KexecError};
use luo_liveupdate::{Device, Session};
use rustix::fs::{fallocate, memfd_create, FallocateFlags, MemfdFlags};
use rustix::io::Errno;

use crate::tests::expect::expect_refused_jump;
use crate::tests::failing_freeze::{spoil, take_only_sound, BAD, SOUND};
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{memfd, preserve};

const PAGE: u64 = 4096;

/// A memfd in which every other page is written, from the second on.
fn every_other_page(name: &str, extents: u64) -> Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(2 * extents * PAGE)?;
    for page in 0..extents {
        file.write_all_at(&page.to_le_bytes(), (2 * page + 1) * PAGE)?;
    }
    Ok(file)
}

/// Refuses a memfd that is not one of these.
fn expect_every_other_page(file: &File, extents: u64) -> Result<()> {
    for page in 0..extents {
        let mut number = [0; 8];
        file.read_exact_at(&mut number, (2 * page + 1) * PAGE)?;
        let found = u64::from_le_bytes(number);
        ensure!(found == page, "extent {page} holds {found}");
    }
    Ok(())
}

const SOUND_MEMFD: Workload = memfd(4 << 20, Fill::sparse(3000), 1);

/// Memory that was preserved fails before the jump, which is refused; without it the next succeeds.
pub(super) fn spoil_what_is_preserved(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SOUND)?;
    preserve(&session, &[SOUND_MEMFD])?;
    let bad_session = Device::open()?.create_session(BAD)?;
    let bad = File::from(memfd_create("spoilt", MemfdFlags::CLOEXEC)?);
    bad.set_len(1 << 20)?;
    bad.write_all_at(&[1; 20 * PAGE as usize], 2 * PAGE)?;
    bad_session.preserve(Token(2), bad.as_fd())?;
    spoil(&bad, 5)?;
    expect_refused_jump(Errno::IO, 1)?;
    // What else is in the file can still be read and written to.
    bad.write_all_at(&[2; 8], 100 * PAGE)?;
    drop(bad_session);
    held.hold(&session)
}

/// After the next jump.
pub(super) fn take_what_is_sound(_held: &mut HeldOpen) -> Result<()> {
    take_only_sound(&SOUND_MEMFD)
}

/// Nanoseconds that our handler of memfds has spent in a phase.
pub(super) fn nanoseconds(phase: &str) -> Result<u64> {
    let text = read_to_string("/sys/kernel/debug/luo_handlers/memfd")?;
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(phase));
    let number = line.and_then(|line| line.split(' ').nth(3)?.parse().ok());
    number.with_context(|| format!("the counters have no line for {phase}"))
}

/// A jump that is refused, after everything but the file with the bad memory was frozen; as long as
/// the session is there, others are as well.
fn refuse_a_jump(frozen: u64) -> Result<Session> {
    let session = Device::open()?.create_session(BAD)?;
    let bad = File::from(memfd_create("spoilt", MemfdFlags::CLOEXEC)?);
    bad.set_len(1 << 20)?;
    session.preserve(Token(1), bad.as_fd())?;
    spoil(&bad, 0)?;
    expect_refused_jump(Errno::IO, frozen)?;
    Ok(session)
}

const MANY: u64 = 500_000;
const FREEZES: usize = 8;
const MANY_SESSION: &str = "many";
const LATE: [u8; 4] = *b"late";

pub(super) fn freeze_without_a_change(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(MANY_SESSION)?;
    held.hold(&session)?;
    let file = every_other_page("many", MANY)?;
    let before = counters::preserved_bytes()?;
    session.preserve(Token(1), file.as_fd())?;
    let (prepare, bytes) = (nanoseconds("prepare")?, counters::preserved_bytes()?);
    ensure!(
        bytes - before >= 8 * MANY,
        "{} bytes hold {MANY} extents",
        bytes - before
    );
    let bad = refuse_a_jump(1)?;
    // The first freeze looked for memory that had failed; from then on no more did. On a busy host
    // a guest stands still at times, so the least of several counts.
    let freezes = (0..FREEZES).map(|_| {
        let before = nanoseconds("freeze")?;
        let refused = kexec::jump();
        ensure!(
            matches!(refused, KexecError::Refused(Errno::IO)),
            "a later jump: {refused}"
        );
        // That of the other file is in it.
        Ok(nanoseconds("freeze")? - before)
    });
    let freeze = freezes.collect::<Result<Vec<_>>>()?.into_iter().min();
    let freeze = freeze.context("nothing was frozen")?;
    drop(bad);
    println!("prepare took {prepare} ns, two freezes took {freeze} ns");
    ensure!(
        freeze < prepare / 100,
        "a freeze without a change took {freeze} ns, prepare took {prepare} ns"
    );
    let bytes_after = counters::preserved_bytes()?;
    ensure!(
        bytes_after == bytes,
        "freeze wrote although nothing had changed: {bytes} bytes became {bytes_after}"
    );
    // This one comes late.
    Ok(file.write_all_at(&LATE, 0)?)
}

pub(super) fn take_many(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(MANY_SESSION)?;
    let file = File::from(session.retrieve(Token(1))?);
    expect_every_other_page(&file, MANY)?;
    let mut late = [0; LATE.len()];
    file.read_exact_at(&mut late, 0)?;
    ensure!(late == LATE, "what came late is lost");
    Ok(session.finish()?)
}

const FRAGMENTS: &str = "fragments";
const SMALL: Token = Token(1);
/// More than a block holds. No two of these pages lie together, so the next kernel reserves each on
/// its own, and compares it with all others: with 20000 it did not come up in four minutes,
/// emulated on a busy machine.
const SMALL_EXTENTS: u64 = 4200;

/// Bytes of free blocks of eight pages and more, but for those that are reserved for what can be
/// moved.
fn large_blocks() -> Result<u64> {
    let mut bytes = 0;
    for line in read_to_string("/proc/pagetypeinfo")?.lines() {
        let Some((_, kind)) = line.split_once(", type ") else {
            continue;
        };
        let mut words = kind.split_whitespace();
        if words.next() == Some("CMA") {
            continue;
        }
        // Where there are very many, the kernel prints `>100000`.
        let counts = words.filter_map(|count| count.parse::<u64>().ok());
        bytes += (0..)
            .zip(counts)
            .skip(3)
            .map(|(order, count)| count * (PAGE << order))
            .sum::<u64>();
    }
    Ok(bytes)
}

/// What the test leaves of memory to be fragmented, page by page.
const FRAGMENTED: u64 = 600 << 20;

/// Takes most of memory in huge pages, which is quick.
fn take_huge_pages() -> Result<()> {
    const SWITCH: &str = "/proc/sys/vm/nr_hugepages";
    let pages = available()?.saturating_sub(FRAGMENTED) >> 21;
    write(SWITCH, pages.to_string()).with_context(|| format!("writing to {SWITCH}"))
}

fn available() -> Result<u64> {
    expect_meminfo("MemAvailable:")
}

/// Fills memory, makes every other page of it free, and holds the others where they are.
fn fragment_memory() -> Result<Session> {
    let pages = available()?.saturating_sub(24 << 20) / PAGE;
    let file = File::from(memfd_create("fragments", MemfdFlags::CLOEXEC)?);
    file.set_len(pages * PAGE)?;
    let chunk = vec![7; 64 * PAGE as usize];
    for start in (0..pages / 64 * 64).step_by(64) {
        file.write_all_at(&chunk, start * PAGE)?;
    }
    for page in (0..pages).step_by(2) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, page * PAGE, PAGE)?;
    }
    let session = Device::open()?.create_session("holding")?;
    session.preserve(Token(1), file.as_fd())?;
    Ok(session)
}

pub(super) fn preserve_in_fragments(held: &mut HeldOpen) -> Result<()> {
    take_huge_pages()?;
    let before = large_blocks()?;
    let fragments = fragment_memory()?;
    let after = large_blocks()?;
    println!("free in blocks of eight pages: {before} bytes, now {after}");
    ensure!(
        after < before / 8,
        "memory is not fragmented: {before} bytes became {after}"
    );
    let session = Device::open()?.create_session(FRAGMENTS)?;
    held.hold(&session)?;
    let small = every_other_page("small", SMALL_EXTENTS)?;
    session.preserve(SMALL, small.as_fd())?;
    drop(refuse_a_jump(2)?);
    // What comes late has to find memory, too.
    small.write_all_at(&LATE, 0)?;
    // The next kernel would reserve each page that it holds on its own.
    drop(fragments);
    Ok(())
}

pub(super) fn take_fragments(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(FRAGMENTS)?;
    let small = File::from(session.retrieve(SMALL)?);
    expect_every_other_page(&small, SMALL_EXTENTS)?;
    let mut late = [0; LATE.len()];
    small.read_exact_at(&mut late, 0)?;
    ensure!(late == LATE, "what came late is lost");
    Ok(session.finish()?)
}
