// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The new side's services: bytes and files that crossed, none of which is trusted.

use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{PoisonError, RwLock};

use luo_handler_api::{Errno, FileRef, HostServices, OwnedFile};
use thiserror::Error;

use crate::outgoing::{copy_range, BLOCK_HEADER_BYTES, BLOCK_MAGIC, FILE_HEADER_BYTES, FILE_MAGIC};

/// Where a transport keeps the files that crossed.
pub trait FileSource: fmt::Debug + Send + Sync {
    /// Takes a file out, once.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown handle or one that was taken before; `EBADMSG` if the contents are
    /// not what was kept.
    fn take(&self, handle: u64) -> Result<OwnedFd, Errno>;

    /// Gives a file up that nobody takes; an unknown handle is ignored.
    fn release(&self, handle: u64);
}

/// A host to which no file crossed.
#[derive(Debug)]
pub struct NoFiles;

impl FileSource for NoFiles {
    fn take(&self, _: u64) -> Result<OwnedFd, Errno> {
        Err(Errno::ENOENT)
    }

    fn release(&self, _: u64) {}
}

/// What handlers find on the new side.
pub struct Incoming {
    memory: Box<dyn Deref<Target = [u8]> + Send + Sync>,
    checked: RwLock<HashSet<u64>>,
    files: Box<dyn FileSource>,
}

/// The memory file is none, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadMemory {
    /// It does not begin as one.
    #[error("no memory file of a live update, or one of another version")]
    Foreign,
    /// Its length is not what its header says.
    #[error("the memory file has {found} bytes, its header says {expected}: it was truncated")]
    Length {
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
}

impl Incoming {
    /// The services over a memory file, as `Outgoing::write_memory` wrote it, and over files.
    ///
    /// # Errors
    ///
    /// [`BadMemory`] if it is none. Blocks are looked at when they are asked for.
    pub fn new(
        memory: impl Deref<Target = [u8]> + Send + Sync + 'static,
        files: impl FileSource + 'static,
    ) -> Result<Self, BadMemory> {
        let header = memory
            .get(..FILE_HEADER_BYTES as usize)
            .ok_or(BadMemory::Foreign)?;
        if header[..8] != FILE_MAGIC {
            return Err(BadMemory::Foreign);
        }
        let expected = le_u64(&header[8..16]);
        let found = memory.len() as u64;
        if expected != found {
            return Err(BadMemory::Length { expected, found });
        }
        Ok(Self {
            memory: Box::new(memory),
            checked: RwLock::default(),
            files: Box::new(files),
        })
    }

    /// Bytes of the memory file.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.len() as u64
    }

    /// The payload of the block at `handle`, its checksum compared once.
    fn block(&self, handle: u64) -> Result<&[u8], Errno> {
        let start = usize::try_from(handle).map_err(|_| Errno::ENOENT)?;
        let block = self.memory.get(start..).ok_or(Errno::ENOENT)?;
        let (header, rest) = block
            .split_at_checked(BLOCK_HEADER_BYTES as usize)
            .ok_or(Errno::ENOENT)?;
        if handle < FILE_HEADER_BYTES || le_u32(&header[..4]) != BLOCK_MAGIC {
            return Err(Errno::ENOENT);
        }
        let length = usize::try_from(le_u64(&header[8..])).map_err(|_| Errno::EBADMSG)?;
        let payload = rest.get(..length).ok_or(Errno::EBADMSG)?;
        let known = self
            .checked
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&handle);
        if !known {
            if crc32c::crc32c(payload) != le_u32(&header[4..8]) {
                return Err(Errno::EBADMSG);
            }
            self.checked
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(handle);
        }
        Ok(payload)
    }
}

/// Of four bytes.
fn le_u32(bytes: &[u8]) -> u32 {
    le_u64(bytes) as u32
}

