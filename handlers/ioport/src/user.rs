// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handler's backend in a process.

use std::os::fd::AsFd;

use luo_handler_api::{register_handler, status, Errno, FileRef, OwnedFile};
use rustix::fs::{fcntl_getfl, fstat, makedev, open, seek, FileType, Mode, OFlags, SeekFrom};

use crate::{backend::PortBackend, handler::IoportHandler, record::PortRecord};

register_handler!(
    /// The handler of this process.
    pub IOPORT: IoportHandler<UserBackend> = IoportHandler(UserBackend::PORT)
);

/// A process, and a character device of the kernel's `drivers/char/mem.c`.
#[derive(Clone, Copy, Debug)]
pub struct UserBackend {
    path: &'static str,
    minor: u32,
}

/// `MEM_MAJOR` of `include/uapi/linux/major.h`.
const MEM_MAJOR: u32 = 1;

impl UserBackend {
    /// `/dev/port`.
    pub const PORT: Self = Self {
        path: "/dev/port",
        minor: 4,
    };
}

impl PortBackend for UserBackend {
    fn is_port(&self, file: FileRef<'_>) -> bool {
        fstat(file.as_fd()).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode).is_char_device()
                && stat.st_rdev == makedev(MEM_MAJOR, self.minor)
        })
    }

    fn look(&self, file: FileRef<'_>) -> Result<PortRecord, Errno> {
        let flags = fcntl_getfl(file.as_fd())?;
        Ok(PortRecord {
            position: seek(file.as_fd(), SeekFrom::Current(0))?,
            status: status::from_flags(flags.bits()),
        })
    }

    /// `ENODEV` if something else has taken the name of the device.
    fn open(&self, record: PortRecord) -> Result<OwnedFile, Errno> {
        let flags = OFlags::from_bits_retain(status::to_flags(record.status));
        let flags = flags | OFlags::CLOEXEC;
        let file = open(self.path, flags, Mode::empty())?;
        if !self.is_port(file.as_fd().into()) {
            return Err(Errno::ENODEV);
        }
        seek(&file, SeekFrom::Start(record.position))?;
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    /// Devices that every machine has, like a port in all but its position.
    const NULL: UserBackend = UserBackend {
        path: "/dev/null",
        minor: 3,
    };
    const ZERO: UserBackend = UserBackend {
        path: "/dev/zero",
        minor: 5,
    };

    #[test]
    fn a_device_is_known_by_its_number() {
        let null = open(NULL.path, OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(NULL.is_port(null.as_fd().into()));
        assert!(!ZERO.is_port(null.as_fd().into()));
        assert!(!UserBackend::PORT.is_port(null.as_fd().into()));
        let directory = open("/", OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(!NULL.is_port(directory.as_fd().into()));
    }

    #[test]
    fn a_file_is_opened_with_its_status() {
        for status in [
            0,
            1 | status::APPEND,
            2 | status::NONBLOCK | status::NOATIME,
        ] {
            let record = PortRecord {
                position: 0,
                status,
            };
            let file = OwnedFd::from(NULL.open(record).unwrap());
            assert_eq!(NULL.look(file.as_fd().into()), Ok(record));
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_followed() {
        let misled = UserBackend {
            path: "/dev/zero",
            ..NULL
        };
        let record = PortRecord {
            position: 0,
            status: 0,
        };
        assert_eq!(misled.open(record).unwrap_err(), Errno::ENODEV);
    }
}
