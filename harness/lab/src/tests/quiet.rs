// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! From freeze on a device stands still, also while it is used, and goes on if the jump is refused.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::sys::Registers;
use crate::tests::expect::{expect_errno, expect_refused_jump};
use crate::tests::held_open::HeldOpen;
use crate::tests::pci;
use crate::tests::vfio_client::{answers, Client};

/// A device that is used all the time; one below a port, which can be reset; one that refuses the
/// first jump.
const RESTLESS: &str = "0000:00:10.0";
const RESETTABLE: &str = "0000:01:00.0";
const REFUSING: &str = "0000:00:13.0";

const SESSION: &str = "quiet";

fn preserve(session: &Session, devices: &[&Client]) -> Result<()> {
    for (token, device) in (1..).map(Token).zip(devices) {
        session.preserve(token, device.as_fd())?;
    }
    Ok(())
}

fn retrieve(session: &Session, token: Token) -> Result<Client> {
    Client::retrieved(session.retrieve(token)?)
}

/// How often each of those was done that never rest.
static BY_VFIO: AtomicU64 = AtomicU64::new(0);
static BY_SYSFS: AtomicU64 = AtomicU64::new(0);
static BY_MAPPING: AtomicU64 = AtomicU64::new(0);
static BY_RESET: AtomicU64 = AtomicU64::new(0);
/// How often one of them failed.
static FAILED: AtomicU64 = AtomicU64::new(0);

/// Does it again and again, also when the machine jumps.
fn repeat(count: &'static AtomicU64, mut action: impl FnMut() -> bool + Send + 'static) {
    thread::spawn(move || loop {
        if !action() {
            FAILED.fetch_add(1, Relaxed);
        }
        count.fetch_add(1, Relaxed);
    });
}

/// Switches bus mastering on in every way, uses the registers, and resets another device.
fn do_not_rest(device: Client, mut registers: Registers, configuration: File) {
    repeat(&BY_VFIO, move || {
        device.insist_on_bus_mastering();
        true
    });
    let command = pci::BUS_MASTER | 1 << 1;
    repeat(&BY_SYSFS, move || {
        pci::set_command(&configuration, command).is_ok()
    });
    repeat(&BY_MAPPING, move || answers(&mut registers));
    repeat(&BY_RESET, || {
        // Where a reset would wait for a frozen device, it is refused.
        let _ = pci::reset(RESETTABLE);
        thread::sleep(Duration::from_millis(1));
        true
    });
}

fn expect_progress() -> Result<()> {
    let counters = [&BY_VFIO, &BY_SYSFS, &BY_MAPPING, &BY_RESET];
    let before = counters.map(|counter| counter.load(Relaxed));
    for _ in 0..600 {
        thread::sleep(Duration::from_millis(100));
        let moved = |(counter, before): (&&AtomicU64, &u64)| counter.load(Relaxed) > before + 2;
        if counters.iter().zip(&before).all(moved) {
            let failed = FAILED.load(Relaxed);
            ensure!(failed == 0, "{failed} accesses failed");
            return Ok(());
        }
    }
    let now = counters.map(|counter| counter.load(Relaxed));
    anyhow::bail!("not everybody goes on: {before:?} accesses became {now:?}")
}

/// A refused jump leaves all users of the devices as they were; the next one finds them at work.
pub(crate) fn never_rest(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    let [restless, resettable, refusing] = [RESTLESS, RESETTABLE, REFUSING].map(Client::by_cdev);
    let (restless, refusing) = (restless?, refusing?);
    preserve(&session, &[&restless, &resettable?, &refusing])?;
    refusing.start_bus_mastering()?;
    let event = refusing.enable_interrupts()?;
    let registers = restless.map_registers()?;
    do_not_rest(restless, registers, pci::configuration(RESTLESS)?);
    expect_progress()?;
    // Two devices are frozen before the one that refuses.
    expect_refused_jump(Errno::INVAL, 2)?;
    expect_progress()?;
    refusing.expect_interrupt(&event)?;
    refusing.disable_interrupts()?;
    held.hold(&session)
}

fn expect_quiet(address: &str) -> Result<()> {
    let command = pci::command(address)?;
    ensure!(
        command & pci::BUS_MASTER == 0 && command & pci::INTX_DISABLE != 0,
        "the command register of {address} is {command:#x}: somebody used it after freeze"
    );
    Ok(())
}

