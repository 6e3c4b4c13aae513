// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What no library offers without `unsafe`: writing to shared memory, the time stamp counter, and
//! samples of what a processor runs.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{fence, Ordering};

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

/// A sampler of the kernel's code on one processor, perf's `cpu-clock`: a timer's interrupt notes
/// where it came. What runs with interrupts off is found where they go on again.
#[derive(Debug)]
pub struct Sampler {
    event: OwnedFd,
    /// A page of `perf_event_mmap_page`, and [`RING_PAGES`] pages of records.
    ring: MmapRaw,
    page: usize,
}

/// Pages for records, a power of two: 2 MiB, some 10 000 samples.
const RING_PAGES: usize = 512;

/// `struct perf_event_attr` as it was at first, which every kernel takes.
#[repr(C)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

impl EventAttributes {
    const SOFTWARE: u32 = 1;
    const CPU_CLOCK: u64 = 0;
    const CALL_CHAIN: u64 = 1 << 5;
    const DISABLED: u64 = 1;
    const EXCLUDE_USER: u64 = 1 << 4;
    const EXCLUDE_IDLE: u64 = 1 << 7;
    const EXCLUDE_USER_CALL_CHAIN: u64 = 1 << 22;
}

const EVENT_CLOSE_ON_EXEC: libc::c_ulong = 8;
const EVENT_ENABLE: libc::c_ulong = 0x2400;
const EVENT_DISABLE: libc::c_ulong = 0x2401;

/// Where `data_head` and `data_tail` are in `struct perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

impl Sampler {
    /// A sampler of a processor, every so many nanoseconds; switched off at first.
    ///
    /// # Errors
    ///
    /// Those of `perf_event_open(2)`: `EACCES` for who may not look at the kernel, `ENOSYS` in a
    /// kernel without it.
    pub fn new(processor: u32, period_ns: u64) -> io::Result<Self> {
        let attributes = EventAttributes {
            kind: EventAttributes::SOFTWARE,
            size: size_of::<EventAttributes>() as u32,
            config: EventAttributes::CPU_CLOCK,
            sample_period: period_ns,
            sample_type: EventAttributes::CALL_CHAIN,
            read_format: 0,
            flags: EventAttributes::DISABLED
                | EventAttributes::EXCLUDE_USER
                | EventAttributes::EXCLUDE_IDLE
                | EventAttributes::EXCLUDE_USER_CALL_CHAIN,
            wakeup_events: 0,
            bp_type: 0,
            config1: 0,
        };
        // SAFETY: the attributes are as long as they tell and are only read during the call.
        let event = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                -1,
                processor,
                -1,
                EVENT_CLOSE_ON_EXEC,
            )
        };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        let event = unsafe { OwnedFd::from_raw_fd(event as i32) };
        let page = rustix::param::page_size();
        let ring = MmapOptions::new()
            .len(page * (1 + RING_PAGES))
            .map_raw(&event)?;
        Ok(Self { event, ring, page })
    }

    /// Switches it on or off.
    ///
    /// # Errors
    ///
    /// Those of `ioctl(2)`.
    pub fn switch(&self, on: bool) -> io::Result<()> {
        let request = if on { EVENT_ENABLE } else { EVENT_DISABLE };
        // SAFETY: both requests take no memory.
        match unsafe { libc::ioctl(self.event.as_raw_fd(), request as _, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes out what was recorded since: `struct perf_event_header`s, each followed by what it
    /// heads.
    pub fn take(&mut self) -> Vec<u8> {
        let (head, tail) = (self.counter(DATA_HEAD), self.counter(DATA_TAIL));
        // SAFETY: the page is mapped, and aligned for it.
        let written = unsafe { head.read_volatile() };
        // The records are read after the number that tells how far they go.
        fence(Ordering::Acquire);
        // SAFETY: as for `head`.
        let read = unsafe { tail.read_volatile() };
        let length = RING_PAGES * self.page;
        let place = |at: u64| self.page + (at % length as u64) as usize;
        let byte = |at: u64| {
            // SAFETY: the place is within the mapping, and the kernel writes there no more until
            // the tail is moved.
            unsafe { self.ring.as_ptr().add(place(at)).read_volatile() }
        };
        let records = (read..written).map(byte).collect();
        fence(Ordering::Release);
        // SAFETY: as for `head`; the kernel reads this one and never writes it.
        unsafe { tail.write_volatile(written) };
        records
    }

    fn counter(&self, offset: usize) -> *mut u64 {
        self.ring.as_mut_ptr().wrapping_add(offset).cast()
    }
}
