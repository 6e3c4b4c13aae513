// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The record layouts of handlers that the tests forge.
//!
//! This is all that the lab knows of a handler's insides, and the only reason why it depends on a
//! handler's crate: a record that a hostile kernel would have written has to be right in every
//! place but one, its checksum included, or the handler refuses it for something else than what is
//! tested.

use luo_handler_api::crc32c;
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

pub(crate) use luo_handler_memfd::chain::{
    BlockHeader as MemfdBlock, WHOLE_BLOCK_MAGIC as MEMFD_WHOLE_BLOCK,
};
pub(crate) use luo_handler_memfd::extent::Extent as MemfdExtent;
pub(crate) use luo_handler_memfd::record::{
    Kind as MemfdKind, RecordHeader as MemfdRecord, MAGIC as MEMFD_MAGIC,
};
pub(crate) use luo_handler_memfd::words::Decoder as MemfdDecoder;
pub(crate) use luo_handler_vfio::record::{
    Crossing as VfioCrossing, RecordBytes as VfioRecord, MAGIC as VFIO_MAGIC,
};

/// The address of what a handle leads to, and its length in bytes; see `kmod/host.rs`.
pub(crate) fn memory_of(handle: u64) -> (u64, u64) {
    let page = rustix::param::page_size() as u64;
    ((handle >> 24) * page, handle & 0xff_ffff)
}

/// The handle of `length` bytes of the page that `at` lies in.
pub(crate) fn handle_of(at: u64, length: u64) -> u64 {
    (at / rustix::param::page_size() as u64) << 24 | length
}

/// Makes the checksum of a record right again.
pub(crate) fn sign(record: &mut VfioRecord) {
    record.checksum = U32::ZERO;
    record.checksum = U32::new(crc32c(0, record.as_bytes()));
}

/// The same for the record of a memfd.
pub(crate) fn sign_memfd_record(record: &mut MemfdRecord) {
    record.checksum = U32::ZERO;
    record.checksum = U32::new(crc32c(0, record.as_bytes()));
}

/// The same for the record of a memfd and a block with one extent.
pub(crate) fn sign_memfd(record: &mut MemfdRecord, block: &mut MemfdBlock, extent: &MemfdExtent) {
    sign_memfd_record(record);
    sign_memfd_block(block, extent.as_bytes());
}

/// The same for a block with these extents.
pub(crate) fn sign_memfd_block(block: &mut MemfdBlock, extents: &[u8]) {
    block.extents_checksum = U32::new(crc32c(0, extents));
    block.checksum = U32::ZERO;
    block.checksum = U32::new(crc32c(0, block.as_bytes()));
}
