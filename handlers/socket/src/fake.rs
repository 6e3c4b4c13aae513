// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A backend in memory, for tests of the policy.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use luo_handler_api::{Errno, FileRef};
use rustix::fs::{fstat, memfd_create, MemfdFlags};

use crate::backend::{Seen, SocketBackend};

/// Every file is a socket: what it looks like is by its inode.
#[derive(Debug, Default)]
pub(crate) struct FakeBackend(pub(crate) Mutex<BTreeMap<u64, Result<Seen, Errno>>>);

fn inode(file: FileRef<'_>) -> u64 {
    fstat(file.as_fd()).unwrap().st_ino
}

impl FakeBackend {
    /// A memfd that stands for a socket.
    pub(crate) fn file(&self, seen: Seen) -> OwnedFd {
        let file = memfd_create("socket", MemfdFlags::CLOEXEC).unwrap();
        self.set(file.as_fd().into(), Ok(seen));
        file
    }

    pub(crate) fn set(&self, file: FileRef<'_>, seen: Result<Seen, Errno>) {
        self.0.lock().unwrap().insert(inode(file), seen);
    }
}

impl SocketBackend for FakeBackend {
    fn is_socket(&self, _: FileRef<'_>) -> bool {
        true
    }

    fn look(&self, file: FileRef<'_>) -> Result<Seen, Errno> {
        self.0.lock().unwrap()[&inode(file)].clone()
    }
}
