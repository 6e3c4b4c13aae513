// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A backend in memory, for tests.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{
        atomic::{AtomicU32, Ordering::Relaxed},
        Mutex, MutexGuard,
    },
};

use luo_handler_api::{Errno, FileRef, Host, OwnedFile};
use rustix::fs::{fstat, memfd_create, MemfdFlags};

use crate::{
    backend::{MainlineBackend, MemfdBackend, ShowRun},
    chain::Extents,
    extent::{self, Contents},
    name::{name, Name},
    record::{Attributes, Kind, Record},
};

/// A run of pages: index, frame and length.
pub(crate) type Run = (u64, u64, u64);

/// Where the frames of the fake machine end.
pub(crate) const FRAME_END: u64 = 1 << 20;

/// A machine with memfds in memory. Each is a file of its own; what it looks like is by its inode.
#[derive(Debug)]
pub(crate) struct FakeBackend {
    pub(crate) contents_in: Contents,
    files: Mutex<BTreeMap<u64, &'static Mutex<FakeFile>>>,
    /// How many times contents were discarded.
    pub(crate) discarded: AtomicU32,
    folios: Mutex<FakeFolios>,
}

/// What crossed folio by folio, in mainline's format.
#[derive(Debug, Default)]
pub(crate) struct FakeFolios {
    /// Orders of those that nobody took, by frame.
    pub(crate) preserved: BTreeMap<u64, u8>,
    /// The frame from which on restoring fails.
    pub(crate) restore_fails_at: Option<u64>,
    /// How many were discarded.
    pub(crate) discarded: u32,
}

#[derive(Debug)]
pub(crate) struct FakeFile {
    pub(crate) attributes: Attributes,
    pub(crate) runs: Vec<Run>,
    /// Those that came after prepare.
    pub(crate) late: Vec<Run>,
    /// Whether pages are held off.
    pub(crate) frozen: bool,
    /// An error that comes after all runs were shown.
    pub(crate) walk_fails: Option<Errno>,
    /// Whether it is preserved.
    pub(crate) kept: bool,
}

impl FakeFile {
    /// All that crosses of it, and whether it is held off.
    pub(crate) fn look(&self) -> (Attributes, Vec<Run>, bool) {
        let mut runs = [&self.runs[..], &self.late].concat();
        runs.sort_unstable();
        (self.attributes, runs, self.frozen)
    }
}

impl FakeBackend {
    pub(crate) fn new(contents_in: Contents) -> &'static Self {
        Box::leak(Box::new(Self {
            contents_in,
            files: Mutex::default(),
            discarded: AtomicU32::new(0),
            folios: Mutex::default(),
        }))
    }

    /// A shmem file of `pages` pages of 4 KiB, with contents in `runs`.
    pub(crate) fn shmem(&self, pages: u64, runs: Vec<Run>) -> OwnedFd {
        let attributes = Attributes {
            size: pages << 12,
            position: 0,
            seals: 0,
            status: 2,
            mode: 0o777,
            uid: 7,
            gid: 8,
            kind: Kind::Shmem,
            file_page_shift: 12,
        };
        self.make(attributes, runs)
    }

    fn make(&self, attributes: Attributes, runs: Vec<Run>) -> OwnedFd {
        let file = memfd_create("fake", MemfdFlags::CLOEXEC).unwrap();
        let fake = FakeFile {
            attributes,
            runs,
            late: vec![],
            frozen: false,
            walk_fails: None,
            kept: false,
        };
        let fake = Box::leak(Box::new(Mutex::new(fake)));
        self.files
            .lock()
            .unwrap()
            .insert(inode(file.as_fd().into()), fake);
        file
    }

    pub(crate) fn folios(&self) -> MutexGuard<'_, FakeFolios> {
        self.folios.lock().unwrap()
    }

    pub(crate) fn file(&self, file: FileRef<'_>) -> MutexGuard<'static, FakeFile> {
        let file = self.files.lock().unwrap()[&inode(file)];
        file.lock().unwrap()
    }

    fn show(&self, runs: &[Run], show: &mut ShowRun<'_>) -> Result<(), Errno> {
        if self.contents_in == Contents::File {
            return Ok(());
        }
        for &(index, frame, length) in runs {
            show(extent::Run::new(index, frame, length, 0).unwrap())?;
        }
        Ok(())
    }
}

