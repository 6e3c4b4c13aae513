// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds of every shape.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{ensure, Context, Result};
use rustix::fs::{
    fallocate, fcntl_add_seals, fcntl_get_seals, FallocateFlags, MemfdFlags, SealFlags,
};
use rustix::io::Errno;

use crate::tests::case::Case;
use crate::tests::expect::expect_errno;
use crate::tests::memfds::{expect_memory, memfd, preserve, retrieve, verify};
use crate::tests::{far_apart, folios, two_sessions};
use luo_bench::memory::free_bytes;
use luo_bench::memory::{allocated_bytes, meminfo};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};
use luo_orchestrator::holes;

const MIB: u64 = 1 << 20;

/// Memfds of every shape.
pub(crate) static MEMFDS: &[Case] = &[
    Case::new(
        "dense",
        "every page filled, in order",
        |session| send(session, &DENSE),
        |session| take(session, &DENSE),
    ),
    Case::new(
        "sparse",
        "holes stay holes, before and after the jump",
        |session| send(session, &SPARSE),
        |session| take(session, &SPARSE),
    ),
    Case::new(
        "shuffled",
        "frames in another order than offsets",
        |session| send(session, &SHUFFLED),
        |session| take(session, &SHUFFLED),
    ),
    Case::new(
        "empty",
        "a memfd of zero bytes, and one that is all hole",
        |session| send(session, &EMPTY),
        |session| take(session, &EMPTY),
    ),
    Case::new(
        "odd_length",
        "sizes that are not a whole number of pages",
        |session| send(session, &ODD),
        |session| take(session, &ODD),
    ),
    Case::new(
        "thousand",
        "1000 memfds in one session",
        |session| send(session, &thousand()),
        |session| take(session, &thousand()),
    ),
    Case::new(
        "reverse_order",
        "retrieved in another order than preserved",
        |session| send(session, &REVERSED),
        take_in_reverse,
    ),
    Case::new(
        "late_written",
        "data overwritten and holes filled after prepare",
        send_late_written,
        |session| take(session, &[LATE]),
    ),
    Case::new(
        "unwritten",
        "memory that was allocated and never written reads as zeros",
        send_unwritten,
        take_unwritten,
    ),
    Case::new(
        "huge_pages",
        "transparent huge pages stay huge pages",
        send_huge_pages,
        take_huge_pages,
    ),
    Case::new(
        "seals_and_position",
        "each seal, and a position that moves after prepare",
        send_seals,
        take_seals,
    ),
    Case::new(
        "retrieve_twice",
        "the second retrieve yields the same file",
        |session| send(session, &[TWICE]),
        take_twice,
    ),
    Case::new(
        "not_retrieved",
        "finish without retrieve frees the memory",
        |session| send(session, &[UNCLAIMED]),
        finish_without_retrieve,
    ),
    Case::new(
        "split_and_collapsed",
        "huge pages are split and others made between prepare and freeze",
        folios::split_and_collapse,
        folios::take_split_and_collapsed,
    ),
    Case::new(
        "two_sessions",
        "a memfd belongs to one session until that gives it up",
        two_sessions::offer_in_both,
        two_sessions::take_from_one,
    ),
    Case::new(
        "far_apart",
        "16 TiB with three pages",
        far_apart::preserve_far_apart,
        far_apart::take_far_apart,
    ),
    Case::local(
        "cancelled",
        "after a cancel the memory is back, to the page, and holes are holes",
        cancel,
    ),
    Case::local(
        "refused",
        "a file offered twice, a token used twice and a file that is not a memfd are refused",
        refuse,
    ),
];

static DENSE: [Workload; 1] = [memfd(32 * MIB, Fill::Dense, 1)];
static SPARSE: [Workload; 2] = [
    memfd(256 * MIB, Fill::sparse(500), 1),
    memfd(4096 * MIB, Fill::sparse(0), 2),
];
static SHUFFLED: [Workload; 1] = [memfd(16 * MIB, Fill::Shuffled, 1)];
static EMPTY: [Workload; 2] = [
    memfd(0, Fill::Dense, 1),
    memfd(64 * MIB, Fill::sparse(0), 2),
];
static ODD: [Workload; 3] = [
    memfd(1, Fill::Dense, 1),
    memfd(MIB + 4095, Fill::Dense, 2),
    memfd(9 * MIB + 123, Fill::sparse(3000), 3),
];
static REVERSED: [Workload; 3] = [
    memfd(MIB, Fill::Dense, 9),
    memfd(2 * MIB, Fill::sparse(5000), 4),
    memfd(3 * MIB, Fill::Shuffled, u64::MAX),
];
const TWICE: Workload = memfd(MIB, Fill::Dense, 7);
const UNCLAIMED: Workload = memfd(64 * MIB, Fill::Dense, 5);

