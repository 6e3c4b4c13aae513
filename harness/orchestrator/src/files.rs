// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The files that crossed, as a transport holds them for the handlers.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use luo_handler_api::{Errno, Token};

/// Where a transport holds the files that crossed.
pub trait FileSource: fmt::Debug + Send + Sync {
    /// Takes a file out, once.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown handle or one that was taken before; `EBADMSG` if the contents are
    /// not what was preserved.
    fn take(&self, handle: u64) -> Result<OwnedFd, Errno>;

    /// Gives a file up that nobody takes; an unknown handle is ignored.
    fn release(&self, handle: u64);

    /// The files that are still here.
    fn held(&self) -> Vec<HeldFile>;
}

/// A file that a transport holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldFile {
    /// The handle that its handler knows it by.
    pub handle: u64,
    /// The file of the orchestrator that it was preserved for; `None` for one of a subsystem.
    pub token: Option<Token>,
}

/// A duplicate that is out of the way of the standard streams: a program may have closed those, and
/// whatever is opened then takes their place.
pub(crate) fn above_streams(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(file, 3)?)
}

/// A host to which no file crossed.
#[derive(Debug)]
pub struct NoFiles;

impl FileSource for NoFiles {
    fn take(&self, _: u64) -> Result<OwnedFd, Errno> {
        Err(Errno::ENOENT)
    }

    fn release(&self, _: u64) {}

    fn held(&self) -> Vec<HeldFile> {
        Vec::new()
    }
}

/// Open files by handle. Those that nobody takes close with it.
#[derive(Debug, Default)]
pub struct OpenFiles {
    files: Mutex<BTreeMap<u64, (Option<Token>, OwnedFd)>>,
}

impl OpenFiles {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (Option<Token>, OwnedFd)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromIterator<(HeldFile, OwnedFd)> for OpenFiles {
    fn from_iter<I: IntoIterator<Item = (HeldFile, OwnedFd)>>(files: I) -> Self {
        let files = files.into_iter();
        Self {
            files: Mutex::new(
                files
                    .map(|(held, file)| (held.handle, (held.token, file)))
                    .collect(),
            ),
        }
    }
}

impl FileSource for OpenFiles {
    fn take(&self, handle: u64) -> Result<OwnedFd, Errno> {
        let (_, file) = self.lock().remove(&handle).ok_or(Errno::ENOENT)?;
        Ok(file)
    }

    fn release(&self, handle: u64) {
        let file = self.lock().remove(&handle);
        drop(file);
    }

    fn held(&self) -> Vec<HeldFile> {
        let files = self.lock();
        files
            .iter()
            .map(|(&handle, &(token, _))| HeldFile { handle, token })
            .collect()
    }
}
