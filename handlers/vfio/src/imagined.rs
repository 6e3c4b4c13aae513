// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A device that does not exist, on the other side of the seam: for tests on machines without one.
//!
//! Any file stands for it.

use std::{
    os::fd::BorrowedFd,
    sync::{Mutex, PoisonError},
};

use luo_handler_api::{status, Errno};
use rustix::fs::OFlags;

use crate::{
    backend::Kind,
    description::{
        Address, Description, Irq, List, Opened, Region, CONFIG_REGION, FLAGS_PCI, FLAGS_RESET,
    },
    ioctls::{DeviceInfo, VfioFiles},
};

/// The educational device of QEMU, as vfio-pci describes it.
pub fn edu() -> Description {
    let mut header = [0; 64];
    header[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
    header[4..6].copy_from_slice(&[0x03, 0x01]);
    header[8..12].copy_from_slice(&[0x10, 0x00, 0xff, 0x00]);
    header[0x10..0x14].copy_from_slice(&[0, 0, 0xa0, 0xfe]);
    header[0x2c..0x30].copy_from_slice(&[0xf4, 0x1a, 0x00, 0x11]);
    header[0x34] = 0x40;
    header[0x3d] = 1;
    let region = |index: u64, size, flags| Region {
        offset: index << 40,
        size,
        flags,
    };
    let regions = (0..9).map(|index| match index {
        0 => region(0, 1 << 20, 7),
        7 => region(7, 256, 3),
        8 => Region::default(),
        _ => region(index, 0, 0),
    });
    let irqs = [(7, 1), (9, 1), (9, 0), (9, 1), (9, 1)];
    Description {
        address: Address::new(0, 0, 4 << 3),
        opened: Opened::Cdev,
        status: 2,
        flags: FLAGS_PCI | FLAGS_RESET,
        header,
        regions: List::of(regions).unwrap(),
        irqs: List::of(irqs.map(|(flags, count)| Irq { flags, count })).unwrap(),
    }
}

/// A device that answers as it is described, until it is removed.
#[derive(Debug)]
pub struct Imagined(Mutex<Option<Description>>);

impl Imagined {
    /// A device like this.
    pub const fn new(description: Description) -> Self {
        Self(Mutex::new(Some(description)))
    }

    /// Makes it another device.
    pub fn change(&self, change: impl FnOnce(&mut Description)) {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = device.as_mut() {
            change(device);
        }
    }

    /// From here on there is no device.
    pub fn take_away(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn ask<T>(&self, question: impl FnOnce(&Description) -> Option<T>) -> Result<T, Errno> {
        let device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let device = device.as_ref().ok_or(Errno::ENODEV)?;
        question(device).ok_or(Errno::EINVAL)
    }
}

impl VfioFiles for Imagined {
    fn kind(&self, _: BorrowedFd<'_>) -> Kind {
        self.ask(|device| Some(Kind::Device(device.opened)))
            .unwrap_or(Kind::Foreign)
    }

    fn address(&self, _: BorrowedFd<'_>) -> Result<Address, Errno> {
        self.ask(|device| Some(device.address))
    }

    fn flags(&self, _: BorrowedFd<'_>) -> Result<OFlags, Errno> {
        let flags = self.ask(|device| Some(status::to_flags(device.status)))?;
        Ok(OFlags::from_bits_retain(flags))
    }

    fn device_info(&self, _: BorrowedFd<'_>) -> Result<DeviceInfo, Errno> {
        self.ask(|device| {
            Some(DeviceInfo {
                flags: device.flags,
                regions: device.regions.len() as u32,
                irqs: device.irqs.len() as u32,
            })
        })
    }

    /// As vfio-pci: a region of no size after the configuration space does not exist.
    fn region_info(&self, _: BorrowedFd<'_>, index: u32) -> Result<Region, Errno> {
        self.ask(|device| {
            let region = device.regions.get(index as usize).copied();
            region.filter(|region| index as usize <= CONFIG_REGION || region.size > 0)
        })
    }

    fn irq_info(&self, _: BorrowedFd<'_>, index: u32) -> Result<Irq, Errno> {
        self.ask(|device| device.irqs.get(index as usize).copied())
    }

    /// Only of the header.
    fn read(&self, _: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.ask(|device| {
            let config = device.regions.get(CONFIG_REGION)?.offset;
            let start = usize::try_from(offset.checked_sub(config)?).ok()?;
            let bytes = device.header.get(start..start.checked_add(buffer.len())?)?;
            buffer.copy_from_slice(bytes);
            Some(())
        })
    }
}
