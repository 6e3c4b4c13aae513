// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds of huge pages between freeze and the jump: nothing is half preserved, memory that failed
//! refuses the jump.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{fence, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::{kexec, Device};
use rustix::fs::{fallocate, FallocateFlags};
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::sys::surviving_bus_errors;
use crate::tests::expect::{expect_errno, expect_refused_jump};
use crate::tests::failing_freeze::{BAD, SOUND};
use crate::tests::held_open::HeldOpen;
use crate::tests::hugetlb::{huge_memfd, map, number, number_at, Counters, HUGE, POOL};

const TOKEN: Token = Token(1);
const WRITTEN: &str = "huge-written";
const PAGES: u64 = 512;
/// So that holes are left when the jump comes.
const PACE: Duration = Duration::from_millis(10);
/// So many pages are written before anything else happens.
const BEGUN: u64 = 8;

/// A thread that numbers one page after the other, and then writes in the first how far it is.
fn begin_writer(file: &File) -> Result<()> {
    let mapping = map(file, PAGES)?;
    thread::spawn(move || {
        for page in 1..PAGES {
            number(&mapping, page);
            fence(Ordering::SeqCst);
            mapping.write(8, &page.to_le_bytes());
            fence(Ordering::SeqCst);
            thread::sleep(PACE);
        }
    });
    Ok(())
}

fn progress(file: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 8)?;
    Ok(u64::from_le_bytes(bytes))
}

fn wait_for(file: &File, page: u64) -> Result<()> {
    let begun = Instant::now();
    while progress(file)? < page {
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "the writer stands still at page {}",
            progress(file)?
        );
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Marks the memory of a huge page as broken.
fn spoil(file: &File, pages: u64, page: u64) -> Result<()> {
    let mapping = map(file, pages)?;
    number(&mapping, page);
    let start = (page * HUGE) as usize;
    match surviving_bus_errors(|| mapping.advise(start..start + 4096, Advice::LinuxHwPoison)) {
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(()),
        result => result.context("declaring memory broken"),
    }
}

/// A jump is refused while a task fills holes, for memory that failed since prepare; the task goes
/// on, and crosses with the next jump.
pub(super) fn write_on(_command_line: &str) -> Result<()> {
    POOL.resize(PAGES + 8)?;
    let mut held = HeldOpen::default();
    let session = Device::open()?.create_session(WRITTEN)?;
    let file = huge_memfd("written", PAGES)?;
    number(&map(&file, 1)?, 0);
    session.preserve(TOKEN, file.as_fd())?;
    held.hold(&session)?;
    begin_writer(&file)?;
    wait_for(&file, BEGUN)?;

    let bad_session = Device::open()?.create_session(BAD)?;
    let bad = huge_memfd("spoilt", 4)?;
    fallocate(&bad, FallocateFlags::empty(), 0, 4 * HUGE)?;
    bad_session.preserve(TOKEN, bad.as_fd())?;
    spoil(&bad, 4, 2)?;
    expect_refused_jump(Errno::IO, 1)?;
    wait_for(&file, progress(&file)? + BEGUN)?;
    drop(bad_session);
    bail!("the jump was refused: {}", kexec::jump())
}

/// After the jump.
pub(super) fn compare(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(WRITTEN)?;
    let file = File::from(session.retrieve(TOKEN)?);
    let progress = progress(&file)?;
    ensure!(
        (2 * BEGUN..PAGES - 1).contains(&progress),
        "the writer was at page {progress}: it has to be at work when the jump comes"
    );
    let mut pages = 0;
    for page in 0..PAGES {
        let found = number_at(&file, page)?;
        // The page after the last one that is known may have come as well.
        ensure!(
            found == page + 1 || (found == 0 && page > progress),
            "of {progress} pages that were written page {page} holds {found}"
        );
        pages += u64::from(found != 0);
    }
    let counters = POOL.counters()?;
    // A page may have come whose number had not been written yet.
    ensure!(
        [pages, pages + 1]
            .map(Counters::of_files)
            .contains(&counters),
        "{pages} pages came, the kernel counts {counters:?}"
    );
    Ok(session.finish()?)
}

/// What is preserved and sound beside it crosses with the next jump; the pool is whole again but
/// for the page that failed.
pub(super) fn spoil_what_is_preserved(held: &mut HeldOpen) -> Result<()> {
    POOL.resize(8)?;
    let session = Device::open()?.create_session(SOUND)?;
    let sound = huge_memfd("sound", 2)?;
    number(&map(&sound, 2)?, 1);
    session.preserve(TOKEN, sound.as_fd())?;
    let bad_session = Device::open()?.create_session(BAD)?;
    let bad = huge_memfd("spoilt", 4)?;
    number(&map(&bad, 4)?, 1);
    // Before prepare as well as after it.
    spoil(&bad, 4, 3)?;
    let refused = bad_session.preserve(TOKEN, bad.as_fd());
    expect_errno(refused, Errno::IO, "preserving memory that failed")?;
    drop((bad, bad_session));
    held.hold(&session)
}

pub(super) fn take_sound(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(SOUND)?;
    let sound = File::from(session.retrieve(TOKEN)?);
    ensure!(number_at(&sound, 1)? == 2, "the sound page is lost");
    Ok(session.finish()?)
}