/// Nobody has used the devices since freeze.
pub(crate) fn find_quiet(_held: &mut HeldOpen) -> Result<()> {
    for address in [RESTLESS, RESETTABLE, REFUSING] {
        expect_quiet(address)?;
    }
    let session = Device::open()?.retrieve_session(SESSION)?;
    let devices = [1, 2, 3].map(|token| retrieve(&session, Token(token)));
    session.finish()?;
    for device in devices {
        let device = device?;
        device.expect_answers()?;
        device.start_bus_mastering()?;
    }
    Ok(())
}

/// One that interrupts during the jump, and one that has the same interrupt line.
const RAISING: &str = RESETTABLE;
const NEIGHBOUR: &str = RESTLESS;

pub(crate) fn raise_intx(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    let (raising, neighbour) = (Client::by_cdev(RAISING)?, Client::by_cdev(NEIGHBOUR)?);
    preserve(&session, &[&raising, &neighbour])?;
    held.hold(&session)?;
    raising.interrupt_later();
    Ok(())
}

fn expect_intx(device: &Client, event: &EventFd) -> Result<()> {
    device.expect_interrupt(event)?;
    device.unmask_intx()
}

/// How often the kernel was interrupted on a device's line.
fn interrupts(address: &str) -> Result<u64> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let line = table
        .lines()
        .find(|line| line.contains("vfio-intx") && line.contains(address));
    let line = line.with_context(|| format!("{address} has no line in /proc/interrupts"))?;
    let counts = line.split_whitespace().skip(1);
    Ok(counts.map_while(|count| count.parse::<u64>().ok()).sum())
}

/// An interrupt that nobody takes comes again at once; after 100000 of them the kernel gives the
/// line up, and with it the neighbour.
fn expect_calm(address: &str) -> Result<()> {
    let before = interrupts(address)?;
    thread::sleep(Duration::from_secs(1));
    let unasked = interrupts(address)? - before;
    ensure!(
        unasked == 0,
        "the line of {address} interrupted {unasked} times, and nobody had cause to"
    );
    Ok(())
}

/// The neighbour's interrupts work, and nobody is bothered by those of the other one.
pub(crate) fn share_intx(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(SESSION)?;
    let raised = (0..1200).any(|_| {
        thread::sleep(Duration::from_millis(100));
        pci::asserts_intx(RAISING).unwrap_or(false)
    });
    ensure!(
        raised,
        "{RAISING} did not raise its interrupt in two minutes"
    );
    let neighbour = retrieve(&session, Token(2))?;
    let event = neighbour.enable_intx()?;
    for _ in 0..10 {
        expect_intx(&neighbour, &event)?;
    }
    expect_calm(NEIGHBOUR)?;
    // Bound, it is reset, and takes its interrupt back.
    let raising = retrieve(&session, Token(1))?;
    session.finish()?;
    raising.expect_answers()?;
    let own = raising.enable_intx()?;
    expect_intx(&raising, &own)?;
    expect_intx(&neighbour, &event)
}

const ASLEEP: &str = RESTLESS;

fn expect_asleep(event: &EventFd) -> Result<()> {
    let status = pci::runtime_status(ASLEEP)?;
    ensure!(status == "suspended", "{ASLEEP} was woken: it is {status}");
    ensure!(event.read().is_err(), "somebody has taken its wake event");
    Ok(())
}

/// Enters low power, and waits until the device sleeps.
fn fall_asleep(device: &Client) -> Result<EventFd> {
    let event = device.enter_low_power()?;
    let asleep = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(50));
        pci::runtime_status(ASLEEP).is_ok_and(|status| status == "suspended")
    });
    ensure!(asleep, "{ASLEEP} does not fall asleep");
    expect_asleep(&event)?;
    Ok(event)
}

/// Wakes the device as something outside would; its owner hears of it.
fn wake(event: &EventFd) -> Result<()> {
    pci::wake(ASLEEP)?;
    event.read().context("the wake event is lost")?;
    Ok(())
}

/// A device in low power is neither prepared nor frozen, and sleeps on.
pub(crate) fn sleep_on(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    let device = Client::by_cdev(ASLEEP)?;
    let event = fall_asleep(&device)?;
    expect_errno(
        session.preserve(Token(1), device.as_fd()),
        Errno::BUSY,
        "preserving a device in low power",
    )?;
    expect_asleep(&event)?;
    wake(&event)?;
    preserve(&session, &[&device])?;

    let event = fall_asleep(&device)?;
    expect_refused_jump(Errno::BUSY, 0)?;
    expect_asleep(&event)?;
    wake(&event)?;
    device.expect_answers()?;
    held.hold(&session)
}

pub(crate) fn wake_up(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(SESSION)?;
    let device = retrieve(&session, Token(1))?;
    session.finish()?;
    device.expect_answers()
}
