// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One memfd out of an image.

use std::fs::File;
use std::io;
use std::iter::Sum;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use luo_handler_api::Errno;
use memfd::{HugetlbSize, MemfdOptions};
use rayon::prelude::*;
use rustix::fs::{fallocate, FallocateFlags, Mode};
use serde::Serialize;

use super::layout::{self, path_of, read_exact, stripe_path, Chunk, Header, Table};
use crate::sys::SharedMapping;

/// No machine has larger pages that nobody asked for, in bytes.
const HUGE_PAGE_MAX: u64 = 1 << 30;

/// What is stored of a memfd: its table, checked, and the files of its data.
pub(super) struct Stored {
    table: Table,
    stripes: Vec<File>,
}

impl Stored {
    pub(super) fn open(image: &Path, handle: u64) -> Result<Self, Errno> {
        let path = path_of(image, handle);
        let first = open_part(&path)?;
        let table = Table::read(&first)?;
        let others = (1..table.stripes()).map(|stripe| open_part(&stripe_path(&path, stripe)));
        let stripes = std::iter::once(Ok(first)).chain(others);
        let stripes = stripes.collect::<Result<_, Errno>>()?;
        Ok(Self { table, stripes })
    }

    /// Chunks that are read together.
    fn batches(&self) -> Vec<&[Chunk]> {
        let mut rest = &self.table.chunks[..];
        let split = |count| {
            let (batch, after) = rest.split_at(count);
            rest = after;
            batch
        };
        let counts = layout::batches(&self.table.chunks);
        counts.into_iter().map(split).collect()
    }

    /// Reads a batch and compares its checksums; returns each chunk with its data.
    fn read<'a>(
        &self,
        batch: &'a [Chunk],
        buffer: &'a mut Vec<u8>,
    ) -> Result<Vec<(&'a Chunk, &'a [u8])>, Errno> {
        buffer.resize(bytes_of(batch), 0);
        let Some(first) = batch.first() else {
            return Ok(Vec::new());
        };
        read_exact(&self.stripes[first.stripe], buffer, first.place)?;
        let mut pieces = Vec::with_capacity(batch.len());
        let mut rest = &buffer[..];
        for chunk in batch {
            let (bytes, after) = rest.split_at(chunk.length);
            if crc32c::crc32c(bytes) != chunk.crc32c {
                return Err(Errno::EBADMSG);
            }
            pieces.push((chunk, bytes));
            rest = after;
        }
        Ok(pieces)
    }

    fn write_to(&self, memfd: &File, progress: &(dyn Fn(u64) + Sync)) -> Result<(), Errno> {
        let batches = self.batches().into_par_iter();
        batches.try_for_each_init(Vec::new, |buffer, batch| {
            for (chunk, bytes) in self.read(batch, buffer)? {
                memfd.write_all_at(bytes, chunk.offset)?;
            }
            progress(bytes_of(batch) as u64);
            Ok(())
        })
    }

    /// The same through mappings: hugetlbfs has no `write(2)`. A mapping reserves its pages, so
    /// each run of pages of `page_bytes` with data has one, and holes have none.
    fn map_to(
        &self,
        memfd: &File,
        page_bytes: u64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Errno> {
        let mut runs = page_runs(&self.table.chunks, page_bytes).into_iter();
        let mut mapped: (Range<u64>, Option<SharedMapping>) = (0..0, None);
        let mut buffer = Vec::new();
        for batch in self.batches() {
            for (chunk, bytes) in self.read(batch, &mut buffer)? {
                if chunk.offset >= mapped.0.end {
                    // Runs and chunks are in the same order, and no run is without a chunk.
                    let run = runs.next().ok_or(Errno::EBADMSG)?;
                    mapped = (run.clone(), Some(SharedMapping::within(memfd, run)?));
                }
                let mapping = mapped.1.as_ref().ok_or(Errno::EBADMSG)?;
                mapping.write((chunk.offset - mapped.0.start) as usize, bytes);
            }
            progress(bytes_of(batch) as u64);
        }
        Ok(())
    }
}

fn bytes_of(chunks: &[Chunk]) -> usize {
    chunks.iter().map(|chunk| chunk.length).sum()
}

/// What a memfd holds besides holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Data {
    /// How many ranges.
    pub extents: u64,
    /// How many bytes in all of them.
    pub data_bytes: u64,
}

impl Data {
    fn of(chunks: &[Chunk]) -> Self {
        let mut data = Self::default();
        let mut end = None;
        for chunk in chunks {
            data.extents += u64::from(end != Some(chunk.offset));
            data.data_bytes += chunk.length as u64;
            end = Some(chunk.end());
        }
        data
    }
}

