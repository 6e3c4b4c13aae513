// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of its surroundings: a process, or a test.

use luo_handler_api::{Errno, FileRef};

use crate::description::Description;

/// All that looks at sockets. Nothing here changes one: a socket crosses as it is.
pub trait SocketBackend: Sync + 'static {
    /// Whether `file` is a socket of any kind. Cheap, without side effects.
    fn is_socket(&self, file: FileRef<'_>) -> bool;

    /// What the socket is now.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn look(&self, file: FileRef<'_>) -> Result<Seen, Errno>;
}

/// A socket, as the backend sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// One of a [`Kind`](crate::description::Kind) that crosses.
    Known(Description),
    /// Another one.
    Foreign {
        /// `SO_DOMAIN`.
        domain: u32,
        /// `SO_TYPE`.
        socket_type: u32,
        /// `SO_PROTOCOL`.
        protocol: u32,
    },
}
