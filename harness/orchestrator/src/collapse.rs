// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds of single pages are put into huge pages while the workload runs, so that there is less to
//! do when it does not.
//!
//! A kernel preserves and retrieves a huge page at the cost of a single one. The price is time of
//! the workload: the kernel copies every byte, and a write to a block that is being copied waits.
//!
//! ```
//! use std::{io::Write, os::fd::AsFd};
//! use luo_orchestrator::collapse::collapse;
//!
//! let mut memfd = memfd::MemfdOptions::default().create("guest memory")?.into_file();
//! memfd.write_all(&vec![1; 4 << 20])?;
//! let collapsed = collapse(memfd.as_fd())?; // before Orchestrator::prepare
//! assert!(collapsed.collapsed_bytes <= collapsed.asked_bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is preserved already cannot be collapsed: its pages must stay where they are. Holes stay
//! holes: only blocks without any are collapsed, although the kernel could fill the others.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{fstat, fstatfs};

use crate::holes::{data_ranges, reopen};
use crate::sys::AlignedMapping;

const HUGE_PAGE_SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
/// What is busy now may not be the next moment.
const TRIES: u32 = 3;

/// What came of it, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collapsed {
    /// Data of the file.
    pub data_bytes: u64,
    /// What of it lies in blocks of the size of a huge page that have no hole.
    pub asked_bytes: u64,
    /// What of that lies in huge pages now, or did before.
    pub collapsed_bytes: u64,
    /// What does not, by the kernel's reason.
    pub refused: Vec<Refused>,
}

/// Blocks that stayed single pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `ENOMEM` without a free huge page, `EBUSY` beyond the limit of a memory cgroup, `EAGAIN`
    /// where a page is in use, `EINVAL` where it cannot be done: on a kernel before 6.1, with
    /// `shmem_enabled` at `deny`, or for a file that is not in memory.
    pub errno: i32,
    /// How much.
    pub bytes: u64,
}

/// Puts the data of a memfd into huge pages, whatever `shmem_enabled` has, except `deny`. It is
/// mapped to be read for that, in this process; who else has it mapped keeps it so. Of a memfd of
/// hugetlb pages there is nothing to collapse.
///
/// # Errors
///
/// `Unsupported` without transparent huge pages; those of opening `/proc/self/fd/N` and of
/// `mmap(2)`: `ENODEV` for what is not memory.
pub fn collapse(file: BorrowedFd<'_>) -> io::Result<Collapsed> {
    let block = huge_page_size()?;
    let size = fstat(file)?.st_size as u64;
    let mut collapsed = Collapsed::default();
    if size == 0 || fstatfs(file)?.f_type == libc::HUGETLBFS_MAGIC {
        return Ok(collapsed);
    }
    let mapping = AlignedMapping::new(file, size, block as usize)?;
    let reopened = reopen(file)?;
    for data in data_ranges(&reopened, size)? {
        collapsed.data_bytes += data.end - data.start;
        let blocks = data.start.next_multiple_of(block)..data.end / block * block;
        if blocks.is_empty() {
            continue;
        }
        collapsed.asked_bytes += blocks.end - blocks.start;
        collapsed.try_range(&mapping, blocks, block);
    }
    Ok(collapsed)
}

fn huge_page_size() -> io::Result<u64> {
    let text = std::fs::read_to_string(HUGE_PAGE_SIZE).unwrap_or_default();
    let size = text.trim().parse().ok();
    let is_valid = |size: &u64| size.is_power_of_two() && *size <= isize::MAX as u64;
    size.filter(is_valid).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel has no transparent huge pages: no {HUGE_PAGE_SIZE}"),
        )
    })
}

impl Collapsed {
    /// All at once is cheapest. The kernel does not tell what it could not do, so what fails is
    /// tried again in halves.
    fn try_range(&mut self, mapping: &AlignedMapping, range: Range<u64>, block: u64) {
        let bytes = range.end - range.start;
        let all = range.start as usize..range.end as usize;
        let mut result = mapping.collapse(all.clone());
        for _ in 1..TRIES {
            let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
            if bytes == block && result.as_ref().is_err_and(is_busy) {
                result = mapping.collapse(all.clone());
            }
        }
        match result {
            Ok(()) => self.collapsed_bytes += bytes,
            Err(error) if bytes == block => self.refuse(&error, bytes),
            Err(_) => {
                let middle = range.start + (bytes / block).div_ceil(2) * block;
                self.try_range(mapping, range.start..middle, block);
                self.try_range(mapping, middle..range.end, block);
            }
        }
    }

    fn refuse(&mut self, error: &io::Error, bytes: u64) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        match self.refused.iter_mut().find(|it| it.errno == errno) {
            Some(refused) => refused.bytes += bytes,
            None => self.refused.push(Refused { errno, bytes }),
        }
    }
}