impl Sum for Data {
    fn sum<I: Iterator<Item = Self>>(of: I) -> Self {
        of.fold(Self::default(), |sum, one| Self {
            extents: sum.extents + one.extents,
            data_bytes: sum.data_bytes + one.data_bytes,
        })
    }
}

/// The pages that chunks touch, neighbours merged.
fn page_runs(chunks: &[Chunk], page_bytes: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for chunk in chunks {
        let start = chunk.offset / page_bytes * page_bytes;
        let end = chunk.end().next_multiple_of(page_bytes);
        match runs.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// Gives an empty file of hugetlbfs its size. ftruncate(2) takes whole pages only, fallocate(2)
/// also what ends within one, and makes that page.
fn resize_huge(memfd: &File, size: u64, page_bytes: u64) -> Result<(), Errno> {
    let whole = size - size % page_bytes;
    memfd.set_len(whole)?;
    if whole < size {
        let all = FallocateFlags::empty();
        fallocate(memfd, all, whole, size - whole).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Where the host gives huge pages to everybody (`shmem_enabled`), these fill holes, and reach
/// beyond the end; what gives a file of hugetlbfs its size may do so as well. What the file has
/// more than its data goes again.
fn free_holes(memfd: &File, chunks: &[Chunk], page_bytes: u64) -> Result<(), Errno> {
    let runs = page_runs(chunks, page_bytes);
    let data: u64 = runs.iter().map(|run| run.end - run.start).sum();
    let metadata = memfd.metadata()?;
    if metadata.blocks() * 512 <= data {
        return Ok(());
    }
    let end = metadata
        .len()
        .saturating_add(HUGE_PAGE_MAX)
        .min(i64::MAX as u64);
    let starts = std::iter::once(0).chain(runs.iter().map(|run| run.end));
    let ends = runs.iter().map(|run| run.start).chain([end]);
    for (start, end) in starts.zip(ends).filter(|(start, end)| start < end) {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(memfd, punch, start, end - start).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Makes the memfd again.
///
/// # Errors
///
/// `EBADMSG` if the file is missing or not what was written, `ENOMEM` or `ENOSPC` if the machine
/// has not enough such huge pages, and those of reading and writing.
pub(super) fn restore(
    image: &Path,
    handle: u64,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<OwnedFd, Errno> {
    let stored = Stored::open(image, handle)?;
    let header = &stored.table.header;
    let memfd = create(header, &stored.table.name)?;
    let size = header.size.get();
    let page_bytes = match header.huge_page_shift.get() {
        0 => {
            memfd.set_len(size)?;
            stored.write_to(&memfd, progress)?;
            rustix::param::page_size() as u64
        }
        shift => {
            let page_bytes = 1 << shift;
            resize_huge(&memfd, size, page_bytes)?;
            stored.map_to(&memfd, page_bytes, progress)?;
            page_bytes
        }
    };
    free_holes(&memfd, &stored.table.chunks, page_bytes)?;
    let mode = Mode::from_raw_mode(header.mode.get() & 0o7777);
    rustix::fs::fchmod(&memfd, mode).map_err(io::Error::from)?;
    Ok(memfd.into())
}

/// Reads all that is stored of a memfd and compares the checksums; returns what it is.
///
/// # Errors
///
/// `EBADMSG` if it is not what was written, and those of reading.
pub(super) fn check(image: &Path, handle: u64) -> Result<Data, Errno> {
    let stored = Stored::open(image, handle)?;
    let batches = stored.batches().into_par_iter();
    batches.try_for_each_init(Vec::new, |buffer, batch| {
        stored.read(batch, buffer).map(drop)
    })?;
    Ok(Data::of(&stored.table.chunks))
}

/// A part that is missing is damage like any other.
fn open_part(path: &Path) -> Result<File, Errno> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Errno::EBADMSG,
        _ => error.into(),
    })
}

fn create(header: &Header, name: &[u8]) -> Result<File, Errno> {
    let hugetlb = match header.huge_page_shift.get() {
        0 => None,
        shift => Some(hugetlb_size(shift).ok_or(Errno::EOPNOTSUPP)?),
    };
    // The name is for people; one that is not UTF-8 does not cross.
    let name = std::str::from_utf8(name).unwrap_or_default();
    MemfdOptions::default()
        .allow_sealing(true)
        .hugetlb(hugetlb)
        .create(name)
        .map(memfd::Memfd::into_file)
        .map_err(|error| match error {
            memfd::Error::Create(error) => error.into(),
            _ => Errno::EIO,
        })
}

/// The huge page size with this binary logarithm, as `memfd_create` takes it.
pub fn hugetlb_size(shift: u32) -> Option<HugetlbSize> {
    Some(match shift {
        16 => HugetlbSize::Huge64KB,
        19 => HugetlbSize::Huge512KB,
        20 => HugetlbSize::Huge1MB,
        21 => HugetlbSize::Huge2MB,
        23 => HugetlbSize::Huge8MB,
        24 => HugetlbSize::Huge16MB,
        28 => HugetlbSize::Huge256MB,
        30 => HugetlbSize::Huge1GB,
        31 => HugetlbSize::Huge2GB,
        34 => HugetlbSize::Huge16GB,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::copy::Copy;
    use super::*;

    #[test]
    fn mappings_cover_the_pages_with_data_and_no_others() {
        const PAGE: u64 = 2 << 20;
        let directory = tempfile::tempdir().unwrap();
        let new = || {
            let file = MemfdOptions::default()
                .create("mapped")
                .unwrap()
                .into_file();
            file.set_len(9 * PAGE).unwrap();
            file
        };
        let before = new();
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8 + 1).collect();
        // Within a page, over the border of two, and in the last one.
        for place in [4096, PAGE - 4096, 5 * PAGE - 8192, 9 * PAGE - 300_000] {
            before.write_all_at(&bytes, place).unwrap();
        }
        let memfd = std::sync::Arc::new(before.try_clone().unwrap().into());
        let copy = Copy::new(&memfd, 1, directory.path()).unwrap();
        copy.finish(&mut [], &|_| ()).unwrap();
        let stored = Stored::open(directory.path(), 1).unwrap();
        let runs = page_runs(&stored.table.chunks, PAGE);
        assert_eq!(runs, [0..2 * PAGE, 4 * PAGE..6 * PAGE, 8 * PAGE..9 * PAGE]);

        let after = new();
        stored.map_to(&after, PAGE, &|_| ()).unwrap();
        let mut contents = [vec![0; 9 * PAGE as usize], vec![1; 9 * PAGE as usize]];
        before.read_exact_at(&mut contents[0], 0).unwrap();
        after.read_exact_at(&mut contents[1], 0).unwrap();
        assert!(contents[0] == contents[1]);
    }

    /// Of two huge pages and a part of a third one, with data where it is said.
    fn odd(places: &[u64]) -> Result<File, Errno> {
        const PAGE: u64 = 2 << 20;
        let options = MemfdOptions::default().hugetlb(Some(HugetlbSize::Huge2MB));
        let memfd = options.create("odd").map_err(|_| Errno::EOPNOTSUPP)?;
        let file = memfd.into_file();
        resize_huge(&file, 2 * PAGE + 5, PAGE)?;
        for page in 0..3 {
            let of_page = places.iter().filter(|place| **place / PAGE == page);
            let of_page: Vec<u64> = of_page.copied().collect();
            if of_page.is_empty() {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, punch, page * PAGE, PAGE).map_err(io::Error::from)?;
                continue;
            }
            let mapping = SharedMapping::within(&file, page * PAGE..(page + 1) * PAGE)?;
            for place in of_page {
                mapping.write((place % PAGE) as usize, &[7]);
            }
        }
        Ok(file)
    }

    #[test]
    fn a_file_of_huge_pages_may_end_within_one() {
        const PAGE: u64 = 2 << 20;
        for places in [&[][..], &[3], &[PAGE - 1, 2 * PAGE + 4]] {
            let before = match odd(places) {
                Ok(file) => file,
                Err(error) => return eprintln!("skipped: no huge page of 2 MiB: {error}"),
            };
            let directory = tempfile::tempdir().unwrap();
            let memfd = std::sync::Arc::new(before.try_clone().unwrap().into());
            let copy = Copy::new(&memfd, 1, directory.path()).unwrap();
            copy.finish(&mut [], &|_| ()).unwrap();
            let after = File::from(restore(directory.path(), 1, &|_| ()).unwrap());
            for file in [&before, &after] {
                let metadata = file.metadata().unwrap();
                assert_eq!(metadata.len(), 2 * PAGE + 5);
                assert_eq!(metadata.blocks() * 512, places.len() as u64 * PAGE);
                let mut contents = vec![0; metadata.len() as usize];
                file.read_exact_at(&mut contents, 0).unwrap();
                let found = (0..metadata.len()).filter(|&place| contents[place as usize] == 7);
                assert!(found.eq(places.iter().copied()));
            }
        }
    }
}