fn thousand() -> Vec<Workload> {
    (1..=1000)
        .map(|seed| memfd(4096 + seed, Fill::Dense, seed))
        .collect()
}

fn send(session: &Session, workloads: &[Workload]) -> Result<()> {
    for workload in workloads {
        let files = preserve(session, std::slice::from_ref(workload))?;
        for file in &files {
            workload.verify(file.as_fd(), |_| ())?;
        }
    }
    Ok(())
}

fn take(session: &Session, workloads: &[Workload]) -> Result<()> {
    for workload in workloads {
        retrieve(session, workload)?;
    }
    Ok(session.finish()?)
}

fn take_in_reverse(session: &Session) -> Result<()> {
    for workload in REVERSED.iter().rev() {
        retrieve(session, workload)?;
    }
    expect_errno(
        session.retrieve(Token(1)),
        Errno::NOENT,
        "retrieving a token that nobody used",
    )?;
    Ok(session.finish()?)
}

const EARLY: Workload = memfd(64 * MIB, Fill::sparse(500), 3);
/// Fills all that [`EARLY`] fills, and more.
const LATE: Workload = memfd(64 * MIB, Fill::sparse(3000), 3);

fn send_late_written(session: &Session) -> Result<()> {
    let file = EARLY.make(|_| ())?;
    for data in holes::data_ranges(&holes::reopen(file.as_fd())?, EARLY.size)? {
        let other = vec![0xa5; (data.end - data.start) as usize];
        file.write_all_at(&other, data.start)?;
    }
    session.preserve(Token(EARLY.seed), file.as_fd())?;
    Ok(LATE.write(&file, |_| ())?)
}

const UNWRITTEN_PAGES: u64 = 100;
const UNWRITTEN_SEED: u64 = 1;
/// Pages that are allocated, up to beyond the end; of those one is written.
const ALLOCATED: std::ops::Range<u64> = 40..120;
const WRITTEN: u64 = 50;

fn page() -> u64 {
    rustix::param::page_size() as u64
}

fn send_unwritten(session: &Session) -> Result<()> {
    let file = File::from(rustix::fs::memfd_create("unwritten", MemfdFlags::CLOEXEC)?);
    file.set_len(UNWRITTEN_PAGES * page())?;
    let length = (ALLOCATED.end - ALLOCATED.start) * page();
    let start = ALLOCATED.start * page();
    fallocate(&file, FallocateFlags::KEEP_SIZE, start, length).context("allocating memory")?;
    file.write_all_at(&vec![0xc3; page() as usize], WRITTEN * page())?;
    Ok(session.preserve(Token(UNWRITTEN_SEED), file.as_fd())?)
}

fn take_unwritten(session: &Session) -> Result<()> {
    let file = File::from(session.retrieve(Token(UNWRITTEN_SEED))?);
    let mut expected = vec![0; (UNWRITTEN_PAGES * page()) as usize];
    let written = (WRITTEN * page()) as usize;
    expected[written..written + page() as usize].fill(0xc3);
    let mut found = vec![1; expected.len()];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found == expected, "what was never written is not all zeros");
    let within = (UNWRITTEN_PAGES - ALLOCATED.start) * page();
    expect_memory(&file, within, "after it was retrieved")?;
    Ok(session.finish()?)
}

const HUGE: Workload = Workload {
    size: 32 * MIB,
    pages: Pages::Thp,
    fill: Fill::Dense,
    seed: 1,
};

fn huge_bytes() -> u64 {
    meminfo("ShmemHugePages:").unwrap_or(0)
}

fn send_huge_pages(session: &Session) -> Result<()> {
    fs::write(
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "advise",
    )
    .context("allowing huge pages")?;
    send(session, &[HUGE])
}

fn take_huge_pages(session: &Session) -> Result<()> {
    let before = huge_bytes();
    let _file = retrieve(session, &HUGE)?;
    let huge = huge_bytes() - before;
    ensure!(
        huge == HUGE.size,
        "expected {} bytes in huge pages, found {huge}",
        HUGE.size
    );
    Ok(session.finish()?)
}

/// A token, the seals of its memfd and its position in the end.
const SEALED: [(Token, SealFlags, u64); 5] = [
    (Token(1), SealFlags::empty(), 0),
    (Token(2), SealFlags::SHRINK.union(SealFlags::WRITE), 17),
    (Token(3), SealFlags::GROW.union(SealFlags::SEAL), 4096),
    (Token(4), SealFlags::FUTURE_WRITE, 1 << 40),
    (Token(5), SealFlags::SEAL, 12),
];
const SEALED_BYTES: [u8; 5] = *b"bytes";

