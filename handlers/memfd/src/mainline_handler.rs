// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy for mainline's format: a kernel without our handlers takes what this one preserves,
//! and the other way round.
//!
//! As with mainline's handler, contents, size, position and seals cross, and nothing else: the file
//! comes back with mainline's mode, to read and write, without status flags or a name, owned by the
//! task that retrieves it. Holes stay holes, also where mainline retrieves it.

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Pairs, Prepared,
    Preserved,
};

use crate::{
    backend::{MainlineBackend, ShowRun},
    mainline::{FolioList, ListWriter, MainlineRecord},
    record::{Attributes, Kind},
    summary::seal_names,
};

/// `O_RDWR`, in an access mode.
const READ_WRITE: u32 = 2;

/// Preserves memfds in mainline's format, on the backend `B`.
#[derive(Debug)]
pub struct MainlineHandler<B>(pub B);

/// What has to be undone if a prepared memfd does not cross after all.
#[derive(Debug)]
pub struct MainlinePrivate<K> {
    /// Handle of the header: what prepare or the last freeze had preserved.
    handle: u64,
    /// That header.
    record: MainlineRecord,
    /// The folios that were there at prepare.
    early: FolioList,
    /// What the backend remembers.
    kept: K,
}

impl<B: MainlineBackend> MainlineHandler<B> {
    /// What crosses of `file` besides its folios, if it can.
    fn record(&self, file: FileRef<'_>, list: FolioList) -> Result<MainlineRecord, Errno> {
        let attributes = self.0.attributes(file)?;
        attributes.check(self.0.page_shift())?;
        Ok(MainlineRecord {
            size: attributes.size,
            position: attributes.position,
            seals: attributes.seals,
            list,
        })
    }

