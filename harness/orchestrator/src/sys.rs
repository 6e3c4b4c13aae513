// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The few system calls of the hosted side that need `unsafe`: an exec, the descriptors that it
//! inherits, and mappings.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{null, null_mut};

use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{fcntl_get_seals, SealFlags};
use rustix::io::{fcntl_setfd, FdFlags};

/// Sees to it that an exec inherits the standard streams and `files`, and nothing else.
///
/// # Errors
///
/// Those of `close_range(2)` and `fcntl(2)`; what is inherited is undefined then, until
/// [`inherit_nothing`] succeeds.
pub fn inherit_only<'a>(files: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
    inherit_nothing()?;
    for file in files {
        fcntl_setfd(file, FdFlags::empty())?;
    }
    Ok(())
}

/// Sees to it that an exec inherits the standard streams alone.
///
/// # Errors
///
/// Those of `close_range(2)`, where the kernel has it (5.11), and of `fcntl(2)`.
pub fn inherit_nothing() -> io::Result<()> {
    // SAFETY: with this flag the call changes a flag of each open descriptor and closes none.
    let done = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    if done == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if fd > 2 {
            // SAFETY: sets a flag of a descriptor; one that is no longer open is an error, which
            // the reading of the directory itself causes for its own.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Takes over a descriptor that an exec brought here, and closes it on the next exec.
///
/// `None` unless it is open and free to be taken: above the standard streams and without
/// `FD_CLOEXEC`. Everything that this process opens itself has that flag, and what was adopted gets it.
pub fn adopt_inherited(fd: RawFd) -> Option<OwnedFd> {
    if fd <= 2 {
        return None;
    }
    // SAFETY: looks at the flags of a descriptor, open or not.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and nobody in this process owns it: what std, rustix and memfd
    // open has FD_CLOEXEC from the start, and it is set here before anybody else can ask again.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// Whether two descriptors stand for the same open file. Where the kernel does not tell, they might.
pub fn is_same_open_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    /// Of `include/uapi/linux/fcntl.h`, since 6.10.
    const F_DUPFD_QUERY: libc::c_int = 1024 + 3;
    let (one, other) = (one.as_raw_fd(), other.as_raw_fd());
    // SAFETY: compares two open descriptors of this process and changes nothing.
    match unsafe { libc::fcntl(one, F_DUPFD_QUERY, other) } {
        // An older kernel has a system call for it, if it was built with that and no container forbids it.
        -1 => compare(one, other) <= 0,
        same => same == 1,
    }
}

/// How `kcmp(2)` orders two open files: 0 if they are one, negative if it cannot tell.
fn compare(one: RawFd, other: RawFd) -> libc::c_long {
    const KCMP_FILE: libc::c_int = 0;
    let me = std::process::id();
    // SAFETY: kcmp compares two open descriptors of this process and changes nothing.
    unsafe { libc::syscall(libc::SYS_kcmp, me, me, KCMP_FILE, one, other) }
}

/// Replaces this process by `command`.
///
/// Returns only if that failed, with the signals of this thread as they were: std resets the mask and
/// the action of `SIGPIPE` before it tries.
pub fn exec(command: &mut Command) -> io::Error {
    let mut mask = MaybeUninit::uninit();
    let mut action = MaybeUninit::uninit();
    // SAFETY: both calls change nothing and fill what they are given; neither can fail with these
    // arguments.
    let (mask, action) = unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, null(), mask.as_mut_ptr());
        libc::sigaction(libc::SIGPIPE, null(), action.as_mut_ptr());
        (mask.assume_init(), action.assume_init())
    };
    let error = command.exec();
    // SAFETY: both were in effect before.
    unsafe {
        libc::sigaction(libc::SIGPIPE, &action, null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, null_mut());
    }
    error
}

/// Maps a memfd that nobody can change any more.
///
/// # Errors
///
/// `InvalidInput` if it is not sealed against shrinking and writing; those of `mmap(2)`.
pub fn map_sealed(file: &OwnedFd) -> io::Result<Mmap> {
    let seals = fcntl_get_seals(file)?;
    if !seals.contains(SealFlags::SHRINK | SealFlags::WRITE) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not sealed against shrinking and writing",
        ));
    }
    // SAFETY: the seals keep the contents and the size as they are for as long as the file exists.
    unsafe { Mmap::map(file) }
}

/// Maps a part of a memfd of our own, to write it; it begins at a multiple of the page size.
///
/// # Errors
///
/// Those of `mmap(2)`: `ENOMEM` if there are not enough huge pages.
pub fn map_own(memfd: &File, range: Range<u64>) -> io::Result<MmapMut> {
    let length = usize::try_from(range.end - range.start)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "too large to map"))?;
    let mut options = MmapOptions::new();
    options.offset(range.start).len(length);
    // SAFETY: the memfd was made by this process, which neither shrinks it nor writes to it by other
    // ways while the mapping is in use.
    unsafe { options.map_mut(memfd) }
}

/// Makes this process end like any other in a pipe whose reader has gone. Rust ignores the signal, and
/// printing panics instead.
pub fn end_quietly_without_readers() {
    // SAFETY: sets the default action, which runs none of our code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Opens a second description of a file, so that seeking does not move the first one's position.
///
/// # Errors
///
/// Those of opening `/proc/self/fd/N`.
pub fn reopen(file: BorrowedFd<'_>) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}