fn send_seals(session: &Session) -> Result<()> {
    for (token, seals, position) in SEALED {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create("sealed", flags)?);
        file.write_all_at(&SEALED_BYTES, 0)?;
        fcntl_add_seals(&file, seals).context("sealing")?;
        file.seek(SeekFrom::Start(1))?;
        session.preserve(token, file.as_fd())?;
        file.seek(SeekFrom::Start(position))?;
    }
    Ok(())
}

fn take_seals(session: &Session) -> Result<()> {
    for (token, seals, position) in SEALED {
        let mut file = File::from(session.retrieve(token)?);
        let found = fcntl_get_seals(&file)?;
        ensure!(
            found == seals,
            "token {token}: the seals are {found:?} instead of {seals:?}"
        );
        let found = file.stream_position()?;
        ensure!(
            found == position,
            "token {token}: the position is {found} instead of {position}"
        );
        let mut bytes = SEALED_BYTES;
        file.read_exact_at(&mut bytes, 0)?;
        ensure!(
            bytes == SEALED_BYTES,
            "token {token}: other bytes came back"
        );
        let writable = file.write_all_at(b"B", 0).is_ok();
        let allowed = !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE);
        ensure!(writable == allowed, "token {token}: the seals do not hold");
    }
    Ok(session.finish()?)
}

fn take_twice(session: &Session) -> Result<()> {
    let first = retrieve(session, &TWICE)?;
    let second = retrieve(session, &TWICE)?;
    ensure!(
        first.metadata()?.ino() == second.metadata()?.ino(),
        "the second retrieve yielded another file"
    );
    session.finish()?;
    expect_errno(
        session.retrieve(Token(TWICE.seed)),
        Errno::NOENT,
        "retrieving after finish",
    )?;
    verify(&TWICE, &first)
}

/// What the allocator may hold back or give up meanwhile for reasons of its own.
const SLACK: u64 = 512 << 10;

fn finish_without_retrieve(session: &Session) -> Result<()> {
    let before = free_bytes()?;
    session.finish()?;
    let freed = free_bytes()?.saturating_sub(before);
    ensure!(
        freed + SLACK >= UNCLAIMED.size,
        "finish freed {freed} bytes, the memfd that nobody retrieved had {}",
        UNCLAIMED.size
    );
    Ok(())
}

const CANCELLED: Workload = memfd(16 * MIB, Fill::sparse(2000), 6);
/// So many that a page lost in each stands out from what the allocator does meanwhile.
const CANCELS: u64 = 200;

/// Memory that is not given back shows after many rounds, even if it is one page in each.
fn cancel(_session: &Session) -> Result<()> {
    let file = CANCELLED.make(|_| ())?;
    let allocated = allocated_bytes(&file)?;
    let round = || -> Result<()> {
        // Not the case's own session: it takes a closed one to cancel.
        let session = Device::open()?.create_session("cancelled-round")?;
        Ok(session.preserve(Token(CANCELLED.seed), file.as_fd())?)
    };
    round()?;
    let before = free_bytes()?;
    for _ in 0..CANCELS {
        round()?;
    }
    let lost = before.saturating_sub(free_bytes()?);
    ensure!(
        lost < CANCELS * page(),
        "{CANCELS} cancels lost {lost} bytes of memory"
    );
    expect_memory(&file, allocated, "after cancels")?;
    CANCELLED.verify(file.as_fd(), |_| ())?;
    // Sealing waits for everybody who still holds a page.
    fcntl_add_seals(&file, SealFlags::WRITE).context("sealing it after a cancel")
}

fn refuse(session: &Session) -> Result<()> {
    let file = TWICE.make(|_| ())?;
    session.preserve(Token(1), file.as_fd())?;
    expect_errno(
        session.preserve(Token(2), file.as_fd()),
        Errno::BUSY,
        "a file preserved twice",
    )?;
    let reopened = holes::reopen(file.as_fd())?;
    expect_errno(
        session.preserve(Token(2), reopened.as_fd()),
        Errno::BUSY,
        "a file preserved twice by two descriptions",
    )?;
    let other = TWICE.make(|_| ())?;
    expect_errno(
        session.preserve(Token(1), other.as_fd()),
        Errno::EXIST,
        "a token used twice",
    )?;
    let null = File::open("/dev/null")?;
    expect_errno(
        session.preserve(Token(3), null.as_fd()),
        Errno::NOENT,
        "preserving /dev/null",
    )
}
