// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One memfd as files: its extents and nothing else, in checksummed chunks.
//!
//! ```text
//! contents-N     0     header: magic, page shift, size, mode, lengths and checksum of what follows
//!                128   name of the memfd
//!                ...   chunks: offset u64, length u32, crc32c u32, in ascending order
//!                ...   data of the first stripe, from the next multiple of 4096 on
//! contents-N.1   0     data of the second stripe, and so on
//! ```
//!
//! Numbers are little-endian. Neighbouring chunks make batches of up to 256 KiB; batch *i* is in
//! stripe *i* mod the number of stripes, after the batches before it. A file takes one writer at a
//! time, so large memfds have a stripe for each core.

use std::fs::File;
use std::io;
use std::iter::Sum;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use luo_handler_api::Errno;
use memfd::{HugetlbSize, MemfdOptions};
use rayon::prelude::*;
use rustix::fs::{fcntl_get_seals, fstat, fstatfs, Mode};
use serde::Serialize;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::{at, ImageError};
use crate::holes;
use crate::sys::SharedMapping;

/// The largest chunk, in bytes: small enough for a core's own cache, so that data which was read to
/// be compared is written without going to memory again.
pub const CHUNK_BYTES: u64 = 256 << 10;

const MAGIC: [u8; 8] = *b"LUOIMG1\0";
const DATA_ALIGN: u64 = 4096;
/// The longest name of a memfd, `MFD_NAME_MAX_LEN` of `mm/memfd.c`.
const NAME_MAX: usize = 249;
const STRIPES_MAX: usize = 16;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    /// crc32c of the header with this field zero, the name and the chunks.
    checksum: U32,
    /// Binary logarithm of the huge page size; 0 for shmem.
    huge_page_shift: U32,
    /// Of the memfd, in bytes.
    size: U64,
    /// Permission bits.
    mode: U32,
    name_bytes: U32,
    chunk_count: U64,
    stripes: U32,
    reserved: [U32; 21],
}

const HEADER_BYTES: u64 = size_of::<Header>() as u64;
const _: () = assert!(HEADER_BYTES == 128);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Chunk {
    offset: U64,
    length: U32,
    crc32c: U32,
}

const CHUNK_ENTRY_BYTES: u64 = size_of::<Chunk>() as u64;

impl Chunk {
    /// Where it ends, if it is neither empty nor too long and begins at `previous` or after it.
    fn end_after(&self, previous: u64) -> Option<u64> {
        let offset = self.offset.get();
        let length = u64::from(self.length.get());
        let fits = offset >= previous && (1..=CHUNK_BYTES).contains(&length);
        offset.checked_add(length).filter(|_| fits)
    }
}

/// Neighbouring chunks that are read or written together, and where their data is.
struct Batch {
    chunks: Range<usize>,
    stripe: usize,
    place: u64,
    bytes: usize,
}

/// The file of contents, or their first stripe.
pub(super) fn path_of(image: &Path, handle: u64) -> PathBuf {
    image.join(format!("contents-{handle}"))
}

/// Where a stripe is; the first one is after the chunks.
fn stripe_path(contents: &Path, stripe: usize) -> PathBuf {
    match stripe {
        0 => contents.to_owned(),
        _ => contents.with_extension(stripe.to_string()),
    }
}

/// A stripe for each core, if there is enough data to be worth the files.
fn stripes_for(bytes: u64) -> usize {
    const ENOUGH: u64 = 16 << 20;
    match bytes {
        0..ENOUGH => 1,
        _ => rayon::current_num_threads().clamp(1, STRIPES_MAX),
    }
}

