// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What is tested of files that stand for devices: they come back, or fail alone, and a device that
//! stays goes on working.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use vfio_ioctls::VfioContainer;

use crate::tests::case::Case;
use crate::tests::expect::{expect_errno, expect_lost, expect_refused_jump};
use crate::tests::held_open::HeldOpen;
use crate::tests::vfio_client::{Client, Description};
use crate::tests::{pci, ports};
use luo_bench::subject::vfio::open_cdev;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};

// Where the machine has what the cases use. Each has its own, for some spoil it. All are an `edu`,
// but the second.
const BY_CDEV: &str = "0000:00:10.0";
const BY_GROUP: &str = "0000:00:11.0";
const UNCLAIMED: &str = "0000:00:12.0";
const MISSING: &str = "0000:00:13.0";
const UNBOUND: &str = "0000:00:14.0";
const CANCELLED: &str = "0000:00:15.0";
const REFUSED: &str = "0000:00:16.0";
/// Two ports, and what is below each: an `edu`, and something else.
const PORTS: [&str; 2] = ["0000:00:18.0", "0000:00:19.0"];
const SWAPPED: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];

/// The token of a session's memfd, in which its devices are described in the order of theirs.
const DESCRIPTIONS: Token = Token(0x100);
/// That of a session's first device.
const FIRST: Token = Token(1);
const SECOND: Token = Token(2);
const PORT_FILE: Token = Token(0x200);

/// Devices, and the ports of the machine.
pub(crate) static DEVICES: &[Case] = &[
    Case::new(
        "vfio_devices",
        "devices opened by cdev and by group, with a memfd and a port file",
        send_all_kinds,
        take_all_kinds,
    ),
    Case::new(
        "vfio_unclaimed",
        "a session can be finished without its device",
        |session| send(session, UNCLAIMED),
        take_unclaimed,
    ),
    Case::new(
        "vfio_missing",
        "the device is not there any more",
        |session| send(session, MISSING),
        |session| {
            pci::remove(MISSING)?;
            lose(session, Errno::NODEV)
        },
    ),
    Case::new(
        "vfio_unbound",
        "the device has no driver",
        |session| send(session, UNBOUND),
        |session| {
            pci::unbind(UNBOUND)?;
            lose(session, Errno::NODEV)
        },
    ),
    Case::new(
        "vfio_swapped",
        "another device is where the device was",
        |session| send(session, SWAPPED[0]),
        |session| {
            pci::swap(PORTS, SWAPPED)?;
            lose(session, Errno::NODEV)
        },
    ),
    Case::local(
        "vfio_cancelled",
        "after a cancel the device works on, and can leave its driver",
        cancel,
    ),
    Case::local(
        "vfio_refused",
        "a group, a container, a device twice and one that is not bound are refused",
        refuse,
    ),
    Case::new(
        "port_files",
        "position, access mode and flags of port files",
        ports::send,
        ports::take,
    ),
    Case::new(
        "port_unprivileged",
        "without the right to use ports retrieve fails",
        ports::send_two,
        ports::take_unprivileged,
    ),
    Case::local(
        "port_far",
        "a position after the last port is refused",
        ports::refuse_far,
    ),
];

/// Preserves devices and what they report of themselves.
fn preserve(session: &Session, devices: &[Client]) -> Result<()> {
    let descriptions: Vec<_> = devices.iter().map(Client::describe).collect();
    let memfd = File::from(rustix::fs::memfd_create(
        "descriptions",
        MemfdFlags::CLOEXEC,
    )?);
    memfd.write_all_at(&serde_json::to_vec(&descriptions)?, 0)?;
    session.preserve(DESCRIPTIONS, memfd.as_fd())?;
    for (token, device) in (FIRST.0..).map(Token).zip(devices) {
        session.preserve(token, device.as_fd())?;
    }
    Ok(())
}

fn retrieve_descriptions(session: &Session) -> Result<Vec<Description>> {
    let memfd = File::from(session.retrieve(DESCRIPTIONS)?);
    serde_json::from_reader(memfd).context("the memfd beside the devices is damaged")
}

/// Retrieves a session's devices, compares what they report of themselves, and finishes.
fn take(session: &Session) -> Result<Vec<Client>> {
    let mut devices = Vec::new();
    for (token, description) in (FIRST.0..).map(Token).zip(retrieve_descriptions(session)?) {
        let device = Client::retrieved(session.retrieve(token)?)?;
        device
            .expect(&description)
            .with_context(|| format!("token {token}"))?;
        devices.push(device);
    }
    session.finish()?;
    // The devices are ours now, also after the session ends.
    devices[0].expect_answers()?;
    Ok(devices)
}

