// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Large memfds to measure with: made, filled so that every byte depends on its place, and compared
//! after the jump.
//!
//! All of them are filled through a mapping: that way each page kind can be asked for with any
//! setting of the host, and memory that cannot be had is an error instead of a signal.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use bytesize::ByteSize;
use memmap2::Advice;
use rayon::prelude::*;
use rustix::fs::{
    fcntl_add_seals, fcntl_get_seals, fstat, memfd_create, seek, MemfdFlags, SealFlags, SeekFrom,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::fill::Fill;
use super::pages::{shmem_huge_page, Pages};
use super::pattern::{mix, pattern};
use super::permutation::Permutation;
use crate::memory::field;
use crate::sys::Mapping;
use luo_orchestrator::holes;

/// One memfd: the same values always make the same contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// In bytes.
    pub size: u64,
    /// What it is made of.
    pub pages: Pages,
    /// What is filled.
    pub fill: Fill,
    /// Makes one memfd's contents different from another's.
    pub seed: u64,
}

/// What is known of a memfd before the jump and must be the same after it, beside the values of the
/// workload itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemfdBefore {
    /// `F_GET_SEALS`: a host with `vm.memfd_noexec` adds one of its own.
    seals: u32,
    /// Bytes that lie in huge pages; `None` where that is not known.
    pub huge_page_bytes: Option<u64>,
}

