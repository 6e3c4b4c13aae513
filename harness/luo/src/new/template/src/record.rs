// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What crosses, and the checks it passes before it is used: the previous side is not trusted.
//!
//! ```text
//!  0        magic, length, checksum: as `luo_handler_api::record` has them
//! 16        access mode and status flags, little-endian
//! ```
//!
//! Change the layout, change the compatible.

use luo_handler_api::{
    record::{self, PREFIX},
    status, Errno, Host,
};

const MAGIC: &[u8; 8] = b"MAGIC-V1";
const LENGTH: usize = PREFIX + 4;

/// What makes a file of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRecord {
    /// Access mode and status flags, as [`luo_handler_api::status`] has them.
    pub status: u32,
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
        bytes[PREFIX..].copy_from_slice(&self.status.to_le_bytes());
        record::keep(host, &mut bytes)
    }

    /// Reads the record that the host holds under `handle`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is not such a record, `EBADMSG` for its checksum, those of the host.
    pub fn read(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let mut bytes = [0; LENGTH];
        record::load(host, handle, MAGIC, &mut bytes)?;
        let [.., a, b, c, d] = bytes;
        let record = Self {
            status: u32::from_le_bytes([a, b, c, d]),
        };
        record.is_possible().then_some(record).ok_or(Errno::EINVAL)
    }
}
