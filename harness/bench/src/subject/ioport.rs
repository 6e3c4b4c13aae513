// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files of `/dev/port`: opened in a certain way, and compared after the jump.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use anyhow::{anyhow, ensure, Context, Result};
use rustix::fs::{fcntl_getfl, fstat, seek, Mode, OFlags, SeekFrom};

const PATH: &str = "/dev/port";
/// A port is a number of 16 bits.
const PORTS: u64 = 1 << 16;

/// A file of `/dev/port`, described.
pub struct PortFile {
    /// The port that is read or written next.
    pub position: u64,
    /// Access mode and status flags.
    pub flags: OFlags,
}

impl PortFile {
    /// The file with a number, each at another port as long as there are some.
    pub const fn numbered(number: u64) -> Self {
        Self {
            position: number % PORTS,
            flags: OFlags::RDWR,
        }
    }

    /// Opens one, at the first port.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`.
    pub fn open(&self) -> io::Result<File> {
        let file = rustix::fs::open(PATH, self.flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(File::from(file))
    }

    /// Opens one, at its port.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`, with what to do about them.
    pub fn make(&self) -> Result<File> {
        let file = self.open().map_err(|error| {
            let advice = match error.kind() {
                ErrorKind::NotFound => "; a kernel with CONFIG_DEVPORT has it",
                ErrorKind::PermissionDenied => {
                    "; it takes root, CAP_SYS_RAWIO and a kernel that is not locked down"
                }
                _ => "",
            };
            anyhow!("cannot open {PATH}: {error}{advice}")
        })?;
        seek(&file, SeekFrom::Start(self.position))?;
        Ok(file)
    }

    /// Compares what crossed with one that is newly opened.
    ///
    /// # Errors
    ///
    /// What differs.
    pub fn verify(&self, file: BorrowedFd<'_>) -> Result<()> {
        let other = self.open().with_context(|| format!("opening {PATH}"))?;
        let (found, expected) = (fstat(file)?.st_rdev, fstat(&other)?.st_rdev);
        ensure!(found == expected, "it is another device than {PATH}");
        let (found, expected) = (fcntl_getfl(file)?, fcntl_getfl(&other)?);
        ensure!(
            found == expected,
            "the flags are {found:?} instead of {expected:?}"
        );
        let (found, expected) = (seek(file, SeekFrom::Current(0))?, self.position);
        ensure!(
            found == expected,
            "the position is {found:#x} instead of {expected:#x}"
        );
        Ok(())
    }
}
