// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A host and a backend in memory, for tests.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use luo_handler_api::{Errno, FileRef, Host, HostServices, OwnedFile};

use crate::{
    backend::{MemfdBackend, ShowRun},
    chain::{Extents, BLOCK_LENGTH},
    extent::IN_FILE,
    record::{Attributes, Contents, Kind, Record},
};

/// Keeps bytes and files in memory, counts the calls that may fail, and lets one of them fail.
#[derive(Debug, Default)]
pub(crate) struct FakeHost(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_handle: u64,
    bytes: BTreeMap<u64, Vec<u8>>,
    files: BTreeMap<u64, OwnedFd>,
    calls: u64,
    fails_at: Option<u64>,
}

impl FakeHost {
    pub(crate) fn lend(&self) -> Host<'_> {
        Host::new(self)
    }

    /// A host whose call number `call`, counted from 0, fails with `ENOSPC`.
    pub(crate) fn failing_at(call: u64) -> Self {
        let host = Self::default();
        host.fail_at(call);
        host
    }

    /// Lets the call that comes after `calls` others fail.
    pub(crate) fn fail_at(&self, calls: u64) {
        let mut state = self.0.lock().unwrap();
        state.fails_at = Some(state.calls + calls);
    }

    /// Whether the call that was to fail has come.
    pub(crate) fn has_failed(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.fails_at.is_some_and(|at| at < state.calls)
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.bytes.is_empty() && state.files.is_empty()
    }

    pub(crate) fn all_bytes(&self) -> BTreeMap<u64, Vec<u8>> {
        self.0.lock().unwrap().bytes.clone()
    }

    pub(crate) fn bytes(&self, handle: u64) -> Vec<u8> {
        self.0.lock().unwrap().bytes[&handle].clone()
    }

    pub(crate) fn replace(&self, handle: u64, bytes: &[u8]) {
        self.0.lock().unwrap().bytes.insert(handle, bytes.to_vec());
    }

    /// Puts another file in the place of a kept one.
    pub(crate) fn replace_file(&self, handle: u64, file: OwnedFd) {
        self.0.lock().unwrap().files.insert(handle, file);
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
            state.bytes.insert(handle, bytes.to_vec());
            Ok(handle)
        })
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        self.call(|state| Ok(state.bytes(handle)?.len() as u64))
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.call(|state| {
            let start = offset as usize;
            let range = start..start + buffer.len();
            buffer.copy_from_slice(state.bytes(handle)?.get(range).ok_or(Errno::ERANGE)?);
            Ok(())
        })
    }

    fn release_bytes(&self, handle: u64) {
        self.0.lock().unwrap().bytes.remove(&handle);
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
}

/// A run of pages: index, frame and length.
pub(crate) type Run = (u64, u64, u64);

/// The hands of a handler that has one file, which is described here.
#[derive(Debug)]
pub(crate) struct FakeBackend {
    pub(crate) contents_in: Contents,
    pub(crate) file: Mutex<FakeFile>,
}

#[derive(Debug)]
pub(crate) struct FakeFile {
    pub(crate) attributes: Attributes,
    pub(crate) runs: Vec<Run>,
    /// An error that comes after all runs were shown.
    pub(crate) walk_fails: Option<Errno>,
    /// How many times it is kept.
    pub(crate) kept: u32,
    /// What the last restore was asked to restore.
    pub(crate) restored: Option<(Attributes, Vec<Run>)>,
}

impl FakeBackend {
    /// A shmem file of `pages` pages of 4 KiB, with contents in `runs`.
    pub(crate) fn new(contents_in: Contents, pages: u64, runs: Vec<Run>) -> Self {
        let attributes = Attributes {
            size: pages << 12,
            position: 0,
            seals: 0,
            status: 2,
            mode: 0o777,
            kind: Kind::Shmem,
            file_page_shift: 12,
        };
        Self {
            contents_in,
            file: Mutex::new(FakeFile {
                attributes,
                runs,
                walk_fails: None,
                kept: 0,
                restored: None,
            }),
        }
    }
}

impl MemfdBackend for &'static FakeBackend {
    type Kept = ();
    type Buffer = Vec<u8>;

    fn contents_in(&self) -> Contents {
        self.contents_in
    }

    fn page_shift(&self) -> u8 {
        12
    }

    fn buffer(&self) -> Result<Vec<u8>, Errno> {
        Ok(vec![0; BLOCK_LENGTH])
    }

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        true
    }

    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, ()), Errno> {
        let handle = match self.contents_in {
            Contents::File => host.preserve_file(file)?,
            Contents::Frames => 0,
        };
        self.file.lock().unwrap().kept += 1;
        Ok((handle, ()))
    }

    fn release(&self, _: FileRef<'_>, contents: u64, (): &mut (), host: Host<'_>) {
        host.release_file(contents);
        self.file.lock().unwrap().kept -= 1;
    }

    fn attributes(&self, _: FileRef<'_>) -> Result<Attributes, Errno> {
        Ok(self.file.lock().unwrap().attributes)
    }

    fn populated(
        &self,
        _: FileRef<'_>,
        (): &mut (),
        _: u64,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let file = self.file.lock().unwrap();
        for &(index, frame, length) in &file.runs {
            let frame = match self.contents_in {
                Contents::File => IN_FILE,
                Contents::Frames => frame,
            };
            show(index, frame, length, 0)?;
        }
        file.walk_fails.map_or(Ok(()), Err)
    }

    fn restore(
        &self,
        record: &Record,
        extents: &Extents<'_>,
        host: Host<'_>,
    ) -> Result<OwnedFile, Errno> {
        let mut runs = Vec::new();
        extents.for_each(&mut |extent| {
            runs.push((extent.index(), extent.frame(), extent.length()));
            Ok(())
        })?;
        runs.sort_unstable();
        let file = match self.contents_in {
            Contents::File => host.take_file(record.contents)?,
            Contents::Frames => OwnedFd::from(File::open("/dev/null")?).into(),
        };
        self.file.lock().unwrap().restored = Some((record.attributes, runs));
        Ok(file)
    }

    fn discard(&self, record: &Record, _: &Extents<'_>, host: Host<'_>) {
        host.release_file(record.contents);
    }
}
