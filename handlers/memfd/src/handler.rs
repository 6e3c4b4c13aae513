// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy: what happens to a memfd in each phase, whoever its host is.

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Prepared, Preserved,
};

use crate::{
    backend::MemfdBackend,
    chain::{Chain, ChainWriter},
    extent::ExtentBuilder,
    record::{Attributes, Record},
};

/// Keeps memfds alive across a live update, with the hands of `B`.
#[derive(Debug)]
pub struct MemfdHandler<B>(pub B);

/// What has to be undone if a prepared memfd does not cross after all.
#[derive(Debug)]
pub struct Private<K> {
    /// Handle of the record: what prepare or the last freeze yielded.
    record: u64,
    /// The extents of that record.
    chain: Chain,
    /// Handle of the contents.
    contents: u64,
    /// What the backend remembers.
    kept: K,
}

impl<B: MemfdBackend> MemfdHandler<B> {
    /// Looks at `file` as it is now and has the host keep a record of it; yields the handle and
    /// what the record names.
    fn keep_record(
        &self,
        file: FileRef<'_>,
        contents: u64,
        kept: &mut B::Kept,
        host: Host<'_>,
    ) -> Result<(u64, Chain), Errno> {
        let attributes = self.0.attributes(file)?;
        attributes.check(self.0.page_shift())?;
        let mut block = self.0.buffer()?;
        let mut writer = ChainWriter::new(host, block.as_mut())?;
        let kept = self
            .write_extents(file, &attributes, kept, &mut writer)
            .and_then(|chain| {
                let record = Record {
                    attributes,
                    page_shift: self.0.page_shift(),
                    contents_in: self.0.contents_in(),
                    contents,
                    chain,
                };
                Ok((record.keep(host)?, chain))
            });
        if kept.is_err() {
            writer.abandon();
        }
        kept
    }

    fn write_extents(
        &self,
        file: FileRef<'_>,
        attributes: &Attributes,
        kept: &mut B::Kept,
        writer: &mut ChainWriter<'_>,
    ) -> Result<Chain, Errno> {
        let mut extents = ExtentBuilder::new(|extent| writer.push(extent));
        self.0.populated(
            file,
            kept,
            attributes.size,
            &mut |index, frame, length, order| extents.push_folios(index, frame, length, order),
        )?;
        extents.finish()?;
        writer.finish()
    }
}

/// Gives the bytes of a record back.
fn release_record(handle: u64, chain: Chain, host: Host<'_>) {
    chain.release(host);
    host.release_bytes(handle);
}

