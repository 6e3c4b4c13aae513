// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A task that fills a hole of a frozen memfd waits, and can be killed while it does.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::kexec::{self, KexecError};
use luo_liveupdate::{Device, Session};
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::io::Errno;
use rustix::process::{kill_process, waitpid, Pid, Signal, WaitOptions};

use crate::guest::programs::{program, BUSYBOX};
use crate::sys::write_in_a_process;
use crate::tests::failing_freeze::{spoil, BAD, BAD_MEMFD};
use crate::tests::held_open::HeldOpen;
use crate::tests::hugetlb::{huge_memfd, map, number, number_at, HUGE};
use crate::tests::memfds::preserve;

const PAGE: usize = 4096;
const FILLED: &str = "filled";
const TOKEN: Token = Token(1);
/// Pages that one task may fill.
const ROOM: usize = 1 << 14;
const ATTEMPTS: usize = 20;
/// Between two pages, so that the task is at work when the jump comes.
const PACE: Duration = Duration::from_micros(50);
/// Frozen after the file that is filled: so many pages that came lately are preserved by freeze,
/// none beside another, and meanwhile the task waits.
const LATE: u64 = 1 << 13;
const BUSY: &str = "busy";

fn session(name: &str) -> Result<Session> {
    Ok(Device::open()?.create_session(name)?)
}

/// Writes what freeze has to preserve.
fn write_late(file: &File, attempt: usize) -> Result<()> {
    for number in 0..LATE {
        let page = 2 * (attempt as u64 * LATE + number);
        file.write_all_at(&page.to_le_bytes(), page * PAGE as u64)?;
    }
    Ok(())
}

/// A task that copies pages from a pipe into the holes of a memfd.
fn fill(file: &File, attempt: usize) -> Result<Pid> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let arguments = [
        "dd".into(),
        format!("of={path}"),
        format!("bs={PAGE}"),
        format!("seek={}", attempt * ROOM),
        "conv=notrunc".into(),
    ];
    let mut task = program(BUSYBOX, &arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting dd")?;
    let mut pipe = task.stdin.take().context("dd has no input")?;
    thread::spawn(move || {
        for _ in 0..ROOM {
            match pipe.write_all(&[1; PAGE]) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return,
                written => written.expect("a page for dd"),
            }
            thread::sleep(PACE);
        }
    });
    Ok(Pid::from_child(&task))
}

/// Huge pages that one task may fill.
const HUGE_ROOM: usize = 24;
const HUGE_PAGES: u64 = (ATTEMPTS * HUGE_ROOM) as u64;
const HUGE_PACE: Duration = Duration::from_millis(5);
/// So many huge pages, reserved where they need not move.
pub(super) const HUGE_PARAMETERS: &str = "hugepages=480";

/// The same with stores to the holes of a memfd of huge pages, which has no `write(2)`.
fn fill_huge(file: &File, attempt: usize) -> Result<Pid> {
    let mapping = map(file, HUGE_PAGES)?;
    let pages = attempt * HUGE_ROOM..(attempt + 1) * HUGE_ROOM;
    let places = pages.map(|page| page * HUGE as usize);
    write_in_a_process(&mapping, places, HUGE_PACE).context("starting a process")
}

/// Whether a task sleeps where only a fatal signal wakes it.
fn waits(task: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", task.as_raw_nonzero()));
    status.is_ok_and(|status| status.contains(") D "))
}

/// Kills the task when it waits, and returns whether it had ended before the jump was refused.
fn kill_while_waiting(task: Pid, refused: &AtomicBool) -> Result<bool> {
    // Twice, so that it is not a lock that it waits for.
    while !(waits(task) && waits(task)) {
        if refused.load(Ordering::SeqCst) {
            break;
        }
    }
    kill_process(task, Signal::KILL)?;
    let ended = waitpid(Some(task), WaitOptions::empty())?;
    let in_time = !refused.load(Ordering::SeqCst);
    let (_, status) = ended.context("the task did not end")?;
    ensure!(
        status.terminating_signal() == Some(Signal::KILL.as_raw()),
        "the task ended with {status:?}"
    );
    Ok(in_time)
}

