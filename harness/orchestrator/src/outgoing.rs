// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The old side's services: bytes and files that are to cross.
//!
//! The handle of kept bytes is the place they will have in the *memory file* that a transport carries
//! over. That file is a header of 64 bytes and then blocks, each at a multiple of 16:
//!
//! ```text
//! 0        "LUOMEM1\0", the file's length u64, reserved
//! 64       block: magic u32, crc32c of the payload u32, length of the payload u64, payload
//! ...      block, or nothing where bytes were released
//! ```
//!
//! Numbers are little-endian.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use luo_handler_api::{Errno, FileRef, HostServices, OwnedFile};

pub(crate) const FILE_MAGIC: [u8; 8] = *b"LUOMEM1\0";
pub(crate) const FILE_HEADER_BYTES: u64 = 64;
pub(crate) const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"LUOB");
pub(crate) const BLOCK_HEADER_BYTES: u64 = 16;
const BLOCK_ALIGN: u64 = 16;

/// What handlers kept on the old side.
#[derive(Debug, Default)]
pub struct Outgoing {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    blocks: BTreeMap<u64, Box<[u8]>>,
    end: u64,
    files: BTreeMap<u64, OwnedFd>,
    next_file: u64,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            blocks: BTreeMap::new(),
            end: FILE_HEADER_BYTES,
            files: BTreeMap::new(),
            next_file: 1,
        }
    }
}

impl Outgoing {
    /// Bytes of metadata that cross: what handlers kept, and the headers of its blocks.
    pub fn metadata_bytes(&self) -> u64 {
        let kept = self.lock();
        let payload: usize = kept.blocks.values().map(|block| block.len()).sum();
        payload as u64 + kept.blocks.len() as u64 * BLOCK_HEADER_BYTES
    }

    /// Gives up what handlers left when all of them were cancelled: one that panics cannot do it.
    pub(crate) fn clear(&self) {
        *self.lock() = Kept::default();
    }

    /// How many blocks of bytes and how many files are kept.
    pub fn count(&self) -> (usize, usize) {
        let kept = self.lock();
        (kept.blocks.len(), kept.files.len())
    }

    /// Writes the memory file.
    ///
    /// # Errors
    ///
    /// Those of the writing.
    pub fn write_memory(&self, file: &File) -> io::Result<()> {
        let kept = self.lock();
        let mut header = [0; FILE_HEADER_BYTES as usize];
        header[..8].copy_from_slice(&FILE_MAGIC);
        header[8..16].copy_from_slice(&kept.end.to_le_bytes());
        file.set_len(kept.end)?;
        file.write_all_at(&header, 0)?;
        let mut run = Run::default();
        for (&handle, payload) in &kept.blocks {
            run.push(file, handle, payload)?;
        }
        run.flush(file)
    }

    /// Calls `visit` with each kept file and its handle.
    ///
    /// # Errors
    ///
    /// The first one of `visit`, which ends the walk.
    pub fn each_file<E>(
        &self,
        mut visit: impl FnMut(u64, &OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        let kept = self.lock();
        kept.files
            .iter()
            .try_for_each(|(&handle, file)| visit(handle, file))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Neighbouring blocks, gathered so that a hundred thousand small ones are not as many writes.
#[derive(Default)]
struct Run {
    start: u64,
    bytes: Vec<u8>,
}

impl Run {
    const LIMIT: usize = 1 << 20;

    fn push(&mut self, file: &File, handle: u64, payload: &[u8]) -> io::Result<()> {
        let gap = handle.wrapping_sub(self.start + self.bytes.len() as u64);
        if gap >= BLOCK_ALIGN || self.bytes.len() >= Self::LIMIT {
            self.flush(file)?;
            self.start = handle;
        }
        let place = (handle - self.start) as usize;
        self.bytes.resize(place, 0);
        self.bytes.extend_from_slice(&BLOCK_MAGIC.to_le_bytes());
        self.bytes
            .extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        self.bytes
            .extend_from_slice(&(payload.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(payload);
        Ok(())
    }

    fn flush(&mut self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.bytes, self.start)?;
        self.bytes.clear();
        Ok(())
    }
}

impl HostServices for Outgoing {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        let mut kept = self.lock();
        let handle = kept.end;
        let room = (BLOCK_HEADER_BYTES + bytes.len() as u64).next_multiple_of(BLOCK_ALIGN);
        kept.end = handle.checked_add(room).ok_or(Errno::ENOSPC)?;
        kept.blocks.insert(handle, bytes.into());
        Ok(handle)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        let kept = self.lock();
        let block = kept.blocks.get(&handle).ok_or(Errno::ENOENT)?;
        Ok(block.len() as u64)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let kept = self.lock();
        let block = kept.blocks.get(&handle).ok_or(Errno::ENOENT)?;
        copy_range(block, offset, buffer)
    }

    fn release_bytes(&self, handle: u64) {
        let mut kept = self.lock();
        kept.blocks.remove(&handle);
        // Otherwise every update that was given up would leave its hole in the memory file.
        if kept.blocks.is_empty() {
            kept.end = FILE_HEADER_BYTES;
        }
    }

    fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        let duplicate = file.as_fd().try_clone_to_owned()?;
        let mut kept = self.lock();
        let handle = kept.next_file;
        kept.next_file += 1;
        kept.files.insert(handle, duplicate);
        Ok(handle)
    }

    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        let file = self.lock().files.remove(&handle).ok_or(Errno::ENOENT)?;
        Ok(file.into())
    }

    fn release_file(&self, handle: u64) {
        let file = self.lock().files.remove(&handle);
        drop(file);
    }

    fn explain(&self, reason: &str) {
        crate::reason::say(reason);
    }
}

/// Fills `buffer` with what stands in `block` from `offset` on.
pub(crate) fn copy_range(block: &[u8], offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let start = usize::try_from(offset).map_err(|_| Errno::ERANGE)?;
    let end = start.checked_add(buffer.len()).ok_or(Errno::ERANGE)?;
    buffer.copy_from_slice(block.get(start..end).ok_or(Errno::ERANGE)?);
    Ok(())
}
