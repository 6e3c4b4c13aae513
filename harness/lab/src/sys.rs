// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The unsafe edge of this crate: shared memory, registers, and what other crates have only as
//! numbers or do not have.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::ioctl::{ioctl, opcode, Opcode, Setter};
use rustix::mm::{madvise, mmap, munmap, Advice, MapFlags, ProtFlags};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, VFIO_DEVICE_FEATURE_SET, VFIO_TYPE,
};
use vfio_ioctls::VfioDevice;
use vmm_sys_util::eventfd::EventFd;

/// Of `include/uapi/asm-generic/mman-common.h`, since 6.1; rustix does not have it.
const MADV_COLLAPSE: libc::c_int = 25;

/// The descriptor of an object that only has its number.
pub(crate) fn descriptor(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `AsRawFd` of an object that owns its descriptor returns that one, which stays open
    // for as long as the object is borrowed; the answer lives no longer than that.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// A file mapped to be read and written together with others.
///
/// There is no reference into it: others change the memory meanwhile. Memory that the file has no
/// longer, or that went bad, ends the process with `SIGBUS`.
#[derive(Debug)]
pub(crate) struct SharedMapping {
    /// # Invariants
    ///
    /// The beginning of a mapping of `length` bytes that belongs to this value.
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for SharedMapping {}

impl SharedMapping {
    /// Maps the first `length` bytes of a file.
    pub(crate) fn of(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too large to map"))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses a place where nothing is mapped.
        let start = unsafe { mmap(null_mut(), length, access, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        // INVARIANT: mmap succeeded with this length.
        Ok(Self { start, length })
    }

    /// Panics unless the bytes are in the mapping.
    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{length} bytes at {offset} are not in a mapping of {}",
            self.length
        );
        // SAFETY: by the invariant and the assertion the sum is in the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` has checked that so many bytes are mapped writable there, and a slice of
        // somebody else's cannot overlap with a mapping into which there are no references.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Stores a number, after all that was stored before.
    pub(crate) fn store(&self, offset: usize, value: u64) {
        assert!(
            offset.is_multiple_of(align_of::<AtomicU64>()),
            "{offset} is not aligned"
        );
        let to = self.at(offset, size_of::<u64>()).cast();
        // SAFETY: `at` has checked that it is mapped; a mapping begins at a page and the offset is
        // aligned; whoever else stores there uses this function or another mapping.
        unsafe { AtomicU64::from_ptr(to) }.store(value, Ordering::SeqCst);
    }

    /// Advises the kernel about a part of the mapping.
    pub(crate) fn advise(&self, range: Range<usize>, advice: Advice) -> io::Result<()> {
        let length = range.len();
        let start = self.at(range.start, length).cast();
        // SAFETY: the range is mapped, and no reference into it exists that could see its contents
        // change or go.
        unsafe { madvise(start, length, advice) }?;
        Ok(())
    }

    /// Has the kernel put huge pages under the mapping, now.
    pub(crate) fn collapse(&self) -> io::Result<()> {
        // SAFETY: the invariant: the range is mapped and belongs to this value. The contents stay.
        let done = unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, MADV_COLLAPSE) };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the invariant: the mapping belongs to this value, which has given out no
        // reference.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        // It can only fail if it is not mapped, or if there are too many mappings.
        let _ = unmapped;
    }
}

const DEVICE_FEATURE: Opcode = opcode::none(VFIO_TYPE, (VFIO_BASE + 17) as u8);

/// `struct vfio_device_feature`, followed by `struct vfio_device_low_power_entry_with_wakeup`.
#[repr(C)]
struct LowPower {
    argsz: u32,
    flags: u32,
    wakeup_eventfd: RawFd,
    reserved: u32,
}

/// Puts a device into low power; `event` is signalled when something wakes it.
pub(crate) fn enter_low_power(device: &VfioDevice, event: &EventFd) -> rustix::io::Result<()> {
    let entry = LowPower {
        argsz: size_of::<LowPower>() as u32,
        flags: VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
        wakeup_eventfd: event.as_raw_fd(),
        reserved: 0,
    };
    // SAFETY: this feature takes this struct, and `argsz` is its size.
    unsafe {
        let entry = Setter::<DEVICE_FEATURE, LowPower>::new(entry);
        ioctl(descriptor(device), entry)
    }
}

/// Bytes of registers that are mapped.
const LENGTH: usize = 4096;

/// Registers of an `edu` that are mapped.
///
/// # Invariants
///
/// `LENGTH` bytes from the pointer on are mapped, and aligned to a page.
pub(crate) struct Registers(NonNull<u32>);

// SAFETY: registers of a device belong to no thread; they are accessed by volatile reads and
// writes.
unsafe impl Send for Registers {}

impl Registers {
    pub(crate) fn map(device: BorrowedFd<'_>, offset: u64) -> rustix::io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: with a null pointer the kernel chooses a place that nobody uses.
        let start = unsafe {
            let anywhere = null_mut();
            mmap(anywhere, LENGTH, access, MapFlags::SHARED, device, offset)?
        };
        Ok(Self(
            NonNull::new(start.cast()).expect("a mapping is not at 0"),
        ))
    }

    /// Writes to one register and reads from another.
    ///
    /// # Panics
    ///
    /// If one of them is not in the mapping, or not at a multiple of four.
    pub(crate) fn write_and_read(&mut self, written: u64, value: u32, read: u64) -> u32 {
        let at = |register: u64| {
            let inside = register < LENGTH as u64 && register.is_multiple_of(4);
            assert!(inside, "there is no register at {register:#x}");
            self.0.as_ptr().wrapping_byte_add(register as usize)
        };
        // SAFETY: both registers are aligned and, by the invariant, in the mapping.
        unsafe {
            at(written).write_volatile(value);
            at(read).read_volatile()
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: by the invariant it is mapped, and nobody else has the pointer.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

#[cfg(test)]
mod unit_tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_stored_in_the_mapping_is_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let mapping = SharedMapping::of(&file, 8192).unwrap();
        mapping.write(4096, b"bytes");
        mapping.store(8, 0x0102_0304);
        let mut found = [0; 5];
        file.read_exact_at(&mut found, 4096).unwrap();
        assert_eq!(&found, b"bytes");
        let mut number = [0; 8];
        file.read_exact_at(&mut number, 8).unwrap();
        assert_eq!(u64::from_ne_bytes(number), 0x0102_0304);
    }

    #[test]
    #[should_panic(expected = "are not in a mapping")]
    fn nothing_is_written_outside_of_the_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        SharedMapping::of(&file, 4096).unwrap().write(4095, b"no");
    }
}
