// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files of `/dev/port`: opened in a certain way, and compared behind a jump.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use anyhow::{ensure, Context, Result};
use rustix::fs::{fcntl_getfl, fstat, seek, Mode, OFlags, SeekFrom};

const PATH: &str = "/dev/port";

/// A file of `/dev/port`, described.
pub struct PortFile {
    /// The port that is read or written next.
    pub position: u64,
    pub flags: OFlags,
}

impl PortFile {
    /// Opens one, at the first port.
    pub fn open(&self) -> io::Result<File> {
        let file = rustix::fs::open(PATH, self.flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(File::from(file))
    }

    /// Compares what crossed with one that is opened anew.
    pub fn verify(&self, file: BorrowedFd<'_>) -> Result<()> {
        let anew = self.open().with_context(|| format!("opening {PATH}"))?;
        let (found, expected) = (fstat(file)?.st_rdev, fstat(&anew)?.st_rdev);
        ensure!(found == expected, "it is another device than {PATH}");
        let (found, expected) = (fcntl_getfl(file)?, fcntl_getfl(&anew)?);
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
