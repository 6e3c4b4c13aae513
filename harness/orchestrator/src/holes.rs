// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where a file has data, and where it has holes.
//!
//! Looking for holes moves the position of an open file. [`reopen`] makes a second one, so that the
//! position of the first stays where its owner left it:
//!
//! ```
//! use std::{io::{Seek, Write}, os::fd::AsFd};
//! use luo_orchestrator::holes::{data_ranges, reopen};
//!
//! let mut file = memfd::MemfdOptions::default().create("sparse")?.into_file();
//! file.write_all(b"data")?;
//! file.set_len(1 << 30)?;
//! let ranges = data_ranges(&reopen(file.as_fd())?, 1 << 30)?;
//! assert_eq!(ranges[0].start, 0);
//! assert!(ranges[0].end < 1 << 30);
//! assert_eq!(file.stream_position()?, 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use luo_handler_api::hosted::files;
use rustix::fs::OFlags;

/// Opens a file once more, to be read: the new open file has a position of its own.
///
/// # Errors
///
/// Those of opening `/proc/self/fd/N`: `ENOENT` where `/proc` is not mounted.
pub fn reopen(file: BorrowedFd<'_>) -> io::Result<File> {
    Ok(files::reopen(file, OFlags::RDONLY)?)
}

/// The ranges of `file` below `size` that hold data, in bytes, by `SEEK_DATA` and `SEEK_HOLE` of
/// `lseek(2)`. Moves the position of the open file.
///
/// # Errors
///
/// Those of `lseek(2)`.
pub fn data_ranges(file: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut offset = 0;
    while let Some(range) = files::next_data_range(file, offset, size)? {
        offset = range.end;
        ranges.push(range);
    }
    Ok(ranges)
}

/// The same for hugetlbfs, which calls everything data: the huge pages with a byte that is not
/// zero.
///
/// # Errors
///
/// Those of `pread(2)`.
pub fn nonzero_pages(file: &File, size: u64, page: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut start = 0;
    while start < size {
        let end = size.min(start + page);
        if has_data(file, start..end, &mut buffer)? {
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        start = end;
    }
    Ok(ranges)
}

fn has_data(file: &File, range: Range<u64>, buffer: &mut [u8]) -> io::Result<bool> {
    let mut offset = range.start;
    while offset < range.end {
        let length = (buffer.len() as u64).min(range.end - offset) as usize;
        file.read_exact_at(&mut buffer[..length], offset)?;
        if buffer[..length].iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
        offset += length as u64;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn data_is_where_it_was_written(
            pages in prop::collection::btree_set(0u64..200, 0..40),
            tail in 0u64..4096,
        ) {
            let file = memfd::MemfdOptions::default().create("holes").unwrap().into_file();
            let page = rustix::param::page_size() as u64;
            let size = 200 * page + tail;
            file.set_len(size).unwrap();
            for &index in &pages {
                file.write_all_at(&[1], index * page).unwrap();
            }
            let found: Vec<u64> = data_ranges(&file, size)
                .unwrap()
                .into_iter()
                .flat_map(|range| range.start / page..range.end / page)
                .collect();
            prop_assert_eq!(&found, &pages.iter().copied().collect::<Vec<_>>());
            let nonzero: Vec<u64> = nonzero_pages(&file, size, page)
                .unwrap()
                .into_iter()
                .flat_map(|range| range.start / page..range.end / page)
                .collect();
            prop_assert_eq!(nonzero, found);
        }
    }
}
