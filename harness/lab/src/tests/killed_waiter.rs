// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A task that fills a hole of a frozen memfd waits, and can be killed while it does.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::kexec::{self, KexecError};
use luo_liveupdate::{Device, Session};
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::io::Errno;
use rustix::process::{kill_process, Pid, Signal};

use crate::guest::programs::{program, BUSYBOX};
use crate::tests::failing_freeze::{spoil, BAD, BAD_MEMFD};
use crate::tests::held_open::HeldOpen;
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
fn fill(file: &File, attempt: usize) -> Result<Child> {
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
    Ok(task)
}

/// Whether a task sleeps where only a fatal signal wakes it.
fn waits(task: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", task.as_raw_nonzero()));
    status.is_ok_and(|status| status.contains(") D "))
}

/// Kills the task when it waits, and returns whether it had ended before the jump was refused.
fn kill_while_waiting(mut task: Child, refused: &AtomicBool) -> Result<bool> {
    let pid = Pid::from_child(&task);
    // Twice, so that it is not a lock that it waits for.
    while !(waits(pid) && waits(pid)) {
        if refused.load(Ordering::SeqCst) {
            break;
        }
    }
    kill_process(pid, Signal::KILL)?;
    let status = task.wait()?;
    let in_time = !refused.load(Ordering::SeqCst);
    ensure!(status.signal() == Some(9), "dd ended with {status}");
    Ok(in_time)
}

/// Jumps are refused until a task was killed while it waited.
pub(super) fn kill(held: &mut HeldOpen) -> Result<()> {
    let session_filled = session(FILLED)?;
    let filled = File::from(memfd_create(FILLED, MemfdFlags::CLOEXEC)?);
    filled.set_len((ATTEMPTS * ROOM * PAGE) as u64)?;
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
        let task = fill(&filled, attempt)?;
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
    // Its holes can be filled again.
    filled.write_all_at(&[2; PAGE], 0)?;
    drop(session_bad);
    held.hold(&session_filled)?;
    held.hold(&session_busy)
}

/// After the next jump.
pub(super) fn take(_held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let session = device.retrieve_session(FILLED)?;
    let filled = File::from(session.retrieve(TOKEN)?);
    let mut page = [0; PAGE];
    filled.read_exact_at(&mut page, 0)?;
    ensure!(page == [2; PAGE], "the last page written did not come back");
    session.finish()?;
    let session = device.retrieve_session(BUSY)?;
    let busy = File::from(session.retrieve(TOKEN)?);
    for page in (0..2 * LATE).step_by(2) {
        let mut number = [0; 8];
        busy.read_exact_at(&mut number, page * PAGE as u64)?;
        let found = u64::from_le_bytes(number);
        ensure!(found == page, "page {page} holds {found}");
    }
    Ok(session.finish()?)
}
