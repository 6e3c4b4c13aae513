// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The memory file: the layout of the bytes that handlers preserve, in one place for both sides.
//!
//! A header of 64 bytes, and then blocks, each at a multiple of 16:
//!
//! ```text
//! 0        "LUOMEM1\0", the file's length u64, reserved
//! 64       block: magic u32, crc32c of the payload u32, length of the payload u64, payload
//! ...      block, or nothing where bytes were released
//! ```
//!
//! Numbers are little-endian. The handle of preserved bytes is the place of their block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use luo_handler_api::Errno;
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"LUOMEM1\0";
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"LUOB");
const BLOCK_ALIGN: u64 = 16;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    /// Bytes of the whole file.
    length: U64,
    reserved: [u8; 48],
}

impl Header {
    fn of(length: u64) -> Self {
        Self {
            magic: MAGIC,
            length: length.into(),
            reserved: [0; 48],
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlockHeader {
    magic: U32,
    crc32c: U32,
    length: U64,
}

/// Bytes of the header: where the first block begins.
pub(crate) const HEADER_BYTES: u64 = size_of::<Header>() as u64;
/// Bytes of what precedes the payload of a block.
pub(crate) const BLOCK_HEADER_BYTES: u64 = size_of::<BlockHeader>() as u64;
const _: () = assert!(HEADER_BYTES == 64 && BLOCK_HEADER_BYTES == 16);

/// The memory file is not one, or only a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadMemory {
    /// It does not begin as one.
    #[error("this is not a memory file of a live update, or it is one of another version")]
    Foreign,
    /// Its length is not what its header has.
    #[error("the memory file has {found} bytes, its header expects {expected}: it was truncated")]
    Length {
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
}

/// Room that a block with so many bytes takes; `None` if it does not fit into a file.
pub(crate) fn room_for(payload: usize) -> Option<u64> {
    (payload as u64)
        .checked_add(BLOCK_HEADER_BYTES)?
        .checked_next_multiple_of(BLOCK_ALIGN)
}

/// A memory file without blocks.
#[cfg(feature = "image")]
pub(crate) fn empty() -> Vec<u8> {
    Header::of(HEADER_BYTES).as_bytes().to_vec()
}

/// Checks the header.
pub(crate) fn check(memory: &[u8]) -> Result<(), BadMemory> {
    let (header, _) = Header::ref_from_prefix(memory).map_err(|_| BadMemory::Foreign)?;
    if header.magic != MAGIC {
        return Err(BadMemory::Foreign);
    }
    let (expected, found) = (header.length.get(), memory.len() as u64);
    match expected == found {
        true => Ok(()),
        false => Err(BadMemory::Length { expected, found }),
    }
}

/// A block whose checksum is still to be compared.
pub(crate) struct Block<'a> {
    payload: &'a [u8],
    crc32c: u32,
}

impl<'a> Block<'a> {
    /// The block at `handle` in a memory file that was checked.
    pub(crate) fn at(memory: &'a [u8], handle: u64) -> Result<Self, Errno> {
        let start = usize::try_from(handle).map_err(|_| Errno::ENOENT)?;
        let block = memory.get(start..).ok_or(Errno::ENOENT)?;
        let (header, rest) = BlockHeader::ref_from_prefix(block).map_err(|_| Errno::ENOENT)?;
        if handle < HEADER_BYTES || header.magic.get() != BLOCK_MAGIC {
            return Err(Errno::ENOENT);
        }
        let length = usize::try_from(header.length.get()).map_err(|_| Errno::EBADMSG)?;
        Ok(Self {
            payload: rest.get(..length).ok_or(Errno::EBADMSG)?,
            crc32c: header.crc32c.get(),
        })
    }

    /// The payload, compared with its checksum.
    pub(crate) fn checked(&self) -> Result<&'a [u8], Errno> {
        match crc32c::crc32c(self.payload) == self.crc32c {
            true => Ok(self.payload),
            false => Err(Errno::EBADMSG),
        }
    }

    /// The payload; its checksum was compared before.
    pub(crate) fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Writes a memory file, its blocks in ascending order.
pub(crate) struct Writer<'a> {
    file: &'a File,
    run: Run,
}

/// Neighbouring blocks, gathered so that a hundred thousand small ones are not as many writes.
struct Run {
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    const RUN_LIMIT: usize = 1 << 20;

    /// Begins a memory file of `length` bytes.
    pub(crate) fn new(file: &'a File, length: u64) -> io::Result<Self> {
        file.set_len(length)?;
        file.write_all_at(Header::of(length).as_bytes(), 0)?;
        Ok(Self {
            file,
            run: Run {
                start: HEADER_BYTES,
                bytes: Vec::new(),
            },
        })
    }

    /// Blocks as another memory file has them, from the first one on.
    pub(crate) fn copy(&mut self, blocks: &[u8]) -> io::Result<()> {
        self.file.write_all_at(blocks, HEADER_BYTES)
    }

    /// The next block.
    pub(crate) fn block(&mut self, handle: u64, payload: &[u8]) -> io::Result<()> {
        let run = &mut self.run;
        let gap = handle.wrapping_sub(run.start + run.bytes.len() as u64);
        if gap >= BLOCK_ALIGN || run.bytes.len() >= Self::RUN_LIMIT {
            self.flush()?;
            self.run.start = handle;
        }
        let header = BlockHeader {
            magic: BLOCK_MAGIC.into(),
            crc32c: crc32c::crc32c(payload).into(),
            length: (payload.len() as u64).into(),
        };
        let run = &mut self.run;
        run.bytes.resize((handle - run.start) as usize, 0);
        run.bytes.extend_from_slice(header.as_bytes());
        run.bytes.extend_from_slice(payload);
        Ok(())
    }

    /// Writes what is gathered; to be called at the end.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.run.bytes, self.run.start)?;
        self.run.bytes.clear();
        Ok(())
    }
}
