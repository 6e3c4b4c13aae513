// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The lab's client of VFIO devices: opened through the cdev, through a group or by a live update,
//! and asked what they are.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX,
    VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
};
use vfio_ioctls::{VfioContainer, VfioDevice};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use crate::sys::{self, Registers};
use crate::tests::pci::BUS_MASTER;
use luo_bench::subject::vfio::{bind, directory, open_cdev};

/// In the configuration: vendor and device, revision and class, subsystem.
const IDENTITY: [u64; 3] = [0x00, 0x08, 0x2c];
const COMMAND: u64 = 0x04;
const MEMORY: u16 = 1 << 1;

/// Registers of QEMU's `edu` device: one that always reads the same, one that answers with what was
/// written to it, inverted, two that raise and lower its interrupt, and two that compute a
/// factorial and interrupt at its end.
const IDENTIFICATION: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const FACTORIAL: u64 = 0x08;
const INTERRUPT_AT_END: u64 = 0x20;
const EDU: u32 = 0x0100_00ed;
const QUESTION: u32 = 0x1234_5678;

/// An open device, ready to be used.
pub(crate) struct Client(VfioDevice);

/// What a device reports of itself, to be compared after the jump.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    identity: [u32; IDENTITY.len()],
    /// Flags and size of each.
    regions: Vec<(u32, u64)>,
    /// Flags and count of each, but of that for errors: Linux 7.2 has it for PCI Express alone, 7.3
    /// for all devices.
    interrupts: Vec<Option<(u32, u32)>>,
    /// The first register.
    register: u32,
}

impl Client {
    /// Opens a device by its own file.
    pub(crate) fn by_cdev(address: &str) -> Result<Self> {
        bind(open_cdev(address)?).map(Self)
    }

    /// Opens a device by the file of its group.
    pub(crate) fn by_group(address: &str, container: &Arc<VfioContainer>) -> Result<Self> {
        let device = VfioDevice::new(&directory(address), container.clone(), false);
        device
            .map(Self)
            .with_context(|| format!("opening {address} by its group"))
    }

    /// Goes on with a device that crossed the jump.
    pub(crate) fn retrieved(descriptor: OwnedFd) -> Result<Self> {
        bind(File::from(descriptor)).map(Self)
    }

    pub(crate) fn describe(&self) -> Description {
        let config = |at| self.word(VFIO_PCI_CONFIG_REGION_INDEX, at);
        let device = &self.0;
        let region = |index| {
            (
                device.get_region_flags(index),
                device.get_region_size(index),
            )
        };
        let interrupt = |index| {
            let found = device.get_irq_info(index);
            found.map(|found| (found.flags, found.count))
        };
        Description {
            identity: IDENTITY.map(config),
            regions: (0..VFIO_PCI_NUM_REGIONS).map(region).collect(),
            interrupts: (0..VFIO_PCI_NUM_IRQS)
                .filter(|&index| index != VFIO_PCI_ERR_IRQ_INDEX)
                .map(interrupt)
                .collect(),
            register: self.register(IDENTIFICATION),
        }
    }

    /// Refuses a device that reports something else of itself.
    pub(crate) fn expect(&self, description: &Description) -> Result<()> {
        let found = self.describe();
        ensure!(
            found == *description,
            "the device is {found:?}, it was {description:?}"
        );
        Ok(())
    }

    /// Refuses an `edu` that does not answer as one.
    pub(crate) fn expect_answers(&self) -> Result<()> {
        let found = self.register(IDENTIFICATION);
        ensure!(
            found == EDU,
            "the device identifies itself as {found:#x} instead of {EDU:#x}"
        );
        self.set_register(LIVENESS, QUESTION);
        let answer = self.register(LIVENESS);
        ensure!(
            answer == !QUESTION,
            "the device answers {QUESTION:#x} with {answer:#x}"
        );
        Ok(())
    }

