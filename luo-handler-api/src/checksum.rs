// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The checksum of what crosses: CRC-32C, as iSCSI and Btrfs have it (RFC 3720, appendix B.4).

/// Continues a checksum: `so_far` is that of all bytes before, 0 for no bytes. The inversion before
/// and after is part of it.
///
/// ```
/// use luo_handler_api::crc32c;
/// assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
/// assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
/// ```
#[cfg(not(luo_kernel))]
pub fn crc32c(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

#[cfg(luo_kernel)]
pub use crate::kernel::crc32c;
