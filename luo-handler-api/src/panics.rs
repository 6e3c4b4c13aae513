// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Prevents a panic from unwinding through C frames.

use crate::Errno;

/// Runs `call`; in a hosted process a panic in it is `EIO`.
#[cfg(feature = "std")]
pub(crate) fn caught<R: CallResult>(call: impl FnOnce() -> R) -> Result<R::Success, Errno> {
    // What a panicking handler leaves is the handler's own: its callers never look at it again
    // except to cancel and drop it.
    use std::panic::{catch_unwind, AssertUnwindSafe};
    let outcome = catch_unwind(AssertUnwindSafe(call)).map_err(|thrown| {
        // What was thrown may panic again when it is dropped; then it is leaked.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(thrown))) {
            core::mem::forget(again);
        }
        Errno::EIO
    });
    outcome?.into_result()
}

/// Runs `call`. Without std nothing unwinds: the kernel's panic handler does not return.
#[cfg(not(feature = "std"))]
pub(crate) fn caught<R: CallResult>(call: impl FnOnce() -> R) -> Result<R::Success, Errno> {
    call().into_result()
}

/// What a call can end with, besides a panic.
pub(crate) trait CallResult {
    /// What it yields if it succeeds.
    type Success;
    fn into_result(self) -> Result<Self::Success, Errno>;
}

impl<T> CallResult for Result<T, Errno> {
    type Success = T;
    fn into_result(self) -> Self {
        self
    }
}

macro_rules! infallible {
    ($($type:ty),+) => {$(
        impl CallResult for $type {
            type Success = Self;
            fn into_result(self) -> Result<Self, Errno> {
                Ok(self)
            }
        }
    )+};
}

infallible!((), bool, Option<u64>);
