// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Mappings of which the kernel knows what was written to.
//!
//! The kernel protects the pages from writing (`userfaultfd(2)`, `UFFD_FEATURE_WP_ASYNC`), lifts
//! the protection of each page at the first write to it, without a call of anybody, and lists the
//! pages that still have it (`PAGEMAP_SCAN`). Those alone count as not written to: a page that is
//! unmapped, was mapped again or is not protected for any other reason has to be read.
//!
//! Soft-dirty bits would tell the same, but they are the whole process's, somebody else may clear
//! them, and many kernels are built without.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::makedev;

use super::layout::Chunk;
use crate::sys::{Identity, WriteWatch};

/// A mapping of a memfd through which all writes to that part of it go.
///
/// With it [`Draft`](super::Draft) does not read memory again that nobody wrote to. It costs the
/// program a page fault for the first write to each page after each copy.
///
/// It sees what the processor does through this mapping, in this process and in the kernel:
/// `read(2)` into it, a virtual machine that runs on it. It does not see other mappings, also not
/// the one of a child that was forked; `write(2)` and `fallocate(2)` on the memfd; what a device or
/// the kernel writes into pages that are pinned for long (VFIO, registered buffers of io_uring). A
/// program that has any of these leaves the mapping untracked: then the memory is compared.
#[derive(Debug)]
pub struct Tracked {
    identity: Identity,
    /// Where the mapping is in the file.
    offset: u64,
    start: usize,
    watch: WriteWatch,
    /// The handle of the copy that asks it: what is told to one is not told to another.
    asked_by: Option<u64>,
}

impl Tracked {
    /// Tracks `length` bytes at `address`, where the memfd is mapped from `offset` on, shared. All
    /// of them are multiples of the page size.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if something else is mapped there. Those of `userfaultfd(2)`: `EINVAL` before
    /// Linux 6.7, `ENOSYS` or `EPERM` where it is switched off, `EBUSY` if the memory is registered
    /// with another one. The image can be written without it.
    pub fn new(
        memfd: impl AsFd,
        offset: u64,
        address: *const u8,
        length: usize,
    ) -> io::Result<Self> {
        let identity = Identity::of(memfd.as_fd())?;
        let start = address.addr();
        let end = start.checked_add(length).filter(|&end| end > start);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        if !is_mapped(
            &fs::read_to_string("/proc/self/maps")?,
            start..end,
            identity,
            offset,
        ) {
            let message = format!("the memfd is not mapped at {start:#x}-{end:#x}, shared");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(Self {
            identity,
            offset,
            start,
            watch: WriteWatch::new(start..end)?,
            asked_by: None,
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    fn in_file(&self, range: &Range<usize>) -> Range<u64> {
        let place = |address: usize| self.offset + (address - self.start) as u64;
        place(range.start)..place(range.end)
    }
}

/// Whether these addresses are a shared mapping of a file from `offset` on; `maps` is that of
/// `proc_pid_maps(5)`.
fn is_mapped(maps: &str, addresses: Range<usize>, file: Identity, offset: u64) -> bool {
    let mut next = addresses.start;
    for mapping in maps.lines().filter_map(Mapping::parse) {
        if mapping.addresses.contains(&next) {
            let expected = offset + (next - addresses.start) as u64;
            let found = mapping.offset + (next - mapping.addresses.start) as u64;
            if !mapping.is_shared || mapping.file != file || found != expected {
                return false;
            }
            next = mapping.addresses.end;
            if next >= addresses.end {
                return true;
            }
        }
    }
    false
}

struct Mapping {
    addresses: Range<usize>,
    is_shared: bool,
    offset: u64,
    file: Identity,
}

impl Mapping {
    /// `address-address perms offset major:minor inode path`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let address = |text| usize::try_from(hexadecimal(text)?).ok();
        let (start, end) = words.next()?.split_once('-')?;
        let addresses = address(start)?..address(end)?;
        let is_shared = words.next()?.ends_with('s');
        let offset = hexadecimal(words.next()?)?;
        let (major, minor) = words.next()?.split_once(':')?;
        let [major, minor] = [hexadecimal(major)?, hexadecimal(minor)?].map(|number| number as u32);
        let file = Identity {
            device: makedev(major, minor),
            inode: words.next()?.parse().ok()?,
        };
        Some(Self {
            addresses,
            is_shared,
            offset,
            file,
        })
    }
}

/// Ranges of a file that nobody wrote to since they were read.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    unwritten: Vec<Range<u64>>,
    written: Vec<Range<u64>>,
}

impl Unwritten {
    /// Adds what a mapping knows, for the copy with this handle. If there is a next time, it tells
    /// from here on what is written until then. A mapping that cannot be asked knows nothing.
    pub(super) fn add(&mut self, tracked: &mut Tracked, handle: u64, is_last: bool) {
        let asked_by = tracked.asked_by.replace(handle);
        // The order matters: what is written in between is in neither of the lists.
        let written = match is_last {
            true => Ok(Vec::new()),
            false => tracked.watch.protect_written(),
        };
        let unwritten = tracked.watch.unwritten();
        // The first time, the copy may have read the memory before it was tracked.
        let (true, Ok(written), Ok(unwritten)) = (asked_by == Some(handle), written, unwritten)
        else {
            return;
        };
        let in_file = |range: &Range<usize>| tracked.in_file(range);
        self.written.extend(written.iter().map(in_file));
        self.unwritten.extend(unwritten.iter().map(in_file));
        self.written.sort_by_key(|range| range.start);
        self.unwritten.sort_by_key(|range| range.start);
    }

    /// Whether all of a chunk is among them.
    pub(super) fn contains(&self, chunk: &Chunk) -> bool {
        let (start, end) = (chunk.offset, chunk.end());
        // Of the ranges that begin before the chunk does, or within it, the last one.
        let before = |ranges: &[Range<u64>], place| {
            let count = ranges.partition_point(|range| range.start <= place);
            count.checked_sub(1).map(|last| ranges[last].clone())
        };
        let is_unwritten = before(&self.unwritten, start).is_some_and(|range| end <= range.end);
        let is_written = before(&self.written, end - 1).is_some_and(|range| range.end > start);
        is_unwritten && !is_written
    }
}
