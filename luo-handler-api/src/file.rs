// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A file as a handler sees it: a file descriptor in a process, a `struct file *` in the kernel.

#![allow(unsafe_code)] // an edge: numbers and addresses that stand for open files

use core::marker::PhantomData;

/// A file in the C form: a file descriptor in a hosted process, the address of a `struct file` in
/// the kernel; [`NO_FILE`] if there is no file.
pub type RawFile = isize;

/// No file, in the C form.
pub const NO_FILE: RawFile = -1;

/// A file lent to a handler for the length of one call.
#[derive(Clone, Copy, Debug)]
pub struct FileRef<'a> {
    raw: RawFile,
    lent: PhantomData<&'a ()>,
}

/// A file that a handler rebuilt and gives away; closed when dropped, in a hosted process and in
/// the kernel.
#[derive(Debug)]
pub struct OwnedFile(RawFile);

impl FileRef<'_> {
    /// The file that `raw` stands for.
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
    /// Takes over the file that `raw` stands for.
    ///
    /// # Safety
    ///
    /// `raw` is an open file of this host, and nobody else closes or puts it.
    pub const unsafe fn from_raw(raw: RawFile) -> Self {
        Self(raw)
    }

    /// Gives the file away in its C form; the one who takes it closes it.
    // Without a host the type has no Drop that must not run.
    #[cfg_attr(not(any(feature = "std", luo_kernel)), allow(clippy::forget_non_drop))]
    pub const fn into_raw(self) -> RawFile {
        let raw = self.0;
        core::mem::forget(self);
        raw
    }
}

#[cfg(luo_kernel)]
mod in_the_kernel {
    use super::*;
    use crate::Errno;
    use core::ffi::c_void;

    impl FileRef<'_> {
        /// The `struct file`.
        pub const fn as_ptr(self) -> *mut c_void {
            self.raw as *mut c_void
        }
    }

    impl OwnedFile {
        /// Takes over what a C function returned: a `struct file`, or an `ERR_PTR()`.
        ///
        /// # Errors
        ///
        /// The error number; `EBADF` for NULL.
        ///
        /// # Safety
        ///
        /// A file is open, and nobody else puts it.
        pub unsafe fn from_err_ptr(file: *mut c_void) -> Result<Self, Errno> {
            match Errno::from_pointer(file)? as isize {
                0 => Err(Errno::EBADF),
                file => Ok(Self(file)),
            }
        }

        /// The `struct file`.
        pub const fn as_ptr(&self) -> *mut c_void {
            self.0 as *mut c_void
        }
    }

    impl Drop for OwnedFile {
        fn drop(&mut self) {
            // SAFETY: an OwnedFile owns a reference to an open file, and this one is gone after
            // this.
            unsafe { ::kernel::bindings::fput(self.as_ptr().cast()) };
        }
    }
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
            // SAFETY: a FileRef is made from a BorrowedFd, or by `from_raw`, whose caller promises
            // an open descriptor for as long as the value is used.
            unsafe { BorrowedFd::borrow_raw(self.raw as RawFd) }
        }
    }

    impl From<OwnedFd> for OwnedFile {
        fn from(fd: OwnedFd) -> Self {
            Self(fd.into_raw_fd() as RawFile)
        }
    }

    impl From<OwnedFile> for OwnedFd {
        fn from(file: OwnedFile) -> Self {
            let raw = file.into_raw();
            // SAFETY: an OwnedFile owns an open descriptor, and `into_raw` has given it away.
            unsafe { Self::from_raw_fd(raw as RawFd) }
        }
    }

    impl Drop for OwnedFile {
        fn drop(&mut self) {
            // SAFETY: an OwnedFile owns an open descriptor, and this one is gone after this.
            drop(unsafe { OwnedFd::from_raw_fd(self.0 as RawFd) });
        }
    }
}
