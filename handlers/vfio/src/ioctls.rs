// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The seam between this crate and the system: what a process can ask of a file of VFIO.
//!
//! [`System`] asks the kernel. A test without a device, or a program whose device is
//! elsewhere, implements [`VfioFiles`] and gives it to [`UserBackend`](crate::UserBackend); all
//! that is built on the answers stays the same.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
};

use luo_handler_api::Errno;
use rustix::{
    fs::{fcntl_getfl, fstat, major, minor, FileType, OFlags},
    io::pread,
};

use crate::{
    backend::Kind,
    description::{Address, Irq, Opened, Region, FLAGS_PCI},
    sys,
};

/// What `VFIO_DEVICE_GET_INFO` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `VFIO_DEVICE_FLAGS_*`.
    pub flags: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt indexes.
    pub irqs: u32,
}

/// A process's view of files of VFIO. An error is the error number of the system.
pub trait VfioFiles: Sync + 'static {
    /// What a file is.
    fn kind(&self, file: BorrowedFd<'_>) -> Kind;

    /// Where the device of a file is.
    fn address(&self, file: BorrowedFd<'_>) -> Result<Address, Errno>;

    /// Its flags, as `F_GETFL` returns them.
    fn flags(&self, file: BorrowedFd<'_>) -> Result<OFlags, Errno>;

    /// `VFIO_DEVICE_GET_INFO`.
    fn device_info(&self, file: BorrowedFd<'_>) -> Result<DeviceInfo, Errno>;

    /// `VFIO_DEVICE_GET_REGION_INFO`.
    fn region_info(&self, file: BorrowedFd<'_>, index: u32) -> Result<Region, Errno>;

    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    fn irq_info(&self, file: BorrowedFd<'_>, index: u32) -> Result<Irq, Errno>;

    /// Reads from a region; `offset` is one in the file. Fills all of `buffer`.
    fn read(&self, file: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<(), Errno>;
}

/// The running kernel.
#[derive(Clone, Copy, Debug)]
pub struct System;

fn errno(error: rustix::io::Errno) -> Errno {
    io::Error::from(error).into()
}

impl VfioFiles for System {
    fn kind(&self, file: BorrowedFd<'_>) -> Kind {
        let opened = match kind_of_file(file) {
            Kind::Device(opened) => opened,
            other => return other,
        };
        match self.device_info(file) {
            Err(Errno::EINVAL) if opened == Opened::Cdev => Kind::Unbound,
            Ok(info) if info.flags & FLAGS_PCI != 0 => match self.address(file) {
                Ok(_) => Kind::Device(opened),
                Err(_) => Kind::Foreign,
            },
            _ => Kind::Foreign,
        }
    }

    /// From `vfio-device-syspath` of the file's `fdinfo`, or for a character device from sysfs.
    fn address(&self, file: BorrowedFd<'_>) -> Result<Address, Errno> {
        let path = match syspath(file) {
            Some(path) => path,
            None => fs::canonicalize(char_device(file)?.join("device"))?,
        };
        let name = path.file_name().and_then(|name| name.to_str());
        let address = name.and_then(|name| name.parse().ok());
        address.ok_or(Errno::EOPNOTSUPP)
    }

    fn flags(&self, file: BorrowedFd<'_>) -> Result<OFlags, Errno> {
        fcntl_getfl(file).map_err(errno)
    }

    fn device_info(&self, file: BorrowedFd<'_>) -> Result<DeviceInfo, Errno> {
        let info = sys::device_info(file).map_err(errno)?;
        Ok(DeviceInfo {
            flags: info.flags,
            regions: info.num_regions,
            irqs: info.num_irqs,
        })
    }

    fn region_info(&self, file: BorrowedFd<'_>, index: u32) -> Result<Region, Errno> {
        let info = sys::region_info(file, index).map_err(errno)?;
        Ok(Region {
            offset: info.offset,
            size: info.size,
            flags: info.flags,
        })
    }

    fn irq_info(&self, file: BorrowedFd<'_>, index: u32) -> Result<Irq, Errno> {
        let info = sys::irq_info(file, index).map_err(errno)?;
        Ok(Irq {
            flags: info.flags,
            count: info.count,
        })
    }

    fn read(&self, file: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let expected = buffer.len();
        match pread(file, buffer, offset).map_err(errno)? {
            read if read == expected => Ok(()),
            _ => Err(Errno::EIO),
        }
    }
}

/// What a file is, without an ioctl that a file of another type might take for one of its own.
fn kind_of_file(file: BorrowedFd<'_>) -> Kind {
    let Ok(stat) = fstat(file) else {
        return Kind::Other;
    };
    if FileType::from_raw_mode(stat.st_mode).is_char_device() {
        return kind_of_char_device(file).unwrap_or(Kind::Other);
    }
    let link = fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd()));
    match link.as_deref().map(|link| link.to_str()) {
        Ok(Some("anon_inode:[vfio-device]")) => Kind::Device(Opened::Group),
        Ok(Some("anon_inode:[vfio-cdev]")) => Kind::Device(Opened::Cdev),
        _ => Kind::Other,
    }
}

fn kind_of_char_device(file: BorrowedFd<'_>) -> Option<Kind> {
    let device = fs::canonicalize(char_device(file).ok()?).ok()?;
    let subsystem = fs::canonicalize(device.join("subsystem")).ok()?;
    match subsystem.file_name()?.to_str()? {
        "vfio-dev" => Some(Kind::Device(Opened::Cdev)),
        "vfio" => Some(Kind::Group),
        "misc" if device.file_name()? == "vfio" => Some(Kind::Container),
        _ => None,
    }
}

/// Where sysfs describes a character device.
fn char_device(file: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    let number = fstat(file).map_err(errno)?.st_rdev;
    let (major, minor) = (major(number), minor(number));
    Ok(format!("/sys/dev/char/{major}:{minor}").into())
}

/// The device's place as the kernel reports it, since 6.18.
fn syspath(file: BorrowedFd<'_>) -> Option<PathBuf> {
    let path = format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd());
    let info = fs::read_to_string(path).ok()?;
    let place = |line: &str| Some(line.strip_prefix("vfio-device-syspath:")?.trim().into());
    info.lines().find_map(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd};

    #[test]
    fn a_file_that_is_not_of_vfio_is_not_asked() {
        let directory = File::open("/").unwrap();
        let null = File::open("/dev/null").unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        for file in [directory.as_fd(), null.as_fd(), reader.as_fd()] {
            assert_eq!(System.kind(file), Kind::Other);
        }
        assert!(System.device_info(null.as_fd()).is_err());
        assert_eq!(System.address(null.as_fd()), Err(Errno::ENOENT));
    }
}
