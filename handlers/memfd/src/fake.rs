// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A backend in memory, for tests.

use std::{fs::File, os::fd::OwnedFd, sync::Mutex};

use luo_handler_api::{Errno, FileRef, Host, OwnedFile};

use crate::{
    backend::{MemfdBackend, ShowRun},
    chain::{Extents, BLOCK_LENGTH},
    extent::IN_FILE,
    record::{Attributes, Contents, Kind, Record},
};

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
