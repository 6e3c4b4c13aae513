// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A live update without a jump.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use super::fake_host::FakeHost;
use crate::{Crossed, Errno, FileHandler, FileRef, Prepared, Preserved, Retrieved};

/// A handler, a host and one file: the phases of a live update by name, on both sides of a jump
/// that leaves everything where it is.
///
/// The calls are the trait's own: how they look in C is not tried out.
#[derive(Debug)]
pub struct Rehearsal<H> {
    /// The handler.
    pub handler: H,
    /// The host, on both sides.
    pub host: FakeHost,
    file: OwnedFd,
}

impl<H: FileHandler> Rehearsal<H> {
    /// Of `handler` with `file`.
    pub fn new(handler: H, file: impl Into<OwnedFd>) -> Self {
        Self {
            handler,
            host: FakeHost::default(),
            file: file.into(),
        }
    }

    /// The same with a file that stands for any: `/dev/null`.
    pub fn with_any_file(handler: H) -> Self {
        Self::new(handler, File::open("/dev/null").unwrap())
    }

    /// The file.
    pub fn file(&self) -> FileRef<'_> {
        self.file.as_fd().into()
    }

    fn preserved<'a>(
        &'a self,
        prepared: &'a mut Prepared<H::Private>,
    ) -> Preserved<'a, H::Private> {
        Preserved {
            file: self.file(),
            data: prepared.data,
            private: &mut prepared.private,
            host: self.host.lend(),
        }
    }

    /// See [`FileHandler::prepare`].
    pub fn prepare(&self) -> Result<Prepared<H::Private>, Errno> {
        self.handler.prepare(self.file(), self.host.lend())
    }

    /// See [`FileHandler::freeze`].
    pub fn freeze(&self, prepared: &mut Prepared<H::Private>) -> Result<(), Errno> {
        prepared.data = self.handler.freeze(self.preserved(prepared))?;
        Ok(())
    }

    /// See [`FileHandler::unfreeze`].
    pub fn unfreeze(&self, prepared: &mut Prepared<H::Private>) {
        self.handler.unfreeze(self.preserved(prepared));
    }

    /// See [`FileHandler::cancel`].
    pub fn cancel(&self, mut prepared: Prepared<H::Private>) {
        self.handler.cancel(self.preserved(&mut prepared));
    }

    /// Prepares and freezes; yields what crosses.
    pub fn frozen(&self) -> u64 {
        let mut prepared = self.prepare().unwrap();
        self.freeze(&mut prepared).unwrap();
        prepared.data
    }

    /// See [`FileHandler::retrieve`].
    pub fn retrieve(&self, data: u64) -> Result<OwnedFd, Errno> {
        let retrieved = self.handler.retrieve(data, self.host.lend());
        retrieved.map(OwnedFd::from)
    }

    fn crossed<'a>(&'a self, data: u64, retrieved: Retrieved<'a>) -> Crossed<'a> {
        Crossed {
            data,
            retrieved,
            host: self.host.lend(),
        }
    }

    /// See [`FileHandler::can_finish`].
    pub fn can_finish(&self, data: u64, retrieved: Retrieved<'_>) -> bool {
        self.handler.can_finish(self.crossed(data, retrieved))
    }

    /// See [`FileHandler::finish`].
    pub fn finish(&self, data: u64, retrieved: Retrieved<'_>) {
        self.handler.finish(self.crossed(data, retrieved));
    }
}
