// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A backend in memory, for tests of the policy.

use std::sync::Mutex;

use luo_handler_api::{Errno, FileRef};

use crate::backend::{Seen, SocketBackend};

/// Every file is the same socket.
#[derive(Debug)]
pub(crate) struct FakeBackend(pub(crate) Mutex<Result<Seen, Errno>>);

impl FakeBackend {
    pub(crate) fn new(seen: Seen) -> Self {
        Self(Mutex::new(Ok(seen)))
    }

    pub(crate) fn set(&self, seen: Result<Seen, Errno>) {
        *self.0.lock().unwrap() = seen;
    }
}

impl SocketBackend for FakeBackend {
    fn is_socket(&self, _: FileRef<'_>) -> bool {
        true
    }

    fn look(&self, _: FileRef<'_>) -> Result<Seen, Errno> {
        self.0.lock().unwrap().clone()
    }
}
