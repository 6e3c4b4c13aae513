// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The new side's services: bytes and files that crossed, none of which is trusted.
//!
//! A handler that takes a file gets a duplicate. The file itself stays here until it was retrieved:
//! one whose handler failed is not lost.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use luo_handler_api::{Errno, FileRef, HostServices, OwnedFile, Token};
use rustix::fs::fstat;

use crate::files::{FileSource, HeldFile};
use crate::memory_file::{self, BadMemory, Block};
use crate::outgoing::copy_range;
use crate::reason;

/// What handlers find on the new side.
pub struct Incoming {
    memory: Box<dyn Deref<Target = [u8]> + Send + Sync>,
    checked: RwLock<HashSet<u64>>,
    source: Box<dyn FileSource>,
    taken: Mutex<BTreeMap<u64, Taken>>,
}

/// A file that is no longer in its source.
#[derive(Debug)]
struct Taken {
    token: Option<Token>,
    state: TakenState,
}

#[derive(Debug)]
enum TakenState {
    /// It can be taken.
    Here(OwnedFd),
    /// A handler has a duplicate, and did not succeed so far.
    Lent(OwnedFd),
    /// The file table has it.
    Retrieved,
}

impl Incoming {
    /// The services over a memory file and over the files that crossed.
    ///
    /// # Errors
    ///
    /// [`BadMemory`] if it is not a memory file. Blocks are checked when they are asked for.
    pub fn new(
        memory: impl Deref<Target = [u8]> + Send + Sync + 'static,
        files: impl FileSource + 'static,
    ) -> Result<Self, BadMemory> {
        memory_file::check(&memory)?;
        Ok(Self {
            memory: Box::new(memory),
            checked: RwLock::default(),
            source: Box::new(files),
            taken: Mutex::default(),
        })
    }

    /// Bytes of the memory file.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.len() as u64
    }

    /// The memory file.
    pub(crate) fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// The services for the handler of one file, or for a subsystem.
    pub(crate) fn for_file(&self, token: Option<Token>) -> ForFile<'_> {
        ForFile {
            incoming: self,
            token,
            lent: Mutex::default(),
            releases: true,
        }
    }

    /// The same for a handler that is to release none of its files.
    pub(crate) fn without_release(&self, token: Option<Token>) -> ForFile<'_> {
        ForFile {
            releases: false,
            ..self.for_file(token)
        }
    }

    /// The tokens of the files that nobody has.
    pub(crate) fn tokens_left(&self) -> HashSet<Token> {
        let held = self.source.held().into_iter().filter_map(|held| held.token);
        let mut tokens: HashSet<Token> = held.collect();
        let taken = self.lock();
        let left = taken.values().filter(|taken| taken.is_left());
        tokens.extend(left.filter_map(|taken| taken.token));
        tokens
    }

    /// Gives up every file but those of `tokens`.
    pub(crate) fn release_all_but(&self, tokens: &HashSet<Token>) {
        let kept = |token: Option<Token>| token.is_some_and(|token| tokens.contains(&token));
        for held in self.source.held() {
            if !kept(held.token) {
                self.source.release(held.handle);
            }
        }
        self.lock().retain(|_, taken| kept(taken.token));
    }

    /// Takes out the files of `token` that nobody has.
    ///
    /// # Errors
    ///
    /// The first one of the source; nothing is taken out then.
    pub(crate) fn take_left(&self, token: Token) -> Result<Vec<OwnedFd>, Errno> {
        self.take_from_source(|held| held.token == Some(token))?;
        let mut taken = self.lock();
        let is_left = |taken: &Taken| taken.token == Some(token) && taken.is_left();
        let handles: Vec<u64> = taken
            .iter()
            .filter(|(_, taken)| is_left(taken))
            .map(|(&handle, _)| handle)
            .collect();
        let left = handles.iter().filter_map(|handle| taken.remove(handle));
        Ok(left.filter_map(|taken| taken.state.into_file()).collect())
    }

    /// A duplicate of every file that crossed; `retrieved` knows those of the file table.
    ///
    /// # Errors
    ///
    /// Those of the source and of duplicating; everything is as before then.
    pub(crate) fn duplicates(
        &self,
        retrieved: impl Fn(Token) -> Option<OwnedFd>,
    ) -> Result<Vec<(HeldFile, OwnedFd)>, Errno> {
        self.take_from_source(|_| true)?;
        let mut duplicates = Vec::new();
        for (&handle, taken) in &*self.lock() {
            let token = taken.token;
            let file = match &taken.state {
                TakenState::Here(file) | TakenState::Lent(file) => Some(file.try_clone()?),
                TakenState::Retrieved => token.and_then(&retrieved),
            };
            if let Some(file) = file {
                duplicates.push((HeldFile { handle, token }, file));
            }
        }
        Ok(duplicates)
    }

    /// From the source to here.
    fn take_from_source(&self, wanted: impl Fn(&HeldFile) -> bool) -> Result<(), Errno> {
        for HeldFile { handle, token } in self.source.held().into_iter().filter(wanted) {
            let state = TakenState::Here(self.source.take(handle)?);
            self.lock().insert(handle, Taken { token, state });
        }
        Ok(())
    }

    /// Takes a file, for one call of a handler: the caller gets a duplicate.
    fn lend(&self, handle: u64, token: Option<Token>) -> Result<OwnedFd, Errno> {
        let here = {
            let mut taken = self.lock();
            match taken.get(&handle).map(|taken| &taken.state) {
                None => None,
                Some(TakenState::Here(_)) => taken.remove(&handle).and_then(|taken| {
                    let token = taken.token;
                    Some((token, taken.state.into_file()?))
                }),
                Some(TakenState::Lent(_) | TakenState::Retrieved) => return Err(Errno::ENOENT),
            }
        };
        let (token, file) = match here {
            Some(here) => here,
            None => (token, self.source.take(handle)?),
        };
        let duplicate = file.try_clone();
        let state = match duplicate {
            Ok(_) => TakenState::Lent(file),
            Err(_) => TakenState::Here(file),
        };
        self.lock().insert(handle, Taken { token, state });
        Ok(duplicate?)
    }

    /// The payload of the block at `handle`, its checksum compared once.
    fn block(&self, handle: u64) -> Result<&[u8], Errno> {
        let damaged = |errno| {
            if errno == Errno::EBADMSG {
                reason::report(&format!("block {handle:#x} of the memory file is damaged"));
            }
            errno
        };
        let block = Block::at(&self.memory, handle).map_err(damaged)?;
        let known = self
            .checked
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&handle);
        if !known {
            block.checked().map_err(damaged)?;
            self.checked
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(handle);
        }
        Ok(block.payload())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn is_left(&self) -> bool {
        !matches!(self.state, TakenState::Retrieved)
    }
}