/// Stores a memfd; returns the bytes of data it has.
pub(super) fn save(
    memfd: &OwnedFd,
    handle: u64,
    image: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<u64, ImageError> {
    if fcntl_get_seals(memfd).is_err() {
        return Err(ImageError::NotAMemfd { handle });
    }
    let path = path_of(image, handle);
    save_to(memfd, &path, progress).map_err(at("write", &path))
}

fn save_to(memfd: &OwnedFd, path: &Path, progress: &(dyn Fn(u64) + Sync)) -> io::Result<u64> {
    let source = holes::reopen(memfd.as_fd())?;
    let stat = fstat(memfd)?;
    let size = stat.st_size as u64;
    let name = name_of(memfd);
    let huge_page_shift = huge_page_shift(memfd)?;
    let ranges = match huge_page_shift {
        0 => holes::data_ranges(&source, size)?,
        shift => holes::nonzero_pages(&source, size, 1 << shift)?,
    };
    let bytes = ranges.iter().map(|range| range.end - range.start).sum();
    let mut chunks = split(&ranges);
    let stripes = stripes_for(bytes);
    let files = (0..stripes)
        .map(|stripe| File::create_new(stripe_path(path, stripe)))
        .collect::<io::Result<Vec<_>>>()?;
    let sums = batches(&chunks, data_start(name.len(), chunks.len()), stripes)
        .into_par_iter()
        .map_init(Vec::new, |buffer, batch| {
            let sums = copy_out(
                &source,
                &chunks[batch.chunks.clone()],
                &files,
                &batch,
                buffer,
            )?;
            progress(batch.bytes as u64);
            Ok(sums)
        })
        .collect::<io::Result<Vec<_>>>()?;
    for (chunk, sum) in chunks.iter_mut().zip(sums.into_iter().flatten()) {
        chunk.crc32c = sum.into();
    }

    let mut header = Header {
        magic: MAGIC,
        checksum: 0.into(),
        huge_page_shift: huge_page_shift.into(),
        size: size.into(),
        mode: (stat.st_mode & 0o7777).into(),
        name_bytes: (name.len() as u32).into(),
        chunk_count: (chunks.len() as u64).into(),
        stripes: (stripes as u32).into(),
        reserved: [0.into(); 21],
    };
    header.checksum = checksum(&header, &name, &chunks).into();
    let head = [header.as_bytes(), &name, chunks.as_bytes()].concat();
    files[0].write_all_at(&head, 0)?;
    files.iter().try_for_each(File::sync_all)?;
    Ok(bytes)
}

/// The huge page size's binary logarithm, or 0 for shmem.
fn huge_page_shift(memfd: &OwnedFd) -> io::Result<u32> {
    let statfs = fstatfs(memfd)?;
    Ok(match statfs.f_type {
        libc::HUGETLBFS_MAGIC => (statfs.f_bsize as u64).trailing_zeros(),
        _ => 0,
    })
}

/// What the memfd was called; `/proc` shows it as `/memfd:name (deleted)`.
fn name_of(memfd: &OwnedFd) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", memfd.as_raw_fd()));
    let link = link.unwrap_or_default();
    let name = link.as_os_str().as_bytes();
    let name = name.strip_prefix(b"/memfd:").unwrap_or(name);
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    name[..name.len().min(NAME_MAX)].to_vec()
}

fn split(ranges: &[Range<u64>]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for range in ranges {
        let mut offset = range.start;
        while offset < range.end {
            // Chunks end at multiples of their size, whatever the range begins with.
            let end = range.end.min((offset / CHUNK_BYTES + 1) * CHUNK_BYTES);
            chunks.push(Chunk {
                offset: offset.into(),
                length: ((end - offset) as u32).into(),
                crc32c: 0.into(),
            });
            offset = end;
        }
    }
    chunks
}

fn data_start(name_bytes: usize, chunk_count: usize) -> u64 {
    let chunks = chunk_count as u64 * CHUNK_ENTRY_BYTES;
    (HEADER_BYTES + name_bytes as u64 + chunks).next_multiple_of(DATA_ALIGN)
}

/// Gathers chunks into batches; data of the first stripe begins at `first_place`.
fn batches(chunks: &[Chunk], first_place: u64, stripes: usize) -> Vec<Batch> {
    let mut places = vec![0; stripes];
    places[0] = first_place;
    let mut batches: Vec<Batch> = Vec::new();
    let mut start = 0;
    while start < chunks.len() {
        let (mut end, mut bytes) = (start, 0);
        while let Some(chunk) = chunks.get(end) {
            let length = chunk.length.get() as usize;
            if end > start && bytes + length > CHUNK_BYTES as usize {
                break;
            }
            bytes += length;
            end += 1;
        }
        let stripe = batches.len() % stripes;
        batches.push(Batch {
            chunks: start..end,
            stripe,
            place: places[stripe],
            bytes,
        });
        places[stripe] += bytes as u64;
        start = end;
    }
    batches
}

