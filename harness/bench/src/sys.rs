// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What no library offers without `unsafe`: writing to shared memory, and the time stamp counter.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{Advice, MmapOptions, MmapRaw};

/// A shared mapping of a file, from its first byte on, that is written and never lent out.
///
/// # Invariants
///
/// No reference to the mapped memory exists: other processes may write to it at any time.
#[derive(Debug)]
pub struct Mapping(MmapRaw);

impl Mapping {
    /// Maps the first `length` bytes of a file, and reserves no memory for them.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`; `InvalidInput` if it does not fit into the address space.
    pub fn new(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut options = MmapOptions::new();
        options
            .len(length)
            .no_reserve_swap()
            .map_raw(file)
            .map(Self)
    }

    /// Advises the kernel on all of it.
    ///
    /// # Errors
    ///
    /// Those of `madvise(2)`: `EINVAL` if this kernel does not know the advice.
    pub fn advise(&self, advice: Advice) -> io::Result<()> {
        self.0.advise(advice)
    }

    /// Advises the kernel on a range, in bytes, that begins at a multiple of the page size.
    ///
    /// # Errors
    ///
    /// As [`advise`](Self::advise); `EFAULT` or `ENOMEM` if pages cannot be had.
    pub fn advise_range(&self, advice: Advice, range: &Range<u64>) -> io::Result<()> {
        let length = (range.end - range.start) as usize;
        self.0.advise_range(advice, range.start as usize, length)
    }

    /// Where it is in this process.
    pub fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// Writes `bytes` at `offset`. A place that the file does not have ends the process.
    ///
    /// # Panics
    ///
    /// If that is beyond the mapping.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let end = (offset as usize).checked_add(bytes.len());
        let fits = end.is_some_and(|end| end <= self.0.len());
        assert!(fits, "a write beyond the mapping");
        // SAFETY: the destination was just checked to lie in a mapping that `self.0` holds, and
        // cannot overlap `bytes`, since nobody has a reference to mapped memory (invariant).
        unsafe {
            let destination = self.0.as_mut_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), destination, bytes.len());
        }
    }
}

/// The processor's time stamp counter.
#[cfg(target_arch = "x86_64")]
pub fn ticks() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Elsewhere no counter is known to go on through a kexec.
#[cfg(not(target_arch = "x86_64"))]
pub fn ticks() -> u64 {
    0
}