/// One fills a memfd of base pages with write(2).
pub(super) fn kill(held: &mut HeldOpen) -> Result<()> {
    let filled = File::from(memfd_create(FILLED, MemfdFlags::CLOEXEC)?);
    filled.set_len((ATTEMPTS * ROOM * PAGE) as u64)?;
    kill_who_fills(held, &filled, fill)?;
    // Its holes can be filled again.
    Ok(filled.write_all_at(&[2; PAGE], 0)?)
}

/// One fills a memfd of huge pages by page faults.
pub(super) fn kill_in_a_fault(held: &mut HeldOpen) -> Result<()> {
    let filled = huge_memfd(FILLED, HUGE_PAGES)?;
    kill_who_fills(held, &filled, fill_huge)?;
    let last = HUGE_PAGES - 1;
    number(&map(&filled, HUGE_PAGES)?, last);
    Ok(())
}

/// Jumps are refused until a task was killed while it waited.
fn kill_who_fills(
    held: &mut HeldOpen,
    filled: &File,
    fill: fn(&File, usize) -> Result<Pid>,
) -> Result<()> {
    let session_filled = session(FILLED)?;
    session_filled.preserve(TOKEN, filled.as_fd())?;
    let session_busy = session(BUSY)?;
    let busy = File::from(memfd_create(BUSY, MemfdFlags::CLOEXEC)?);
    busy.set_len(2 * LATE * (ATTEMPTS * PAGE) as u64)?;
    session_busy.preserve(TOKEN, busy.as_fd())?;
    let session_bad = session(BAD)?;
    let bad = preserve(&session_bad, &[BAD_MEMFD])?;
    spoil(bad.first().context("no memfd")?, 0)?;

    let mut killed = false;
    for attempt in 0..ATTEMPTS {
        write_late(&busy, attempt)?;
        let task = fill(filled, attempt)?;
        let refused = AtomicBool::new(false);
        killed = thread::scope(|scope| {
            let killer = scope.spawn(|| kill_while_waiting(task, &refused));
            let error = kexec::jump();
            refused.store(true, Ordering::SeqCst);
            ensure!(
                matches!(error, KexecError::Refused(Errno::IO)),
                "expected a refused jump, found: {error}"
            );
            killer.join().expect("the killer")
        })?;
        if killed {
            break;
        }
    }
    ensure!(killed, "in {ATTEMPTS} attempts no task was killed in time");
    drop(session_bad);
    held.hold(&session_filled)?;
    held.hold(&session_busy)
}

/// After the next jump.
pub(super) fn take(_held: &mut HeldOpen) -> Result<()> {
    let mut page = [0; PAGE];
    take_filled(|filled| Ok(filled.read_exact_at(&mut page, 0)?))?;
    ensure!(page == [2; PAGE], "the last page written did not come back");
    take_busy()
}

/// The same with huge pages.
pub(super) fn take_huge(_held: &mut HeldOpen) -> Result<()> {
    let last = HUGE_PAGES - 1;
    let mut found = 0;
    take_filled(|filled| {
        found = number_at(filled, last)?;
        Ok(())
    })?;
    ensure!(found == HUGE_PAGES, "the last huge page holds {found}");
    take_busy()
}

fn take_filled(look: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let session = Device::open()?.retrieve_session(FILLED)?;
    look(&File::from(session.retrieve(TOKEN)?))?;
    Ok(session.finish()?)
}

fn take_busy() -> Result<()> {
    let session = Device::open()?.retrieve_session(BUSY)?;
    let busy = File::from(session.retrieve(TOKEN)?);
    for page in (0..2 * LATE).step_by(2) {
        let mut number = [0; 8];
        busy.read_exact_at(&mut number, page * PAGE as u64)?;
        let found = u64::from_le_bytes(number);
        ensure!(found == page, "page {page} holds {found}");
    }
    Ok(session.finish()?)
}
