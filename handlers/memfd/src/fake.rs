// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A backend in memory, for tests.

use std::{fs::File, os::fd::OwnedFd, sync::Mutex};

use luo_handler_api::{Errno, FileRef, Host, OwnedFile};

use crate::{
    backend::{MemfdBackend, ShowRun},
    chain::{Extents, BLOCK_LENGTH},
    extent::{self, Contents},
    name::{name, Name},
    record::{Attributes, Kind, Record},
};

/// A run of pages: index, frame and length.
pub(crate) type Run = (u64, u64, u64);

/// Where the frames of the fake machine end.
pub(crate) const FRAME_END: u64 = 1 << 20;

/// The backend of a handler that has one file, which is described here.
#[derive(Debug)]
pub(crate) struct FakeBackend {
    pub(crate) contents_in: Contents,
    pub(crate) file: Mutex<FakeFile>,
}

#[derive(Debug)]
pub(crate) struct FakeFile {
    pub(crate) attributes: Attributes,
    pub(crate) runs: Vec<Run>,
    /// Those that came after prepare.
    pub(crate) late: Vec<Run>,
    /// How many times contents were discarded.
    pub(crate) discarded: u32,
    /// Whether pages are held off.
    pub(crate) frozen: bool,
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
            uid: 7,
            gid: 8,
            kind: Kind::Shmem,
            file_page_shift: 12,
        };
        Self {
            contents_in,
            file: Mutex::new(FakeFile {
                attributes,
                runs,
                late: vec![],
                discarded: 0,
                frozen: false,
                walk_fails: None,
                kept: 0,
                restored: None,
            }),
        }
    }
}

impl FakeBackend {
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
        let mut file = self.file.lock().unwrap();
        file.kept -= 1;
        file.frozen = false;
    }

    fn attributes(&self, _: FileRef<'_>) -> Result<Attributes, Errno> {
        Ok(self.file.lock().unwrap().attributes)
    }

    fn name(&self, _: FileRef<'_>) -> Name {
        name("fake")
    }

    fn populated(
        &self,
        _: FileRef<'_>,
        (): &mut (),
        _: u64,
        _: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let file = self.file.lock().unwrap();
        self.show(&file.runs, show)?;
        file.walk_fails.map_or(Ok(()), Err)
    }

    fn freeze(
        &self,
        _: FileRef<'_>,
        (): &mut (),
        held: &Extents<'_>,
        _: u64,
        _: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let mut file = self.file.lock().unwrap();
        if self.contents_in == Contents::Frames {
            let pages: u64 = file.runs.iter().map(|run| run.2).sum();
            assert_eq!(held.chain.pages, pages);
        }
        file.frozen = true;
        self.show(&file.late, show)?;
        file.walk_fails.map_or(Ok(()), Err)
    }

    fn thaw(&self, _: FileRef<'_>) {
        self.file.lock().unwrap().frozen = false;
    }

    fn restore(&self, record: &Record, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let mut runs = Vec::new();
        let chains = record.chains(FRAME_END, host).into_iter();
        for extents in chains.filter(|_| self.contents_in == Contents::Frames) {
            extents.for_each(&mut |extent| {
                runs.push((extent.index(), extent.frame(), extent.length()));
                Ok(())
            })?;
        }
        runs.sort_unstable();
        let file = match self.contents_in {
            Contents::File => host.take_file(record.contents)?,
            Contents::Frames => OwnedFd::from(File::open("/dev/null")?).into(),
        };
        self.file.lock().unwrap().restored = Some((record.attributes, runs));
        Ok(file)
    }

    fn discard(&self, record: &Record, host: Host<'_>) {
        self.file.lock().unwrap().discarded += 1;
        host.release_file(record.contents);
    }
}
