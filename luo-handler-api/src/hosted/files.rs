// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What several handlers and hosts do with a descriptor: where its data is, and opening it again.

use core::ops::Range;
use std::{
    format,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    fs::{open, seek, Mode, OFlags, SeekFrom},
    io::Errno,
};

/// Calls `found` with each range below `size` that holds data, in bytes and in order, by
/// `SEEK_DATA` and `SEEK_HOLE` of `lseek(2)`. hugetlbfs calls everything data. Moves the position
/// of the description: [`reopen`] a file whose position matters.
///
/// # Errors
///
/// Those of `lseek(2)`, and the first one of `found`, which ends the walk.
pub fn each_data_range<E: From<crate::Errno>>(
    file: impl AsFd,
    size: u64,
    mut found: impl FnMut(Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut offset = 0;
    while let Some(range) = next_data_range(&file, offset, size).map_err(crate::Errno::from)? {
        offset = range.end;
        found(range)?;
    }
    Ok(())
}

/// The first range from `offset` on and below `size` that holds data; `None` if only a hole
/// follows. [`each_data_range`] is made of it; for callers that go in steps of their own.
///
/// # Errors
///
/// Those of `lseek(2)`.
pub fn next_data_range(
    file: impl AsFd,
    offset: u64,
    size: u64,
) -> rustix::io::Result<Option<Range<u64>>> {
    if offset >= size {
        return Ok(None);
    }
    let start = match seek(&file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        // No data up to the end of the file.
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let end = match seek(&file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        // The file was cut meanwhile.
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok((start < end).then_some(start..end))
}

/// Opens the file of a descriptor once more, through `/proc/self/fd`: a description of its own,
/// with `flags` and a position of its own, of the same inode.
///
/// # Errors
///
/// Those of `openat(2)`: `EACCES` if the permissions do not allow it, `ENOENT` without a `/proc`.
pub fn reopen(file: impl AsFd, flags: OFlags) -> rustix::io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let fd: OwnedFd = open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{memfd_create, MemfdFlags};
    use std::os::unix::fs::FileExt;

    fn memfd() -> File {
        memfd_create("files", MemfdFlags::CLOEXEC).unwrap().into()
    }

    fn ranges(file: &File, size: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        each_data_range(file, size, |range| {
            ranges.push(range);
            Ok::<_, crate::Errno>(())
        })
        .unwrap();
        ranges
    }

    proptest! {
        #[test]
        fn data_is_where_it_was_written(
            pages in prop::collection::btree_set(0u64..200, 0..40),
            tail in 0u64..4096,
        ) {
            let file = memfd();
            let page = rustix::param::page_size() as u64;
            let size = 200 * page + tail;
            file.set_len(size).unwrap();
            for &index in &pages {
                file.write_all_at(&[1], index * page).unwrap();
            }
            let found = ranges(&file, size);
            let found: Vec<u64> = found
                .into_iter()
                .flat_map(|range| range.start / page..range.end / page)
                .collect();
            prop_assert_eq!(found, Vec::from_iter(pages));
        }
    }

    #[test]
    fn the_walk_ends_with_the_size_and_with_the_first_error() {
        let file = memfd();
        file.write_all_at(&[1; 10_000], 0).unwrap();
        let first = |size| ranges(&file, size).first().cloned();
        assert_eq!(first(5000), Some(0..5000));
        assert_eq!(first(0), None);
        assert_eq!(first(1 << 40), Some(0..10_000));
        let stop = each_data_range(&file, 10_000, |_| Err(crate::Errno::EIO));
        assert_eq!(stop, Err(crate::Errno::EIO));
    }

    #[test]
    fn a_file_that_was_opened_again_has_a_position_of_its_own() {
        let file = memfd();
        file.set_len(100).unwrap();
        seek(&file, SeekFrom::Start(7)).unwrap();
        let again = reopen(&file, OFlags::RDONLY).unwrap();
        assert_eq!(seek(&again, SeekFrom::Current(0)), Ok(0));
        assert_eq!(seek(&file, SeekFrom::Current(0)), Ok(7));
        assert!(again.set_len(1).is_err(), "it is read-only");
        let inode = |file: &File| rustix::fs::fstat(file).unwrap().st_ino;
        assert_eq!(inode(&again), inode(&file));
    }
}