/// In MiB, and the part of them that was refused.
impl fmt::Display for Collapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        let Self {
            data_bytes,
            asked_bytes,
            collapsed_bytes,
            refused,
        } = self;
        write!(
            f,
            "{:.1} of {:.1} MiB of data lie in huge pages",
            mib(*collapsed_bytes),
            mib(*data_bytes)
        )?;
        if data_bytes > asked_bytes {
            let left = mib(data_bytes - asked_bytes);
            write!(f, "; {left:.1} MiB are not in whole blocks")?;
        }
        for Refused { errno, bytes } in refused {
            let reason = io::Error::from_raw_os_error(*errno);
            write!(f, "; {:.1} MiB were refused: {reason}", mib(*bytes))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memfd::MemfdOptions;
    use rustix::fs::{fcntl_add_seals, SealFlags};
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    const BLOCK: u64 = 2 << 20;

    fn memfd(size: u64, data: &[Range<u64>]) -> File {
        let options = MemfdOptions::default().allow_sealing(true);
        let file = options.create("collapse").unwrap().into_file();
        file.set_len(size).unwrap();
        for range in data {
            let bytes = vec![range.start as u8 + 1; (range.end - range.start) as usize];
            file.write_all_at(&bytes, range.start).unwrap();
        }
        file
    }

    fn dense(size: u64) -> File {
        memfd(size, std::slice::from_ref(&(0..size)))
    }

    fn huge_bytes(file: &File, size: u64) -> u64 {
        let mapping = AlignedMapping::new(file.as_fd(), size, BLOCK as usize);
        let data = data_ranges(&reopen(file.as_fd()).unwrap(), size).unwrap();
        mapping.unwrap().huge_bytes(&data)
    }

    /// Whether this machine can do it at all; the lab's can.
    fn is_possible() -> bool {
        let file = dense(BLOCK);
        let collapsed = collapse(file.as_fd());
        let whole = |it: &Collapsed| it.collapsed_bytes == BLOCK;
        let is_possible = collapsed.as_ref().is_ok_and(whole);
        if !is_possible {
            eprintln!("skipped: {collapsed:?}");
        }
        is_possible
    }

    #[test]
    fn whole_blocks_of_data_lie_in_huge_pages_and_holes_stay() {
        if !is_possible() {
            return;
        }
        let (size, page) = (6 * BLOCK + 5, 4096);
        let data = [
            page..2 * BLOCK + page,
            4 * BLOCK..5 * BLOCK,
            6 * BLOCK..size,
        ];
        let file = memfd(size, &data);
        let before = data_ranges(&file, size).unwrap();
        let contents = |file: &File| {
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let bytes = contents(&file);
        assert_eq!(huge_bytes(&file, size), 0);

        let collapsed = collapse(file.as_fd()).unwrap();
        assert_eq!(collapsed.data_bytes, 3 * BLOCK + 5);
        assert_eq!(collapsed.asked_bytes, 2 * BLOCK);
        assert_eq!(collapsed.collapsed_bytes, 2 * BLOCK, "{collapsed}");
        assert_eq!(huge_bytes(&file, size), 2 * BLOCK);
        assert_eq!(data_ranges(&file, size).unwrap(), before);
        assert!(contents(&file) == bytes);
        let text = collapsed.to_string();
        assert_eq!(
            text,
            "4.0 of 6.0 MiB of data lie in huge pages; 2.0 MiB are not in whole blocks"
        );
        assert_eq!(collapse(file.as_fd()).unwrap(), collapsed, "a second time");
    }

    #[test]
    fn a_file_that_is_sealed_and_read_only_is_collapsed() {
        if !is_possible() {
            return;
        }
        let file = dense(2 * BLOCK);
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
        fcntl_add_seals(&file, seals).unwrap();
        let file = reopen(file.as_fd()).unwrap();
        let collapsed = collapse(file.as_fd()).unwrap();
        assert_eq!(collapsed.collapsed_bytes, 2 * BLOCK);
        assert_eq!(huge_bytes(&file, 2 * BLOCK), 2 * BLOCK);
    }

    #[test]
    fn what_is_in_use_is_refused_with_its_reason_and_the_rest_is_collapsed() {
        if !is_possible() {
            return;
        }
        // What waits in a pipe is in use.
        let file = dense(8 * BLOCK);
        let (reader, writer) = io::pipe().unwrap();
        let mut offset = 5 * BLOCK;
        rustix::pipe::splice(
            &file,
            Some(&mut offset),
            &writer,
            None,
            4096,
            rustix::pipe::SpliceFlags::empty(),
        )
        .unwrap();
        let collapsed = collapse(file.as_fd()).unwrap();
        assert_eq!(collapsed.collapsed_bytes, 7 * BLOCK, "{collapsed}");
        let refused = Refused {
            errno: libc::EAGAIN,
            bytes: BLOCK,
        };
        assert_eq!(collapsed.refused, [refused]);
        assert!(collapsed.to_string().contains("2.0 MiB were refused"));
        assert_eq!(huge_bytes(&file, 8 * BLOCK), 7 * BLOCK);
        drop(reader);
        drop(writer);
        assert_eq!(collapse(file.as_fd()).unwrap().collapsed_bytes, 8 * BLOCK);
    }

    #[test]
    fn what_is_not_memory_is_an_error_and_an_empty_file_is_not() {
        if !is_possible() {
            return;
        }
        let (reader, _writer) = io::pipe().unwrap();
        assert_eq!(collapse(reader.as_fd()).unwrap(), Collapsed::default());
        let empty = memfd(0, &[]);
        assert_eq!(collapse(empty.as_fd()).unwrap(), Collapsed::default());
        let directory = File::open("/").unwrap();
        collapse(directory.as_fd()).unwrap_err();
    }
}
