// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One memfd into an image: all of it at first, then what changed.
//!
//! What changed is found by reading. Each block has a cryptographic hash, and is written if it
//! differs from that of the block that was written before. That costs the time of reading memory,
//! and is right whoever wrote to the memfd, and how. Some chunks need not be read again:
//!
//! - those of a memfd that was sealed against writing and shrinking when they were read;
//! - those of a [tracked](super::tracked) mapping that the kernel knows nobody wrote to.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blake3::Hash;
use rayon::prelude::*;
use rustix::fs::{fcntl_get_seals, fstat, fstatfs, SealFlags};

use super::error::{at, ImageError};
use super::layout::{self, path_of, stripe_path, Chunk, Table, CHUNK_BYTES};
use super::layout::{first_place, NAME_MAX, STRIPES_MAX};
use super::tracked::{Tracked, Unwritten};
use crate::holes;
use crate::sys::Identity;

/// What is compared and written at once; a multiple of what the hash takes in parallel.
const BLOCK_BYTES: usize = 16 << 10;

/// A memfd in an image that is being written.
#[derive(Debug)]
pub(super) struct Copy {
    memfd: Arc<OwnedFd>,
    handle: u64,
    identity: Identity,
    /// The memfd, opened once more.
    source: File,
    path: PathBuf,
    stripes: Vec<File>,
    /// Where the data of each stripe ends. Room of data that went away is not used again.
    ends: Vec<u64>,
    chunks: Vec<Copied>,
    /// Whether the contents could change when the chunks were read.
    was_sealed: bool,
}

/// A chunk as it was written last.
#[derive(Clone, Debug)]
struct Copied {
    chunk: Chunk,
    /// Of its blocks; none if it was not written yet.
    blocks: Vec<Hash>,
}

/// What an update of a copy came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Updated {
    /// Bytes of data that the memfd has.
    pub(super) data_bytes: u64,
    /// Those that were written now.
    pub(super) written_bytes: u64,
}

