// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What crosses, and the checks it passes before it is used: the previous side is not trusted.
//!
//! ```text
//!  0        magic, length, checksum: as `luo_handler_api::record` has them
//! 16        access mode and status flags, little-endian
//! 20        handle of what the host preserves besides, 0 for nothing
//! ```
//!
//! What a handle leads to may be somebody else's memory: bytes that are preserved besides are best
//! a record of their own, which shows by its magic whose they are.
//!
//! Change the layout, change the compatible.

use luo_handler_api::{
    record::{self, PREFIX},
    status, Errno, Host,
};

const MAGIC: &[u8; 8] = b"MAGIC-V1";
const LENGTH: usize = PREFIX + 12;

/// What makes a file of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRecord {
    /// Access mode and status flags, as [`luo_handler_api::status`] has them.
    pub status: u32,
    /// The handle of what the host preserves besides, 0 for nothing: the open file in a process.
    pub contents: u64,
}

impl SampleRecord {
    /// Whether a file can be like this.
    pub const fn is_possible(&self) -> bool {
        status::is_possible(self.status)
    }

    /// Has the host preserve the record; returns its handle.
    ///
    /// # Errors
    ///
    /// Those of the host.
    pub fn keep(&self, host: Host<'_>) -> Result<u64, Errno> {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(MAGIC);
        let (status, contents) = bytes[PREFIX..].split_at_mut(4);
        status.copy_from_slice(&self.status.to_le_bytes());
        contents.copy_from_slice(&self.contents.to_le_bytes());
        record::keep(host, &mut bytes)
    }

    /// Gives the record back that crossed under `handle`; leaves alone what is none.
    pub fn release(host: Host<'_>, handle: u64) {
        record::release(host, handle, MAGIC);
    }

    /// Reads the record that the host holds under `handle`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is not such a record, `EBADMSG` for its checksum, those of the host.
    pub fn read(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let mut bytes = [0; LENGTH];
        record::load(host, handle, MAGIC, &mut bytes)?;
        let (status, contents) = bytes[PREFIX..].split_at(4);
        let record = Self {
            status: u32::from_le_bytes(status.try_into().map_err(|_| Errno::EINVAL)?),
            contents: u64::from_le_bytes(contents.try_into().map_err(|_| Errno::EINVAL)?),
        };
        record.is_possible().then_some(record).ok_or(Errno::EINVAL)
    }
}