/// Copies a batch from the memfd into its stripe; returns the checksums of its chunks.
fn copy_out(
    source: &File,
    chunks: &[Chunk],
    stripes: &[File],
    batch: &Batch,
    buffer: &mut Vec<u8>,
) -> io::Result<Vec<u32>> {
    buffer.resize(batch.bytes, 0);
    let mut sums = Vec::with_capacity(chunks.len());
    let mut rest = &mut buffer[..];
    for chunk in chunks {
        let (bytes, after) = rest.split_at_mut(chunk.length.get() as usize);
        source.read_exact_at(bytes, chunk.offset.get())?;
        sums.push(crc32c::crc32c(bytes));
        rest = after;
    }
    stripes[batch.stripe].write_all_at(buffer, batch.place)?;
    Ok(sums)
}

fn checksum(header: &Header, name: &[u8], chunks: &[Chunk]) -> u32 {
    let crc = crc32c::crc32c(header.as_bytes());
    let crc = crc32c::crc32c_append(crc, name);
    crc32c::crc32c_append(crc, chunks.as_bytes())
}

/// What is stored of a memfd: its table, checked, and the files of its data.
struct Stored {
    header: Header,
    name: Vec<u8>,
    chunks: Vec<Chunk>,
    stripes: Vec<File>,
}

impl Stored {
    fn open(image: &Path, handle: u64) -> Result<Self, Errno> {
        let path = path_of(image, handle);
        let first = open_part(&path)?;
        let (header, name, chunks) = read_table(&first)?;
        let stripes = open_stripes(first, &path, header.stripes.get() as usize)?;
        Ok(Self {
            header,
            name,
            chunks,
            stripes,
        })
    }

    fn batches(&self) -> Vec<Batch> {
        let first_place = data_start(self.name.len(), self.chunks.len());
        batches(&self.chunks, first_place, self.stripes.len())
    }

    fn read<'a>(
        &'a self,
        batch: &Batch,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Vec<(&'a Chunk, &'a [u8])>, Errno> {
        read_batch(&self.stripes, &self.chunks, batch, buffer)
    }

