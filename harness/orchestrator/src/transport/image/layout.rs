// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The layout of one memfd's contents: its extents and nothing else, in checksummed chunks.
//!
//! ```text
//! contents-N     0     header: magic, page shift, size, mode, counts and checksum of what follows
//!                128   name of the memfd
//!                4096  data of the first stripe
//!                ...   chunks, where the header has them, in ascending order of their offsets:
//!                      offset u64, length u32, crc32c u32, place u64, stripe u32
//! contents-N.1   0     data of the second stripe, and so on
//! ```
//!
//! Numbers are little-endian. A file takes one writer at a time, so large memfds have a stripe for
//! each core. A chunk is in one stripe at one place; chunks that are neighbours in the memfd and in
//! their stripe are read and written together, as a batch of up to 256 KiB.
//!
//! Images of schema 2 have the magic `LUOIMG1` and chunks without place and stripe, which stand
//! between the name and the data. There a batch is as many chunks in a row as fit, and batch *i* is
//! in stripe *i* mod the number of stripes, after the batches before it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use luo_handler_api::Errno;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The largest chunk, in bytes: small enough for a core's own cache, so that data which was read to
/// be compared is written without going to memory again.
pub const CHUNK_BYTES: u64 = 256 << 10;

const MAGIC: [u8; 8] = *b"LUOIMG2\0";
/// Of schema 2.
const OLDER_MAGIC: [u8; 8] = *b"LUOIMG1\0";
/// Where the data of the first stripe begins.
const FIRST_PLACE: u64 = 4096;
/// The longest name of a memfd, `MFD_NAME_MAX_LEN` of `mm/memfd.c`.
pub(super) const NAME_MAX: usize = 249;
pub(super) const STRIPES_MAX: usize = 16;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 8],
    /// crc32c of the header with this field zero, the name and the chunks.
    checksum: U32,
    /// Binary logarithm of the huge page size; 0 for shmem.
    pub(super) huge_page_shift: U32,
    /// Of the memfd, in bytes.
    pub(super) size: U64,
    /// Permission bits.
    pub(super) mode: U32,
    name_bytes: U32,
    chunk_count: U64,
    stripes: U32,
    /// Where the chunks are; 0 in an older image.
    table_place: U64,
    reserved: [U32; 19],
}

const HEADER_BYTES: u64 = size_of::<Header>() as u64;
const _: () = assert!(HEADER_BYTES == 128 && HEADER_BYTES + NAME_MAX as u64 <= FIRST_PLACE);

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OlderEntry {
    offset: U64,
    length: U32,
    crc32c: U32,
}

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    chunk: OlderEntry,
    place: U64,
    stripe: U32,
}

/// Bytes of a memfd, and where they are stored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    /// At most [`CHUNK_BYTES`].
    pub(super) length: usize,
    pub(super) crc32c: u32,
    pub(super) stripe: usize,
    pub(super) place: u64,
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length as u64
    }

    /// Whether it is stored right after `previous`.
    fn follows(&self, previous: &Self) -> bool {
        let end = previous.place + previous.length as u64;
        (self.stripe, self.place) == (previous.stripe, end)
    }
}

/// How many chunks make each batch.
pub(super) fn batches<'a>(chunks: impl IntoIterator<Item = &'a Chunk>) -> Vec<usize> {
    let mut batches = Vec::new();
    let mut last: Option<(&Chunk, usize)> = None;
    for chunk in chunks {
        match (last, batches.last_mut()) {
            (Some((previous, bytes)), Some(count))
                if chunk.follows(previous) && bytes + chunk.length <= CHUNK_BYTES as usize =>
            {
                *count += 1;
                last = Some((chunk, bytes + chunk.length));
            }
            _ => {
                batches.push(1);
                last = Some((chunk, chunk.length));
            }
        }
    }
    batches
}

/// Gives chunks their places in the stripes, which end at `ends`: batches take turns.
pub(super) fn place<'a>(chunks: impl IntoIterator<Item = &'a mut Chunk>, ends: &mut [u64]) {
    let (mut stripe, mut room) = (0, CHUNK_BYTES as usize);
    for chunk in chunks {
        if chunk.length > room {
            stripe = (stripe + 1) % ends.len();
            room = CHUNK_BYTES as usize;
        }
        room -= chunk.length;
        chunk.stripe = stripe;
        chunk.place = ends[stripe];
        ends[stripe] += chunk.length as u64;
    }
}