fn inode(file: FileRef<'_>) -> u64 {
    fstat(file.as_fd()).unwrap().st_ino
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

    fn frame_end(&self) -> u64 {
        FRAME_END
    }

    fn buffer(&self, length: usize) -> Result<Vec<u8>, Errno> {
        Ok(vec![0; length])
    }

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.files.lock().unwrap().contains_key(&inode(file))
    }

    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, ()), Errno> {
        let mut fake = self.file(file);
        if fake.kept {
            return Err(Errno::EBUSY);
        }
        let handle = match self.contents_in {
            Contents::File => host.preserve_file(file)?,
            Contents::Frames => 0,
        };
        fake.kept = true;
        Ok((handle, ()))
    }

    fn release(&self, file: FileRef<'_>, contents: u64, (): &mut (), host: Host<'_>) {
        host.release_file(contents);
        let mut file = self.file(file);
        (file.kept, file.frozen) = (false, false);
    }

    fn attributes(&self, file: FileRef<'_>) -> Result<Attributes, Errno> {
        Ok(self.file(file).attributes)
    }

    fn name(&self, _: FileRef<'_>) -> Name {
        name("fake")
    }

    fn populated(
        &self,
        file: FileRef<'_>,
        (): &mut (),
        _: u64,
        _: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let file = self.file(file);
        self.show(&file.runs, show)?;
        file.walk_fails.map_or(Ok(()), Err)
    }

    fn freeze(
        &self,
        file: FileRef<'_>,
        (): &mut (),
        held: Option<&Extents<'_>>,
        _: u64,
        _: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let mut file = self.file(file);
        if let Some(held) = held.filter(|_| self.contents_in == Contents::Frames) {
            let pages: u64 = file.runs.iter().map(|run| run.2).sum();
            assert_eq!(held.chain.pages, pages);
        }
        file.frozen = true;
        self.show(&file.late, show)?;
        file.walk_fails.map_or(Ok(()), Err)
    }

    fn thaw(&self, file: FileRef<'_>) {
        self.file(file).frozen = false;
    }

    fn restore(&self, record: &Record, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let mut runs = Vec::new();
        let chains = record.chains(FRAME_END, host).into_iter();
        for extents in chains.filter(|_| self.contents_in == Contents::Frames) {
            extents.for_each(|run| {
                runs.push((run.index(), run.frame(), run.length()));
                Ok(())
            })?;
        }
        runs.sort_unstable();
        match self.contents_in {
            Contents::File => {
                let file = OwnedFd::from(host.take_file(record.contents)?);
                if !self.can_preserve(file.as_fd().into()) {
                    return Err(Errno::EINVAL);
                }
                // As a process has it: what the record names is set, and nothing holds it off.
                let mut fake = self.file(file.as_fd().into());
                (fake.attributes, fake.kept, fake.frozen) = (record.attributes, false, false);
                Ok(file.into())
            }
            Contents::Frames => Ok(self.make(record.attributes, runs).into()),
        }
    }

    fn discard(&self, record: &Record, host: Host<'_>) {
        self.discarded.fetch_add(1, Relaxed);
        host.release_file(record.contents);
    }
}

/// Bytes are where their handle is as a frame.
impl MainlineBackend for &'static FakeBackend {
    fn address(&self, handle: u64) -> u64 {
        handle << 12
    }

    fn handle(&self, address: u64, _: u64) -> Option<u64> {
        (address & 0xfff == 0).then_some(address >> 12)
    }

    fn preserved_order(&self, frame: u64) -> Option<u8> {
        self.folios().preserved.get(&frame).copied()
    }

    fn owner(&self) -> (u32, u32) {
        (7, 8)
    }

    fn restore_runs(
        &self,
        attributes: &Attributes,
        pages: u64,
        _: Host<'_>,
        walk: &mut dyn FnMut(&mut ShowRun<'_>) -> Result<(), Errno>,
    ) -> Result<OwnedFile, Errno> {
        let mut runs = Vec::new();
        walk(&mut |run| {
            let mut folios = self.folios();
            let is_at_fault = |frame| run.frame() >= frame;
            if folios.restore_fails_at.is_some_and(is_at_fault) {
                return Err(Errno::ENOMEM);
            }
            // What was taken is not there any more.
            folios.preserved.remove(&run.frame()).ok_or(Errno::EINVAL)?;
            runs.push((run.index(), run.frame(), run.length()));
            Ok(())
        })?;
        assert_eq!(runs.iter().map(|run| run.2).sum::<u64>(), pages);
        runs.sort_unstable();
        Ok(self.make(*attributes, runs).into())
    }

    fn discard_run(&self, run: extent::Run) {
        let mut folios = self.folios();
        let order = folios.preserved.remove(&run.frame());
        assert_eq!(order, Some(run.order()));
        folios.discarded += 1;
    }
}
