// SPDX-License-Identifier: GPL-2.0-only
//! What the kernel offers handlers: bytes that cross the jump. A handle has the place of the bytes
//! and their number.

#![allow(unsafe_code)] // an edge: memory of the kernel

use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};
use luo_handler_api::{
    kernel::{frame_and_length, handle_of, BYTES_MAX},
    Compatible, Errno, HostServices,
};

use crate::{participant::name_of, shim};

/// Bytes that all handlers together preserve for the next kernel.
pub(crate) static PRESERVED_BYTES: Atomic<u64> = Atomic::new(0);

/// The host of a handler on the old side of the jump: its bytes are in its own memory.
pub(crate) struct Outgoing(pub(crate) Compatible);

/// The host of a handler on the new side: what handles name comes from the previous kernel.
pub(crate) struct Incoming(pub(crate) Compatible);

/// The host of an `init`: it logs a reason, under this name, and offers nothing else.
pub(crate) struct Explains<'a>(pub(crate) &'a str);

impl HostServices for Explains<'_> {
    fn explain(&self, reason: &str) {
        pr_warn!("{}: {}\n", self.0, reason);
    }
}

fn split(handle: u64) -> (usize, usize) {
    let (pfn, len) = frame_and_length(handle);
    (pfn as usize, len as usize)
}

fn errno_of(error: kernel::error::Error) -> Errno {
    Errno::new(-error.to_errno()).unwrap_or(Errno::EIO)
}

/// Where a buffer for bytes from `offset` on begins among `len` bytes, if they are as many.
fn place(len: usize, offset: u64, buffer: &[u8]) -> Result<usize, Errno> {
    let offset = usize::try_from(offset).map_err(|_| Errno::ERANGE)?;
    let end = offset.checked_add(buffer.len()).ok_or(Errno::ERANGE)?;
    (end <= len).then_some(offset).ok_or(Errno::ERANGE)
}

/// Bytes that this kernel preserves for the next one.
///
/// # Invariants
///
/// `len` bytes from `start` on are preserved bytes of a handler. They are written once, before
/// their handle is known, and freed by their one owner: so they can be read while a handler has the
/// handle.
struct PreservedBytes {
    start: *mut u8,
    len: usize,
}

impl PreservedBytes {
    fn of(handle: u64) -> Result<Self, Errno> {
        let (pfn, len) = split(handle);
        // SAFETY: the shim takes any number: it looks whether such bytes are preserved there.
        let start = unsafe { shim::luo_bytes_outgoing(pfn, len) };
        if start.is_null() {
            return Err(Errno::ENOENT);
        }
        Ok(Self { start, len })
    }
}

impl HostServices for Outgoing {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        if bytes.len() as u64 > BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let (mut start, mut pfn) = (core::ptr::null_mut(), 0);
        // SAFETY: both are borrowed until the call returns.
        to_result(unsafe { shim::luo_bytes_preserve(bytes.len(), &mut start, &mut pfn) })
            .map_err(errno_of)?;
        // SAFETY: the shim allocated as many bytes, and nobody else knows of them yet.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
        PRESERVED_BYTES.fetch_add(bytes.len() as u64, Relaxed);
        // The length was looked at, and frames have 40 bits.
        handle_of(pfn as u64, bytes.len() as u64).ok_or(Errno::EFBIG)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        PreservedBytes::of(handle).map(|bytes| bytes.len as u64)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let bytes = PreservedBytes::of(handle)?;
        let offset = place(bytes.len, offset, buffer)?;
        // SAFETY: `place` has checked that the range lies within the bytes, which are there by the
        // type's invariant; the buffer is borrowed exclusively.
        unsafe {
            core::ptr::copy_nonoverlapping(
                bytes.start.add(offset),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        Ok(())
    }

    fn release_bytes(&self, handle: u64) {
        if let Ok(bytes) = PreservedBytes::of(handle) {
            // SAFETY: by the type's invariant they are preserved bytes of a handler, which gives
            // them back with this call and has no other handle of them.
            unsafe { shim::luo_bytes_unpreserve(bytes.start) };
            PRESERVED_BYTES.fetch_add((bytes.len as u64).wrapping_neg(), Relaxed);
        }
    }

    fn explain(&self, reason: &str) {
        pr_warn!("{}: {}\n", name_of(&self.0), reason);
    }
}

impl HostServices for Incoming {
    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        let (pfn, len) = split(handle);
        // SAFETY: the shim takes any number: it looks whether the previous kernel preserved so much
        // there.
        let are_there = unsafe { shim::luo_bytes_are_incoming(pfn, len) };
        are_there.then_some(len as u64).ok_or(Errno::ENOENT)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let (pfn, len) = split(handle);
        let offset = place(len, offset, buffer)?;
        let (buffer, count) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: the shim takes any number, and looks whether the previous kernel preserved `len`
        // bytes there. `place` has checked that the range lies within them; the buffer is borrowed
        // exclusively.
        Errno::check(unsafe { shim::luo_bytes_copy(pfn, len, offset, buffer, count) })
    }

    fn release_bytes(&self, handle: u64) {
        let (pfn, len) = split(handle);
        // SAFETY: the shim takes any number: what nobody preserved or somebody freed is left alone.
        unsafe { shim::luo_bytes_free(pfn, len) };
    }

    fn explain(&self, reason: &str) {
        pr_warn!("{}: {}\n", name_of(&self.0), reason);
    }
}
