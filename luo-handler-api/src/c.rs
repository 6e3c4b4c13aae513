// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What all C forms have in common: status codes, results by pointer, slices in two halves.

#![allow(unsafe_code)] // an edge

use crate::Errno;

/// The status of a call that returns nothing else.
pub(crate) fn status(result: Result<(), Errno>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(errno) => errno.to_status(),
    }
}

/// The status of a question: 1 for yes, 0 for no.
#[cfg(not(luo_kernel))]
pub(crate) fn answer(result: Result<bool, Errno>) -> i32 {
    match result {
        Ok(yes) => i32::from(yes),
        Err(errno) => errno.to_status(),
    }
}

/// Stores what a call returned and returns its status.
///
/// # Safety
///
/// `out` is valid for a write of `T`.
pub(crate) unsafe fn store<T>(out: *mut T, result: Result<T, Errno>) -> i32 {
    status(result.map(|value| {
        // SAFETY: the safety section demands it to be valid for this write.
        unsafe { out.write(value) }
    }))
}

/// A slice in C form, where no bytes may be NULL.
///
/// # Safety
///
/// If `len` is not 0, `start` is valid for reads of `len` items for `'a`, and nobody writes them.
pub(crate) const unsafe fn slice<'a, T>(start: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the safety section demands `len` items at `start`.
    unsafe { core::slice::from_raw_parts(start, len) }
}
