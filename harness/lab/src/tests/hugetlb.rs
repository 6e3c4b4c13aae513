// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds of huge pages: they come back without a page of the next kernel's pool, and each of its
//! counters is right before, during and after.

use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{fchown, FileExt, MetadataExt, PermissionsExt};

use anyhow::{ensure, Context, Result};
use luo_bench::memory::{allocated_bytes, free_bytes};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};
use luo_orchestrator::SharedMapping;
use rustix::fs::{
    fallocate, fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fcntl_setfl, memfd_create,
    FallocateFlags, MemfdFlags, OFlags, SealFlags,
};
use rustix::io::Errno;

use crate::tests::expect::expect_freed;
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{retrieve, verify};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const HUGE: u64 = 2 * MIB;

/// The pool of huge pages of one size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool(pub(super) u64);

/// What the kernel reports of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) reserved: u64,
    pub(super) surplus: u64,
}

impl Counters {
    /// With so many pages of files that crossed, and nothing else.
    pub(super) const fn of_files(pages: u64) -> Self {
        Self {
            total: pages,
            free: 0,
            reserved: 0,
            surplus: pages,
        }
    }
}

impl Pool {
    fn path(self, name: &str) -> String {
        let kilobytes = self.0 >> 10;
        format!("/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/{name}_hugepages")
    }

    fn number(self, name: &str) -> Result<u64> {
        let path = self.path(name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        Ok(text.trim().parse()?)
    }

    pub(super) fn counters(self) -> Result<Counters> {
        Ok(Counters {
            total: self.number("nr")?,
            free: self.number("free")?,
            reserved: self.number("resv")?,
            surplus: self.number("surplus")?,
        })
    }

    pub(super) fn expect(self, expected: Counters, when: &str) -> Result<()> {
        let found = self.counters()?;
        ensure!(
            found == expected,
            "{when} the pool has {found:?}, expected {expected:?}"
        );
        Ok(())
    }

    /// Has so many pages in it that stay.
    pub(super) fn resize(self, pages: u64) -> Result<()> {
        fs::write(self.path("nr"), pages.to_string())?;
        let Counters { total, surplus, .. } = self.counters()?;
        ensure!(
            total - surplus == pages,
            "of {pages} huge pages the kernel has {total}"
        );
        Ok(())
    }
}

pub(super) const POOL: Pool = Pool(HUGE);

const fn huge(pages: u64, fill: Fill, seed: u64) -> Workload {
    Workload {
        size: pages * HUGE,
        pages: Pages::HugetlbOf(HUGE),
        fill,
        seed,
    }
}

pub(super) fn huge_memfd(name: &str, pages: u64) -> Result<File> {
    let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let flags = flags | MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let file = File::from(memfd_create(name, flags)?);
    file.set_len(pages * HUGE)?;
    Ok(file)
}

pub(super) fn map(file: &File, pages: u64) -> Result<SharedMapping> {
    SharedMapping::new(file, 0..pages * HUGE).context("mapping huge pages")
}

/// Writes its number into a page, which brings it.
pub(super) fn number(mapping: &SharedMapping, page: u64) {
    mapping.write((page * HUGE) as usize, &(page + 1).to_le_bytes());
}

/// The number in a page, 0 in a hole.
pub(super) fn number_at(file: &File, page: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, page * HUGE)?;
    Ok(u64::from_le_bytes(bytes))
}

fn expect_numbers(file: &File, pages: u64, numbered: &[u64]) -> Result<()> {
    for page in 0..pages {
        let expected = if numbered.contains(&page) {
            page + 1
        } else {
            0
        };
        let found = number_at(file, page)?;
        ensure!(found == expected, "huge page {page} holds {found}");
    }
    Ok(())
}

const SESSION: &str = "huge";
const AGAIN: &str = "huge-again";

const DENSE: Workload = huge(8, Fill::Dense, 1);
const SPARSE: Workload = huge(32, Fill::sparse(2500), 2);
const SHUFFLED: Workload = huge(8, Fill::Shuffled, 3);
const EMPTY: Workload = huge(0, Fill::Dense, 4);
const HOLE: Workload = huge(16, Fill::sparse(0), 5);
const WORKLOADS: [Workload; 5] = [DENSE, SPARSE, SHUFFLED, EMPTY, HOLE];

const LATE: Token = Token(6);
const LATE_PAGES: u64 = 8;
const ATTRIBUTES: Token = Token(7);
const UNCLAIMED: Token = Token(8);
const UNCLAIMED_PAGES: u64 = 8;
/// Of huge pages, but not as many as whole ones.
const ODD_SIZE: u64 = 3 * MIB;