/// Of up to eight bytes.
fn le_u64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("memory_bytes", &self.memory_bytes())
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl HostServices for Incoming {
    /// `EINVAL`: nothing is kept on the new side before the update is finished.
    fn preserve_bytes(&self, _: &[u8]) -> Result<u64, Errno> {
        Err(Errno::EINVAL)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        self.block(handle).map(|block| block.len() as u64)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        copy_range(self.block(handle)?, offset, buffer)
    }

    /// Nothing to do: the memory file goes as a whole when the update is finished.
    fn release_bytes(&self, _: u64) {}

    /// `EINVAL`, as for bytes.
    fn preserve_file(&self, _: FileRef<'_>) -> Result<u64, Errno> {
        Err(Errno::EINVAL)
    }

    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        self.files.take(handle).map(OwnedFile::from)
    }

    fn release_file(&self, handle: u64) {
        self.files.release(handle);
    }

    fn explain(&self, reason: &str) {
        crate::reason::say(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outgoing::Outgoing;
    use proptest::prelude::*;
    use std::io::Read;

    fn memory_of(outgoing: &Outgoing) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        outgoing.write_memory(&file).unwrap();
        let mut memory = Vec::new();
        file.read_to_end(&mut memory).unwrap();
        memory
    }

    #[test]
    fn what_was_released_is_gone_and_its_neighbours_are_there() {
        let outgoing = Outgoing::default();
        let handles =
            [b"one".as_slice(), b"", b"three"].map(|b| outgoing.preserve_bytes(b).unwrap());
        outgoing.release_bytes(handles[1]);
        let incoming = Incoming::new(memory_of(&outgoing), NoFiles).unwrap();
        let mut three = [0; 5];
        incoming.read_bytes(handles[2], 0, &mut three).unwrap();
        assert_eq!(&three, b"three");
        assert_eq!(incoming.bytes_len(handles[1]), Err(Errno::ENOENT));
        assert_eq!(
            incoming.read_bytes(handles[2], 1, &mut three),
            Err(Errno::ERANGE)
        );
        assert_eq!(
            incoming.read_bytes(handles[2], u64::MAX, &mut three),
            Err(Errno::ERANGE)
        );
        for handle in [0, 1, 63, 65, u64::MAX, u64::MAX - 16] {
            assert_eq!(incoming.bytes_len(handle), Err(Errno::ENOENT), "{handle}");
        }
    }

    #[test]
    fn a_flipped_bit_is_told_of_its_block_alone() {
        let outgoing = Outgoing::default();
        let first = outgoing.preserve_bytes(&[1; 100]).unwrap();
        let second = outgoing.preserve_bytes(&[2; 100]).unwrap();
        let mut memory = memory_of(&outgoing);
        memory[first as usize + 50] ^= 1;
        let incoming = Incoming::new(memory, NoFiles).unwrap();
        assert_eq!(incoming.bytes_len(first), Err(Errno::EBADMSG));
        assert_eq!(incoming.bytes_len(second), Ok(100));
    }

    #[test]
    fn a_truncated_file_is_refused_at_every_byte() {
        let outgoing = Outgoing::default();
        outgoing.preserve_bytes(b"some bytes").unwrap();
        let memory = memory_of(&outgoing);
        for length in 0..memory.len() {
            assert!(Incoming::new(memory[..length].to_vec(), NoFiles).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_memory_never_panics(mut memory: Vec<u8>, handle: u64, near in 0u64..200) {
            let length = memory.len() as u64;
            if memory.len() >= FILE_HEADER_BYTES as usize {
                memory[..8].copy_from_slice(&FILE_MAGIC);
                memory[8..16].copy_from_slice(&length.to_le_bytes());
            }
            if let Ok(incoming) = Incoming::new(memory, NoFiles) {
                let _ = incoming.bytes_len(handle);
                let _ = incoming.read_bytes(near, handle, &mut [0; 8]);
            }
        }

        #[test]
        fn bytes_cross(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let outgoing = Outgoing::default();
            let handles: Vec<_> = blocks.iter().map(|b| outgoing.preserve_bytes(b).unwrap()).collect();
            let incoming = Incoming::new(memory_of(&outgoing), NoFiles).unwrap();
            for (handle, block) in handles.into_iter().zip(blocks) {
                let mut read = vec![0; incoming.bytes_len(handle).unwrap() as usize];
                incoming.read_bytes(handle, 0, &mut read).unwrap();
                prop_assert_eq!(read, block);
            }
        }
    }
}
