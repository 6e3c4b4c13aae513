// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A host in memory.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    string::String,
    sync::Mutex,
    vec::Vec,
};

use crate::{Errno, FileRef, Host, HostServices, OwnedFile};

/// Holds bytes and files in memory, counts the calls that may fail, and lets one of them fail.
#[derive(Debug, Default)]
pub struct FakeHost(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_handle: u64,
    bytes: BTreeMap<u64, Vec<u8>>,
    files: BTreeMap<u64, OwnedFd>,
    calls: u64,
    fails_at: Option<u64>,
    released_twice: Option<u64>,
    reason: String,
}

impl FakeHost {
    /// Lends it to a handler.
    pub fn lend(&self) -> Host<'_> {
        Host::new(self)
    }

    /// Lets the call that comes after `calls` others fail with `ENOSPC`.
    pub fn fail_at(&self, calls: u64) {
        let mut state = self.0.lock().unwrap();
        state.fails_at = Some(state.calls + calls);
    }

    /// Whether the call that was to fail has come.
    pub fn has_failed(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.fails_at.is_some_and(|at| at < state.calls)
    }

    /// Lets no call fail from here on; returns whether the one that was to fail has come.
    pub fn stop_failing(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let calls = state.calls;
        state.fails_at.take().is_some_and(|at| at < calls)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.bytes.is_empty() && state.files.is_empty()
    }

    /// All bytes that are held, by handle.
    pub fn all_bytes(&self) -> BTreeMap<u64, Vec<u8>> {
        self.0.lock().unwrap().bytes.clone()
    }

    /// The bytes that are held under `handle`.
    ///
    /// # Panics
    ///
    /// If there are no bytes under it.
    pub fn bytes(&self, handle: u64) -> Vec<u8> {
        self.0.lock().unwrap().bytes[&handle].clone()
    }

    /// Replaces held bytes by others, as an attacker would.
    pub fn replace(&self, handle: u64, bytes: &[u8]) {
        self.0
            .lock()
            .unwrap()
            .bytes
            .insert(handle, Vec::from(bytes));
    }

    /// Replaces a held file by another.
    pub fn replace_file(&self, handle: u64, file: OwnedFd) {
        self.0.lock().unwrap().files.insert(handle, file);
    }

    /// Another host that holds the same under the same handles.
    ///
    /// # Panics
    ///
    /// If there are not enough descriptors.
    pub fn fork(&self) -> Self {
        let state = self.0.lock().unwrap();
        let files = state.files.iter();
        let files = files.map(|(&handle, file)| (handle, file.try_clone().unwrap()));
        Self(Mutex::new(State {
            last_handle: state.last_handle,
            bytes: state.bytes.clone(),
            files: files.collect(),
            ..State::default()
        }))
    }

    /// The handles of all bytes, and those of all files.
    pub fn handles(&self) -> (Vec<u64>, Vec<u64>) {
        let state = self.0.lock().unwrap();
        let bytes = state.bytes.keys().copied().collect();
        (bytes, state.files.keys().copied().collect())
    }

    /// The handle of bytes that a handler released although they were not held any more, if it did.
    /// A kernel may have given the same handle to somebody else by then.
    pub fn released_twice(&self) -> Option<u64> {
        self.0.lock().unwrap().released_twice
    }

    /// What a handler last gave as the reason of a failure.
    pub fn reason(&self) -> String {
        self.0.lock().unwrap().reason.clone()
    }

    fn call<T>(&self, call: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        if state.fails_at == Some(state.calls - 1) {
            return Err(Errno::ENOSPC);
        }
        call(&mut state)
    }
}

impl State {
    /// Whether it is or was the handle of something that this host preserved.
    fn was_given_out(&self, handle: u64) -> bool {
        (1..=self.last_handle).contains(&handle)
    }

    fn new_handle(&mut self) -> u64 {
        self.last_handle += 1;
        self.last_handle
    }

    fn bytes(&self, handle: u64) -> Result<&Vec<u8>, Errno> {
        self.bytes.get(&handle).ok_or(Errno::ENOENT)
    }
}

impl HostServices for FakeHost {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        self.call(|state| {
            let handle = state.new_handle();
            state.bytes.insert(handle, Vec::from(bytes));
            Ok(handle)
        })
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        self.call(|state| Ok(state.bytes(handle)?.len() as u64))
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.call(|state| {
            let bytes = state.bytes(handle)?;
            let start = usize::try_from(offset).map_err(|_| Errno::ERANGE)?;
            let end = start.checked_add(buffer.len()).ok_or(Errno::ERANGE)?;
            buffer.copy_from_slice(bytes.get(start..end).ok_or(Errno::ERANGE)?);
            Ok(())
        })
    }

    fn release_bytes(&self, handle: u64) {
        let mut state = self.0.lock().unwrap();
        let was_held = state.bytes.remove(&handle).is_some();
        if !was_held && state.was_given_out(handle) {
            state.released_twice = Some(handle);
        }
    }

    fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        self.call(|state| {
            let handle = state.new_handle();
            let file = file.as_fd().try_clone_to_owned()?;
            state.files.insert(handle, file);
            Ok(handle)
        })
    }

    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        self.call(|state| {
            let file = state.files.remove(&handle).ok_or(Errno::ENOENT)?;
            Ok(file.into())
        })
    }

    fn release_file(&self, handle: u64) {
        self.0.lock().unwrap().files.remove(&handle);
    }

    fn explain(&self, reason: &str) {
        self.0.lock().unwrap().reason = String::from(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_offset_reads_beyond_the_bytes() {
        let host = FakeHost::default();
        let handle = host.lend().preserve_bytes(b"1234").unwrap();
        let read = |offset, length| {
            let mut buffer = std::vec![0; length];
            let read = host.lend().read_bytes(handle, offset, &mut buffer);
            read.map(|()| buffer)
        };
        assert_eq!(read(1, 3).unwrap(), b"234");
        assert_eq!(read(4, 0).unwrap(), b"");
        for (offset, length) in [
            (2, 3),
            (5, 0),
            (u64::MAX, 1),
            (u64::MAX - 3, 4),
            (u64::MAX, 0),
        ] {
            assert_eq!(read(offset, length), Err(Errno::ERANGE), "{offset:#x}");
        }
    }
}
