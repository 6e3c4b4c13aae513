// SPDX-License-Identifier: GPL-2.0-only
//! What the kernel offers handlers: bytes that cross the jump.
//!
//! A handle says where the bytes lie and how many they are, so nothing has to be kept beside them:
//!
//! ```text
//!      63                    24 23         0
//!     |  frame of the first, 40 | length, 24 |
//! ```

use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};
use luo_handler_api::{Errno, FileRef, HostServices, OwnedFile};

use crate::{shim, Registered};

const LENGTH_BITS: u32 = 24;
const LENGTH_MASK: u64 = (1 << LENGTH_BITS) - 1;

/// Bytes that all handlers together keep for the next kernel.
pub(crate) static KEPT_BYTES: Atomic<u64> = Atomic::new(0);

/// The host of a handler on the old side of the jump: what it hands out lies in its own memory.
pub(crate) struct Outgoing(pub(crate) &'static Registered);

/// The host of a handler on the new side: what handles name comes from the previous kernel.
pub(crate) struct Incoming(pub(crate) &'static Registered);

fn split(handle: u64) -> (usize, usize) {
    (
        (handle >> LENGTH_BITS) as usize,
        (handle & LENGTH_MASK) as usize,
    )
}

fn errno_of(error: kernel::error::Error) -> Errno {
    Errno::new(-error.to_errno()).unwrap_or(Errno::EIO)
}

/// Bytes that a handle names.
///
/// # Invariants
///
/// `len` bytes from `start` on are kept bytes of a handler. They are written once, before their
/// handle is known, and freed by their one owner: so they can be read while a handler has the handle.
struct Kept {
    start: *mut u8,
    len: usize,
}

impl Kept {
    fn new(start: *mut u8, len: usize) -> Result<Self, Errno> {
        if start.is_null() {
            return Err(Errno::ENOENT);
        }
        Ok(Self { start, len })
    }

    fn outgoing(handle: u64) -> Result<Self, Errno> {
        let (pfn, len) = split(handle);
        // SAFETY: the shim looks whether such bytes are kept there.
        Self::new(unsafe { shim::luo_bytes_outgoing(pfn, len) }, len)
    }

    fn incoming(handle: u64) -> Result<Self, Errno> {
        let (pfn, len) = split(handle);
        // SAFETY: the shim looks whether the previous kernel preserved so much memory there.
        Self::new(unsafe { shim::luo_bytes_incoming(pfn, len) }, len)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::ERANGE)?;
        let end = offset.checked_add(buffer.len()).ok_or(Errno::ERANGE)?;
        if end > self.len {
            return Err(Errno::ERANGE);
        }
        // SAFETY: the range lies within the bytes, by the check and the type's invariant; the
        // buffer is the caller's alone.
        unsafe {
            core::ptr::copy_nonoverlapping(
                self.start.add(offset),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        Ok(())
    }
}

impl HostServices for Outgoing {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        if bytes.len() as u64 > LENGTH_MASK {
            return Err(Errno::EFBIG);
        }
        let (mut start, mut pfn) = (core::ptr::null_mut(), 0);
        // SAFETY: both are ours to write.
        to_result(unsafe { shim::luo_bytes_preserve(bytes.len(), &mut start, &mut pfn) })
            .map_err(errno_of)?;
        // SAFETY: the shim allocated as many bytes, and nobody else knows of them yet.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
        KEPT_BYTES.fetch_add(bytes.len() as u64, Relaxed);
        Ok((pfn as u64) << LENGTH_BITS | bytes.len() as u64)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        Kept::outgoing(handle).map(|kept| kept.len as u64)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        Kept::outgoing(handle)?.read(offset, buffer)
    }

    fn release_bytes(&self, handle: u64) {
        if let Ok(kept) = Kept::outgoing(handle) {
            // SAFETY: they are kept, and the handler gives them back.
            unsafe { shim::luo_bytes_unpreserve(kept.start) };
            KEPT_BYTES.fetch_add((kept.len as u64).wrapping_neg(), Relaxed);
        }
    }

    fn preserve_file(&self, _: FileRef<'_>) -> Result<u64, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn take_file(&self, _: u64) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn release_file(&self, _: u64) {}

    fn explain(&self, reason: &str) {
        pr_warn!("{}: {}\n", self.0.name(), reason);
    }
}

impl HostServices for Incoming {
    fn preserve_bytes(&self, _: &[u8]) -> Result<u64, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        Kept::incoming(handle).map(|kept| kept.len as u64)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        Kept::incoming(handle)?.read(offset, buffer)
    }

    fn release_bytes(&self, handle: u64) {
        if let Ok(kept) = Kept::incoming(handle) {
            // SAFETY: the previous kernel preserved them and nobody has restored them yet.
            unsafe { shim::luo_bytes_free(kept.start) };
        }
    }

    fn preserve_file(&self, _: FileRef<'_>) -> Result<u64, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn take_file(&self, _: u64) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn release_file(&self, _: u64) {}

    fn explain(&self, reason: &str) {
        pr_warn!("{}: {}\n", self.0.name(), reason);
    }
}