    /// Allows the device to access memory.
    pub(crate) fn start_bus_mastering(&self) -> Result<()> {
        let command = (self.command() | BUS_MASTER).to_le_bytes();
        self.0
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, &command, COMMAND);
        self.expect_bus_mastering(true)
    }

    pub(crate) fn expect_bus_mastering(&self, allowed: bool) -> Result<()> {
        let command = self.command();
        ensure!(
            (command & BUS_MASTER != 0) == allowed,
            "the command register is {command:#x}, bus mastering should be {allowed}"
        );
        Ok(())
    }

    /// Enables message signalled interrupts; they arrive at what it returns.
    pub(crate) fn enable_interrupts(&self) -> Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK).context("making an eventfd")?;
        self.0
            .enable_msi(vec![&event])
            .context("enabling interrupts")?;
        Ok(event)
    }

    pub(crate) fn disable_interrupts(&self) -> Result<()> {
        self.0.disable_msi().context("disabling interrupts")
    }

    /// Enables the interrupt that has a pin. It masks itself when it arrives.
    pub(crate) fn enable_intx(&self) -> Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK).context("making an eventfd")?;
        self.0
            .enable_irq(VFIO_PCI_INTX_IRQ_INDEX, vec![&event])
            .context("enabling INTx")?;
        Ok(event)
    }

    pub(crate) fn unmask_intx(&self) -> Result<()> {
        self.0
            .unmask_irq(VFIO_PCI_INTX_IRQ_INDEX)
            .context("unmasking INTx")
    }

    /// Has an `edu` compute for some seconds, and interrupt then.
    pub(crate) fn interrupt_later(&self) {
        self.set_register(INTERRUPT_AT_END, 0x80);
        self.set_register(FACTORIAL, u32::MAX);
    }

    /// Writes the command register as a driver would that goes on.
    pub(crate) fn insist_on_bus_mastering(&self) {
        let command = (MEMORY | BUS_MASTER).to_le_bytes();
        self.0
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, &command, COMMAND);
    }

    /// Puts the device into low power; its wake event arrives at what is returned.
    pub(crate) fn enter_low_power(&self) -> Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK).context("making an eventfd")?;
        sys::enter_low_power(&self.0, &event).context("entering low power")?;
        Ok(event)
    }

    /// The first page of its registers.
    pub(crate) fn map_registers(&self) -> Result<Registers> {
        let offset = self.0.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX);
        Registers::map(self.as_fd(), offset).context("mapping a BAR")
    }

    /// Has an `edu` raise its interrupt, and refuses one that does not arrive within a second.
    pub(crate) fn expect_interrupt(&self, event: &EventFd) -> Result<()> {
        self.set_register(RAISE, 1);
        let arrived = (0..100).any(|_| {
            sleep(Duration::from_millis(10));
            event.read().is_ok()
        });
        self.set_register(ACKNOWLEDGE, 1);
        ensure!(arrived, "the device's interrupt does not arrive");
        Ok(())
    }

    fn command(&self) -> u16 {
        let mut bytes = [0; 2];
        self.0
            .region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut bytes, COMMAND);
        u16::from_le_bytes(bytes)
    }

    fn register(&self, at: u64) -> u32 {
        self.word(VFIO_PCI_BAR0_REGION_INDEX, at)
    }

    fn set_register(&self, at: u64, value: u32) {
        self.0
            .region_write(VFIO_PCI_BAR0_REGION_INDEX, &value.to_le_bytes(), at);
    }

    fn word(&self, region: u32, at: u64) -> u32 {
        // A read that fails leaves it as it is.
        let mut bytes = [0xa5; 4];
        self.0.region_read(region, &mut bytes, at);
        u32::from_le_bytes(bytes)
    }
}

/// Whether mapped registers are still those of an `edu`, also while they are written to.
pub(crate) fn answers(registers: &mut Registers) -> bool {
    registers.write_and_read(LIVENESS, QUESTION, IDENTIFICATION) == EDU
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::descriptor(&self.0)
    }
}
