// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What may be asked of a guest, for any job.

use std::time::Duration;

use crate::build::profile::Profile;

/// How many processors a guest has, if nobody asks for more or fewer.
pub(crate) const DEFAULT_CPUS: u32 = 2;

/// How to boot a guest.
#[derive(Clone, Debug, Default)]
pub struct GuestOptions {
    /// Its memory, in bytes; by default what its kernel needs for every job.
    pub memory: Option<u64>,
    /// How many processors it has; by default two.
    pub cpus: Option<u32>,
    /// More kernel parameters.
    pub append: String,
    /// After this a guest that has not ended is stopped; by default a bound that suits the job.
    pub timeout: Option<Duration>,
    /// Whether QEMU listens for gdb, on port 1234. The kernel's addresses are those of its
    /// `vmlinux` then.
    pub gdb: bool,
}

impl GuestOptions {
    /// The bytes of memory of a guest with a kernel of this profile.
    pub(crate) fn memory_with(&self, profile: Profile) -> u64 {
        self.memory.unwrap_or(profile.guest_memory())
    }
}
