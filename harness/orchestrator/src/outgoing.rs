// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The old side's services: bytes and files that are to cross.
//!
//! Bytes go into the [memory file](crate::memory_file) that a transport carries over, and their
//! handle is the place that they will have in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luo_handler_api::{Errno, FileRef, HostServices, OwnedFile, Token};

use crate::files::{above_streams, HeldFile};
use crate::memory_file::{room_for, Writer, BLOCK_HEADER_BYTES, HEADER_BYTES};

/// What handlers preserved on the old side.
#[derive(Debug, Default)]
pub struct Outgoing {
    store: Mutex<Store>,
}

#[derive(Debug)]
struct Store {
    /// Blocks that came with an earlier jump and go on as they are.
    carried: Vec<u8>,
    blocks: BTreeMap<u64, Box<[u8]>>,
    end: u64,
    files: BTreeMap<u64, (Option<Token>, Arc<OwnedFd>)>,
    next_file: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            carried: Vec::new(),
            blocks: BTreeMap::new(),
            end: HEADER_BYTES,
            files: BTreeMap::new(),
            next_file: 1,
        }
    }
}

impl Outgoing {
    /// What an earlier jump brought, to be carried on as it is: a memory file that was checked, and
    /// files.
    pub(crate) fn carrying(
        memory: &[u8],
        files: impl IntoIterator<Item = (HeldFile, OwnedFd)>,
    ) -> Self {
        let files = files.into_iter();
        Self {
            store: Mutex::new(Store {
                carried: memory[HEADER_BYTES as usize..].to_vec(),
                end: memory.len() as u64,
                files: files
                    .map(|(held, file)| (held.handle, (held.token, Arc::new(file))))
                    .collect(),
                ..Store::default()
            }),
        }
    }

    /// Bytes of metadata that cross: what handlers preserved, and the headers of its blocks.
    pub fn metadata_bytes(&self) -> u64 {
        let store = self.lock();
        let payload: usize = store.blocks.values().map(|block| block.len()).sum();
        let blocks = payload as u64 + store.blocks.len() as u64 * BLOCK_HEADER_BYTES;
        store.carried.len() as u64 + blocks
    }

    /// Gives up what handlers left when all of them were cancelled: one that panics cannot do it.
    pub(crate) fn clear(&self) {
        *self.lock() = Store::default();
    }

    /// How many blocks of bytes and how many files are preserved.
    pub fn count(&self) -> (usize, usize) {
        let store = self.lock();
        (store.blocks.len(), store.files.len())
    }

    /// Writes the memory file.
    ///
    /// # Errors
    ///
    /// Those of the writing.
    pub fn write_memory(&self, file: &File) -> io::Result<()> {
        let store = self.lock();
        let mut writer = Writer::new(file, store.end)?;
        writer.copy(&store.carried)?;
        for (&handle, payload) in &store.blocks {
            writer.block(handle, payload)?;
        }
        writer.flush()
    }

    /// Calls `visit` with each preserved file.
    ///
    /// # Errors
    ///
    /// The first one of `visit`, which ends the walk.
    pub fn each_file<E>(
        &self,
        mut visit: impl FnMut(HeldFile, &Arc<OwnedFd>) -> Result<(), E>,
    ) -> Result<(), E> {
        let store = self.lock();
        store.files.iter().try_for_each(|(&handle, (token, file))| {
            let token = *token;
            visit(HeldFile { handle, token }, file)
        })
    }

    pub(crate) fn held(&self) -> Vec<(HeldFile, Arc<OwnedFd>)> {
        let store = self.lock();
        let files = store.files.iter();
        let held = |(&handle, (token, file)): (&u64, &(Option<Token>, Arc<OwnedFd>))| {
            let token = *token;
            (HeldFile { handle, token }, file.clone())
        };
        files.map(held).collect()
    }

    /// The services for the handler of one file: what it preserves is remembered as that file's.
    pub(crate) fn for_file(&self, token: Option<Token>) -> ForFile<'_> {
        ForFile {
            outgoing: self,
            token,
        }
    }

    fn preserve_file_for(&self, token: Option<Token>, file: FileRef<'_>) -> Result<u64, Errno> {
        let duplicate = Arc::new(above_streams(file.as_fd())?);
        let mut store = self.lock();
        let handle = store.next_file;
        store.next_file += 1;
        store.files.insert(handle, (token, duplicate));
        Ok(handle)
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`Outgoing`] for the handler of one file.
pub(crate) struct ForFile<'a> {
    outgoing: &'a Outgoing,
    token: Option<Token>,
}

impl HostServices for Outgoing {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        let mut store = self.lock();
        let handle = store.end;
        let end = room_for(bytes.len()).and_then(|room| handle.checked_add(room));
        store.end = end.ok_or(Errno::ENOSPC)?;
        store.blocks.insert(handle, bytes.into());
        Ok(handle)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        let store = self.lock();
        let block = store.blocks.get(&handle).ok_or(Errno::ENOENT)?;
        Ok(block.len() as u64)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let store = self.lock();
        let block = store.blocks.get(&handle).ok_or(Errno::ENOENT)?;
        copy_range(block, offset, buffer)
    }

    fn release_bytes(&self, handle: u64) {
        let mut store = self.lock();
        store.blocks.remove(&handle);
        // Otherwise every update that was given up would leave its hole in the memory file.
        if store.blocks.is_empty() {
            store.end = HEADER_BYTES + store.carried.len() as u64;
        }
    }

    fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        self.preserve_file_for(None, file)
    }

    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        let (_, file) = self.lock().files.remove(&handle).ok_or(Errno::ENOENT)?;
        // A transport may still have it.
        let file = Arc::try_unwrap(file).or_else(|file| file.try_clone())?;
        Ok(file.into())
    }

    fn release_file(&self, handle: u64) {
        let file = self.lock().files.remove(&handle);
        drop(file);
    }

    fn explain(&self, reason: &str) {
        crate::reason::report(reason);
    }
}

impl HostServices for ForFile<'_> {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        self.outgoing.preserve_bytes(bytes)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        self.outgoing.bytes_len(handle)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.outgoing.read_bytes(handle, offset, buffer)
    }

    fn release_bytes(&self, handle: u64) {
        self.outgoing.release_bytes(handle);
    }

    fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        self.outgoing.preserve_file_for(self.token, file)
    }

    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        self.outgoing.take_file(handle)
    }

    fn release_file(&self, handle: u64) {
        self.outgoing.release_file(handle);
    }

    fn explain(&self, reason: &str) {
        self.outgoing.explain(reason);
    }
}

/// Fills `buffer` with what `block` has from `offset` on.
pub(crate) fn copy_range(block: &[u8], offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    let start = usize::try_from(offset).map_err(|_| Errno::ERANGE)?;
    let end = start.checked_add(buffer.len()).ok_or(Errno::ERANGE)?;
    buffer.copy_from_slice(block.get(start..end).ok_or(Errno::ERANGE)?);
    Ok(())
}
