// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One memfd as a file: its extents and nothing else, in checksummed chunks.
//!
//! ```text
//! 0     header: magic, page shift, size, mode, lengths and checksum of what follows
//! 128   name of the memfd
//! ...   chunks: offset u64, length u32, crc32c u32, in ascending order
//! ...   data of the chunks, one behind the other, from the next multiple of 4096 on
//! ```
//!
//! Numbers are little-endian. Chunks are read, compared and written by all cores.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use luo_handler_api::Errno;
use memfd::{HugetlbSize, MemfdOptions};
use memmap2::MmapMut;
use rayon::prelude::*;
use rustix::fs::{fcntl_get_seals, fstat, fstatfs, Mode};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{at, ImageError};
use crate::{holes, sys};

/// The largest chunk, in bytes: small enough for a core's own cache, so that data which was read to be
/// compared is written without going to memory again.
pub const CHUNK_BYTES: u64 = 256 << 10;

const MAGIC: [u8; 8] = *b"LUOIMG1\0";
const DATA_ALIGN: u64 = 4096;
const HUGETLBFS_MAGIC: i64 = 0x958458f6;
/// The longest name of a memfd, `MFD_NAME_MAX_LEN` of `mm/memfd.c`.
const NAME_MAX: usize = 249;

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
    reserved: [U64; 10],
}

const HEADER_BYTES: u64 = size_of::<Header>() as u64;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Chunk {
    offset: U64,
    length: U32,
    crc32c: U32,
}

const CHUNK_ENTRY_BYTES: u64 = size_of::<Chunk>() as u64;

impl Chunk {
    fn range(&self) -> Range<u64> {
        self.offset.get()..self.offset.get() + u64::from(self.length.get())
    }

    /// Where it ends, if it begins at or behind `previous` and is neither empty nor too long.
    fn end_after(&self, previous: u64) -> Option<u64> {
        let length = u64::from(self.length.get());
        let fits = self.offset.get() >= previous && (1..=CHUNK_BYTES).contains(&length);
        fits.then(|| self.offset.get().checked_add(length)).flatten()
    }
}

/// Neighbouring chunks that are read or written together, and where their data stands in the file.
struct Batch<C> {
    place: u64,
    bytes: usize,
    chunks: C,
}

fn path_of(image: &Path, handle: u64) -> PathBuf {
    image.join(format!("contents-{handle}"))
}

/// Stores a memfd; yields the bytes of data it has.
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
    let source = sys::reopen(memfd.as_fd())?;
    let stat = fstat(memfd)?;
    let size = stat.st_size as u64;
    let name = name_of(memfd);
    let huge_page_shift = huge_page_shift(memfd)?;
    let ranges = match huge_page_shift {
        0 => holes::data_ranges(&source, size)?,
        shift => holes::nonzero_pages(&source, size, 1 << shift)?,
    };
    let mut chunks = split(&ranges);
    let table = HEADER_BYTES + name.len() as u64;
    let data = data_start(name.len() as u64, chunks.len() as u64);

    let file = File::create_new(path)?;
    batches_mut(&mut chunks, data)
        .into_par_iter()
        .try_for_each_init(Vec::new, |buffer, batch| {
            let bytes = batch.bytes as u64;
            copy_out(&source, &file, batch, buffer)?;
            progress(bytes);
            Ok::<_, io::Error>(())
        })?;

    let mut header = Header {
        magic: MAGIC,
        checksum: 0.into(),
        huge_page_shift: huge_page_shift.into(),
        size: size.into(),
        mode: (stat.st_mode & 0o7777).into(),
        name_bytes: (name.len() as u32).into(),
        chunk_count: (chunks.len() as u64).into(),
        reserved: [0.into(); 10],
    };
    header.checksum = checksum(&header, &name, &chunks).into();
    file.write_all_at(chunks.as_bytes(), table)?;
    file.write_all_at(&name, HEADER_BYTES)?;
    file.write_all_at(header.as_bytes(), 0)?;
    file.sync_all()?;
    Ok(ranges.iter().map(|range| range.end - range.start).sum())
}

