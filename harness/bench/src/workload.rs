// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Large memfds to measure with: made, filled with a pattern in which every byte depends on its place,
//! and compared after the jump.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use memfd::{FileSeal, Memfd, MemfdOptions};
use rayon::prelude::*;
use rustix::fs::{fcntl_get_seals, fstat, seek, SealFlags, SeekFrom};
use rustix::param::page_size;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use luo_orchestrator::transport::image::hugetlb_size;
use luo_orchestrator::{holes, SharedMapping};

/// Which pages a memfd is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pages {
    /// The machine's base pages; 4 KiB on most.
    #[serde(rename = "4k")]
    Base,
    /// Transparent huge pages of shmem.
    Thp,
    /// Pages of hugetlbfs, of the default huge page size.
    Hugetlb,
}

/// Which pages are filled, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Fill {
    /// All, from the first to the last.
    Dense,
    /// A part of all, in hundredths of a percent, chosen as if at random; the others are holes.
    Sparse(u32),
    /// All, as if at random: their frames are in another order than their offsets.
    Shuffled,
}

/// One memfd: the same values always make the same contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// In bytes.
    pub size: u64,
    /// What it is made of.
    pub pages: Pages,
    /// What is filled.
    pub fill: Fill,
    /// Tells one memfd's contents from another's.
    pub seed: u64,
}

/// Why a workload could not be made.
#[derive(Debug, Error)]
pub enum MakeError {
    /// The machine cannot give such pages, or not so many.
    #[error("{0}")]
    Unavailable(String),
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
        /// As it was made.
        expected: SealFlags,
        /// As it is.
        found: SealFlags,
    },
    /// A byte.
    #[error("the page at offset {0} holds other bytes")]
    Contents(u64),
    /// A hole that is none any more, or the other way round.
    #[error("data and holes differ from offset {0} on")]
    Holes(u64),
    /// It could not be read.
    #[error("cannot read it: {0}")]
    Unreadable(#[from] io::Error),
}

/// Pages that are written or compared in one go.
const BLOCK_BYTES: u64 = 1 << 20;

/// The seals of every workload: those that memfds of both kinds can have and that still allow writing.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

impl Workload {
    /// Makes it and fills it. `progress` is told the bytes as they are written.
    ///
    /// # Errors
    ///
    /// [`MakeError`], in particular if the machine has no such pages: nothing is ever replaced by
    /// other ones.
    pub fn make(&self, progress: impl Fn(u64)) -> Result<File, MakeError> {
        let memfd = match self.pages {
            Pages::Base => self.make_written(&progress)?,
            Pages::Thp => {
                thp_available()?;
                self.make_mapped(MemfdOptions::default(), &progress)?
            }
            Pages::Hugetlb => {
                hugetlb_available(self.data_bytes())?;
                let shift = self.unit().trailing_zeros();
                let size = hugetlb_size(shift).ok_or_else(|| {
                    MakeError::Unavailable(format!("no memfds of 2^{shift} bytes a page"))
                })?;
                self.make_mapped(MemfdOptions::default().hugetlb(Some(size)), &progress)?
            }
        };
        memfd
            .add_seals(&[FileSeal::SealShrink, FileSeal::SealGrow])
            .map_err(io::Error::other)?;
        let file = memfd.into_file();
        seek(&file, SeekFrom::Start(self.position())).map_err(io::Error::from)?;
        Ok(file)
    }

    fn create(&self, options: MemfdOptions) -> Result<Memfd, MakeError> {
        let memfd = options
            .allow_sealing(true)
            .create(format!("luo-workload-{}", self.seed))
            .map_err(|error| match error {
                memfd::Error::Create(source) => {
                    MakeError::Unavailable(format!("no such memfd can be made: {source}"))
                }
                error => MakeError::Failed(io::Error::other(error)),
            })?;
        memfd.as_file().set_len(self.size)?;
        Ok(memfd)
    }

    fn make_written(&self, progress: &impl Fn(u64)) -> Result<Memfd, MakeError> {
        let memfd = self.create(MemfdOptions::default())?;
        self.write(memfd.as_file(), progress)?;
        Ok(memfd)
    }