    fn write_to(&self, memfd: &File, progress: &(dyn Fn(u64) + Sync)) -> Result<(), Errno> {
        self.batches()
            .into_par_iter()
            .try_for_each_init(Vec::new, |buffer, batch| {
                for (chunk, bytes) in self.read(&batch, buffer)? {
                    memfd.write_all_at(bytes, chunk.offset.get())?;
                }
                progress(batch.bytes as u64);
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
        let mut runs = page_runs(&self.chunks, page_bytes).into_iter();
        let mut mapped: (Range<u64>, Option<SharedMapping>) = (0..0, None);
        let mut buffer = Vec::new();
        for batch in self.batches() {
            for (chunk, bytes) in self.read(&batch, &mut buffer)? {
                let offset = chunk.offset.get();
                if offset >= mapped.0.end {
                    // Runs and chunks are in the same order, and no run is without a chunk.
                    let run = runs.next().ok_or(Errno::EBADMSG)?;
                    mapped = (run.clone(), Some(SharedMapping::new(memfd, run)?));
                }
                let mapping = mapped.1.as_ref().ok_or(Errno::EBADMSG)?;
                mapping.write((offset - mapped.0.start) as usize, bytes);
            }
            progress(batch.bytes as u64);
        }
        Ok(())
    }
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
            let (offset, length) = (chunk.offset.get(), u64::from(chunk.length.get()));
            data.extents += u64::from(end != Some(offset));
            data.data_bytes += length;
            end = Some(offset + length);
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
        let start = chunk.offset.get() / page_bytes * page_bytes;
        let end = chunk.offset.get() + u64::from(chunk.length.get());
        let end = end.next_multiple_of(page_bytes);
        match runs.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// Makes the memfd again.
///
/// # Errors
///
/// `EBADMSG` if the file is missing or not what was written, `ENOMEM` if the machine has not enough
/// such huge pages, and those of reading and writing.
pub(super) fn restore(
    image: &Path,
    handle: u64,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<OwnedFd, Errno> {
    let stored = Stored::open(image, handle)?;
    let header = &stored.header;
    let memfd = create(header, &stored.name)?;
    memfd.set_len(header.size.get())?;
    match header.huge_page_shift.get() {
        0 => stored.write_to(&memfd, progress)?,
        shift => stored.map_to(&memfd, 1 << shift, progress)?,
    }
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
    stored
        .batches()
        .into_par_iter()
        .try_for_each_init(Vec::new, |buffer, batch| {
            stored.read(&batch, buffer).map(drop)
        })?;
    Ok(Data::of(&stored.chunks))
}

/// A part that is missing is damage like any other.
fn open_part(path: &Path) -> Result<File, Errno> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Errno::EBADMSG,
        _ => error.into(),
    })
}

fn open_stripes(first: File, path: &Path, count: usize) -> Result<Vec<File>, Errno> {
    if !(1..=STRIPES_MAX).contains(&count) {
        return Err(Errno::EBADMSG);
    }
    let others = (1..count).map(|stripe| open_part(&stripe_path(path, stripe)));
    std::iter::once(Ok(first)).chain(others).collect()
}

fn read_table(file: &File) -> Result<(Header, Vec<u8>, Vec<Chunk>), Errno> {
    let length = file.metadata()?.len();
    let mut header = Header::new_zeroed();
    read_exact(file, header.as_mut_bytes(), 0)?;
    let name_bytes = header.name_bytes.get() as usize;
    let room = length / CHUNK_ENTRY_BYTES;
    if header.magic != MAGIC || name_bytes > NAME_MAX || header.chunk_count.get() > room {
        return Err(Errno::EBADMSG);
    }
    let mut name = vec![0; name_bytes];
    read_exact(file, &mut name, HEADER_BYTES)?;
    let chunks = read_chunks(file, &header)?;
    let expected = header.checksum.get();
    header.checksum = 0.into();
    if checksum(&header, &name, &chunks) != expected || header.size.get() > i64::MAX as u64 {
        return Err(Errno::EBADMSG);
    }
    Ok((header, name, chunks))
}

/// Reads the chunks block by block, and checks each block before there is room for the next: a
/// wrong count for a file full of holes ends at the first chunk that is empty.
fn read_chunks(file: &File, header: &Header) -> Result<Vec<Chunk>, Errno> {
    const BLOCK: u64 = 1 << 16;
    let count = header.chunk_count.get();
    let mut chunks = Vec::new();
    let mut place = HEADER_BYTES + u64::from(header.name_bytes.get());
    let mut end = 0;
    while (chunks.len() as u64) < count {
        let known = chunks.len();
        let block = BLOCK.min(count - known as u64) as usize;
        chunks.resize(known + block, Chunk::new_zeroed());
        let block = &mut chunks[known..];
        read_exact(file, block.as_mut_bytes(), place)?;
        place += block.len() as u64 * CHUNK_ENTRY_BYTES;
        for chunk in block {
            end = chunk.end_after(end).ok_or(Errno::EBADMSG)?;
        }
    }
    if end > header.size.get() {
        return Err(Errno::EBADMSG);
    }
    Ok(chunks)
}

/// Reads all of `buffer`; a file that ends before is damaged.
fn read_exact(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Errno> {
    match file.read_exact_at(buffer, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Errno::EBADMSG),
        result => Ok(result?),
    }
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

/// Reads a batch and compares its checksums; returns each chunk with its data.
fn read_batch<'a>(
    stripes: &[File],
    chunks: &'a [Chunk],
    batch: &Batch,
    buffer: &'a mut Vec<u8>,
) -> Result<Vec<(&'a Chunk, &'a [u8])>, Errno> {
    buffer.resize(batch.bytes, 0);
    read_exact(&stripes[batch.stripe], buffer, batch.place)?;
    let mut pieces = Vec::with_capacity(batch.chunks.len());
    let mut rest = &buffer[..];
    for chunk in &chunks[batch.chunks.clone()] {
        let (bytes, after) = rest.split_at(chunk.length.get() as usize);
        if crc32c::crc32c(bytes) != chunk.crc32c.get() {
            return Err(Errno::EBADMSG);
        }
        pieces.push((chunk, bytes));
        rest = after;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
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
        save(
            &before.try_clone().unwrap().into(),
            1,
            directory.path(),
            &|_| (),
        )
        .unwrap();
        let stored = Stored::open(directory.path(), 1).unwrap();
        let runs = page_runs(&stored.chunks, PAGE);
        assert_eq!(runs, [0..2 * PAGE, 4 * PAGE..6 * PAGE, 8 * PAGE..9 * PAGE]);

        let after = new();
        stored.map_to(&after, PAGE, &|_| ()).unwrap();
        let mut contents = [vec![0; 9 * PAGE as usize], vec![1; 9 * PAGE as usize]];
        before.read_exact_at(&mut contents[0], 0).unwrap();
        after.read_exact_at(&mut contents[1], 0).unwrap();
        assert!(contents[0] == contents[1]);
    }
}
