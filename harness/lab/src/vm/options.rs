// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What may be asked of a guest, for any job.

use std::time::Duration;

/// How to boot a guest.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Its memory, in bytes.
    pub memory: u64,
    /// More kernel parameters.
    pub append: String,
    /// After this a guest that has not ended is stopped; by default a bound that suits the job.
    pub timeout: Option<Duration>,
    /// Whether QEMU listens for gdb, on port 1234. The kernel's addresses are those of its
    /// `vmlinux` then.
    pub gdb: bool,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            memory: 4 << 30,
            append: String::new(),
            timeout: None,
            gdb: false,
        }
    }
}
