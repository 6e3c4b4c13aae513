// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A file as a handler sees it: a file descriptor in a process, a `struct file *` in the kernel.

use core::marker::PhantomData;

/// A file in the C form: a file descriptor in a hosted process, the address of a `struct file` in
/// the kernel. [`NO_FILE`] where there is none.
pub type RawFile = isize;

/// No file, in the C form.
pub const NO_FILE: RawFile = -1;

/// A file lent to a handler for the length of one call.
#[derive(Clone, Copy, Debug)]
pub struct FileRef<'a> {
    raw: RawFile,
    lent: PhantomData<&'a ()>,
}

/// A file that a handler rebuilt and hands over; closed when dropped in a hosted process.
#[derive(Debug)]
pub struct OwnedFile(RawFile);

impl FileRef<'_> {
    /// The file behind `raw`.
    ///
    /// # Safety
    ///
    /// `raw` is an open file of this host, and stays open as long as the value is used.
    pub const unsafe fn from_raw(raw: RawFile) -> Self {
        Self {
            raw,
            lent: PhantomData,
        }
    }

    /// The C form.
    pub const fn as_raw(self) -> RawFile {
        self.raw
    }
}

impl OwnedFile {
    /// Takes over the file behind `raw`.
    ///
    /// # Safety
    ///
    /// `raw` is an open file of this host, and nobody else closes or puts it.
    pub const unsafe fn from_raw(raw: RawFile) -> Self {
        Self(raw)
    }

    /// Gives the file away in its C form; whoever takes it closes it.
    // Only a hosted file has a Drop to keep from running.
    #[cfg_attr(not(feature = "std"), allow(clippy::forget_non_drop))]
    pub const fn into_raw(self) -> RawFile {
        let raw = self.0;
        core::mem::forget(self);
        raw
    }

    /// No file: what the rebuilding of a subsystem yields.
    pub(crate) const NONE: Self = Self(NO_FILE);
}

#[cfg(feature = "std")]
mod hosted {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

    impl<'a> From<BorrowedFd<'a>> for FileRef<'a> {
        fn from(fd: BorrowedFd<'a>) -> Self {
            Self {
                raw: fd.as_raw_fd() as RawFile,
                lent: PhantomData,
            }
        }
    }

    impl AsFd for FileRef<'_> {
        fn as_fd(&self) -> BorrowedFd<'_> {
            // SAFETY: a FileRef is made from a BorrowedFd, or by `from_raw`, whose caller promises an
            // open descriptor for as long as the value is used.
            unsafe { BorrowedFd::borrow_raw(self.raw as RawFd) }
        }
    }

    impl From<OwnedFd> for OwnedFile {
        fn from(fd: OwnedFd) -> Self {
            Self(fd.into_raw_fd() as RawFile)
        }
    }

    impl From<OwnedFile> for OwnedFd {
        /// # Panics
        ///
        /// Never for a file that a handler can make; only the api's own "no file" is none.
        fn from(file: OwnedFile) -> Self {
            let raw = file.into_raw();
            assert_ne!(raw, NO_FILE, "a subsystem has no file");
            // SAFETY: an OwnedFile owns an open descriptor, and `into_raw` has given it away.
            unsafe { Self::from_raw_fd(raw as RawFd) }
        }
    }

    impl Drop for OwnedFile {
        fn drop(&mut self) {
            if self.0 != NO_FILE {
                // SAFETY: the value owns an open descriptor and is gone after this.
                drop(unsafe { OwnedFd::from_raw_fd(self.0 as RawFd) });
            }
        }
    }
}