    /// Adds the runs that `walk` shows to a list; on failure nothing is added.
    fn write_list(
        &self,
        host: Host<'_>,
        before: FolioList,
        walk: impl FnOnce(&mut ShowRun<'_>) -> Result<(), Errno>,
    ) -> Result<FolioList, Errno> {
        let mut writer = ListWriter::new(&self.0, host, before);
        let walked = walk(&mut |run| writer.push(run));
        let list = walked.and_then(|()| writer.finish());
        if list.is_err() {
            writer.abandon();
        }
        list
    }

    fn first_record(
        &self,
        file: FileRef<'_>,
        kept: &mut B::Kept,
        host: Host<'_>,
    ) -> Result<(u64, MainlineRecord), Errno> {
        let size = self.record(file, FolioList::default())?.size;
        let list = self.write_list(host, FolioList::default(), |show| {
            self.0.populated(file, kept, size, host, show)
        })?;
        let kept = self
            .record(file, list)
            .and_then(|record| Ok((record.keep(host)?, record)));
        kept.inspect_err(|_| list.release(&self.0, host, 0))
    }

    fn last_record(
        &self,
        file: FileRef<'_>,
        private: &mut MainlinePrivate<B::Kept>,
        host: Host<'_>,
    ) -> Result<u64, Errno> {
        let (early, before) = (private.early, private.record);
        let list = self.write_list(host, early, |show| {
            self.0
                .freeze(file, &mut private.kept, None, before.size, host, show)
        })?;
        let until = early.first;
        let kept = self
            .record(file, list)
            .and_then(|record| match record == before {
                true => Ok((private.handle, record)),
                false => Ok((record.keep(host)?, record)),
            });
        let (handle, record) = kept.inspect_err(|_| list.release(&self.0, host, until))?;
        if record != before {
            before.list.release(&self.0, host, until);
            host.release_bytes(private.handle);
            (private.handle, private.record) = (handle, record);
        }
        Ok(self.0.address(handle))
    }

    /// Whether all of the list is sound; how many pages the folios have.
    fn verify(&self, record: &MainlineRecord, host: Host<'_>) -> Result<u64, Errno> {
        let mut pages = 0;
        record.for_each(&self.0, host, &mut |run| {
            // As many folios as the machine has frames, each at most 2^18 pages.
            pages += run.length();
            Ok(())
        })?;
        (pages <= self.0.frame_end())
            .then_some(pages)
            .ok_or(Errno::EINVAL)
    }

    /// Gives back what describes the contents.
    fn release_record(&self, address: u64, record: &MainlineRecord, host: Host<'_>) {
        record.list.release(&self.0, host, 0);
        self.release_header(address, host);
    }

    fn release_header(&self, address: u64, host: Host<'_>) {
        if let Some(handle) = self.0.handle(address, 1) {
            host.release_bytes(handle);
        }
    }
}

impl<B: MainlineBackend> FileHandler for MainlineHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("memfd-v2");
    const HOSTS: Hosts = Hosts::Kernel;
    type Private = MainlinePrivate<B::Kept>;

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.can_preserve(file)
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        self.0.file_id(file)
    }

    /// # Errors
    ///
    /// As [`MemfdHandler`](crate::MemfdHandler).
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno> {
        let (contents, mut kept) = self.0.keep(file, host)?;
        match self.first_record(file, &mut kept, host) {
            Ok((handle, record)) => Ok(Prepared {
                data: self.0.address(handle),
                private: MainlinePrivate {
                    handle,
                    record,
                    early: record.list,
                    kept,
                },
            }),
            Err(errno) => {
                self.0.release(file, contents, &mut kept, host);
                Err(errno)
            }
        }
    }

    /// Folios that came since prepare are added to the list; the header is written again if it
    /// changed.
    fn freeze(&self, file: Preserved<'_, Self::Private>) -> Result<u64, Errno> {
        let Preserved {
            file,
            private,
            host,
            ..
        } = file;
        // Mainline does not call unfreeze for a file that failed to freeze.
        self.last_record(file, private, host)
            .inspect_err(|_| self.0.thaw(file))
    }

    fn unfreeze(&self, file: Preserved<'_, Self::Private>) {
        self.0.thaw(file.file);
    }

    fn cancel(&self, file: Preserved<'_, Self::Private>) {
        let Preserved {
            file,
            private,
            host,
            ..
        } = file;
        private.record.list.release(&self.0, host, 0);
        host.release_bytes(private.handle);
        self.0.release(file, 0, &mut private.kept, host);
    }

    /// # Errors
    ///
    /// As [`MainlineRecord`] lists them; those of the backend.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = MainlineRecord::read(&self.0, host, data)?;
        let pages = self.verify(&record, host)?;
        let (uid, gid) = self.0.owner();
        let attributes = Attributes {
            size: record.size,
            position: record.position,
            seals: record.seals,
            status: READ_WRITE,
            mode: record.mode(),
            uid,
            gid,
            kind: Kind::Shmem,
            file_page_shift: self.0.page_shift(),
        };
        self.0.restore_runs(&attributes, pages, host, &mut |show| {
            record.for_each(&self.0, host, show)
        })
    }

    /// Releases header and list, and the contents unless they were reclaimed. This format has no
    /// mark: a header or a list that is not sound might be anybody's, and is left alone.
    fn finish(&self, file: Crossed<'_>) {
        let Crossed {
            data,
            retrieved,
            host,
        } = file;
        let Ok(record) = MainlineRecord::read(&self.0, host, data) else {
            return;
        };
        if retrieved.file().is_none() {
            // A retrieve that failed may have taken some.
            if record.for_each_left(&self.0, host, &mut |_| ()).is_err() {
                return self.release_header(data, host);
            }
            let _ = record.for_each_left(&self.0, host, &mut |run| self.0.discard_run(run));
        }
        self.release_record(data, &record, host);
    }

    /// Attributes, and how much the folios hold.
    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let record = MainlineRecord::read(&self.0, host, data)?;
        pairs.put("kind", Kind::Shmem);
        pairs.put("size_bytes", record.size);
        pairs.put("position", record.position);
        pairs.put("folios", record.list.folios);
        for seal in seal_names(record.seals) {
            pairs.put("seals[]", seal);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        extent::Contents,
        fake::{FakeBackend, FakeFile, FakeFolios, Run, FRAME_END},
        record::{SEAL_EXEC, SEAL_GROW, SEAL_SHRINK},
    };
    use luo_handler_api::{testing::Rehearsal, Retrieved};
    use proptest::prelude::*;
    use std::{ops::Deref, os::fd::AsFd, sync::MutexGuard};

    type Fake = &'static FakeBackend;

    struct Bench(Rehearsal<MainlineHandler<Fake>>);

    impl Deref for Bench {
        type Target = Rehearsal<MainlineHandler<Fake>>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl Bench {
        fn new(runs: Vec<Run>) -> Self {
            let pages = runs.iter().map(|run| run.0 + run.2).max().unwrap_or(0);
            let backend = FakeBackend::new(Contents::Frames);
            let file = backend.shmem(pages, runs);
            Self(Rehearsal::new(MainlineHandler(backend), file))
        }

        fn memfd(&self) -> MutexGuard<'static, FakeFile> {
            self.handler.0.file(self.file())
        }

        fn folios(&self) -> MutexGuard<'_, FakeFolios> {
            self.handler.0.folios()
        }

        fn look(&self, file: impl AsFd) -> (Attributes, Vec<Run>) {
            let (attributes, runs, _) = self.handler.0.file(file.as_fd().into()).look();
            (attributes, runs)
        }

        /// The jump: what was preserved can be taken.
        fn jump(&self) {
            let memfd = self.memfd();
            let runs = [memfd.runs.clone(), memfd.late.clone()].concat();
            let frames = runs.iter().flat_map(|run| run.1..run.1 + run.2);
            self.folios().preserved = frames.map(|frame| (frame, 0)).collect();
        }

        fn cross(&self, data: u64) -> (Attributes, Vec<Run>) {
            self.jump();
            let file = self.retrieve(data).unwrap();
            self.finish(data, Retrieved::File(file.as_fd().into()));
            assert!(self.host.is_empty());
            self.look(file)
        }
    }

    /// Every third page.
    fn scattered(count: u64) -> Vec<Run> {
        (0..count)
            .map(|page| (3 * page, 500_000 + 2 * page, 1))
            .collect()
    }

    /// More than a chunk has pages for.
    const CHUNK: u64 = 511 * 256;

    #[test]
    fn what_was_there_is_there_afterwards() {
        for count in [0, 1, 255, 256, 257, CHUNK - 1, CHUNK, CHUNK + 1] {
            let bench = Bench::new(scattered(count));
            bench.memfd().attributes.seals = SEAL_GROW;
            bench.memfd().attributes.position = 77;
            let attributes = bench.memfd().attributes;
            let data = bench.frozen();
            assert_eq!(bench.cross(data), (attributes, scattered(count)));
        }
    }

    #[test]
    fn pages_in_a_row_are_folios_of_their_own() {
        let bench = Bench::new(vec![(5, 70, 3)]);
        let data = bench.frozen();
        assert_eq!(bench.cross(data).1, [(5, 70, 1), (6, 71, 1), (7, 72, 1)]);
    }

    #[test]
    fn freeze_adds_what_came_and_writes_nothing_else_again() {
        let bench = Bench::new(scattered(1000));
        let mut prepared = bench.prepare().unwrap();
        let before = bench.host.all_bytes();
        bench.freeze(&mut prepared).unwrap();
        assert!(bench.host.all_bytes() == before, "nothing changed");
        // Twice: a jump may be refused.
        for count in [1, 300] {
            bench.memfd().late = (0..count).map(|n| (3 * n + 1, 900_000 + n, 1)).collect();
            bench.freeze(&mut prepared).unwrap();
            bench.unfreeze(&mut prepared);
        }
        let after = bench.host.all_bytes();
        let header = |bytes: &Vec<u8>| bytes.len() == 48;
        let lists = before.iter().filter(|(_, bytes)| !header(bytes));
        assert!(lists
            .into_iter()
            .all(|(handle, bytes)| after.get(handle) == Some(bytes)));
        // Two pages, a chunk for them, and another header.
        assert_eq!(after.len(), before.len() + 3);
        let mut all = [scattered(1000), bench.memfd().late.clone()].concat();
        all.sort_unstable();
        assert_eq!(bench.cross(prepared.data).1, all);
    }

    #[test]
    fn cancel_and_failures_at_any_call_leave_nothing() {
        for call in 0.. {
            let bench = Bench::new(scattered(600));
            bench.host.fail_at(call);
            let prepared = bench.prepare();
            if !bench.host.has_failed() {
                // Three pages, a chunk, the header.
                assert_eq!(call, 5);
                bench.host.fail_at(u64::MAX >> 1);
                bench.cancel(prepared.unwrap());
                assert!(bench.host.is_empty() && !bench.memfd().kept);
                break;
            }
            assert_eq!(prepared.unwrap_err(), Errno::ENOSPC);
            assert!(bench.host.is_empty() && !bench.memfd().kept);
        }
    }

    #[test]
    fn a_freeze_that_fails_leaves_what_prepare_made() {
        for call in 0..3 {
            let bench = Bench::new(scattered(600));
            let mut prepared = bench.prepare().unwrap();
            let before = bench.host.all_bytes();
            bench.memfd().late = vec![(1, 900_000, 1)];
            bench.host.fail_at(call);
            assert_eq!(bench.freeze(&mut prepared), Err(Errno::ENOSPC));
            assert!(!bench.memfd().frozen && bench.host.all_bytes() == before);
            bench.cancel(prepared);
            assert!(bench.host.is_empty());
        }
    }

    #[test]
    fn finish_releases_what_nobody_took() {
        let bench = Bench::new(scattered(600));
        let data = bench.frozen();
        bench.jump();
        bench.finish(data, Retrieved::NotAsked);
        assert!(bench.host.is_empty() && bench.folios().preserved.is_empty());
        assert_eq!(bench.folios().discarded, 600);
    }

    #[test]
    fn finish_releases_what_a_retrieve_that_failed_left() {
        let bench = Bench::new(scattered(600));
        let data = bench.frozen();
        bench.jump();
        bench.folios().restore_fails_at = Some(500_400);
        assert_eq!(bench.retrieve(data).unwrap_err(), Errno::ENOMEM);
        bench.finish(data, Retrieved::Failed(Errno::ENOMEM));
        assert!(bench.host.is_empty() && bench.folios().preserved.is_empty());
        assert_eq!(bench.folios().discarded, 400);
    }

    #[test]
    fn the_mode_follows_from_the_seals() {
        for (seals, mode) in [
            (0, 0o777),
            (SEAL_EXEC, 0o666),
            (SEAL_EXEC | SEAL_SHRINK | SEAL_GROW, 0o666),
            (0x3e, 0o777),
        ] {
            let bench = Bench::new(scattered(1));
            bench.memfd().attributes.seals = seals;
            let data = bench.frozen();
            assert_eq!(bench.cross(data).0.mode, mode, "{seals:#x}");
        }
    }

    /// Mainline fills the holes of a file, keeps large folios, and ends with an empty chunk where
    /// the last one is full.
    #[test]
    fn what_mainline_writes_is_read() {
        let bench = Bench::new(vec![]);
        let host = bench.host.lend();
        let page = |folios: &[[u64; 2]]| {
            let mut bytes: Vec<u8> = folios
                .iter()
                .flatten()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            bytes.resize(4096, 0);
            host.preserve_bytes(&bytes).unwrap() << 12
        };
        let chunk = |next: u64, pages: &[u64]| {
            let words = [&[next], pages].concat();
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(4096, 0);
            host.preserve_bytes(&bytes).unwrap() << 12
        };
        let flags = 3 << 52;
        let folios: Vec<[u64; 2]> = [[flags | 512, 0]]
            .into_iter()
            .chain((0..300).map(|n| [flags | (2000 + n), 512 + n]))
            .collect();
        let (first, second) = folios.split_at(256);
        let pages = [page(first), page(second)];
        let list = chunk(chunk(0, &[]), &pages);
        let mut header: Vec<u8> = [5u64, 900 << 12]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        header.extend([SEAL_SHRINK, 0].iter().flat_map(|word| word.to_le_bytes()));
        header.extend([301, list].iter().flat_map(|word: &u64| word.to_le_bytes()));
        header.extend(2u32.to_le_bytes());
        header.extend([1u16, 0].iter().flat_map(|word| word.to_le_bytes()));
        let data = host.preserve_bytes(&header).unwrap() << 12;
        let preserved = (0..300).map(|n| (2000 + n, 0)).chain([(512, 9)]);
        bench.folios().preserved = preserved.collect();

        let file = bench.retrieve(data).unwrap();
        let (attributes, runs) = bench.look(&file);
        assert_eq!((attributes.size, attributes.position), (900 << 12, 5));
        assert_eq!((attributes.seals, attributes.mode), (SEAL_SHRINK, 0o777));
        assert_eq!((runs.len(), runs[0]), (301, (0, 512, 512)));
        bench.finish(data, Retrieved::File(file.as_fd().into()));
        assert!(bench.host.is_empty());
    }

    /// A file with two pages of folios: the header, its chunk and a page are changed.
    fn retrieve_changed(at: usize, word: u64, which: usize) -> Result<(), Errno> {
        let bench = Bench::new(scattered(300));
        let data = bench.frozen();
        bench.jump();
        // Pages, chunk, header, in the order in which they were written.
        let handles: Vec<u64> = bench.host.all_bytes().into_keys().collect();
        let handle = handles[which];
        let mut bytes = bench.host.bytes(handle);
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        bench.host.replace(handle, &bytes);
        let retrieved = bench.retrieve(data).map(|_| ());
        bench.finish(data, Retrieved::NotAsked);
        assert!(bench.memfd().kept);
        retrieved
    }

    macro_rules! hostile {
        ($($name:ident: $which:expr, $at:literal, $word:expr => $errno:ident;)*) => {
            $(#[test]
            fn $name() {
                assert_eq!(retrieve_changed($at, $word, $which), Err(Errno::$errno));
            })*
        };
    }

    const PAGE: usize = 0;
    const LAST_PAGE: usize = 1;
    const CHUNK_OF_PAGES: usize = 2;
    const HEADER: usize = 3;
    const FLAGS: u64 = 3 << 52;

    hostile! {
        hostile_position: HEADER, 0, 1 << 63 => EINVAL;
        hostile_size: HEADER, 8, u64::MAX => EFBIG;
        hostile_size_that_is_too_small: HEADER, 8, 4096 => EINVAL;
        hostile_seals: HEADER, 16, 0x40 => EOPNOTSUPP;
        hostile_flags: HEADER, 16, 1 << 32 => EOPNOTSUPP;
        hostile_number_of_folios: HEADER, 24, u64::MAX => EINVAL;
        hostile_number_of_folios_and_fewer_pages: HEADER, 24, 600 => EINVAL;
        hostile_first: HEADER, 32, 77 << 12 => ENOENT;
        hostile_first_within_a_page: HEADER, 32, 0x3008 => EINVAL;
        hostile_first_is_none: HEADER, 32, 0 => EINVAL;
        hostile_number_of_pages: HEADER, 40, 1 << 48 | 3 => EOPNOTSUPP;
        hostile_number_of_pages_alone: HEADER, 40, 1 << 32 | 3 => EINVAL;
        hostile_order_of_the_list: HEADER, 40, 1 << 48 | 1 << 32 | 2 => EOPNOTSUPP;
        hostile_circle: CHUNK_OF_PAGES, 0, 3 << 12 => EINVAL;
        hostile_next: CHUNK_OF_PAGES, 0, 99 << 12 => ENOENT;
        hostile_page: CHUNK_OF_PAGES, 8, 99 << 12 => ENOENT;
        hostile_page_is_missing: CHUNK_OF_PAGES, 16, 0 => EINVAL;
        hostile_page_too_many: CHUNK_OF_PAGES, 24, 1 << 12 => EINVAL;
        hostile_frame: PAGE, 0, FLAGS | 3 => EINVAL;
        hostile_frame_beyond_memory: PAGE, 0, FLAGS | FRAME_END => EINVAL;
        hostile_frame_twice: LAST_PAGE, 0, FLAGS | 500_000 => EINVAL;
        hostile_folio_without_contents: PAGE, 0, 1 << 52 | 500_000 => EOPNOTSUPP;
        hostile_folio_flag: PAGE, 0, 7 << 52 | 500_000 => EOPNOTSUPP;
        hostile_place: PAGE, 8, 1 << 60 => EINVAL;
        hostile_place_beyond_the_end: PAGE, 8, 1000 => EINVAL;
    }

    proptest! {
        /// Everything that reads it answers, and nothing panics.
        #[test]
        fn hostile_bytes_are_an_error_or_consistent(
            which in 0usize..4,
            writes in prop::collection::vec((0usize..4096, any::<u8>()), 0..12),
            length in prop::option::of(0usize..5000),
        ) {
            let bench = Bench::new(scattered(300));
            let data = bench.frozen();
            bench.jump();
            let handles: Vec<u64> = bench.host.all_bytes().into_keys().collect();
            let mut bytes = bench.host.bytes(handles[which]);
            for &(place, byte) in &writes {
                if let Some(there) = bytes.get_mut(place) {
                    *there = byte;
                }
            }
            bytes.resize(length.unwrap_or(bytes.len()), 0);
            bench.host.replace(handles[which], &bytes);
            if let Ok(file) = bench.retrieve(data) {
                let (attributes, runs) = bench.look(file);
                prop_assert!(attributes.size <= i64::MAX as u64);
                prop_assert!(runs.len() <= 300);
                bench.folios().preserved.clear();
            }
            let header = MainlineRecord::read(&bench.handler.0, bench.host.lend(), data);
            bench.finish(data, Retrieved::NotAsked);
            // What is no header may be anybody's.
            prop_assert_eq!(bench.host.all_bytes().contains_key(&(data >> 12)), header.is_err());
        }
    }
}