/// Where the data of a stripe begins.
pub(super) fn first_place(stripe: usize) -> u64 {
    match stripe {
        0 => FIRST_PLACE,
        _ => 0,
    }
}

/// The file of contents, or their first stripe.
pub(super) fn path_of(image: &Path, handle: u64) -> PathBuf {
    image.join(format!("contents-{handle}"))
}

/// Where a stripe is.
pub(super) fn stripe_path(contents: &Path, stripe: usize) -> PathBuf {
    match stripe {
        0 => contents.to_owned(),
        _ => contents.with_extension(stripe.to_string()),
    }
}

/// What is known of a memfd besides its data.
pub(super) struct Table {
    pub(super) header: Header,
    pub(super) name: Vec<u8>,
    pub(super) chunks: Vec<Chunk>,
}

impl Table {
    /// Of a memfd of shmem, or with huge pages of this size.
    pub(super) fn new(huge_page_shift: u32, size: u64, mode: u32, name: Vec<u8>) -> Self {
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.huge_page_shift = huge_page_shift.into();
        header.size = size.into();
        header.mode = mode.into();
        header.name_bytes = (name.len() as u32).into();
        Self {
            header,
            name,
            chunks: Vec::new(),
        }
    }

    /// Writes it into the first of `stripes`, whose data ends at `end`.
    pub(super) fn write(&mut self, stripes: &[File], end: u64) -> io::Result<()> {
        let entries: Vec<Entry> = self.chunks.iter().map(Entry::from).collect();
        let header = &mut self.header;
        header.chunk_count = (entries.len() as u64).into();
        header.stripes = (stripes.len() as u32).into();
        header.table_place = end.into();
        header.checksum = 0.into();
        let crc = crc32c::crc32c(header.as_bytes());
        let crc = crc32c::crc32c_append(crc, &self.name);
        header.checksum = crc32c::crc32c_append(crc, entries.as_bytes()).into();
        stripes[0].write_all_at(entries.as_bytes(), end)?;
        stripes[0].write_all_at(&[header.as_bytes(), &self.name].concat(), 0)
    }

    /// Reads and checks what [`write`](Self::write) wrote, or an older one.
    pub(super) fn read(file: &File) -> Result<Self, Errno> {
        let mut header = Header::new_zeroed();
        read_exact(file, header.as_mut_bytes(), 0)?;
        let name_bytes = header.name_bytes.get() as usize;
        let stripes = header.stripes.get() as usize;
        let is_sound = name_bytes <= NAME_MAX
            && (1..=STRIPES_MAX).contains(&stripes)
            && header.size.get() <= i64::MAX as u64;
        if !is_sound {
            return Err(Errno::EBADMSG);
        }
        let mut name = vec![0; name_bytes];
        read_exact(file, &mut name, HEADER_BYTES)?;
        let expected = header.checksum.get();
        header.checksum = 0.into();
        let crc = crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), &name);
        let older_place = HEADER_BYTES + name.len() as u64;
        let (chunks, crc) = match header.magic {
            MAGIC => read_chunks::<Entry>(file, &header, header.table_place.get(), crc)?,
            OLDER_MAGIC => {
                let (mut chunks, crc) = read_chunks::<OlderEntry>(file, &header, older_place, crc)?;
                let table_bytes = (chunks.len() * size_of::<OlderEntry>()) as u64;
                let mut ends = vec![0; stripes];
                ends[0] = (older_place + table_bytes).next_multiple_of(FIRST_PLACE);
                place(&mut chunks, &mut ends);
                (chunks, crc)
            }
            _ => return Err(Errno::EBADMSG),
        };
        if crc != expected || chunks.iter().any(|chunk| chunk.stripe >= stripes) {
            return Err(Errno::EBADMSG);
        }
        Ok(Self {
            header,
            name,
            chunks,
        })
    }

    /// How many files the data is in.
    pub(super) fn stripes(&self) -> usize {
        self.header.stripes.get() as usize
    }
}