/// Why a file to measure with could not be made.
#[derive(Debug, Error)]
pub enum MakeError {
    /// The machine cannot give such pages, or not so many.
    #[error("{0}")]
    Unavailable(String),
    /// The program that is to make it failed.
    #[error("{0}")]
    Program(String),
    /// Anything else.
    #[error("cannot fill a memfd: {0}")]
    Failed(#[from] io::Error),
}

/// What is not as it was before the jump.
#[derive(Debug, Error)]
pub enum Mismatch {
    /// The size.
    #[error("the size is {found} bytes instead of {expected}")]
    Size {
        /// As it was made.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// The file position.
    #[error("the position is {found} instead of {expected}")]
    Position {
        /// As it was made.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// The seals.
    #[error("the seals are {found:?} instead of {expected:?}")]
    Seals {
        /// As they were.
        expected: SealFlags,
        /// As they are.
        found: SealFlags,
    },
    /// A byte.
    #[error("the page at offset {0} holds other bytes")]
    Contents(u64),
    /// A hole that was filled, or the other way round.
    #[error("data and holes differ from offset {0} on")]
    Holes(u64),
    /// It could not be read.
    #[error("cannot read it: {0}")]
    Unreadable(#[from] io::Error),
}

/// Pages that are written or compared in one go.
const BLOCK_BYTES: u64 = 1 << 20;

/// The seals of every workload: those that memfds of both kinds can have and that still allow
/// writing.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

impl Workload {
    /// Makes it and fills it. `progress` gets the bytes as they are written.
    ///
    /// # Errors
    ///
    /// [`MakeError`], in particular if the machine has no such pages: they are never replaced by
    /// others.
    pub fn make(&self, progress: impl Fn(u64)) -> Result<File, MakeError> {
        if let Some(obstacle) = self.pages.obstacle(self.data_bytes()) {
            return Err(MakeError::Unavailable(obstacle));
        }
        let file = self.create()?;
        if self.size > 0 {
            self.fill(&file, &progress)?;
        }
        self.check_pages(&file)?;
        seek(&file, SeekFrom::Start(self.position())).map_err(io::Error::from)?;
        Ok(file)
    }

    fn create(&self) -> Result<File, MakeError> {
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        if self.pages.are_hugetlb() {
            let shift = self.pages.size().trailing_zeros() << libc::MFD_HUGE_SHIFT;
            flags |= MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(shift);
        }
        let name = format!("luo-workload-{}", self.seed);
        let file = File::from(memfd_create(name, flags).map_err(|error| {
            MakeError::Unavailable(format!("no such memfd can be made: {error}"))
        })?);
        file.set_len(self.size)?;
        fcntl_add_seals(&file, SEALS).map_err(io::Error::from)?;
        Ok(file)
    }

    fn fill(&self, file: &File, progress: &impl Fn(u64)) -> Result<(), MakeError> {
        let mapping = Mapping::new(file, self.size)
            .map_err(|error| MakeError::Unavailable(format!("cannot map such pages: {error}")))?;
        match self.pages {
            Pages::Thp => mapping.advise(Advice::HugePage)?,
            // A kernel without huge pages does not know how to refuse them.
            Pages::Base | Pages::Collapsed => {
                mapping.advise(Advice::NoHugePage).or_else(ignore_unknown)?;
            }
            Pages::Hugetlb | Pages::HugetlbOf(_) => {}
        }
        let mut block = vec![0; BLOCK_BYTES as usize];
        let mut written = 0;
        for range in self.ranges_to_write() {
            // Kernels before 5.14 do not know it; there, memory that cannot be had is a signal.
            let populated = mapping.advise_range(Advice::PopulateWrite, &range);
            populated
                .or_else(ignore_unknown)
                .map_err(|error| self.no_memory(written, &error))?;
            let bytes = &mut block[..(range.end - range.start) as usize];
            pattern(self.seed, range.start, bytes);
            mapping.write(range.start, bytes);
            written += bytes.len() as u64;
            progress(bytes.len() as u64);
        }
        Ok(())
    }

    fn no_memory(&self, written: u64, error: &io::Error) -> MakeError {
        MakeError::Unavailable(format!(
            "it needs {}, and the machine gave {} ({error}); see vm.overcommit_memory, the \
             limits of the memory cgroup, and vm.nr_hugepages",
            ByteSize(self.data_bytes()),
            ByteSize(written)
        ))
    }

    /// Checks that it lies in memory as it was asked for.
    fn check_pages(&self, file: &File) -> Result<(), MakeError> {
        if self.pages.are_hugetlb() {
            return Ok(());
        }
        let found = holes::data_ranges(file, self.size)?;
        if let Some(offset) = first_difference(&self.filled_ranges(), &found) {
            return Err(MakeError::Unavailable(format!(
                "the kernel gave other pages than {}: data and holes differ from offset \
                 {offset} on",
                self.pages
            )));
        }
        let found = self.huge_page_bytes(file)?;
        let whole_pages = self.data_bytes() / self.pages.size() * self.pages.size();
        match (self.pages, found) {
            (Pages::Base | Pages::Collapsed, Some(1..)) => Err(MakeError::Unavailable(format!(
                "the kernel gave huge pages for {} bytes of it",
                found.unwrap_or(0)
            ))),
            (Pages::Thp, None) => Err(MakeError::Unavailable(
                "without /proc/self/smaps it is not known which pages the kernel gave".to_owned(),
            )),
            (Pages::Thp, Some(huge)) if huge < whole_pages => Err(MakeError::Unavailable(format!(
                "the kernel gave huge pages for {huge} of {whole_pages} bytes only"
            ))),
            _ => Ok(()),
        }
    }

    /// Bytes that lie in huge pages; `None` where that is not known.
    fn huge_page_bytes(&self, file: &File) -> io::Result<Option<u64>> {
        if self.pages.are_hugetlb() {
            return Ok(Some(self.count() * self.pages.size()));
        }
        let Some(huge) = shmem_huge_page() else {
            return Ok(Some(0));
        };
        // One huge page takes all of its place, so what is smaller than its place cannot be one.
        let ranges = self.filled_ranges().into_iter().filter(|range| {
            let start = range.start.next_multiple_of(huge);
            start + huge <= range.end.next_multiple_of(huge)
        });
        let ranges: Vec<_> = ranges.collect();
        if ranges.is_empty() {
            return Ok(Some(0));
        }
        let mapping = Mapping::new(file, self.size)?;
        for range in &ranges {
            mapping.advise_range(Advice::PopulateRead, range)?;
        }
        let start = format!("{:x}-", mapping.address());
        let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else {
            return Ok(None);
        };
        let entry = smaps.find(&start).map_or("", |at| &smaps[at..]);
        Ok(field(entry, "ShmemPmdMapped:"))
    }

    /// What is known of a memfd that was just made.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)` and `mmap(2)`.
    pub fn look(&self, file: &File) -> io::Result<MemfdBefore> {
        Ok(MemfdBefore {
            seals: fcntl_get_seals(file)?.bits(),
            // The kernel has reported it, and mappings show it with some settings only.
            huge_page_bytes: match self.pages {
                Pages::Collapsed => None,
                _ => self.huge_page_bytes(file)?,
            },
        })
    }

    /// Writes its contents into a memfd that is there already: over data, and into holes.
    ///
    /// # Errors
    ///
    /// Those of `pwrite(2)`.
    pub fn write(&self, file: &File, progress: impl Fn(u64)) -> io::Result<()> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        for range in self.ranges_to_write() {
            let bytes = &mut block[..(range.end - range.start) as usize];
            pattern(self.seed, range.start, bytes);
            file.write_all_at(bytes, range.start)?;
            progress(bytes.len() as u64);
        }
        Ok(())
    }

    /// Somewhere in the middle, different for each memfd.
    fn position(&self) -> u64 {
        mix(self.seed) % (self.size + 1)
    }

    /// Pages, filled or not.
    fn page_count(&self) -> u64 {
        self.size.div_ceil(self.pages.size())
    }

    /// Pages that are filled.
    pub fn count(&self) -> u64 {
        self.fill.count(self.page_count())
    }

    /// The order in which a shuffled one is filled. A sparse one has its first pages, so that a
    /// larger share holds all pages of a smaller one.
    fn order(&self) -> Permutation {
        Permutation::new(self.page_count(), self.seed)
    }

    fn page(&self, page: u64) -> Range<u64> {
        let size = self.pages.size();
        page * size..((page + 1) * size).min(self.size)
    }

    /// Filled pages as ranges in bytes, neighbours merged.
    fn filled_ranges(&self) -> Vec<Range<u64>> {
        let count = self.count();
        if count == self.page_count() {
            return match self.size {
                0 => Vec::new(),
                size => std::iter::once(0..size).collect(),
            };
        }
        let order = self.order();
        let mut pages: Vec<u64> = (0..count).map(|place| order.at(place)).collect();
        pages.sort_unstable();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in pages.into_iter().map(|page| self.page(page)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    /// Bytes that are filled.
    pub fn data_bytes(&self) -> u64 {
        let (count, pages) = (self.count(), self.page_count());
        if count == pages {
            return self.size;
        }
        let whole = count * self.pages.size();
        let is_last_filled = self.order().place_of(pages - 1) < count;
        match is_last_filled {
            true => whole - (pages * self.pages.size() - self.size),
            false => whole,
        }
    }

    fn ranges_to_write(&self) -> Box<dyn Iterator<Item = Range<u64>> + '_> {
        match self.fill {
            Fill::Shuffled => {
                let order = self.order();
                let pages = (0..self.page_count()).map(move |place| order.at(place));
                Box::new(pages.flat_map(|page| blocks(self.page(page))))
            }
            Fill::Dense | Fill::Sparse(_) => {
                Box::new(self.filled_ranges().into_iter().flat_map(blocks))
            }
        }
    }

    /// Compares all there is: size, seals, position, every byte, and where the holes are.
    /// `progress` gets the bytes as they are compared, from any thread. The position of `file`
    /// stays.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`].
    pub fn verify(
        &self,
        file: BorrowedFd<'_>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<(), Mismatch> {
        self.verify_seals(file, SEALS)?;
        self.verify_all_but_seals(file, progress)
    }

    /// Like [`verify`](Self::verify), with what was known of it before the jump.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`].
    pub fn verify_as(
        &self,
        before: MemfdBefore,
        file: BorrowedFd<'_>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<(), Mismatch> {
        self.verify_seals(file, SealFlags::from_bits_retain(before.seals))?;
        self.verify_all_but_seals(file, progress)
    }

    fn verify_seals(&self, file: BorrowedFd<'_>, expected: SealFlags) -> Result<(), Mismatch> {
        let found = fcntl_get_seals(file).map_err(io::Error::from)?;
        match found == expected {
            true => Ok(()),
            false => Err(Mismatch::Seals { expected, found }),
        }
    }

    fn verify_all_but_seals(
        &self,
        file: BorrowedFd<'_>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<(), Mismatch> {
        self.verify_size_and_position(file)?;
        let contents = File::from(file.try_clone_to_owned()?);
        let filled = self.filled_ranges();
        if !self.pages.are_hugetlb() {
            let found = holes::data_ranges(&contents, self.size);
            seek(file, SeekFrom::Start(self.position())).map_err(io::Error::from)?;
            if let Some(offset) = first_difference(&filled, &found?) {
                return Err(Mismatch::Holes(offset));
            }
        }
        // hugetlbfs does not report its holes, so every byte of them is read.
        let empty = match self.pages.are_hugetlb() {
            true => between(&filled, self.size),
            false => Vec::new(),
        };
        let filled = filled.into_par_iter().map(|range| (range, true));
        filled
            .chain(empty.into_par_iter().map(|range| (range, false)))
            .flat_map_iter(|(range, is_filled)| blocks(range).map(move |block| (block, is_filled)))
            .try_for_each_init(
                || (Vec::new(), Vec::new()),
                |(expected, found), (range, is_filled)| {
                    let length = (range.end - range.start) as usize;
                    expected.resize(length, 0);
                    found.resize(length, 0);
                    match is_filled {
                        true => pattern(self.seed, range.start, expected),
                        false => expected.fill(0),
                    }
                    contents.read_exact_at(found, range.start)?;
                    if is_filled {
                        progress(length as u64);
                    }
                    match expected == found {
                        true => Ok(()),
                        false => Err(Mismatch::Contents(range.start)),
                    }
                },
            )
    }

    fn verify_size_and_position(&self, file: BorrowedFd<'_>) -> Result<(), Mismatch> {
        let found = fstat(file).map_err(io::Error::from)?.st_size as u64;
        if found != self.size {
            return Err(Mismatch::Size {
                expected: self.size,
                found,
            });
        }
        let expected = self.position();
        let found = seek(file.as_fd(), SeekFrom::Current(0)).map_err(io::Error::from)?;
        match found == expected {
            true => Ok(()),
            false => Err(Mismatch::Position { expected, found }),
        }
    }
}

/// An advice that this kernel does not know is one that it does not need.
fn ignore_unknown(error: io::Error) -> io::Result<()> {
    match Errno::from_io_error(&error) {
        Some(Errno::INVAL) => Ok(()),
        _ => Err(error),
    }
}

fn blocks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range
        .step_by(BLOCK_BYTES as usize)
        .map(move |start| start..end.min(start + BLOCK_BYTES))
}

/// What lies before, between and after `ranges` and below `size`.
fn between(ranges: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start);
    starts
        .zip(ends.chain(std::iter::once(size)))
        .filter(|(start, end)| start < end)
        .map(|(start, end)| start..end)
        .collect()
}

/// Where two lists of ranges part.
fn first_difference(left: &[Range<u64>], right: &[Range<u64>]) -> Option<u64> {
    let (mut lefts, mut rights) = (left.iter(), right.iter());
    loop {
        match (lefts.next(), rights.next()) {
            (None, None) => return None,
            (Some(one), Some(other)) if one == other => {}
            (Some(one), Some(other)) if one.start == other.start => {
                return Some(one.end.min(other.end))
            }
            (one, other) => return one.into_iter().chain(other).map(|range| range.start).min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::param::page_size;

    fn workload(size: u64, fill: Fill) -> Workload {
        Workload {
            size,
            pages: Pages::Base,
            fill,
            seed: 3,
        }
    }

    #[test]
    fn what_was_made_is_verified_and_any_change_is_found() {
        let page = page_size() as u64;
        for fill in [Fill::Dense, Fill::Shuffled, Fill::sparse(3000)] {
            let workload = workload(100 * page + 5, fill);
            let file = workload.make(|_| ()).unwrap();
            let before = workload.look(&file).unwrap();
            assert_eq!(before.huge_page_bytes, Some(0));
            let verify = || workload.verify_as(before, file.as_fd(), |_| ());
            verify().unwrap();
            verify().unwrap();

            let place = workload.filled_ranges()[0].start + 17;
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[!byte[0]], place).unwrap();
            assert!(matches!(verify(), Err(Mismatch::Contents(_))), "{fill}");
            file.write_all_at(&byte, place).unwrap();

            seek(&file, SeekFrom::Start(workload.position() + 1)).unwrap();
            assert!(matches!(verify(), Err(Mismatch::Position { .. })));
            seek(&file, SeekFrom::Start(workload.position())).unwrap();

            fcntl_add_seals(&file, SealFlags::SEAL).unwrap();
            assert!(matches!(verify(), Err(Mismatch::Seals { .. })));
        }
    }

    #[test]
    fn a_seal_that_the_host_added_has_to_cross() {
        let workload = workload(page_size() as u64, Fill::Dense);
        let file = workload.make(|_| ()).unwrap();
        let before = MemfdBefore {
            seals: (SEALS | SealFlags::EXEC).bits(),
            ..workload.look(&file).unwrap()
        };
        let lost = workload.verify_as(before, file.as_fd(), |_| ());
        assert!(matches!(lost, Err(Mismatch::Seals { .. })));
    }

    #[test]
    fn a_filled_hole_and_a_lost_page_are_found() {
        let page = page_size() as u64;
        let workload = workload(100 * page, Fill::sparse(3000));
        let file = workload.make(|_| ()).unwrap();
        let hole = between(&workload.filled_ranges(), workload.size)[0].start;
        file.write_all_at(&[0], hole).unwrap();
        let filled = workload.verify_as(workload.look(&file).unwrap(), file.as_fd(), |_| ());
        assert!(matches!(filled, Err(Mismatch::Holes(offset)) if offset == hole));
    }

    #[test]
    fn bytes_in_the_holes_of_hugetlb_are_found() {
        // Reads as hugetlbfs does, whether the machine has huge pages or not.
        let workload = Workload {
            pages: Pages::HugetlbOf(2 << 20),
            ..workload(16 << 20, Fill::sparse(5000))
        };
        let flags = MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("hugetlb", flags).unwrap());
        file.set_len(workload.size).unwrap();
        fcntl_add_seals(&file, SEALS).unwrap();
        workload.write(&file, |_| ()).unwrap();
        seek(&file, SeekFrom::Start(workload.position())).unwrap();
        let before = workload.look(&file).unwrap();
        assert_eq!(before.huge_page_bytes, Some(workload.data_bytes()));
        let compared = std::sync::atomic::AtomicU64::new(0);
        let count = |bytes| {
            compared.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        };
        workload.verify_as(before, file.as_fd(), count).unwrap();
        assert_eq!(compared.into_inner(), workload.data_bytes());

        let holes = between(&workload.filled_ranges(), workload.size);
        assert!(!holes.is_empty());
        for place in holes.iter().flat_map(|hole| [hole.start, hole.end - 1]) {
            file.write_all_at(&[1], place).unwrap();
            let changed = workload.verify_as(before, file.as_fd(), |_| ());
            assert!(matches!(changed, Err(Mismatch::Contents(_))), "{place}");
            file.write_all_at(&[0], place).unwrap();
        }
    }

    #[test]
    fn the_least_share_of_the_largest_memfd_is_one_page() {
        let fill = "sparse:0.0000000233%".parse().unwrap();
        let workload = workload((16 << 40) - 1, fill);
        if page_size() == 4096 {
            assert_eq!(workload.filled_ranges().len(), 1);
        }
    }

    proptest! {
        #[test]
        fn blocks_cover_a_range(start in 0u64..1 << 30, length in 0u64..8 << 20) {
            let mut at = start;
            for block in blocks(start..start + length) {
                prop_assert_eq!(block.start, at);
                prop_assert!(block.end - block.start <= BLOCK_BYTES);
                at = block.end;
            }
            prop_assert_eq!(at, start + length);
        }

        #[test]
        fn data_is_counted_without_a_look_and_grows_with_the_share(
            size in 1u64..1 << 22,
            seed: u64,
            shares in (0u32..=10_000, 0u32..=10_000),
        ) {
            let (few, many) = (shares.0.min(shares.1), shares.0.max(shares.1));
            let filled = |share| {
                let workload = Workload { seed, ..workload(size, Fill::sparse(share)) };
                let ranges = workload.filled_ranges();
                let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                assert_eq!(bytes, workload.data_bytes());
                ranges
            };
            let larger = filled(many);
            for range in filled(few) {
                let holds =
                    |other: &Range<u64>| other.start <= range.start && range.end <= other.end;
                prop_assert!(larger.iter().any(holds));
            }
        }
    }
}
