// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! For the tests of handlers: [`conformance`], which any handler passes; a host in memory; and a
//! live update without a jump, for what is special to a handler.
//!
//! A real exec takes an orchestrator, and is in its crate: `luo_orchestrator::testing::cross_exec`.
//!
//! Its calls panic where a test has gone wrong: a lock that a panic has poisoned, a handle that a
//! test made up.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    string::String,
    sync::Mutex,
    vec::Vec,
};

use crate::{
    Crossed, Errno, FileHandler, FileRef, Host, HostServices, OwnedFile, Prepared, Preserved,
    Retrieved,
};

mod conformance;
mod form;

pub use conformance::{conformance, PLACES_MAX};

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

/// A handler, a host and one file: the phases of a live update by name, on both sides of a jump
/// that leaves everything where it is.
///
/// The calls are the trait's own: how they look in C is not tried out.
#[derive(Debug)]
pub struct Rehearsal<H> {
    /// The handler.
    pub handler: H,
    /// The host, on both sides.
    pub host: FakeHost,
    file: OwnedFd,
}

impl<H: FileHandler> Rehearsal<H> {
    /// Of `handler` with `file`.
    pub fn new(handler: H, file: impl Into<OwnedFd>) -> Self {
        Self {
            handler,
            host: FakeHost::default(),
            file: file.into(),
        }
    }

    /// The same with a file that stands for any: `/dev/null`.
    pub fn with_any_file(handler: H) -> Self {
        Self::new(handler, File::open("/dev/null").unwrap())
    }

    /// The file.
    pub fn file(&self) -> FileRef<'_> {
        self.file.as_fd().into()
    }

    fn preserved<'a>(
        &'a self,
        prepared: &'a mut Prepared<H::Private>,
    ) -> Preserved<'a, H::Private> {
        Preserved {
            file: self.file(),
            data: prepared.data,
            private: &mut prepared.private,
            host: self.host.lend(),
        }
    }

    /// See [`FileHandler::prepare`].
    pub fn prepare(&self) -> Result<Prepared<H::Private>, Errno> {
        self.handler.prepare(self.file(), self.host.lend())
    }

    /// See [`FileHandler::freeze`].
    pub fn freeze(&self, prepared: &mut Prepared<H::Private>) -> Result<(), Errno> {
        prepared.data = self.handler.freeze(self.preserved(prepared))?;
        Ok(())
    }

    /// See [`FileHandler::unfreeze`].
    pub fn unfreeze(&self, prepared: &mut Prepared<H::Private>) {
        self.handler.unfreeze(self.preserved(prepared));
    }

    /// See [`FileHandler::cancel`].
    pub fn cancel(&self, mut prepared: Prepared<H::Private>) {
        self.handler.cancel(self.preserved(&mut prepared));
    }

    /// Prepares and freezes; yields what crosses.
    pub fn frozen(&self) -> u64 {
        let mut prepared = self.prepare().unwrap();
        self.freeze(&mut prepared).unwrap();
        prepared.data
    }

    /// See [`FileHandler::retrieve`].
    pub fn retrieve(&self, data: u64) -> Result<OwnedFd, Errno> {
        let retrieved = self.handler.retrieve(data, self.host.lend());
        retrieved.map(OwnedFd::from)
    }

    fn crossed<'a>(&'a self, data: u64, retrieved: Retrieved<'a>) -> Crossed<'a> {
        Crossed {
            data,
            retrieved,
            host: self.host.lend(),
        }
    }

    /// See [`FileHandler::can_finish`].
    pub fn can_finish(&self, data: u64, retrieved: Retrieved<'_>) -> bool {
        self.handler.can_finish(self.crossed(data, retrieved))
    }

    /// See [`FileHandler::finish`].
    pub fn finish(&self, data: u64, retrieved: Retrieved<'_>) {
        self.handler.finish(self.crossed(data, retrieved));
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