/// Preserves a file, which changes nothing of the pool.
fn preserve(session: &Session, token: Token, file: &File) -> Result<()> {
    let (before, bytes) = (POOL.counters()?, allocated_bytes(file)?);
    session.preserve(token, file.as_fd())?;
    POOL.expect(before, "after prepare")?;
    ensure!(allocated_bytes(file)? == bytes, "prepare filled holes");
    Ok(())
}

/// Neither size nor holes change as long as it is preserved.
fn expect_fixed(file: &File) -> Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let size = file.metadata()?.len();
    let refused = [
        ("shrinking it", file.set_len(0).err()),
        ("growing it", file.set_len(size + HUGE).err()),
        (
            "punching a hole",
            fallocate(file, punch, 0, HUGE).err().map(Into::into),
        ),
        (
            "filling a hole by fallocate",
            fallocate(file, FallocateFlags::empty(), 0, size)
                .err()
                .map(Into::into),
        ),
        (
            "mapping beyond its end",
            SharedMapping::new(file, 0..size + HUGE).err(),
        ),
    ];
    for (what, error) in refused {
        let errno = error.and_then(|error| Errno::from_io_error(&error));
        ensure!(errno == Some(Errno::PERM), "{what}: {errno:?}");
    }
    Ok(())
}

pub(super) fn preserve_all(held: &mut HeldOpen) -> Result<()> {
    POOL.resize(128)?;
    let session = Device::open()?.create_session(SESSION)?;
    for workload in &WORKLOADS {
        let file = workload.make(|_| ())?;
        preserve(&session, Token(workload.seed), &file)?;
        verify(workload, &file)?;
    }

    let late = huge_memfd("late", LATE_PAGES)?;
    let mapping = map(&late, LATE_PAGES)?;
    number(&mapping, 0);
    number(&mapping, 3);
    preserve(&session, LATE, &late)?;
    expect_fixed(&late)?;
    number(&mapping, 5);
    mapping.write(HUGE as usize - 8, &[7; 8]);

    preserve(&session, ATTRIBUTES, &with_attributes()?)?;

    let unclaimed = huge_memfd("unclaimed", UNCLAIMED_PAGES)?;
    fallocate(
        &unclaimed,
        FallocateFlags::empty(),
        0,
        UNCLAIMED_PAGES * HUGE,
    )?;
    preserve(&session, UNCLAIMED, &unclaimed)?;

    cancel()?;
    held.hold(&session)
}

/// After a cancel all is as if the file had never been offered.
fn cancel() -> Result<()> {
    let session = Device::open()?.create_session("huge-cancelled")?;
    let before = POOL.counters()?;
    let file = huge_memfd("cancelled", 4)?;
    let mapping = map(&file, 4)?;
    number(&mapping, 1);
    preserve(&session, Token(1), &file)?;
    number(&mapping, 2);
    drop(session);
    expect_numbers(&file, 4, &[1, 2])?;
    number(&mapping, 3);
    drop(mapping);
    file.set_len(2 * HUGE)?;
    drop(file);
    POOL.expect(before, "after a cancel")
}

const OWNER: (u32, u32) = (1000, 1001);
const MODE: u32 = 0o640;
const SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK);
const POSITION: u64 = 12345;

fn with_attributes() -> Result<File> {
    let mut file = huge_memfd("attributes", 0)?;
    fallocate(&file, FallocateFlags::empty(), 0, ODD_SIZE)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    fchown(&file, Some(OWNER.0), Some(OWNER.1))?;
    fcntl_add_seals(&file, SEALS)?;
    fcntl_setfl(&file, OFlags::APPEND | OFlags::NONBLOCK)?;
    file.seek(SeekFrom::Start(POSITION))?;
    Ok(file)
}

fn expect_attributes(file: &mut File) -> Result<()> {
    let metadata = file.metadata()?;
    let found = (metadata.uid(), metadata.gid());
    ensure!(found == OWNER, "the owner is {found:?}");
    let mode = metadata.mode() & 0o7777;
    ensure!(mode == MODE, "the mode is {mode:o}");
    ensure!(metadata.len() == ODD_SIZE, "the size is {}", metadata.len());
    ensure!(metadata.blocks() * 512 == 2 * HUGE, "it has other pages");
    ensure!(metadata.blksize() == HUGE, "they have another size");
    let seals = fcntl_get_seals(&*file)?;
    ensure!(seals == SEALS, "the seals are {seals:?}");
    let flags = fcntl_getfl(&*file)?;
    let kept = OFlags::APPEND | OFlags::NONBLOCK | OFlags::RDWR;
    ensure!(flags.contains(kept), "the flags are {flags:?}");
    let position = file.stream_position()?;
    ensure!(position == POSITION, "the position is {position}");
    let name = fs::read_link(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(file)
    ))?;
    ensure!(
        name.as_os_str() == "/memfd:attributes (deleted)",
        "the name is {name:?}"
    );
    Ok(())
}