/// Retrieves a session's memfd, and what it has of a device fails for good.
fn lose(session: &Session, errno: Errno) -> Result<()> {
    expect_lost(session, FIRST, errno)?;
    retrieve_descriptions(session)?;
    Ok(session.finish()?)
}

fn send(session: &Session, address: &str) -> Result<()> {
    preserve(session, &[Client::by_cdev(address)?])
}

fn send_all_kinds(session: &Session) -> Result<()> {
    let container = Arc::new(VfioContainer::new(None)?);
    let devices = [
        Client::by_cdev(BY_CDEV)?,
        Client::by_group(BY_GROUP, &container)?,
    ];
    preserve(session, &devices)?;
    ports::preserve(session, PORT_FILE, &ports::REGISTER)
}

fn take_all_kinds(session: &Session) -> Result<()> {
    ports::expect_register(ports::retrieve(session, PORT_FILE, &ports::REGISTER)?)?;
    take(session).map(|_| ())
}

fn take_unclaimed(session: &Session) -> Result<()> {
    session.finish()?;
    Client::by_cdev(UNCLAIMED)?.expect_answers()
}

fn cancel(_session: &Session) -> Result<()> {
    let device = Client::by_cdev(CANCELLED)?;
    device.start_bus_mastering()?;
    let before = device.describe();
    // Not the case's own session: it takes a closed one to cancel.
    let session = Device::open()?.create_session("cancelled-device")?;
    session.preserve(FIRST, device.as_fd())?;
    drop(session);
    device.expect(&before)?;
    device.expect_answers()?;
    device.expect_bus_mastering(true)?;
    // A device can leave its driver only if nobody holds it.
    drop(device);
    pci::unbind(CANCELLED)
}

fn refuse(session: &Session) -> Result<()> {
    let refuse =
        |file: File, errno, what| expect_errno(session.preserve(FIRST, file.as_fd()), errno, what);
    let open = |path| File::options().read(true).write(true).open(path);
    refuse(
        open("/dev/vfio/vfio".into())?,
        Errno::OPNOTSUPP,
        "preserving a container",
    )?;
    refuse(
        open(pci::group_file(REFUSED)?)?,
        Errno::OPNOTSUPP,
        "preserving a group",
    )?;
    refuse(
        open_cdev(REFUSED)?,
        Errno::INVAL,
        "preserving a device that is not bound",
    )?;

    let container = Arc::new(VfioContainer::new(None)?);
    let device = Client::by_group(REFUSED, &container)?;
    let again = Client::by_group(REFUSED, &container)?;
    session.preserve(FIRST, device.as_fd())?;
    expect_errno(
        session.preserve(SECOND, again.as_fd()),
        Errno::BUSY,
        "a device preserved twice by two files",
    )?;
    device.expect_answers()
}

const BUSY: &str = "busy";

/// A device whose interrupts are enabled refuses the jump: it works on, so do those that were
/// frozen before it, and without interrupts the next jump succeeds.
pub(crate) fn survive_enabled_interrupts(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(BUSY)?;
    let devices = [
        Client::by_cdev("0000:00:10.0")?,
        Client::by_cdev("0000:00:12.0")?,
        Client::by_cdev("0000:00:13.0")?,
    ];
    preserve(&session, &devices)?;
    let [idle, master, busy] = &devices;
    master.start_bus_mastering()?;
    busy.start_bus_mastering()?;
    let event = busy.enable_interrupts()?;
    busy.expect_interrupt(&event)?;
    // The memfd beside the devices is frozen before them.
    expect_refused_jump(Errno::INVAL, 3)?;
    for (device, is_master) in [(idle, false), (master, true), (busy, true)] {
        device.expect_answers()?;
        device.expect_bus_mastering(is_master)?;
    }
    busy.expect_interrupt(&event)?;
    busy.disable_interrupts()?;
    held.hold(&session)
}

/// Set up again, the devices work as before.
pub(crate) fn take_quiet(_held: &mut HeldOpen) -> Result<()> {
    for device in take(&Device::open()?.retrieve_session(BUSY)?)? {
        device.start_bus_mastering()?;
        let event = device.enable_interrupts()?;
        device.expect_interrupt(&event)?;
    }
    Ok(())
}

const SWITCHED_OFF: &str = "switched-off";

pub(crate) fn preserve_device(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SWITCHED_OFF)?;
    send(&session, BY_CDEV)?;
    held.hold(&session)
}

/// In a kernel in which the handler of devices is switched off: it retrieves, and takes no more.
pub(crate) fn take_device_but_no_other(_held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let taken = take(&device.retrieve_session(SWITCHED_OFF)?)?;
    let session = device.create_session("another")?;
    expect_errno(
        session.preserve(FIRST, taken[0].as_fd()),
        Errno::NOENT,
        "preserving a device",
    )
}