impl From<&Chunk> for Entry {
    fn from(chunk: &Chunk) -> Self {
        Self {
            chunk: OlderEntry {
                offset: chunk.offset.into(),
                length: (chunk.length as u32).into(),
                crc32c: chunk.crc32c.into(),
            },
            place: chunk.place.into(),
            stripe: (chunk.stripe as u32).into(),
        }
    }
}

impl From<&OlderEntry> for Chunk {
    fn from(entry: &OlderEntry) -> Self {
        Self {
            offset: entry.offset.get(),
            length: entry.length.get() as usize,
            crc32c: entry.crc32c.get(),
            ..Self::default()
        }
    }
}

impl From<&Entry> for Chunk {
    fn from(entry: &Entry) -> Self {
        Self {
            stripe: entry.stripe.get() as usize,
            place: entry.place.get(),
            ..Self::from(&entry.chunk)
        }
    }
}

/// Reads the chunks block by block, and checks each block before there is room for the next: a
/// wrong count for a file full of holes ends at the first chunk that is empty. Returns `crc` with
/// what was read as well.
fn read_chunks<E>(
    file: &File,
    header: &Header,
    mut place: u64,
    mut crc: u32,
) -> Result<(Vec<Chunk>, u32), Errno>
where
    E: FromBytes + IntoBytes + Immutable + Clone,
    Chunk: for<'a> From<&'a E>,
{
    const BLOCK: u64 = 1 << 16;
    let mut left = header.chunk_count.get();
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut end = 0;
    while left > 0 {
        let count = left.min(BLOCK);
        let mut block = vec![E::new_zeroed(); count as usize];
        read_exact(file, block.as_mut_bytes(), place)?;
        crc = crc32c::crc32c_append(crc, block.as_bytes());
        for chunk in block.iter().map(Chunk::from) {
            end = end_after(&chunk, end).ok_or(Errno::EBADMSG)?;
            chunks.push(chunk);
        }
        place = place.saturating_add(size_of_val(&*block) as u64);
        left -= count;
    }
    match end <= header.size.get() {
        true => Ok((chunks, crc)),
        false => Err(Errno::EBADMSG),
    }
}

/// Where a chunk ends, if it is neither empty nor too long, begins at `previous` or after it, and
/// is stored where a file can have it.
fn end_after(chunk: &Chunk, previous: u64) -> Option<u64> {
    let length = chunk.length as u64;
    let is_sound = chunk.offset >= previous && (1..=CHUNK_BYTES).contains(&length);
    let stored_end = chunk.place.checked_add(length)?;
    let end = chunk.offset.checked_add(length)?;
    (is_sound && stored_end <= i64::MAX as u64).then_some(end)
}

/// Reads all of `buffer`; a file that ends before is damaged.
pub(super) fn read_exact(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Errno> {
    match file.read_exact_at(buffer, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Errno::EBADMSG),
        // Of an offset that no file can have.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(Errno::EBADMSG),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of these lengths, one after the other, each with a byte of a hole after it.
    fn chunks(lengths: &[usize]) -> Vec<Chunk> {
        let mut offset = 0;
        let chunk = |&length| {
            let chunk = Chunk {
                offset,
                length,
                ..Chunk::default()
            };
            offset = chunk.end() + 1;
            chunk
        };
        lengths.iter().map(chunk).collect()
    }

    #[test]
    fn batches_take_turns_and_are_found_again() {
        const FULL: usize = CHUNK_BYTES as usize;
        let mut chunks = chunks(&[FULL, 4096, FULL - 4096, 1, FULL, 5, 6]);
        let mut ends = [FIRST_PLACE, 0, 0];
        place(&mut chunks, &mut ends);
        let places: Vec<_> = chunks
            .iter()
            .map(|chunk| (chunk.stripe, chunk.place))
            .collect();
        let full = CHUNK_BYTES;
        let expected = [
            (0, 4096),
            (1, 0),
            (1, 4096),
            (2, 0),
            (0, 4096 + full),
            (1, full),
            (1, full + 5),
        ];
        assert_eq!(places, expected);
        assert_eq!(ends, [4096 + 2 * full, full + 11, 1]);
        assert_eq!(batches(&chunks), [1, 2, 1, 1, 2]);
        // With one stripe nothing but the length ends a batch.
        place(&mut chunks, &mut [0]);
        assert_eq!(batches(&chunks), [1, 2, 1, 1, 2]);
        assert!(batches(&[]).is_empty());
    }
}
