// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy: what happens to a memfd in each phase, whoever its host is.

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Pairs, Prepared,
    Preserved,
};

use crate::{
    backend::{MemfdBackend, ShowRun},
    chain::{Chain, ChainWriter, BLOCK_LENGTH},
    extent::{Contents, RunBuilder},
    record::{Attributes, Record},
    summary::Summary,
};

/// Keeps memfds alive across a live update, on the backend `B`.
#[derive(Debug)]
pub struct MemfdHandler<B>(pub B);

/// What has to be undone if a prepared memfd does not cross after all.
#[derive(Debug)]
pub struct Private<K> {
    /// Handle of the record: what prepare or the last freeze returned.
    handle: u64,
    /// That record.
    record: Record,
    /// What the backend remembers.
    kept: K,
}

impl<B: MemfdBackend> MemfdHandler<B> {
    /// The attributes of `file` as it is now, if they can cross.
    fn attributes(&self, file: FileRef<'_>) -> Result<Attributes, Errno> {
        let attributes = self.0.attributes(file)?;
        attributes.check(self.0.page_shift())?;
        Ok(attributes)
    }

    /// Has the host preserve the runs that `walk` shows; on failure nothing is preserved.
    fn write_chain(
        &self,
        host: Host<'_>,
        walk: impl FnOnce(&mut ShowRun<'_>) -> Result<(), Errno>,
    ) -> Result<Chain, Errno> {
        let make_buffer = || self.0.buffer(BLOCK_LENGTH);
        let mut writer = ChainWriter::new(host, &make_buffer);
        let mut runs = RunBuilder::new(|run| writer.push(run));
        let walked = walk(&mut |run| runs.push(run)).and_then(|()| runs.finish());
        let chain = walked.and_then(|()| writer.finish());
        if chain.is_err() {
            writer.abandon();
        }
        chain
    }

    /// Looks at `file` for the first time, and has the host preserve a record of it.
    fn first_record(
        &self,
        file: FileRef<'_>,
        contents: u64,
        kept: &mut B::Kept,
        host: Host<'_>,
    ) -> Result<(u64, Record), Errno> {
        let attributes = self.attributes(file)?;
        let chain = self.write_chain(host, |show| {
            self.0.populated(file, kept, attributes.size, host, show)
        })?;
        let record = Record {
            attributes,
            page_shift: self.0.page_shift(),
            contents_in: self.0.contents_in(),
            contents,
            chain,
            late: Chain::default(),
            name: self.0.name(file),
        };
        let handle = record.keep(host).inspect_err(|_| chain.release(host))?;
        Ok((handle, record))
    }

    /// Looks at `file` for the last time. What prepare wrote is not written again.
    fn last_record(
        &self,
        file: FileRef<'_>,
        private: &mut Private<B::Kept>,
        host: Host<'_>,
    ) -> Result<u64, Errno> {
        let attributes = self.attributes(file)?;
        let before = private.record;
        let late = self.write_chain(host, |show| {
            let (kept, held) = (&mut private.kept, before.extents(host));
            self.0
                .freeze(file, kept, Some(&held), attributes.size, host, show)
        })?;
        let record = Record {
            attributes,
            late,
            ..before
        };
        if record == before {
            return Ok(private.handle);
        }
        let handle = record.keep(host).inspect_err(|_| late.release(host))?;
        before.late.release(host);
        host.release_bytes(private.handle);
        (private.handle, private.record) = (handle, record);
        Ok(handle)
    }

    /// Whether record and chains are sound, and as large as this machine at most. The extents of
    /// contents in a file are not looked at: see [`Record::chain`].
    fn verify(&self, record: &Record, host: Host<'_>) -> Result<(), Errno> {
        if record.page_shift != self.0.page_shift() || record.contents_in != self.0.contents_in() {
            return Err(Errno::EOPNOTSUPP);
        }
        if record.contents_in == Contents::File {
            return Ok(());
        }
        let frame_end = self.0.frame_end();
        // A frame crosses once; so many are looked at in the worst case.
        if record.pages() > frame_end {
            return Err(Errno::EINVAL);
        }
        let mut chains = record.chains(frame_end, host).into_iter();
        chains.try_for_each(|extents| extents.verify())
    }
}

/// Gives the bytes of a record back.
fn release_record(handle: u64, record: &Record, host: Host<'_>) {
    record.chain.release(host);
    record.late.release(host);
    host.release_bytes(handle);
}

impl<B: MemfdBackend> FileHandler for MemfdHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("luo-handlers,memfd-v1");
    const HOSTS: Hosts = Hosts::Both;
    const READS: &'static [&'static str] = B::READS;
    type Private = Private<B::Kept>;

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.can_preserve(file)
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        self.0.file_id(file)
    }

    /// # Errors
    ///
    /// `EOPNOTSUPP` for a seal that is not known, or a file that is not a memfd; `ENOMEM`,
    /// `ENOSPC` and others of host and backend.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno> {
        let (contents, mut kept) = self.0.keep(file, host)?;
        match self.first_record(file, contents, &mut kept, host) {
            Ok((handle, record)) => Ok(Prepared {
                data: handle,
                private: Private {
                    handle,
                    record,
                    kept,
                },
            }),
            Err(errno) => {
                self.0.release(file, contents, &mut kept, host);
                Err(errno)
            }
        }
    }

    /// Size, position, flags and seals may all have changed since prepare, and contents may have
    /// come. The record of prepare goes only once the new one is there; if nothing changed, it
    /// stays.
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
        release_record(private.handle, &private.record, host);
        self.0
            .release(file, private.record.contents, &mut private.kept, host);
    }

    /// # Errors
    ///
    /// As [`Record`] and [`Extents`](crate::chain::Extents) list them; `EOPNOTSUPP` for a record of
    /// a host of another kind or with other pages; those of the backend.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = Record::read(host, data)?;
        self.verify(&record, host)?;
        self.0.restore(&record, host)
    }

    /// Releases the record, and the contents unless they were reclaimed. What a record that is not
    /// sound names might be anybody's, as what is no record, and is left alone.
    fn finish(&self, file: Crossed<'_>) {
        let Crossed {
            data,
            retrieved,
            host,
        } = file;
        if let Ok(record) = Record::read_any(host, data) {
            // A file is released whole; frames one by one, as the extents name them.
            let is_known = || match record.contents_in {
                Contents::File => self.0.contents_in() == Contents::File,
                Contents::Frames => self.verify(&record, host).is_ok(),
            };
            if retrieved.file().is_none() && is_known() {
                self.0.discard(&record, host);
            }
            release_record(data, &record, host);
        } else {
            Record::release(host, data);
        }
    }

    /// Attributes, and what the record knows of the contents: extents and data where it names
    /// frames.
    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let summary = Summary::read(host, data)?;
        summary.report(pairs);
        pairs.put("needs[]", Record::layout(host, data)?);
        pairs.put("needs[]", summary.kind);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::BLOCK_WORDS,
        extent::ORDER_MAX,
        fake::{FakeBackend, FakeFile, Run},
        record::{RecordHeader, SEAL_GROW, SEAL_SEAL},
    };
    use luo_handler_api::{
        crc32c,
        testing::{conformance, Rehearsal},
        Retrieved,
    };
    use proptest::prelude::*;
    use std::{
        ops::Deref,
        os::fd::{AsFd, OwnedFd},
        sync::{atomic::Ordering::Relaxed, MutexGuard},
    };

    type Fake = &'static FakeBackend;

    /// A live update of a memfd of a fake backend.
    struct Bench(Rehearsal<MemfdHandler<Fake>>);

    impl Deref for Bench {
        type Target = Rehearsal<MemfdHandler<Fake>>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl Bench {
        fn new(contents_in: Contents, runs: Vec<Run>) -> Self {
            let backend = FakeBackend::new(contents_in);
            let file = shmem(backend, runs);
            Self(Rehearsal::new(MemfdHandler(backend), file))
        }

        fn memfd(&self) -> MutexGuard<'_, FakeFile> {
            self.handler.0.file(self.file())
        }

        /// Retrieves, finishes, and returns what was restored.
        fn cross(&self, data: u64) -> (Attributes, Vec<Run>) {
            let file = self.retrieve(data).unwrap();
            self.finish(data, Retrieved::File(file.as_fd().into()));
            assert!(self.host.is_empty());
            let (attributes, runs, _) = self.handler.0.file(file.as_fd().into()).look();
            (attributes, runs)
        }

        fn assert_nothing_is_kept(&self) {
            assert!(self.host.is_empty());
            assert!(!self.memfd().kept);
            assert!(!self.memfd().frozen);
        }
    }

    /// A file as large as its contents.
    fn shmem(backend: Fake, runs: Vec<Run>) -> OwnedFd {
        let pages = runs.iter().map(|run| run.0 + run.2).max().unwrap_or(0);
        backend.shmem(pages, runs)
    }

    /// Every third page, in frames that are never in a row.
    fn scattered(count: u64) -> Vec<Run> {
        (0..count).map(|page| (3 * page, 5 + 2 * page, 1)).collect()
    }

    /// Each of them takes two words, but for the first of a block.
    fn three_blocks() -> Vec<Run> {
        scattered(u64::from(BLOCK_WORDS) + 5)
    }

    const BOTH: [Contents; 2] = [Contents::File, Contents::Frames];

    #[test]
    fn it_conforms() {
        for contents_in in BOTH {
            for runs in [vec![], scattered(10)] {
                let backend = FakeBackend::new(contents_in);
                let change = |file: &mut FakeFile| {
                    file.attributes.size += 200 << 12;
                    file.attributes.position = 3;
                    let after = file.attributes.size >> 12;
                    file.late = vec![(after - 100, 900_000, 1)];
                };
                conformance(
                    Box::leak(Box::new(MemfdHandler(backend))),
                    || shmem(backend, runs.clone()),
                    |file| change(&mut backend.file(file.into())),
                    |file| backend.file(file.into()).look(),
                );
            }
        }
    }

    #[test]
    fn a_prepare_that_fails_in_any_block_leaves_nothing() {
        for contents_in in BOTH {
            for call in 0.. {
                let bench = Bench::new(contents_in, three_blocks());
                bench.host.fail_at(call);
                let prepared = bench.prepare();
                if !bench.host.has_failed() {
                    // The file and the record, or three blocks and the record.
                    assert_eq!(call, if contents_in == Contents::File { 2 } else { 4 });
                    bench.cancel(prepared.unwrap());
                    break;
                }
                assert_eq!(prepared.unwrap_err(), Errno::ENOSPC);
                bench.assert_nothing_is_kept();
            }
        }
    }

    #[test]
    fn a_prepare_that_the_backend_fails_leaves_nothing() {
        let bench = Bench::new(Contents::Frames, three_blocks());
        bench.memfd().walk_fails = Some(Errno::EIO);
        assert_eq!(bench.prepare().unwrap_err(), Errno::EIO);
        bench.assert_nothing_is_kept();
    }

    #[test]
    fn attributes_that_cannot_be_kept_are_refused_and_leave_nothing() {
        type Change = fn(&mut Attributes);
        let changes: [(Change, Errno); 4] = [
            (|a| a.seals = 0x40, Errno::EOPNOTSUPP),
            (|a| a.status = 0o100, Errno::EOPNOTSUPP),
            (|a| a.size = 1 << 63, Errno::EFBIG),
            (|a| a.file_page_shift = 13, Errno::EINVAL),
        ];
        for (change, errno) in changes {
            let bench = Bench::new(Contents::File, scattered(3));
            change(&mut bench.memfd().attributes);
            assert_eq!(bench.prepare().unwrap_err(), errno);
            bench.assert_nothing_is_kept();
        }
    }

    #[test]
    fn a_walk_that_goes_back_is_refused() {
        let bench = Bench::new(Contents::Frames, vec![(5, 1, 3), (7, 9, 1)]);
        assert_eq!(bench.prepare().unwrap_err(), Errno::EINVAL);
        bench.assert_nothing_is_kept();
    }

    fn change_attributes(bench: &Bench) -> Attributes {
        let attributes = &mut bench.memfd().attributes;
        attributes.size = 100_000 << 12;
        attributes.position = 3;
        attributes.seals = SEAL_GROW | SEAL_SEAL;
        *attributes
    }

    #[test]
    fn freeze_sees_what_changed_in_a_file() {
        let bench = Bench::new(Contents::File, three_blocks());
        let mut prepared = bench.prepare().unwrap();
        let attributes = change_attributes(&bench);
        bench.freeze(&mut prepared).unwrap();
        assert_eq!(bench.host.all_bytes().len(), 1, "the first record is gone");
        let summary = Summary::read(bench.host.lend(), prepared.data).unwrap();
        assert_eq!(
            (summary.size, summary.contents_data),
            (attributes.size, None)
        );
        assert_eq!(bench.cross(prepared.data).0, attributes);
    }

    /// Such records were written before the contents of files were left to whoever copies them.
    #[test]
    fn the_extents_of_a_file_are_not_looked_at_but_released() {
        let written = Bench::new(Contents::Frames, three_blocks());
        let data = written.prepare().unwrap().data;
        let chain = Record::read(written.host.lend(), data).unwrap().chain;

        let bench = Bench::new(Contents::File, three_blocks());
        let data = bench.prepare().unwrap().data;
        let record = Record::read(bench.host.lend(), data).unwrap();
        let mut blocks = written.host.all_bytes();
        blocks.remove(&written.host.all_bytes().keys().max().copied().unwrap());
        assert_eq!(blocks.len(), 3);
        let mut moved = 0;
        for (&handle, block) in &blocks {
            // The handle of the block before is at 16 bytes from the beginning.
            let mut block = block.clone();
            block[16..24].copy_from_slice(&u64::to_le_bytes(moved));
            block[4..8].fill(0);
            let sum = crc32c(0, &block[..32]);
            block[4..8].copy_from_slice(&sum.to_le_bytes());
            moved = bench.host.lend().preserve_bytes(&block).unwrap();
            assert!(handle <= chain.last_block);
        }
        let chain = Chain {
            last_block: moved,
            ..chain
        };
        bench.host.lend().release_bytes(data);
        let older = Record { chain, ..record }.keep(bench.host.lend()).unwrap();
        assert_eq!(bench.host.all_bytes().len(), 4);
        assert_eq!(bench.cross(older).0, record.attributes);
    }

    #[test]
    fn freeze_adds_the_frames_that_came_since_prepare() {
        let early = three_blocks();
        let bench = Bench::new(Contents::Frames, early.clone());
        let mut prepared = bench.prepare().unwrap();
        let before = bench.host.all_bytes();
        // Between, before and after what was there.
        let late = vec![(1, 700_000, 2), (4, 800_000, 1), (50_000, 900_000, 3)];
        bench.memfd().late.clone_from(&late);
        let attributes = change_attributes(&bench);
        for _ in 0..2 {
            bench.freeze(&mut prepared).unwrap();
            assert!(bench.memfd().frozen);
            // The blocks of prepare, one late block, one record.
            assert_eq!(bench.host.all_bytes().len(), before.len() + 1);
            bench.unfreeze(&mut prepared);
            assert!(!bench.memfd().frozen);
        }
        let mut all = [early, late].concat();
        all.sort_unstable();
        assert_eq!(bench.cross(prepared.data), (attributes, all));
    }

    #[test]
    fn a_freeze_after_which_nothing_changed_writes_nothing() {
        let bench = Bench::new(Contents::Frames, three_blocks());
        let mut prepared = bench.prepare().unwrap();
        let before = bench.host.all_bytes();
        bench.host.fail_at(0);
        bench.freeze(&mut prepared).unwrap();
        assert!(!bench.host.has_failed());
        assert!(bench.host.all_bytes() == before);
    }

    #[test]
    fn a_freeze_that_moved_the_position_writes_one_record() {
        let bench = Bench::new(Contents::Frames, three_blocks());
        let mut prepared = bench.prepare().unwrap();
        bench.memfd().attributes.position = 77;
        bench.host.fail_at(1);
        bench.freeze(&mut prepared).unwrap();
        assert!(!bench.host.has_failed());
        bench.host.fail_at(u64::MAX >> 1);
        assert_eq!(bench.cross(prepared.data).0.position, 77);
    }

    #[test]
    fn a_freeze_that_the_backend_fails_holds_nobody_off() {
        let bench = Bench::new(Contents::Frames, three_blocks());
        let mut prepared = bench.prepare().unwrap();
        let before = bench.host.all_bytes();
        bench.memfd().walk_fails = Some(Errno::EIO);
        assert_eq!(bench.freeze(&mut prepared), Err(Errno::EIO));
        assert!(!bench.memfd().frozen);
        assert!(bench.host.all_bytes() == before);
    }

    #[test]
    fn more_pages_than_there_are_frames_are_refused() {
        let bench = Bench::new(Contents::Frames, scattered(3));
        bench.memfd().attributes.size = 1 << 62;
        let data = bench.prepare().unwrap().data;
        let mut record = Record::read(bench.host.lend(), data).unwrap();
        record.chain.pages = crate::fake::FRAME_END + 1;
        let forged = record.keep(bench.host.lend()).unwrap();
        let retrieved = bench.handler.retrieve(forged, bench.host.lend());
        assert_eq!(retrieved.unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn finish_checks_the_page_size_as_retrieve_does() {
        let bench = Bench::new(Contents::Frames, scattered(3));
        let data = bench.prepare().unwrap().data;
        let mut record = Record::read(bench.host.lend(), data).unwrap();
        (record.page_shift, record.attributes.file_page_shift) = (14, 14);
        let other = record.keep(bench.host.lend()).unwrap();
        let retrieved = bench.handler.retrieve(other, bench.host.lend());
        assert_eq!(retrieved.unwrap_err(), Errno::EOPNOTSUPP);
        bench.finish(other, Retrieved::NotAsked);
        assert_eq!(bench.handler.0.discarded.load(Relaxed), 0);
    }

    #[test]
    fn finish_releases_what_a_later_version_wrote() {
        let bench = Bench::new(Contents::File, scattered(10));
        let data = bench.prepare().unwrap().data;
        let mut record = Record::read(bench.host.lend(), data).unwrap();
        record.attributes.seals = 0x40;
        let newer = record.keep(bench.host.lend()).unwrap();
        bench.host.lend().release_bytes(data);
        let retrieved = bench.handler.retrieve(newer, bench.host.lend());
        assert_eq!(retrieved.unwrap_err(), Errno::EOPNOTSUPP);
        bench.finish(newer, Retrieved::NotAsked);
        assert!(bench.host.is_empty());
    }

    #[test]
    fn a_record_of_another_kind_of_host_is_not_supported() {
        let there = Bench::new(Contents::Frames, scattered(10));
        let here = Bench::new(Contents::File, vec![]);
        let data = there.prepare().unwrap().data;
        let retrieved = here.handler.retrieve(data, there.host.lend());
        assert_eq!(retrieved.unwrap_err(), Errno::EOPNOTSUPP);
    }

    #[test]
    fn a_summary_says_what_is_there() {
        let bench = Bench::new(Contents::Frames, vec![(0, 10, 4), (8, 1, 1)]);
        bench.memfd().attributes.seals = SEAL_GROW | SEAL_SEAL;
        let data = bench.prepare().unwrap().data;
        let summary = Summary::read(bench.host.lend(), data).unwrap();
        let contents = summary.contents_data.unwrap();
        assert_eq!((summary.size, contents.extents), (9 << 12, 2));
        assert_eq!(contents.bytes, 5 << 12);
        assert_eq!(summary.metadata_bytes, 368 + 32 + 4 * 4);
        let kept: usize = bench.host.all_bytes().values().map(Vec::len).sum();
        assert_eq!(summary.metadata_bytes, kept as u64);
        assert!(summary.seal_names().eq(["seal", "grow"]));
    }

    #[test]
    fn what_crosses_is_described() {
        for contents_in in BOTH {
            let bench = Bench::new(contents_in, vec![(0, 10, 4), (8, 11, 1)]);
            bench.memfd().attributes.seals = SEAL_GROW | SEAL_SEAL;
            bench.memfd().attributes.size -= 1;
            let data = bench.frozen();
            let mut found = Vec::new();
            let mut sink = |key: &str, value: &str| found.push(format!("{key} {value}"));
            let mut pairs = Pairs::new(&mut sink);
            let host = bench.host.lend();
            assert_eq!(bench.handler.describe(data, host, &mut pairs), Ok(()));
            let errno = bench.handler.describe(99, host, &mut pairs);
            assert_eq!(errno, Err(Errno::ENOENT));
            let mut expected = vec!["kind shmem", "size_bytes 36863"];
            let metadata = match contents_in {
                Contents::File => "metadata_bytes 368",
                Contents::Frames => {
                    // The last page counts as far as the file goes.
                    expected.extend(["data_bytes 20480", "extents 2"]);
                    "metadata_bytes 416"
                }
            };
            expected.extend(["position 0", metadata, "seals[] seal", "seals[] grow"]);
            expected.extend(["needs[] memfd-r3", "needs[] shmem"]);
            assert_eq!(found, expected);
            let mut needs = found.iter().filter_map(|it| it.strip_prefix("needs[] "));
            let reads = MemfdHandler::<&FakeBackend>::READS;
            assert!(needs.all(|word| reads.contains(&word)));
        }
    }

    proptest! {
        /// Changes what the host keeps, with checksums right or not: everything that reads it
        /// answers, and nothing panics.
        #[test]
        fn hostile_bytes_are_an_error_or_consistent(
            which in 1u64..4,
            writes in prop::collection::vec((0usize..200, any::<u8>()), 0..12),
            length in prop::option::of(0usize..300),
            seal: bool,
            in_file: bool,
        ) {
            let contents_in = if in_file { Contents::File } else { Contents::Frames };
            let bench = Bench::new(contents_in, scattered(8));
            let data = bench.prepare().unwrap().data;
            if let Some(bytes) = bench.host.all_bytes().get_mut(&which) {
                for &(place, byte) in &writes {
                    if let Some(there) = bytes.get_mut(place) {
                        *there = byte;
                    }
                }
                bytes.resize(length.unwrap_or(bytes.len()), 0);
                if seal && which == data && bytes.len() == RecordHeader::LENGTH {
                    bytes[12..16].fill(0);
                    let sum = crc32c(0, bytes);
                    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
                }
                bench.host.replace(which, bytes);
            }
            let summary = Summary::read(bench.host.lend(), data);
            if let Ok(summary) = summary {
                prop_assert!(summary.size <= i64::MAX as u64);
                if let Some(contents) = summary.contents_data {
                    let most = summary.size.next_multiple_of(4096 << ORDER_MAX);
                    prop_assert!(contents.bytes <= most);
                    prop_assert!(contents.extents << 12 <= contents.bytes);
                }
            }
            let retrieved = bench.handler.retrieve(data, bench.host.lend());
            prop_assert!(retrieved.is_err() || summary.is_ok());
            bench.finish(data, Retrieved::NotAsked);
            // What is not known to be a record may be anybody's.
            let left = bench.host.all_bytes().remove(&data);
            prop_assert!(!left.is_some_and(|bytes| bytes.starts_with(&crate::record::MAGIC)));
        }
    }
}