impl TakenState {
    fn into_file(self) -> Option<OwnedFd> {
        match self {
            Self::Here(file) | Self::Lent(file) => Some(file),
            Self::Retrieved => None,
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("memory_bytes", &self.memory_bytes())
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// [`Incoming`] for the handler of one file.
pub(crate) struct ForFile<'a> {
    incoming: &'a Incoming,
    token: Option<Token>,
    /// Handles of what was taken through this value.
    lent: Mutex<Vec<u64>>,
    releases: bool,
}

impl ForFile<'_> {
    /// The handler succeeded and returned `file`: what it took for that need not stay here.
    pub(crate) fn retrieved(&self, file: BorrowedFd<'_>) {
        let lent = std::mem::take(&mut *self.lent.lock().unwrap_or_else(PoisonError::into_inner));
        let mut taken = self.incoming.lock();
        for handle in lent {
            let Some(taken) = taken.get_mut(&handle) else {
                continue;
            };
            let is_it = match &taken.state {
                TakenState::Lent(lent) => is_same_file(lent.as_fd(), file).unwrap_or(false),
                TakenState::Here(_) | TakenState::Retrieved => false,
            };
            if is_it {
                taken.state = TakenState::Retrieved;
            }
        }
    }
}

fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

impl HostServices for Incoming {
    /// `EINVAL`: nothing is preserved on the new side before the update is finished.
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
        self.lend(handle, None).map(OwnedFile::from)
    }

    fn release_file(&self, handle: u64) {
        self.source.release(handle);
        self.lock().remove(&handle);
    }

    fn explain(&self, reason: &str) {
        reason::report(reason);
    }
}

impl HostServices for ForFile<'_> {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        self.incoming.preserve_bytes(bytes)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        self.incoming.bytes_len(handle)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.incoming.read_bytes(handle, offset, buffer)
    }

    fn release_bytes(&self, handle: u64) {
        self.incoming.release_bytes(handle);
    }

    fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        self.incoming.preserve_file(file)
    }

    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        let file = self.incoming.lend(handle, self.token)?;
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.push(handle);
        Ok(file.into())
    }

    fn release_file(&self, handle: u64) {
        if self.releases {
            self.incoming.release_file(handle);
        }
    }

    fn explain(&self, reason: &str) {
        self.incoming.explain(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::NoFiles;
    use crate::memory_file::HEADER_BYTES;
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
    fn a_flipped_bit_costs_its_block_alone() {
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
            if memory.len() >= HEADER_BYTES as usize {
                memory[..8].copy_from_slice(b"LUOMEM1\0");
                memory[8..16].copy_from_slice(&length.to_le_bytes());
            }
            if let Ok(incoming) = Incoming::new(memory, NoFiles) {
                let _ = incoming.bytes_len(handle);
                let _ = incoming.read_bytes(near, handle, &mut [0; 8]);
            }
        }

        #[test]
        fn bytes_cross(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)
        ) {
            let outgoing = Outgoing::default();
            let handles = blocks.iter().map(|block| outgoing.preserve_bytes(block).unwrap());
            let handles: Vec<_> = handles.collect();
            let incoming = Incoming::new(memory_of(&outgoing), NoFiles).unwrap();
            for (handle, block) in handles.into_iter().zip(blocks) {
                let mut read = vec![0; incoming.bytes_len(handle).unwrap() as usize];
                incoming.read_bytes(handle, 0, &mut read).unwrap();
                prop_assert_eq!(read, block);
            }
        }
    }
}
