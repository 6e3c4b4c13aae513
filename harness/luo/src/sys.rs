// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The edge of this crate: the one system call that needs `unsafe`.

#![allow(unsafe_code)]

/// Makes this process end like any other in a pipe whose reader has gone. Rust ignores the signal,
/// and printing panics instead.
pub(crate) fn end_quietly_without_readers() {
    // SAFETY: SIG_DFL is an action of the kernel and runs no code of this program.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