    /// Writes its contents into a memfd that is there already: over data, and into holes.
    pub fn write(&self, file: &File, progress: impl Fn(u64)) -> io::Result<()> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        for range in self.ranges_to_write() {
            let bytes = &mut block[..(range.end - range.start) as usize];
            self.pattern(range.start, bytes);
            file.write_all_at(bytes, range.start)?;
            progress(bytes.len() as u64);
        }
        Ok(())
    }

    /// Through a mapping: hugetlbfs has no `write(2)`, and shmem gives huge pages to mappings that ask
    /// for them.
    fn make_mapped(
        &self,
        options: MemfdOptions,
        progress: &impl Fn(u64),
    ) -> Result<Memfd, MakeError> {
        let memfd = self.create(options)?;
        if self.size == 0 {
            return Ok(memfd);
        }
        let cannot_map = |error| {
            let mut message = format!("cannot map such pages: {error}");
            if self.pages == Pages::Hugetlb {
                let needed = self.data_bytes().div_ceil(self.unit());
                message += &format!("; as root: sysctl vm.nr_hugepages={needed}");
            }
            MakeError::Unavailable(message)
        };
        if self.pages == Pages::Hugetlb && matches!(self.fill, Fill::Sparse(_)) {
            // A mapping reserves huge pages for all of it, holes included.
            for range in self.filled_ranges() {
                let start = range.start;
                let mapping =
                    SharedMapping::new(memfd.as_file(), range.clone()).map_err(cannot_map)?;
                for block in blocks(range) {
                    progress(block.end - block.start);
                    self.write_pattern(&mapping, start, block);
                }
            }
            return Ok(memfd);
        }
        let mapping = SharedMapping::new(memfd.as_file(), 0..self.size).map_err(cannot_map)?;
        if self.pages == Pages::Thp {
            mapping.advise(0..mapping.len(), rustix::mm::Advice::LinuxHugepage)?;
        }
        for range in self.ranges_to_write() {
            progress(range.end - range.start);
            blocks(range).for_each(|block| self.write_pattern(&mapping, 0, block));
        }
        if self.pages == Pages::Thp {
            let huge = shmem_huge_bytes(&mapping)?;
            let whole = self.data_bytes() / self.unit() * self.unit();
            if huge < whole {
                return Err(MakeError::Unavailable(format!(
                    "the kernel gave huge pages for {huge} of {whole} bytes only"
                )));
            }
        }
        Ok(memfd)
    }

    /// The size of a page, in bytes: what is filled or left out as a whole.
    fn unit(&self) -> u64 {
        match self.pages {
            Pages::Base => page_size() as u64,
            Pages::Thp => {
                read_number("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").unwrap_or(2 << 20)
            }
            Pages::Hugetlb => meminfo("Hugepagesize:").unwrap_or(2 << 20),
        }
    }

    /// Somewhere in the middle, different for each memfd.
    fn position(&self) -> u64 {
        mix(self.seed) % (self.size + 1)
    }

    fn is_filled(&self, page: u64) -> bool {
        match self.fill {
            Fill::Dense | Fill::Shuffled => true,
            Fill::Sparse(share) => mix(page ^ mix(self.seed)) % 10_000 < u64::from(share),
        }
    }

    /// Filled pages as ranges in bytes, neighbours merged.
    fn filled_ranges(&self) -> Vec<Range<u64>> {
        let unit = self.unit();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in 0..self.size.div_ceil(unit) {
            if !self.is_filled(page) {
                continue;
            }
            let (start, end) = (page * unit, ((page + 1) * unit).min(self.size));
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    /// Bytes that are filled.
    pub fn data_bytes(&self) -> u64 {
        match self.fill {
            Fill::Dense | Fill::Shuffled => self.size,
            Fill::Sparse(_) => self
                .filled_ranges()
                .iter()
                .map(|range| range.end - range.start)
                .sum(),
        }
    }

    fn ranges_to_write(&self) -> Vec<Range<u64>> {
        if self.fill == Fill::Shuffled {
            let unit = self.unit();
            let mut pages: Vec<u64> = (0..self.size.div_ceil(unit)).collect();
            pages.sort_unstable_by_key(|&page| mix(page ^ mix(self.seed)));
            let whole = |page: u64| page * unit..((page + 1) * unit).min(self.size);
            return pages.into_iter().map(whole).flat_map(blocks).collect();
        }
        self.filled_ranges().into_iter().flat_map(blocks).collect()
    }

    /// Fills `block` of a memfd by a mapping that begins at `start`.
    fn write_pattern(&self, mapping: &SharedMapping, start: u64, block: Range<u64>) {
        let mut bytes = vec![0; (block.end - block.start) as usize];
        self.pattern(block.start, &mut bytes);
        mapping.write((block.start - start) as usize, &bytes);
    }

    /// What stands at `offset` and behind it; `offset` is a multiple of 8.
    fn pattern(&self, offset: u64, bytes: &mut [u8]) {
        let base = mix(self.seed).wrapping_add(offset / 8);
        for (index, word) in bytes.chunks_mut(8).enumerate() {
            let value = base.wrapping_add(index as u64).wrapping_mul(GOLDEN_RATIO);
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
    }

    /// Compares all there is: size, seals, position, every byte, and where the holes are. `progress` is
    /// told the bytes as they are compared, from any thread.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`].
    pub fn verify(
        &self,
        file: BorrowedFd<'_>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<(), Mismatch> {
        self.verify_attributes(file)?;
        let contents = holes::reopen(file)?;
        let filled = self.filled_ranges();
        if self.pages != Pages::Hugetlb {
            let found = holes::data_ranges(&contents, self.size)?;
            if let Some(offset) = first_difference(&filled, &found) {
                return Err(Mismatch::Holes(offset));
            }
        }
        // hugetlbfs does not tell its holes, so every byte of them is read.
        let empty = match self.pages {
            Pages::Hugetlb => between(&filled, self.size),
            Pages::Base | Pages::Thp => Vec::new(),
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
                        true => self.pattern(range.start, expected),
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

    fn verify_attributes(&self, file: BorrowedFd<'_>) -> Result<(), Mismatch> {
        let found = fstat(file).map_err(io::Error::from)?.st_size as u64;
        if found != self.size {
            return Err(Mismatch::Size {
                expected: self.size,
                found,
            });
        }
        let found = fcntl_get_seals(file).map_err(io::Error::from)?;
        if found != SEALS {
            return Err(Mismatch::Seals {
                expected: SEALS,
                found,
            });
        }
        let expected = self.position();
        let found = seek(file, SeekFrom::Current(0)).map_err(io::Error::from)?;
        match found == expected {
            true => Ok(()),
            false => Err(Mismatch::Position { expected, found }),
        }
    }
}

const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64: neighbouring numbers become unrelated ones.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(GOLDEN_RATIO);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn blocks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range
        .step_by(BLOCK_BYTES as usize)
        .map(move |start| start..end.min(start + BLOCK_BYTES))
}

/// What lies before, between and behind `ranges` and below `size`.
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

fn thp_available() -> Result<(), MakeError> {
    const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let modes = fs::read_to_string(SWITCH).map_err(|error| {
        MakeError::Unavailable(format!("no transparent huge pages: {SWITCH}: {error}"))
    })?;
    match modes.split(['[', ']']).nth(1) {
        Some("never" | "deny") | None => Err(MakeError::Unavailable(format!(
            "transparent huge pages are off for shmem; as root: echo advise > {SWITCH}"
        ))),
        Some(_) => Ok(()),
    }
}

fn hugetlb_available(bytes: u64) -> Result<(), MakeError> {
    let page = meminfo("Hugepagesize:").unwrap_or(0);
    let free = meminfo("HugePages_Free:").unwrap_or(0);
    if page == 0 {
        return Err(MakeError::Unavailable(
            "this kernel has no hugetlbfs".to_owned(),
        ));
    }
    let needed = bytes.div_ceil(page);
    if free < needed {
        return Err(MakeError::Unavailable(format!(
            "{free} huge pages are free, {needed} are needed; as root: sysctl vm.nr_hugepages={needed}"
        )));
    }
    Ok(())
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A line of `/proc/meminfo`: bytes where it has a unit, else a number.
pub fn meminfo(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let mut words = line[name.len()..].split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    Some(match words.next() {
        Some("kB") => number << 10,
        _ => number,
    })
}

/// Bytes of a mapping that are mapped by huge pages of shmem.
fn shmem_huge_bytes(mapping: &SharedMapping) -> io::Result<u64> {
    let start = format!("{:x}-", mapping.as_ptr() as usize);
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let entry = smaps.find(&start).map_or("", |at| &smaps[at..]);
    Ok(field(entry, "ShmemPmdMapped:").unwrap_or(0))
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Base => "4k",
            Self::Thp => "thp",
            Self::Hugetlb => "hugetlb",
        })
    }
}

impl FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "4k" => Ok(Self::Base),
            "thp" => Ok(Self::Thp),
            "hugetlb" => Ok(Self::Hugetlb),
            _ => Err("page kinds are 4k, thp and hugetlb".to_owned()),
        }
    }
}