impl Copy {
    pub(super) fn new(memfd: &Arc<OwnedFd>, handle: u64, image: &Path) -> Result<Self, ImageError> {
        if fcntl_get_seals(memfd).is_err() {
            return Err(ImageError::NotAMemfd { handle });
        }
        let path = path_of(image, handle);
        let opened = Identity::of(memfd.as_fd())
            .and_then(|identity| Ok((identity, holes::reopen(memfd.as_fd())?)));
        let (identity, source) = opened.map_err(at("write", &path))?;
        Ok(Self {
            memfd: memfd.clone(),
            handle,
            identity,
            source,
            path,
            stripes: Vec::new(),
            ends: Vec::new(),
            chunks: Vec::new(),
            was_sealed: false,
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Brings the copy up to date while the memfd may change, and waits until the disk has it.
    pub(super) fn update(
        &mut self,
        tracked: &mut [Tracked],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Updated, ImageError> {
        self.try_update(tracked, false, progress)
            .and_then(|updated| {
                self.stripes.iter().try_for_each(File::sync_data)?;
                Ok(updated)
            })
            .map_err(at("write", &self.path))
    }

    /// Brings the copy of a memfd up to date that changes no more, and completes it.
    pub(super) fn finish(
        mut self,
        tracked: &mut [Tracked],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Updated, ImageError> {
        let updated = self.try_update(tracked, true, progress);
        updated
            .and_then(|updated| {
                self.write_table()?;
                self.stripes.iter().try_for_each(File::sync_all)?;
                Ok(updated)
            })
            .map_err(at("write", &self.path))
    }

    /// Removes what was written.
    pub(super) fn remove(self) -> Result<(), ImageError> {
        let mut stripes = 0..self.stripes.len();
        stripes.try_for_each(|stripe| {
            let path = stripe_path(&self.path, stripe);
            std::fs::remove_file(&path).map_err(at("remove", &path))
        })
    }

    fn try_update(
        &mut self,
        tracked: &mut [Tracked],
        is_last: bool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> io::Result<Updated> {
        // Both before anything is read: what changes from here on is found the next time.
        let is_sealed = self.is_sealed()?;
        let mut unwritten = Unwritten::default();
        let tracked = tracked.iter_mut();
        for tracked in tracked.filter(|tracked| tracked.identity() == self.identity) {
            unwritten.add(tracked, self.handle, is_last);
        }
        let size = fstat(&self.memfd)?.st_size as u64;
        if self.chunks.is_empty() {
            // Also after an update that failed.
            let ends = self.ends.iter_mut().enumerate();
            ends.for_each(|(stripe, end)| *end = first_place(stripe));
        }
        let mut chunks = self.merge(split(&self.data_ranges(size)?));
        let data_bytes = chunks.iter().map(|copied| copied.chunk.length as u64).sum();
        self.place(&mut chunks, data_bytes)?;

        let is_same = |copied: &Copied| {
            !copied.blocks.is_empty() && (self.was_sealed || unwritten.contains(&copied.chunk))
        };
        let written_bytes = split_batches(&mut chunks)
            .into_par_iter()
            .map_init(Vec::new, |buffer, batch| {
                let written = match batch.iter().all(is_same) {
                    true => 0,
                    false => self.copy(batch, !is_last, buffer)?,
                };
                progress(batch.iter().map(|copied| copied.chunk.length as u64).sum());
                Ok(written)
            })
            .sum::<io::Result<u64>>()?;
        if is_last && fstat(&self.memfd)?.st_size as u64 != size {
            return Err(io::Error::other("its size changed while it was written"));
        }
        self.chunks = chunks;
        self.was_sealed = is_sealed;
        Ok(Updated {
            data_bytes,
            written_bytes,
        })
    }

    /// Whether the contents cannot change any more. `F_SEAL_FUTURE_WRITE` alone leaves the mappings
    /// that there are.
    fn is_sealed(&self) -> io::Result<bool> {
        let seals = fcntl_get_seals(&self.memfd)?;
        Ok(seals.contains(SealFlags::WRITE | SealFlags::SHRINK))
    }

    fn data_ranges(&self, size: u64) -> io::Result<Vec<Range<u64>>> {
        match huge_page_shift(&self.memfd)? {
            0 => holes::data_ranges(&self.source, size),
            shift => holes::nonzero_pages(&self.source, size, 1 << shift),
        }
    }

    /// What is known of chunks that were there before, with those that are new. If this update
    /// fails, nothing is known any more.
    fn merge(&mut self, chunks: Vec<Chunk>) -> Vec<Copied> {
        let mut known = std::mem::take(&mut self.chunks).into_iter().peekable();
        let merge = |chunk: Chunk| {
            while known
                .next_if(|copied| copied.chunk.offset < chunk.offset)
                .is_some()
            {}
            let is_it = |copied: &Copied| {
                (copied.chunk.offset, copied.chunk.length) == (chunk.offset, chunk.length)
            };
            known.next_if(is_it).unwrap_or(Copied {
                chunk,
                blocks: Vec::new(),
            })
        };
        chunks.into_iter().map(merge).collect()
    }

    /// Gives those chunks a place that have none yet, and makes the stripes that they need.
    fn place(&mut self, chunks: &mut [Copied], data_bytes: u64) -> io::Result<()> {
        for stripe in self.stripes.len()..stripes_for(data_bytes) {
            let path = stripe_path(&self.path, stripe);
            self.stripes.push(File::create_new(path)?);
            self.ends.push(first_place(stripe));
        }
        let new = chunks.iter_mut().filter(|copied| copied.blocks.is_empty());
        layout::place(new.map(|copied| &mut copied.chunk), &mut self.ends);
        Ok(())
    }

    /// Copies what differs of a batch; returns how many bytes that are.
    fn copy(
        &self,
        batch: &mut [Copied],
        is_compared_later: bool,
        buffer: &mut Vec<u8>,
    ) -> io::Result<u64> {
        buffer.resize(batch.iter().map(|copied| copied.chunk.length).sum(), 0);
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut add = |run: Range<usize>| match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        };
        let (mut start, first) = (0, batch[0].chunk);
        for copied in batch {
            let bytes = &mut buffer[start..start + copied.chunk.length];
            read_up_to_end(&self.source, bytes, copied.chunk.offset)?;
            if copied.differs(bytes, is_compared_later, |range| {
                add(start + range.start..start + range.end);
            }) {
                copied.chunk.crc32c = crc32c::crc32c(bytes);
            }
            start += copied.chunk.length;
        }
        let stripe = &self.stripes[first.stripe];
        let mut written = 0;
        for run in runs {
            written += run.len() as u64;
            let place = first.place + run.start as u64;
            stripe.write_all_at(&buffer[run], place)?;
        }
        Ok(written)
    }

    fn write_table(&self) -> io::Result<()> {
        let stat = fstat(&self.memfd)?;
        let shift = huge_page_shift(&self.memfd)?;
        let name = name_of(&self.memfd);
        let mode = stat.st_mode & 0o7777;
        let mut table = Table::new(shift, stat.st_size as u64, mode, name);
        table.chunks = self.chunks.iter().map(|copied| copied.chunk).collect();
        table.write(&self.stripes, self.ends[0])
    }
}

impl Copied {
    /// Compares with what was written before, and shows the ranges that differ.
    fn differs(
        &mut self,
        bytes: &[u8],
        is_compared_later: bool,
        mut show: impl FnMut(Range<usize>),
    ) -> bool {
        if self.blocks.is_empty() && !is_compared_later {
            show(0..bytes.len());
            return true;
        }
        let mut differs = false;
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let hash = blake3::hash(block);
            match self.blocks.get_mut(index) {
                Some(known) if *known == hash => continue,
                Some(known) => *known = hash,
                None => self.blocks.push(hash),
            }
            let start = index * BLOCK_BYTES;
            show(start..start + block.len());
            differs = true;
        }
        differs
    }
}

/// Fills `bytes`, with zeros where the file was cut off meanwhile.
fn read_up_to_end(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => {
                bytes.fill(0);
                break;
            }
            Ok(length) => {
                bytes = &mut bytes[length..];
                offset += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn split_batches(mut chunks: &mut [Copied]) -> Vec<&mut [Copied]> {
    let counts = layout::batches(chunks.iter().map(|copied| &copied.chunk));
    let split = |count| {
        let (batch, rest) = std::mem::take(&mut chunks).split_at_mut(count);
        chunks = rest;
        batch
    };
    counts.into_iter().map(split).collect()
}

/// A stripe for each core, if there is enough data to be worth the files.
fn stripes_for(bytes: u64) -> usize {
    const ENOUGH: u64 = 16 << 20;
    match bytes {
        0..ENOUGH => 1,
        _ => rayon::current_num_threads().clamp(1, STRIPES_MAX),
    }
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

/// Chunks of these ranges, without a place.
fn split(ranges: &[Range<u64>]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for range in ranges {
        let mut offset = range.start;
        while offset < range.end {
            // Chunks end at multiples of their size, whatever the range begins with.
            let end = range.end.min((offset / CHUNK_BYTES + 1) * CHUNK_BYTES);
            chunks.push(Chunk {
                offset,
                length: (end - offset) as usize,
                ..Chunk::default()
            });
            offset = end;
        }
    }
    chunks
}