/// The huge page size's binary logarithm, or 0 for shmem.
fn huge_page_shift(memfd: &OwnedFd) -> io::Result<u32> {
    let statfs = fstatfs(memfd)?;
    Ok(match statfs.f_type {
        HUGETLBFS_MAGIC => (statfs.f_bsize as u64).trailing_zeros(),
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

fn data_start(name_bytes: u64, chunk_count: u64) -> u64 {
    (HEADER_BYTES + name_bytes + chunk_count * CHUNK_ENTRY_BYTES).next_multiple_of(DATA_ALIGN)
}

/// How many of the first chunks fit one batch, and their bytes; at least one does.
fn batch_length(chunks: &[Chunk]) -> (usize, usize) {
    let mut bytes = 0;
    let mut count = 0;
    for chunk in chunks {
        let length = chunk.length.get() as usize;
        if count > 0 && bytes + length > CHUNK_BYTES as usize {
            break;
        }
        bytes += length;
        count += 1;
    }
    (count, bytes)
}

fn batches_mut(mut chunks: &mut [Chunk], mut place: u64) -> Vec<Batch<&mut [Chunk]>> {
    let mut batches = Vec::new();
    while !chunks.is_empty() {
        let (count, bytes) = batch_length(chunks);
        let (batch, rest) = chunks.split_at_mut(count);
        batches.push(Batch {
            place,
            bytes,
            chunks: batch,
        });
        place += bytes as u64;
        chunks = rest;
    }
    batches
}

fn batches(mut chunks: &[Chunk], mut place: u64) -> Vec<Batch<&[Chunk]>> {
    let mut batches = Vec::new();
    while !chunks.is_empty() {
        let (count, bytes) = batch_length(chunks);
        let (batch, rest) = chunks.split_at(count);
        batches.push(Batch {
            place,
            bytes,
            chunks: batch,
        });
        place += bytes as u64;
        chunks = rest;
    }
    batches
}

fn copy_out(
    source: &File,
    file: &File,
    batch: Batch<&mut [Chunk]>,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    buffer.resize(batch.bytes, 0);
    let mut rest = &mut buffer[..];
    for chunk in batch.chunks {
        let (bytes, behind) = rest.split_at_mut(chunk.length.get() as usize);
        source.read_exact_at(bytes, chunk.offset.get())?;
        chunk.crc32c = crc32c::crc32c(bytes).into();
        rest = behind;
    }
    file.write_all_at(buffer, batch.place)
}

fn checksum(header: &Header, name: &[u8], chunks: &[Chunk]) -> u32 {
    let crc = crc32c::crc32c(header.as_bytes());
    let crc = crc32c::crc32c_append(crc, name);
    crc32c::crc32c_append(crc, chunks.as_bytes())
}

/// Makes the memfd again.
///
/// # Errors
///
/// `EBADMSG` if the file is not what was written, `ENOMEM` if the machine has no such huge pages, and
/// what reading and writing say.
pub(super) fn restore(
    image: &Path,
    handle: u64,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<OwnedFd, Errno> {
    let file = File::open(path_of(image, handle))?;
    let (header, name, chunks) = read_table(&file)?;
    let memfd = create(&header, &name)?;
    memfd.set_len(header.size.get())?;
    let data = data_start(name.len() as u64, chunks.len() as u64);
    let batches = batches(&chunks, data);
    if header.huge_page_shift.get() == 0 {
        batches
            .into_par_iter()
            .try_for_each_init(Vec::new, |buffer, batch| {
                copy_in(&file, &memfd, &batch, buffer)?;
                progress(batch.bytes as u64);
                Ok::<_, Errno>(())
            })?;
    } else if header.size.get() > 0 {
        let mut mapping = sys::map_own(&memfd, header.size.get())?;
        let mut buffer = Vec::new();
        for batch in batches {
            copy_into_mapping(&file, &mut mapping, &batch, &mut buffer)?;
            progress(batch.bytes as u64);
        }
    }
    let mode = Mode::from_raw_mode(header.mode.get() & 0o7777);
    rustix::fs::fchmod(&memfd, mode).map_err(io::Error::from)?;
    Ok(memfd.into())
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

/// Reads the chunks block by block, and checks each block before there is room for the next: a count
/// that lies about a file full of holes ends at the first chunk that is none.
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
    // The name is for people; one that is no text stays behind.
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

pub(crate) fn hugetlb_size(shift: u32) -> Option<HugetlbSize> {
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

/// Reads a batch and compares its checksums.
fn read_batch(file: &File, batch: &Batch<&[Chunk]>, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.resize(batch.bytes, 0);
    read_exact(file, buffer, batch.place)?;
    for (chunk, bytes) in batch.pieces(buffer) {
        if crc32c::crc32c(bytes) != chunk.crc32c.get() {
            return Err(Errno::EBADMSG);
        }
    }
    Ok(())
}

impl<'c> Batch<&'c [Chunk]> {
    /// Each chunk with its part of the batch's data.
    fn pieces<'b>(&self, data: &'b [u8]) -> impl Iterator<Item = (&'c Chunk, &'b [u8])> {
        let mut rest = data;
        self.chunks.iter().map(move |chunk| {
            let (bytes, behind) = rest.split_at(chunk.length.get() as usize);
            rest = behind;
            (chunk, bytes)
        })
    }
}

fn copy_in(
    file: &File,
    memfd: &File,
    batch: &Batch<&[Chunk]>,
    buffer: &mut Vec<u8>,
) -> Result<(), Errno> {
    read_batch(file, batch, buffer)?;
    for (chunk, bytes) in batch.pieces(buffer) {
        memfd.write_all_at(bytes, chunk.offset.get())?;
    }
    Ok(())
}

/// hugetlbfs has no `write(2)`.
fn copy_into_mapping(
    file: &File,
    mapping: &mut MmapMut,
    batch: &Batch<&[Chunk]>,
    buffer: &mut Vec<u8>,
) -> Result<(), Errno> {
    read_batch(file, batch, buffer)?;
    for (chunk, bytes) in batch.pieces(buffer) {
        let range = chunk.range();
        mapping[range.start as usize..range.end as usize].copy_from_slice(bytes);
    }
    Ok(())
}
