// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Keeps a panic from unwinding through C frames.

use crate::Errno;

/// Runs `call`; in a hosted process a panic in it is `EIO`.
#[cfg(feature = "std")]
pub(crate) fn caught<R>(call: impl FnOnce() -> R) -> Result<R, Errno> {
    // What a panicking handler leaves behind is the handler's own: its callers never look at it
    // again except to cancel and drop it.
    use std::panic::{catch_unwind, AssertUnwindSafe};
    catch_unwind(AssertUnwindSafe(call)).map_err(|thrown| {
        // What was thrown may panic again when it is dropped; what comes of that is let be.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(thrown))) {
            core::mem::forget(again);
        }
        Errno::EIO
    })
}

/// Runs `call`. Without std nothing unwinds: the kernel's panic handler does not return.
#[cfg(not(feature = "std"))]
pub(crate) fn caught<R>(call: impl FnOnce() -> R) -> Result<R, Errno> {
    Ok(call())
}