impl<B: MemfdBackend> FileHandler for MemfdHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("memfd-v1");
    const HOSTS: Hosts = Hosts::Both;
    type Private = Private<B::Kept>;

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.can_preserve(file)
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        self.0.file_id(file)
    }

    /// # Errors
    ///
    /// `EOPNOTSUPP` for a seal that is not known, or a file that is no memfd; `ENOMEM`, `ENOSPC`
    /// and others of host and backend.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno> {
        let (contents, mut kept) = self.0.keep(file, host)?;
        match self.keep_record(file, contents, &mut kept, host) {
            Ok((record, chain)) => Ok(Prepared {
                data: record,
                private: Private {
                    record,
                    chain,
                    contents,
                    kept,
                },
            }),
            Err(errno) => {
                self.0.release(file, contents, &mut kept, host);
                Err(errno)
            }
        }
    }

    /// Contents, size, position, flags and seals may all have changed since prepare, so the file is
    /// looked at again as a whole. The record of prepare goes only once the new one is there.
    fn freeze(&self, file: Preserved<'_, Self::Private>) -> Result<u64, Errno> {
        let Preserved {
            file,
            private,
            host,
            ..
        } = file;
        let (record, chain) = self.keep_record(file, private.contents, &mut private.kept, host)?;
        release_record(private.record, private.chain, host);
        (private.record, private.chain) = (record, chain);
        Ok(record)
    }

    fn cancel(&self, file: Preserved<'_, Self::Private>) {
        let Preserved {
            file,
            private,
            host,
            ..
        } = file;
        release_record(private.record, private.chain, host);
        self.0
            .release(file, private.contents, &mut private.kept, host);
    }

    /// # Errors
    ///
    /// As [`Record`] and [`Extents`](crate::chain::Extents) list them; `EOPNOTSUPP` for a record of
    /// a host of another kind or with other pages; those of the backend.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = Record::read(host, data)?;
        if record.page_shift != self.0.page_shift() || record.contents_in != self.0.contents_in() {
            return Err(Errno::EOPNOTSUPP);
        }
        let extents = record.extents(host);
        extents.verify()?;
        self.0.restore(&record, &extents, host)
    }

    /// Releases the record, and the contents unless they were reclaimed. Of a record that cannot be
    /// read only the record itself is released: what it names might be anybody's.
    fn finish(&self, file: Crossed<'_>) {
        let Crossed {
            data,
            retrieved,
            host,
        } = file;
        if let Ok(record) = Record::read_any(host, data) {
            if retrieved.file().is_none() && record.contents_in == self.0.contents_in() {
                let extents = record.extents(host);
                self.0.discard(&record, &extents, host);
            }
            record.chain.release(host);
        }
        host.release_bytes(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::BLOCK_EXTENTS,
        fake::{FakeBackend, FakeFile, Run},
        record::{Contents, RecordHeader, SEAL_GROW, SEAL_SEAL},
        summary::Summary,
    };
    use luo_handler_api::{crc32c, testing::Rehearsal, Retrieved};
    use proptest::prelude::*;
    use std::{ops::Deref, os::fd::AsFd, sync::MutexGuard};

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
            let pages = runs.iter().map(|run| run.0 + run.2).max().unwrap_or(0);
            let backend: Fake = Box::leak(Box::new(FakeBackend::new(contents_in, pages, runs)));
            Self(Rehearsal::with_any_file(MemfdHandler(backend)))
        }

        fn memfd(&self) -> MutexGuard<'_, FakeFile> {
            self.handler.0.file.lock().unwrap()
        }

        /// Retrieves, finishes, and tells what was restored.
        fn cross(&self, data: u64) -> (Attributes, Vec<Run>) {
            let file = self.retrieve(data).unwrap();
            self.finish(data, Retrieved::File(file.as_fd().into()));
            assert!(self.host.is_empty());
            self.memfd().restored.take().unwrap()
        }

        fn assert_nothing_is_kept(&self) {
            assert!(self.host.is_empty());
            assert_eq!(self.memfd().kept, 0);
        }
    }

    /// Every third page, in frames that are never in a row.
    fn scattered(count: u64) -> Vec<Run> {
        (0..count).map(|page| (3 * page, 5 + 2 * page, 1)).collect()
    }

    fn three_blocks() -> Vec<Run> {
        scattered(u64::from(2 * BLOCK_EXTENTS) + 5)
    }

    const BOTH: [Contents; 2] = [Contents::File, Contents::Frames];

    #[test]
    fn what_was_there_is_there_afterwards() {
        for runs in [vec![], vec![(7, 9, 1)], scattered(100), three_blocks()] {
            let bench = Bench::new(Contents::Frames, runs.clone());
            bench.memfd().attributes.seals = SEAL_GROW;
            let attributes = bench.memfd().attributes;
            let prepared = bench.prepare().unwrap();
            assert_eq!(bench.cross(prepared.data), (attributes, runs));
        }
    }

    #[test]
    fn cancel_leaves_nothing() {
        for contents_in in BOTH {
            let bench = Bench::new(contents_in, three_blocks());
            bench.cancel(bench.prepare().unwrap());
            bench.assert_nothing_is_kept();
            let mut prepared = bench.prepare().unwrap();
            bench.freeze(&mut prepared).unwrap();
            bench.unfreeze(&mut prepared);
            bench.freeze(&mut prepared).unwrap();
            bench.cancel(prepared);
            bench.assert_nothing_is_kept();
        }
    }

    #[test]
    fn a_prepare_that_fails_at_any_call_leaves_nothing() {
        for contents_in in BOTH {
            for call in 0.. {
                let bench = Bench::new(contents_in, three_blocks());
                bench.host.fail_at(call);
                let prepared = bench.prepare();
                if !bench.host.has_failed() {
                    // The file, three blocks and the record.
                    assert_eq!(call, if contents_in == Contents::File { 5 } else { 4 });
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
        let bench = Bench::new(Contents::File, three_blocks());
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
        let bench = Bench::new(Contents::File, vec![(5, 1, 3), (7, 9, 1)]);
        assert_eq!(bench.prepare().unwrap_err(), Errno::EINVAL);
        bench.assert_nothing_is_kept();
    }

    #[test]
    fn freeze_sees_what_changed_since_prepare() {
        for contents_in in BOTH {
            let bench = Bench::new(contents_in, three_blocks());
            let mut prepared = bench.prepare().unwrap();
            let runs = vec![(0, 70, 4), (9, 90, 1)];
            {
                let mut memfd = bench.memfd();
                memfd.runs.clone_from(&runs);
                memfd.attributes.size = 10 << 12;
                memfd.attributes.position = 3;
                memfd.attributes.seals = SEAL_GROW | SEAL_SEAL;
            }
            let attributes = bench.memfd().attributes;
            bench.freeze(&mut prepared).unwrap();
            assert_eq!(bench.host.all_bytes().len(), 2, "the first record is gone");
            let (restored, restored_runs) = bench.cross(prepared.data);
            assert_eq!(restored, attributes);
            if contents_in == Contents::Frames {
                assert_eq!(restored_runs, runs);
            }
        }
    }

    #[test]
    fn a_freeze_that_fails_leaves_what_prepare_made() {
        // Three blocks and the record are kept; what follows releases the old ones.
        for call in 0..4 {
            let bench = Bench::new(Contents::File, three_blocks());
            let mut prepared = bench.prepare().unwrap();
            let before = bench.host.all_bytes();
            bench.host.fail_at(call);
            assert_eq!(bench.freeze(&mut prepared), Err(Errno::ENOSPC));
            assert!(bench.host.all_bytes() == before);
            bench.cancel(prepared);
            bench.assert_nothing_is_kept();
        }
    }

    #[test]
    fn a_retrieve_that_fails_at_any_call_can_be_finished() {
        for contents_in in BOTH {
            for call in 0.. {
                let bench = Bench::new(contents_in, scattered(100));
                let data = bench.prepare().unwrap().data;
                bench.host.fail_at(call);
                let retrieved = bench.handler.retrieve(data, bench.host.lend());
                if !bench.host.has_failed() {
                    break;
                }
                assert_eq!(retrieved.unwrap_err(), Errno::ENOSPC);
                bench.finish(data, Retrieved::NotAsked);
                assert!(bench.host.is_empty());
            }
        }
    }

    #[test]
    fn finish_releases_what_nobody_retrieved() {
        for contents_in in BOTH {
            let bench = Bench::new(contents_in, three_blocks());
            let data = bench.prepare().unwrap().data;
            bench.finish(data, Retrieved::NotAsked);
            assert!(bench.host.is_empty());
            bench.finish(data, Retrieved::NotAsked);
        }
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
        assert_eq!((summary.size, summary.extents), (9 << 12, 2));
        assert_eq!(summary.data_bytes, 5 << 12);
        assert_eq!(summary.metadata_bytes, 96 + 32 + 2 * 16);
        let kept: usize = bench.host.all_bytes().values().map(Vec::len).sum();
        assert_eq!(summary.metadata_bytes, kept as u64);
        assert!(summary.seal_names().eq(["seal", "grow"]));
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
        ) {
            let bench = Bench::new(Contents::File, scattered(8));
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
                prop_assert!(summary.data_bytes <= summary.size.next_multiple_of(4096));
                prop_assert!(summary.extents << 12 <= summary.data_bytes);
            }
            let retrieved = bench.handler.retrieve(data, bench.host.lend());
            prop_assert!(retrieved.is_err() || summary.is_ok());
            bench.finish(data, Retrieved::NotAsked);
            prop_assert!(!bench.host.all_bytes().contains_key(&data));
        }
    }
}
