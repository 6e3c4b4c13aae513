// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The system calls that no library wraps: the ioctls of `/dev/liveupdate`, as
//! `include/uapi/linux/liveupdate.h` has them, and `kexec_file_load(2)`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use luo_handler_api::Token;

/// The libc crate does not have it for this target.
#[cfg(all(target_arch = "aarch64", target_env = "musl"))]
const KEXEC_FILE_LOAD: libc::c_long = 294;
#[cfg(not(all(target_arch = "aarch64", target_env = "musl")))]
const KEXEC_FILE_LOAD: libc::c_long = libc::SYS_kexec_file_load;

/// `LIVEUPDATE_SESSION_NAME_LENGTH`: with the terminating zero.
pub(crate) const NAME_LENGTH: usize = 64;

/// `_IO(0xBA, number)`: no direction and no size in the number; the struct carries its size.
const fn request(number: u64) -> u64 {
    0xBA << 8 | number
}

const CREATE_SESSION: u64 = request(0x00);
const RETRIEVE_SESSION: u64 = request(0x01);
const PRESERVE_FD: u64 = request(0x40);
const RETRIEVE_FD: u64 = request(0x41);
const FINISH: u64 = request(0x42);
const GET_NAME: u64 = request(0x43);

/// `struct liveupdate_ioctl_create_session`; `struct liveupdate_ioctl_retrieve_session` has the
/// same layout.
#[repr(C)]
pub(crate) struct SessionArgument {
    size: u32,
    descriptor: i32,
    name: [u8; NAME_LENGTH],
}

impl SessionArgument {
    pub(crate) fn new(name: [u8; NAME_LENGTH]) -> Self {
        Self {
            size: size_of::<Self>() as u32,
            descriptor: -1,
            name,
        }
    }
}

/// `struct liveupdate_session_preserve_fd`; `struct liveupdate_session_retrieve_fd` has the same
/// layout.
#[repr(C)]
struct FileArgument {
    size: u32,
    descriptor: i32,
    token: u64,
}

impl FileArgument {
    fn new(descriptor: i32, token: Token) -> Self {
        Self {
            size: size_of::<Self>() as u32,
            descriptor,
            token: token.0,
        }
    }
}

/// `struct liveupdate_session_finish`.
#[repr(C)]
struct FinishArgument {
    size: u32,
    reserved: u32,
}

/// `struct liveupdate_session_get_name`.
#[repr(C)]
struct NameArgument {
    size: u32,
    reserved: u32,
    name: [u8; NAME_LENGTH],
}

pub(crate) fn create_session(
    device: BorrowedFd<'_>,
    mut argument: SessionArgument,
) -> io::Result<OwnedFd> {
    // SAFETY: SessionArgument is the struct of this request, and `size` holds its size.
    unsafe { ioctl(device, CREATE_SESSION, &mut argument) }?;
    // SAFETY: the request succeeded, so `descriptor` is a new one that the kernel made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.descriptor) })
}

pub(crate) fn retrieve_session(
    device: BorrowedFd<'_>,
    mut argument: SessionArgument,
) -> io::Result<OwnedFd> {
    // SAFETY: SessionArgument is the struct of this request, and `size` holds its size.
    unsafe { ioctl(device, RETRIEVE_SESSION, &mut argument) }?;
    // SAFETY: the request succeeded, so `descriptor` is a new one that the kernel made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.descriptor) })
}

pub(crate) fn preserve_fd(
    session: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    token: Token,
) -> io::Result<()> {
    let mut argument = FileArgument::new(file.as_raw_fd(), token);
    // SAFETY: FileArgument is the struct of this request, and `size` holds its size.
    unsafe { ioctl(session, PRESERVE_FD, &mut argument) }
}

pub(crate) fn retrieve_fd(session: BorrowedFd<'_>, token: Token) -> io::Result<OwnedFd> {
    let mut argument = FileArgument::new(-1, token);
    // SAFETY: FileArgument is the struct of this request, and `size` holds its size.
    unsafe { ioctl(session, RETRIEVE_FD, &mut argument) }?;
    // SAFETY: the request succeeded, so `descriptor` is a new one that the kernel made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.descriptor) })
}

pub(crate) fn finish(session: BorrowedFd<'_>) -> io::Result<()> {
    let mut argument = FinishArgument {
        size: size_of::<FinishArgument>() as u32,
        reserved: 0,
    };
    // SAFETY: FinishArgument is the struct of this request, and `size` holds its size.
    unsafe { ioctl(session, FINISH, &mut argument) }
}

pub(crate) fn session_name(session: BorrowedFd<'_>) -> io::Result<[u8; NAME_LENGTH]> {
    let mut argument = NameArgument {
        size: size_of::<NameArgument>() as u32,
        reserved: 0,
        name: [0; NAME_LENGTH],
    };
    // SAFETY: NameArgument is the struct of this request, and `size` holds its size.
    unsafe { ioctl(session, GET_NAME, &mut argument) }?;
    Ok(argument.name)
}

/// One request.
///
/// # Safety
///
/// `T` is the struct that `request` takes. Its first field holds its size: the kernel reads and
/// writes that many bytes.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> io::Result<()> {
    let argument = std::ptr::from_mut(argument);
    // SAFETY: BorrowedFd is open, and `argument` is valid for the bytes that the kernel accesses.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
    checked(result.into())
}

/// Loads a kernel and its initramfs for the next jump.
pub(crate) fn kexec_file_load(
    kernel: BorrowedFd<'_>,
    initramfs: BorrowedFd<'_>,
    command_line: &CStr,
) -> io::Result<()> {
    // SAFETY: both descriptors are open, and the command line is readable for the length passed,
    // which counts its terminating zero.
    let result = unsafe {
        libc::syscall(
            KEXEC_FILE_LOAD,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            command_line.to_bytes_with_nul().len(),
            command_line.as_ptr(),
            0usize,
        )
    };
    checked(result)
}

/// Gives up the kernel that was loaded, if any.
pub(crate) fn kexec_file_unload() -> io::Result<()> {
    /// `KEXEC_FILE_UNLOAD` of `include/uapi/linux/kexec.h`.
    const UNLOAD: usize = 1;
    // SAFETY: with this flag the kernel does not read the other arguments.
    let result = unsafe { libc::syscall(KEXEC_FILE_LOAD, -1, -1, 0usize, 0usize, UNLOAD) };
    checked(result)
}

fn checked(result: libc::c_long) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_header() {
        assert_eq!(size_of::<SessionArgument>(), 72);
        assert_eq!(size_of::<FileArgument>(), 16);
        assert_eq!(size_of::<FinishArgument>(), 8);
        assert_eq!(size_of::<NameArgument>(), 72);
        assert_eq!(
            (CREATE_SESSION, PRESERVE_FD, GET_NAME),
            (0xBA00, 0xBA40, 0xBA43)
        );
    }
}
