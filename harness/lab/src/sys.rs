// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The unsafe edge of this crate: registers, and what other crates have only as numbers or do not
//! have.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::{null_mut, NonNull};
use std::time::Duration;

use luo_orchestrator::SharedMapping;
use rustix::ioctl::{ioctl, opcode, Opcode, Setter};
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};
use rustix::process::Pid;
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

/// Has the kernel put huge pages under a mapping, now.
pub(crate) fn collapse(mapping: &SharedMapping) -> io::Result<()> {
    // SAFETY: a `SharedMapping` is mapped from its beginning to its length for as long as it is
    // borrowed, and gives out no references. The contents stay.
    let done = unsafe {
        let start = mapping.as_ptr().cast_mut().cast();
        libc::madvise(start, mapping.len(), MADV_COLLAPSE)
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts a process that writes a byte to each of `places` of a mapping, in their order, sleeps for
/// `pace` after each, and then until it is killed.
pub(crate) fn write_in_a_process(
    mapping: &SharedMapping,
    places: impl Iterator<Item = usize>,
    pace: Duration,
) -> io::Result<Pid> {
    let places: Vec<usize> = places.collect();
    let pace = libc::timespec {
        tv_sec: pace.as_secs() as libc::time_t,
        tv_nsec: pace.subsec_nanos().into(),
    };
    // SAFETY: of the threads of this process the new one has the calling one alone, so it must not
    // wait for what another one holds: it stores and sleeps, and does nothing else.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        for &place in &places {
            mapping.write(place, &[1]);
            // SAFETY: `pace` is valid, and with a null pointer nothing is returned through it.
            unsafe { libc::nanosleep(&pace, null_mut()) };
        }
        loop {
            // SAFETY: it takes nothing.
            unsafe { libc::pause() };
        }
    }
    let started = (pid > 0).then(|| Pid::from_raw(pid)).flatten();
    started.ok_or_else(io::Error::last_os_error)
}

/// Makes a call during which `SIGBUS` ends nobody: the kernel sends it to who declares the memory
/// of a mapping broken, and the handler that Rust installs survives it only once.
pub(crate) fn surviving_bus_errors<T>(call: impl FnOnce() -> T) -> T {
    extern "C" fn ignore(_: libc::c_int) {}
    let ignore: extern "C" fn(libc::c_int) = ignore;
    let mut new = libc::sigaction {
        sa_sigaction: ignore as libc::sighandler_t,
        // SAFETY: a signal set and a flag word are plain integers, for which zeros are valid.
        ..unsafe { std::mem::zeroed() }
    };
    new.sa_flags = 0;
    let mut old = new;
    // SAFETY: both point to initialized structs, and the handler, which does nothing, is safe to
    // run at any moment.
    unsafe { libc::sigaction(libc::SIGBUS, &new, &mut old) };
    let result = call();
    // SAFETY: `old` is the action that was in effect before.
    unsafe { libc::sigaction(libc::SIGBUS, &old, null_mut()) };
    result
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
            assert!(inside, "{register:#x} is not the place of a register");
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
