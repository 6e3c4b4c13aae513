// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The requests of VFIO, each with the struct that belongs to it.

#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

use rustix::{
    io::Result,
    ioctl::{ioctl, opcode, Opcode, Updater},
};
use vfio_bindings::bindings::vfio::{
    vfio_device_info, vfio_irq_info, vfio_region_info, VFIO_BASE, VFIO_TYPE,
};

const fn request(number: u32) -> Opcode {
    opcode::none(VFIO_TYPE, (VFIO_BASE + number) as u8)
}

const DEVICE_GET_INFO: Opcode = request(7);
const DEVICE_GET_REGION_INFO: Opcode = request(8);
const DEVICE_GET_IRQ_INFO: Opcode = request(9);

/// Makes a request that reads and writes `argument`.
///
/// # Safety
///
/// `T` is the struct that `REQUEST` takes, and its `argsz` is at most its size.
unsafe fn ask<const REQUEST: Opcode, T>(file: BorrowedFd<'_>, mut argument: T) -> Result<T> {
    // SAFETY: by our contract the kernel reads and writes no more than `argument`, which is ours.
    unsafe { ioctl(file, Updater::<REQUEST, T>::new(&mut argument))? };
    Ok(argument)
}

/// `VFIO_DEVICE_GET_INFO`.
pub(crate) fn device_info(file: BorrowedFd<'_>) -> Result<vfio_device_info> {
    let info = vfio_device_info {
        argsz: size_of::<vfio_device_info>() as u32,
        ..Default::default()
    };
    // SAFETY: `VFIO_DEVICE_GET_INFO` takes this struct, and `argsz` is its size.
    unsafe { ask::<DEVICE_GET_INFO, _>(file, info) }
}

/// `VFIO_DEVICE_GET_REGION_INFO`.
pub(crate) fn region_info(file: BorrowedFd<'_>, index: u32) -> Result<vfio_region_info> {
    let info = vfio_region_info {
        argsz: size_of::<vfio_region_info>() as u32,
        index,
        ..Default::default()
    };
    // SAFETY: `VFIO_DEVICE_GET_REGION_INFO` takes this struct, and `argsz` is its size.
    unsafe { ask::<DEVICE_GET_REGION_INFO, _>(file, info) }
}

/// `VFIO_DEVICE_GET_IRQ_INFO`.
pub(crate) fn irq_info(file: BorrowedFd<'_>, index: u32) -> Result<vfio_irq_info> {
    let info = vfio_irq_info {
        argsz: size_of::<vfio_irq_info>() as u32,
        index,
        ..Default::default()
    };
    // SAFETY: `VFIO_DEVICE_GET_IRQ_INFO` takes this struct, and `argsz` is its size.
    unsafe { ask::<DEVICE_GET_IRQ_INFO, _>(file, info) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_header() {
        assert_eq!(DEVICE_GET_INFO, 0x3b6b);
        assert_eq!(DEVICE_GET_REGION_INFO, 0x3b6c);
        assert_eq!(DEVICE_GET_IRQ_INFO, 0x3b6d);
    }
}
