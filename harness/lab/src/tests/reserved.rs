// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Devices after the jump: nobody takes them from the process that retrieves them, what passes is
//! waited for, and one that nobody asks for is released.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use luo_bench::memory::free_bytes;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};
use rustix::io::Errno;

use crate::tests::expect::{expect_errno, expect_lost};
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{self, memfd};
use crate::tests::pci;
use crate::tests::vfio_client::Client;

fn preserve(session: &Session, addresses: &[&str]) -> Result<()> {
    for (token, address) in (1..).map(Token).zip(addresses) {
        session.preserve(token, Client::by_cdev(address)?.as_fd())?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let file = File::options().read(true).write(true).open(path);
    file.map(OwnedFd::from)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Refuses a device that can be opened, by any of its files.
fn expect_reserved(address: &str) -> Result<()> {
    for path in [pci::device_file(address)?, pci::group_file(address)?] {
        let opened = open(&path).map(|_| ());
        ensure!(
            opened == Err(Errno::BUSY),
            "opening {} of {address}, which is reserved, ended with {opened:?}",
            path.display()
        );
    }
    Ok(())
}

/// Refuses a device that cannot be opened by both of its files, used, or taken from its driver.
fn expect_released(address: &str) -> Result<()> {
    open(&pci::group_file(address)?)
        .with_context(|| format!("opening the group of {address}, which nobody has"))?;
    let device = Client::by_cdev(address)?;
    let session = Device::open()?.create_session("again")?;
    session
        .preserve(Token(1), device.as_fd())
        .with_context(|| format!("preserving {address}, which nobody holds"))?;
    drop((session, device));
    pci::unbind(address)?;
    pci::bind(address)
}

const CLOSED: &str = "closed";
const HALF: &str = "half";
const FINISHED: &str = "finished";
const MEMORY: Workload = memfd(64 << 20, Fill::Dense, 0x100);
/// What the allocator may hold back meanwhile.
const SLACK: u64 = 1 << 20;

const OF_CLOSED: [&str; 2] = ["0000:00:10.0", "0000:00:12.0"];
const OF_HALF: [&str; 2] = ["0000:00:13.0", "0000:00:14.0"];
const OF_FINISHED: [&str; 1] = ["0000:00:15.0"];

pub(crate) fn preserve_to_give_up(held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    for (name, addresses) in [
        (CLOSED, &OF_CLOSED[..]),
        (HALF, &OF_HALF),
        (FINISHED, &OF_FINISHED),
    ] {
        let session = device.create_session(name)?;
        preserve(&session, addresses)?;
        memfds::preserve(&session, &[MEMORY])?;
        held.hold(&session)?;
    }
    Ok(())
}

/// Ends a session, by closing it, and returns the bytes that came free.
fn freed_by(end: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = free_bytes()?;
    end()?;
    Ok(free_bytes()?.saturating_sub(before))
}

fn expect_gone(name: &str, freed: u64) -> Result<()> {
    ensure!(
        freed + SLACK >= MEMORY.size,
        "{freed} bytes came free with the session {name}, its memfd had {}",
        MEMORY.size
    );
    expect_errno(
        Device::open()?.retrieve_session(name),
        Errno::NOENT,
        "retrieving a session that has ended",
    )
}

/// A session ends without its devices, and releases them and all the rest.
pub(crate) fn give_up(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(CLOSED)?;
    let freed = freed_by(|| {
        drop(session);
        Ok(())
    })?;
    expect_gone(CLOSED, freed)?;
    OF_CLOSED.into_iter().try_for_each(expect_released)?;
    // The other sessions' are not touched by that.
    OF_HALF.into_iter().try_for_each(expect_reserved)?;

    let session = Device::open()?.retrieve_session(HALF)?;
    let retrieved = Client::retrieved(session.retrieve(Token(1))?)?;
    let freed = freed_by(|| {
        drop(session);
        Ok(())
    })?;
    expect_gone(HALF, freed)?;
    retrieved.expect_answers()?;
    expect_released(OF_HALF[1])?;
    drop(retrieved);
    expect_released(OF_HALF[0])?;

    let session = Device::open()?.retrieve_session(FINISHED)?;
    let freed = freed_by(|| Ok(session.finish()?))?;
    expect_released(OF_FINISHED[0])?;
    drop(session);
    expect_gone(FINISHED, freed)
}

const RESERVED: &str = "reserved";
/// One that is retrieved as it should be; one whose owner closes it in time; one whose owner does
/// not.
const OURS: &str = "0000:00:10.0";
const CLOSED_IN_TIME: &str = "0000:00:12.0";
const NOT_CLOSED: &str = "0000:00:13.0";
const BY_GROUP: &str = "0000:00:14.0";

pub(crate) fn preserve_to_reserve(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(RESERVED)?;
    preserve(&session, &[OURS, CLOSED_IN_TIME, NOT_CLOSED, BY_GROUP])?;
    held.hold(&session)
}

/// Ends the reservation of a device, and opens one of its files as somebody else might.
fn take_away(address: &str, path: fn(&str) -> Result<std::path::PathBuf>) -> Result<OwnedFd> {
    pci::unbind(address)?;
    pci::bind(address)?;
    open(&path(address)?).with_context(|| format!("opening {address}, which was bound again"))
}

/// Before and after it was retrieved nobody else can open a device; where somebody has, retrieve
/// names them.
pub(crate) fn hold_reserved(_held: &mut HeldOpen) -> Result<()> {
    for address in [OURS, CLOSED_IN_TIME, NOT_CLOSED, BY_GROUP] {
        expect_reserved(address)?;
    }
    let others = take_away(NOT_CLOSED, pci::device_file)?;
    let others_group = take_away(BY_GROUP, pci::group_file)?;
    let for_a_moment = take_away(CLOSED_IN_TIME, pci::device_file)?;

    let session = Device::open()?.retrieve_session(RESERVED)?;
    let ours = session.retrieve(Token(1))?;
    expect_reserved(OURS)?;
    let ours = Client::retrieved(ours)?;
    expect_reserved(OURS)?;

    let closing = thread::spawn(|| {
        thread::sleep(Duration::from_secs(1));
        drop(for_a_moment);
    });
    let in_time = Client::retrieved(session.retrieve(Token(2))?)?;
    if closing.join().is_err() {
        bail!("the thread that closes a device panicked");
    }
    expect_lost(&session, Token(3), Errno::BUSY)?;
    expect_lost(&session, Token(4), Errno::BUSY)?;
    session.finish()?;
    drop(session);
    ours.expect_answers()?;
    in_time.expect_answers()?;
    // The first user of the device works on.
    Client::retrieved(others)?.expect_answers()?;
    drop(others_group);
    expect_released(BY_GROUP)
}

const RESET: &str = "reset";
/// One below a port can be reset, which takes its lock.
const RESETTABLE: &str = "0000:01:00.0";

pub(crate) fn preserve_to_reset(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(RESET)?;
    preserve(&session, &[RESETTABLE])?;
    held.hold(&session)
}

/// A device that is being reset is retrieved once that is over.
pub(crate) fn retrieve_while_reset(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(RESET)?;
    let (begun, begins) = mpsc::channel();
    let resetting = thread::spawn(move || -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            begun.send(()).ok();
            pci::reset(RESETTABLE)?;
        }
        Ok(())
    });
    begins.recv()?;
    thread::sleep(Duration::from_millis(20));
    let device = session.retrieve(Token(1));
    resetting
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that resets the device panicked"))??;
    let device = Client::retrieved(device?)?;
    session.finish()?;
    device.expect_answers()
}

const LATE: &str = "late";
/// Two that no driver takes at boot: one is bound before it is retrieved.
const BOUND_LATE: &str = "0000:00:10.0";
const NEVER_BOUND: &str = "0000:00:12.0";

pub(crate) fn preserve_to_bind_late(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(LATE)?;
    preserve(&session, &[BOUND_LATE, NEVER_BOUND])?;
    held.hold(&session)
}

/// In a kernel in which vfio-pci does not know the ids of the devices: one is reserved as soon as
/// it is bound, the other is lost.
pub(crate) fn bind_late(_held: &mut HeldOpen) -> Result<()> {
    pci::bind(BOUND_LATE)?;
    expect_reserved(BOUND_LATE)?;
    let session = Device::open()?.retrieve_session(LATE)?;
    let device = Client::retrieved(session.retrieve(Token(1))?)?;
    expect_lost(&session, Token(2), Errno::NODEV)?;
    pci::bind(NEVER_BOUND)?;
    expect_lost(&session, Token(2), Errno::NODEV)?;
    session.finish()?;
    device.expect_answers()?;
    drop((session, device));
    [BOUND_LATE, NEVER_BOUND]
        .into_iter()
        .try_for_each(expect_released)
}