impl std::fmt::Display for Fill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense => f.pad("dense"),
            Self::Shuffled => f.pad("shuffled"),
            Self::Sparse(share) => f.pad(&format!("sparse:{}%", f64::from(*share) / 100.0)),
        }
    }
}

impl FromStr for Fill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const USAGE: &str =
            "fills are dense, shuffled and sparse:P% with P from 0 to 100, by hundredths";
        match text {
            "dense" => return Ok(Self::Dense),
            "shuffled" => return Ok(Self::Shuffled),
            "sparse" => return Ok(Self::Sparse(500)),
            _ => {}
        }
        let percent = text
            .strip_prefix("sparse:")
            .map(|percent| percent.strip_suffix('%').unwrap_or(percent))
            .and_then(|percent| percent.parse::<f64>().ok())
            .filter(|percent| (0.0..=100.0).contains(percent))
            .ok_or(USAGE)?;
        Ok(Self::Sparse((percent * 100.0).round() as u32))
    }
}

impl From<Fill> for String {
    fn from(fill: Fill) -> Self {
        fill.to_string()
    }
}

impl TryFrom<String> for Fill {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Bytes of memory that a file takes, `st_blocks` of `stat(2)`.
pub fn allocated_bytes(file: impl AsFd) -> io::Result<u64> {
    Ok(fstat(file)?.st_blocks as u64 * 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        for fill in [Fill::Dense, Fill::Shuffled, Fill::Sparse(3000)] {
            let workload = workload(100 * page + 5, fill);
            let file = workload.make(|_| ()).unwrap();
            workload.verify(file.as_fd(), |_| ()).unwrap();

            let place = workload.filled_ranges()[0].start + 17;
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            file.write_all_at(&[!byte[0]], place).unwrap();
            let changed = workload.verify(file.as_fd(), |_| ());
            assert!(matches!(changed, Err(Mismatch::Contents(_))), "{fill}");
            file.write_all_at(&byte, place).unwrap();

            seek(&file, SeekFrom::Start(workload.position() + 1)).unwrap();
            let moved = workload.verify(file.as_fd(), |_| ());
            assert!(matches!(moved, Err(Mismatch::Position { .. })));
        }
    }

    #[test]
    fn a_filled_hole_and_a_lost_page_are_found() {
        let page = page_size() as u64;
        let workload = workload(100 * page, Fill::Sparse(3000));
        let file = workload.make(|_| ()).unwrap();
        let hole = (0..100).find(|&index| !workload.is_filled(index)).unwrap();
        file.write_all_at(&[0], hole * page).unwrap();
        let filled = workload.verify(file.as_fd(), |_| ());
        assert!(matches!(filled, Err(Mismatch::Holes(offset)) if offset == hole * page));
    }

    #[test]
    fn bytes_in_the_holes_of_hugetlb_are_found() {
        // Reads as hugetlbfs does, whether the machine has huge pages or not.
        let workload = Workload {
            pages: Pages::Hugetlb,
            ..workload(16 << 20, Fill::Sparse(5000))
        };
        let options = MemfdOptions::default().allow_sealing(true);
        let memfd = options.create("hugetlb").unwrap();
        memfd.as_file().set_len(workload.size).unwrap();
        memfd
            .add_seals(&[FileSeal::SealShrink, FileSeal::SealGrow])
            .unwrap();
        let file = memfd.into_file();
        workload.write(&file, |_| ()).unwrap();
        seek(&file, SeekFrom::Start(workload.position())).unwrap();
        let compared = std::sync::atomic::AtomicU64::new(0);
        let count = |bytes| {
            compared.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        };
        workload.verify(file.as_fd(), count).unwrap();
        assert_eq!(compared.into_inner(), workload.data_bytes());

        let holes = between(&workload.filled_ranges(), workload.size);
        assert!(!holes.is_empty());
        for place in holes.iter().flat_map(|hole| [hole.start, hole.end - 1]) {
            file.write_all_at(&[1], place).unwrap();
            let changed = workload.verify(file.as_fd(), |_| ());
            assert!(matches!(changed, Err(Mismatch::Contents(_))), "{place}");
            file.write_all_at(&[0], place).unwrap();
        }
    }

    #[test]
    fn two_pages_never_look_alike() {
        let page = page_size();
        let workload = workload(64 * page as u64, Fill::Dense);
        let mut contents = vec![0; 64 * page];
        workload.pattern(0, &mut contents);
        let distinct: std::collections::HashSet<_> = contents.chunks(page).collect();
        assert_eq!(distinct.len(), 64);
    }

    #[test]
    fn fills_read_back_as_they_print() {
        for text in [
            "dense",
            "shuffled",
            "sparse:5%",
            "sparse:0.25%",
            "sparse:100%",
        ] {
            assert_eq!(text.parse::<Fill>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "sparse:",
            "sparse:101%",
            "sparse:-1%",
            "sparse:nan%",
            "Dense",
        ] {
            assert!(text.parse::<Fill>().is_err(), "{text}");
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
    }
}