/// In a kernel that has no pool: each page that comes back is a surplus page.
pub(super) fn retrieve_all(held: &mut HeldOpen) -> Result<()> {
    POOL.expect(Counters::default(), "before anything is retrieved")?;
    let session = Device::open()?.retrieve_session(SESSION)?;
    let mut files = Vec::new();
    let mut pages = 0;
    for workload in &WORKLOADS {
        files.push(retrieve(&session, workload)?);
        pages += workload.count();
        expect_pages(pages, 0, "after a memfd was retrieved")?;
    }
    let late = File::from(session.retrieve(LATE)?);
    expect_numbers(&late, LATE_PAGES, &[0, 3, 5])?;
    let mut end = [0; 8];
    late.read_exact_at(&mut end, HUGE - 8)?;
    ensure!(end == [7; 8], "what was written after prepare is lost");
    let mut attributes = File::from(session.retrieve(ATTRIBUTES)?);
    expect_attributes(&mut attributes)?;
    pages += 3 + 2;
    expect_pages(pages, 0, "after all were retrieved")?;
    let before = free_bytes()?;
    session.finish()?;
    expect_freed(before, UNCLAIMED_PAGES * HUGE)?;
    expect_pages(pages, 0, "after finish")?;

    leave_to_the_pool(pages)?;
    fill_a_hole(&late, pages)?;
    drop((late, attributes));
    pages -= 3 + 2;
    expect_pages(pages, 6, "after two were closed")?;

    let again = Device::open()?.create_session(AGAIN)?;
    for (workload, file) in WORKLOADS.iter().zip(&files) {
        preserve(&again, Token(workload.seed), file)?;
    }
    held.hold(&again)
}

/// Refuses anything but so many pages of files that crossed, and so many in the pool, all free.
fn expect_pages(crossed: u64, pool: u64, when: &str) -> Result<()> {
    let expected = Counters {
        total: crossed + pool,
        free: pool,
        ..Counters::of_files(crossed)
    };
    POOL.expect(expected, when)
}

/// Others use the pool as if no file had crossed.
fn leave_to_the_pool(crossed: u64) -> Result<()> {
    POOL.resize(4)?;
    expect_pages(crossed, 4, "with a pool")?;
    let other = huge_memfd("other", 4)?;
    let mapping = map(&other, 4)?;
    let expected = Counters {
        reserved: 4,
        ..POOL.counters()?
    };
    POOL.expect(expected, "with a reservation")?;
    drop((mapping, other));
    expect_pages(crossed, 4, "after a reservation was given up")?;
    let other = huge_memfd("other", 4)?;
    fallocate(&other, FallocateFlags::empty(), 0, 4 * HUGE)?;
    let none = fallocate(huge_memfd("none", 1)?, FallocateFlags::empty(), 0, HUGE);
    ensure!(
        none == Err(Errno::NOSPC),
        "a fifth page of four is {none:?}"
    );
    drop(other);
    expect_pages(crossed, 4, "after a file of the pool was closed")
}

/// A hole of a file that crossed is one of any file: it takes a page of the pool, and a reservation
/// as soon as it is mapped.
fn fill_a_hole(late: &File, crossed: u64) -> Result<()> {
    ensure!(map(late, LATE_PAGES).is_err(), "5 holes, 4 pages");
    POOL.resize(6)?;
    let mapping = map(late, LATE_PAGES)?;
    let mapped = Counters {
        total: crossed + 6,
        free: 6,
        reserved: 5,
        surplus: crossed,
    };
    POOL.expect(mapped, "with holes that are mapped")?;
    number(&mapping, 1);
    let filled = Counters {
        free: 5,
        reserved: 4,
        ..mapped
    };
    POOL.expect(filled, "with a hole that was filled")?;
    drop(mapping);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(late, punch, 5 * HUGE, HUGE)?;
    let punched = Counters {
        total: crossed + 6 - 1,
        surplus: crossed - 1,
        ..filled
    };
    POOL.expect(punched, "with a new hole")?;
    expect_numbers(late, LATE_PAGES, &[0, 1, 3])
}

/// What came twice comes back, and when it is closed its memory is free.
pub(super) fn retrieve_again(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(AGAIN)?;
    let files: Result<Vec<File>> = WORKLOADS
        .iter()
        .map(|workload| retrieve(&session, workload))
        .collect();
    let files = files?;
    session.finish()?;
    let pages: u64 = WORKLOADS.iter().map(Workload::count).sum();
    expect_pages(pages, 0, "after a second jump")?;
    let before = free_bytes()?;
    drop(files);
    POOL.expect(Counters::default(), "after the last close")?;
    expect_freed(before, pages * HUGE)
}
