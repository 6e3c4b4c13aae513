// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The edge of this crate: the few system calls that need `unsafe`.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_void, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};

use memmap2::Mmap;
use rustix::fs::{fcntl_get_seals, SealFlags};
use rustix::io::{fcntl_setfd, Errno, FdFlags};
use rustix::mm::{
    madvise, mmap, mmap_anonymous, mprotect, munmap, Advice, MapFlags, MprotectFlags, ProtFlags,
};

/// A program as `execve(2)` takes it.
#[derive(Debug)]
pub(crate) struct RawProgram {
    pub(crate) path: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
}

/// Replaces this process. The program inherits the standard streams and `files`, and nothing else.
///
/// Returns only if that failed, and has changed nothing then. A thread of its own does the exec, on
/// a copy of the table of descriptors: the flags that decide what is inherited are changed in the
/// copy. No other thread can start a program that inherits these files, and there is nothing to
/// restore.
pub(crate) fn replace_process(program: &RawProgram, files: &[BorrowedFd<'_>]) -> io::Error {
    std::thread::scope(|scope| {
        let jump = || inherit_only(files).err().unwrap_or_else(|| execve(program));
        match std::thread::Builder::new().spawn_scoped(scope, jump) {
            Ok(thread) => match thread.join() {
                Ok(error) => error,
                Err(_) => io::Error::other("the thread that starts the program panicked"),
            },
            Err(error) => error,
        }
    })
}

/// Gives this thread a table of descriptors of its own, of which an exec inherits the standard
/// streams and `files`.
fn inherit_only(files: &[BorrowedFd<'_>]) -> io::Result<()> {
    close_others_on_exec()?;
    for file in files {
        fcntl_setfd(file, FdFlags::empty())?;
    }
    Ok(())
}

/// Sees to it that an exec by this thread closes all but the standard streams; other threads do not
/// notice.
fn close_others_on_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC | libc::CLOSE_RANGE_UNSHARE;
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call sets a flag of descriptors and closes none, and
    // with CLOSE_RANGE_UNSHARE it does so in a table that this thread alone has.
    // musl has no function for it.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a command, in its own process, inherit the standard streams and `files`, and nothing else.
/// The files have to be open until it is started.
pub(crate) fn inherit_in_child(command: &mut Command, files: &[BorrowedFd<'_>]) {
    let numbers: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    let inherit = move || {
        close_others_on_exec()?;
        for &number in &numbers {
            // SAFETY: this command of fcntl takes any number, and fails for one that is not open.
            if unsafe { libc::fcntl(number, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: after the fork it makes two kinds of system calls and neither allocates nor locks.
    unsafe { command.pre_exec(inherit) };
}

/// Returns only if that failed. Unlike `execvp(3)` it does not give a file that the kernel refuses
/// to a shell.
///
/// The program has the signal mask of this thread, and ignores the signals that this process
/// ignores.
fn execve(program: &RawProgram) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        let strings = strings.iter().map(|string| string.as_ptr());
        strings.chain([std::ptr::null()]).collect()
    };
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    // SAFETY: a path and two arrays of C strings that end with a null pointer; all of them are
    // borrowed until the call returns.
    unsafe {
        libc::execve(
            program.path.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
        );
    }
    io::Error::last_os_error()
}

/// What a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Identity {
    /// That of the file behind a descriptor.
    pub(crate) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// Takes over a descriptor that was inherited from the old side, and closes it on the next exec.
///
/// `None` unless it is open, an exec inherits it, and it stands for the file with this identity.
/// The old side knows both number and identity, as it made the one inheritable for the other. What
/// this process opens has `FD_CLOEXEC` or, if it does not, another number or another identity: the
/// number is in use from the first instruction on.
pub(crate) fn adopt_inherited(fd: RawFd, expected: Identity) -> Option<OwnedFd> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: both calls take any number, and fail for one that is not open; fstat writes to a
    // place for one struct.
    let stat = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFD);
        if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
            return None;
        }
        if libc::fstat(fd, stat.as_mut_ptr()) != 0 {
            return None;
        }
        // fstat succeeded, so it filled the struct.
        stat.assume_init()
    };
    let found = Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
    };
    if found != expected {
        return None;
    }
    // SAFETY: the descriptor is open. It is the one that the old side left to this process under
    // this number, by the comparison above; it has no other owner, because its only taker is this
    // function, which sets FD_CLOEXEC and so refuses it from then on.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// Takes over a descriptor that the service manager passed to this process, and closes it on the
/// next exec. The number comes from the environment that the process was started with.
///
/// `None` unless it is open and an exec inherits it.
#[cfg(feature = "fdstore")]
pub(crate) fn adopt_passed(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes any number, and fails for one that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return None;
    }
    // SAFETY: the descriptor is open. By the protocol of sd_listen_fds(3) it is this process's from
    // its first instruction on, so that nothing that the process opens has its number, and whoever
    // takes it sets FD_CLOEXEC. It does not have that, so it has no owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// Whether two descriptors stand for the same open file. Where the kernel does not tell, they
/// might.
pub(crate) fn is_same_open_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    /// Of `include/uapi/linux/fcntl.h`, since 6.10; libc does not have it yet.
    const F_DUPFD_QUERY: libc::c_int = 1024 + 3;
    let (one, other) = (one.as_raw_fd(), other.as_raw_fd());
    // SAFETY: this command of fcntl takes two numbers and changes nothing.
    match unsafe { libc::fcntl(one, F_DUPFD_QUERY, other) } {
        // An older kernel has a system call for it, unless it was built without it or a container
        // forbids it.
        -1 => compare(one, other) <= 0,
        same => same == 1,
    }
}

/// How `kcmp(2)` orders two open files: 0 if they are one, negative if it cannot tell.
fn compare(one: RawFd, other: RawFd) -> libc::c_long {
    /// `enum kcmp_type` of `include/uapi/linux/kcmp.h`; libc does not have it.
    const KCMP_FILE: libc::c_int = 0;
    let me = std::process::id();
    // SAFETY: kcmp takes numbers and changes nothing.
    unsafe { libc::syscall(libc::SYS_kcmp, me, me, KCMP_FILE, one, other) }
}

/// Maps a memfd that nobody can change any more.
///
/// # Errors
///
/// `InvalidInput` if it is not sealed against shrinking and writing; those of `mmap(2)`.
pub(crate) fn map_sealed(file: &OwnedFd) -> io::Result<Mmap> {
    let seals = fcntl_get_seals(file)?;
    if !seals.contains(SealFlags::SHRINK | SealFlags::WRITE) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not sealed against shrinking and writing",
        ));
    }
    // SAFETY: the kernel enforces these seals and removes none: contents and size stay as they are
    // for as long as the file exists.
    unsafe { Mmap::map(file) }
}

/// A part of a file in memory, to be written where `write(2)` is not possible, as on hugetlbfs.
///
/// Others may write to the file meanwhile: no reference into the memory exists, bytes are copied.
/// If the file is cut off meanwhile, writing to what it lost ends the process with `SIGBUS`.
///
/// # Invariants
///
/// `length` bytes from `start` on are mapped, readable and writable, until this is dropped.
#[derive(Debug)]
pub struct SharedMapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread.
unsafe impl Send for SharedMapping {}

impl SharedMapping {
    /// Maps `range` of a file that can be read and written. It begins at a multiple of the page
    /// size. A file of hugetlbfs that is smaller becomes as large.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`: `ENOMEM` if there are not enough huge pages, `EINVAL` for an empty
    /// range.
    pub fn new(file: &File, range: Range<u64>) -> io::Result<Self> {
        let (start, length) = map_shared(file, range, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self { start, length })
    }

    /// The same, and the file stays as large as it is: a mapping of hugetlbfs extends it only if it
    /// can be written from the first.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn within(file: &File, range: Range<u64>) -> io::Result<Self> {
        let (start, length) = map_shared(file, range, ProtFlags::READ)?;
        let mapping = Self { start, length };
        let protection = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: it was mapped a moment ago, and nobody refers to it.
        unsafe { mprotect(start.as_ptr().cast(), length, protection) }?;
        Ok(mapping)
    }

    /// Where it begins.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Its bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies `bytes` to the place `offset`.
    ///
    /// # Panics
    ///
    /// If they do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.length),
            "beyond the mapping"
        );
        // SAFETY: `offset` is at most `length`, so this is in the mapping or one byte after it.
        let place = unsafe { self.start.add(offset) };
        let to_word = place.align_offset(size_of::<u64>()).min(bytes.len());
        let (head, rest) = bytes.split_at(to_word);
        let (words, tail) = rest.as_chunks();
        // SAFETY: the place and what was asserted: each byte is in the mapping, which by the
        // invariant can be written. The first word is aligned by `to_word`. Atomic stores do not
        // race with those of others.
        unsafe {
            store_bytes(place, head);
            let place = place.add(to_word);
            for (index, word) in words.iter().enumerate() {
                let word = u64::from_ne_bytes(*word);
                AtomicU64::from_ptr(place.cast().add(index).as_ptr()).store(word, Relaxed);
            }
            store_bytes(place.add(size_of_val(words)), tail);
        }
    }

    /// Advises the kernel on pages of the mapping.
    ///
    /// # Errors
    ///
    /// Those of `madvise(2)`; `InvalidInput` if the range is not in the mapping.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> io::Result<()> {
        if range.start > range.end || range.end > self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range is in the mapping, into which there are no references: no advice
        // changes anything that safe code relies on.
        unsafe {
            let start = self.start.add(range.start);
            Ok(madvise(start.as_ptr().cast(), range.len(), advice)?)
        }
    }
}

/// Maps a range of a file where nothing is mapped; returns where, and its length.
fn map_shared(
    file: &File,
    range: Range<u64>,
    protection: ProtFlags,
) -> io::Result<(NonNull<u8>, usize)> {
    let length = range.end.checked_sub(range.start);
    let length = length.and_then(|length| usize::try_from(length).ok());
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: without MAP_FIXED the kernel chooses a place where nothing is mapped.
    let start = unsafe {
        mmap(
            null_mut(),
            length,
            protection,
            MapFlags::SHARED,
            file,
            range.start,
        )
    }?;
    let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
    Ok((start, length))
}

/// # Safety
///
/// As many bytes from `place` on can be written, and are accessed by atomic operations alone.
unsafe fn store_bytes(place: NonNull<u8>, bytes: &[u8]) {
    for (index, byte) in bytes.iter().enumerate() {
        // SAFETY: the safety section has the byte in reach, and a byte is always aligned.
        unsafe { AtomicU8::from_ptr(place.add(index).as_ptr()).store(*byte, Relaxed) };
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: by the invariant this is a mapping, of which nothing is used after this.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A file from its first byte on, mapped to be read, at a multiple of an address.
///
/// # Invariants
///
/// `length` bytes from `start` on are mapped until this is dropped, and nobody else refers to them.
#[derive(Debug)]
pub(crate) struct AlignedMapping {
    start: NonNull<u8>,
    length: usize,
}

impl AlignedMapping {
    /// Another thread may take a place before it is used.
    const TRIES: u32 = 16;

    /// Maps `length` bytes of a file at a multiple of `alignment`, a power of two.
    pub(crate) fn new(file: BorrowedFd<'_>, length: u64, alignment: usize) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        for _ in 0..Self::TRIES {
            let place = free_place(length.saturating_add(alignment))?;
            let place = place.next_multiple_of(alignment);
            let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
            // SAFETY: with MAP_FIXED_NOREPLACE nothing that is mapped is replaced; a kernel that
            // does not know the flag chooses a place where nothing is mapped.
            let start = unsafe {
                mmap(
                    place as *mut c_void,
                    length,
                    ProtFlags::READ,
                    flags,
                    file,
                    0,
                )
            };
            let start = match start {
                Err(Errno::EXIST) => continue,
                start => NonNull::new(start?.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            };
            let mapping = Self { start, length };
            if start.as_ptr() as usize == place {
                return Ok(mapping);
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Has the kernel put a range into huge pages.
    pub(crate) fn collapse(&self, range: Range<usize>) -> io::Result<()> {
        /// Of `include/uapi/asm-generic/mman-common.h`, since 6.1; musl does not have it.
        const MADV_COLLAPSE: libc::c_int = 25;
        self.advise(range, MADV_COLLAPSE)
    }

    /// Takes an advice that changes which pages hold the bytes, and no byte.
    fn advise(&self, range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
        if range.start > range.end || range.end > self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range is in the mapping, by the invariant and the comparison. No byte
        // changes.
        let done = unsafe {
            let start = self.start.add(range.start);
            libc::madvise(start.as_ptr().cast(), range.len(), advice)
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Bytes that are mapped as huge pages once these ranges are touched, which fills holes.
    #[cfg(test)]
    pub(crate) fn huge_bytes(&self, ranges: &[Range<u64>]) -> u64 {
        for range in ranges {
            let range = range.start as usize..range.end as usize;
            self.advise(range, libc::MADV_POPULATE_READ).unwrap();
        }
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let entry = smaps.find(&format!("{:x}-", self.start.as_ptr() as usize));
        let mut lines = smaps[entry.unwrap()..].lines();
        let line = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse::<u64>().unwrap() << 10
    }
}

impl Drop for AlignedMapping {
    fn drop(&mut self) {
        // SAFETY: by the invariant this is a mapping, of which nothing is used after this.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// An address at which so many bytes were free a moment ago.
fn free_place(length: usize) -> io::Result<usize> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: without MAP_FIXED the kernel chooses a place where nothing is mapped; what is mapped
    // there is unmapped at once, and nobody has used it.
    unsafe {
        let start = mmap_anonymous(null_mut(), length, ProtFlags::empty(), flags)?;
        munmap(start, length)?;
        Ok(start as usize)
    }
}

/// Pages of this process of which the kernel notes the first write: `userfaultfd(2)` with write
/// protection that the kernel lifts by itself, and `PAGEMAP_SCAN`.
#[cfg(feature = "image")]
#[derive(Debug)]
pub(crate) struct WriteWatch {
    /// The pages are registered and protected for as long as it is open.
    _userfault: OwnedFd,
    pagemap: File,
    addresses: Range<usize>,
}

/// Requests and arguments, of `include/uapi/linux/userfaultfd.h` and `linux/fs.h`.
#[cfg(feature = "image")]
mod uapi {
    use rustix::ioctl::{opcode::read_write, Opcode};

    pub(super) const USER_MODE_ONLY: u32 = 1;
    pub(super) const API: u64 = 0xaa;
    const GROUP: u8 = 0xaa;
    pub(super) const UFFDIO_API: Opcode = read_write::<UffdioApi>(GROUP, 0x3f);
    pub(super) const UFFDIO_REGISTER: Opcode = read_write::<UffdioRegister>(GROUP, 0);
    pub(super) const UFFDIO_WRITEPROTECT: Opcode = read_write::<UffdioWriteProtect>(GROUP, 6);
    pub(super) const PAGEMAP_SCAN: Opcode = read_write::<ScanArgument>(b'f', 16);

    pub(super) const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    pub(super) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
    pub(super) const FEATURE_WP_ASYNC: u64 = 1 << 15;
    pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
    pub(super) const WRITEPROTECT_MODE_WP: u64 = 1;
    pub(super) const SCAN_WP_MATCHING: u64 = 1;
    pub(super) const SCAN_CHECK_WPASYNC: u64 = 2;
    pub(super) const PAGE_IS_WRITTEN: u64 = 1 << 1;
    pub(super) const PAGE_IS_PRESENT: u64 = 1 << 3;
    pub(super) const PAGE_IS_SWAPPED: u64 = 1 << 4;

    #[repr(C)]
    pub(super) struct UffdioApi {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }

    #[repr(C)]
    pub(super) struct UffdioRegister {
        pub(super) start: u64,
        pub(super) length: u64,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }

    #[repr(C)]
    pub(super) struct UffdioWriteProtect {
        pub(super) start: u64,
        pub(super) length: u64,
        pub(super) mode: u64,
    }

    /// `struct pm_scan_arg`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    pub(super) struct ScanArgument {
        pub(super) size: u64,
        pub(super) flags: u64,
        pub(super) start: u64,
        pub(super) end: u64,
        pub(super) walk_end: u64,
        pub(super) regions: u64,
        pub(super) regions_len: u64,
        pub(super) max_pages: u64,
        pub(super) category_inverted: u64,
        pub(super) category_mask: u64,
        pub(super) category_anyof_mask: u64,
        pub(super) return_mask: u64,
    }

    /// `struct page_region`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    pub(super) struct PageRegion {
        pub(super) start: u64,
        pub(super) end: u64,
        pub(super) categories: u64,
    }
}

#[cfg(feature = "image")]
impl WriteWatch {
    /// Protects all of these pages.
    ///
    /// # Errors
    ///
    /// Those of `userfaultfd(2)`; `EINVAL` if the kernel has no such protection.
    pub(crate) fn new(addresses: Range<usize>) -> io::Result<Self> {
        use rustix::mm::{userfaultfd, UserfaultfdFlags};
        // Nobody reads faults from it: with this flag no privilege is needed.
        let flags = UserfaultfdFlags::from_bits_retain(uapi::USER_MODE_ONLY);
        // SAFETY: a new descriptor, through which nothing but the requests below is done.
        let userfault = unsafe { userfaultfd(flags | UserfaultfdFlags::CLOEXEC) }?;
        let (start, length) = (addresses.start as u64, addresses.len() as u64);
        let mut api = uapi::UffdioApi {
            api: uapi::API,
            features: uapi::FEATURE_WP_ASYNC
                | uapi::FEATURE_WP_UNPOPULATED
                | uapi::FEATURE_WP_HUGETLBFS_SHMEM,
            ioctls: 0,
        };
        let mut register = uapi::UffdioRegister {
            start,
            length,
            mode: uapi::REGISTER_MODE_WP,
            ioctls: 0,
        };
        let mut protect = uapi::UffdioWriteProtect {
            start,
            length,
            mode: uapi::WRITEPROTECT_MODE_WP,
        };
        // SAFETY: the structs are those of the requests, which read and write nothing else. With
        // asynchronous protection a write to a page succeeds as ever: whoever uses the memory does
        // not notice.
        unsafe {
            request(&userfault, uapi::UFFDIO_API, &mut api)?;
            request(&userfault, uapi::UFFDIO_REGISTER, &mut register)?;
            request(&userfault, uapi::UFFDIO_WRITEPROTECT, &mut protect)?;
        }
        Ok(Self {
            _userfault: userfault,
            pagemap: File::open("/proc/self/pagemap")?,
            addresses,
        })
    }

    /// Pages that are protected: nobody wrote to them since. Others may have been written to, or
    /// are not there any more.
    ///
    /// # Errors
    ///
    /// Those of the request: `EPERM` if something else is mapped there by now.
    pub(crate) fn unwritten(&self) -> io::Result<Vec<Range<usize>>> {
        self.scan(uapi::ScanArgument {
            category_inverted: uapi::PAGE_IS_WRITTEN,
            category_mask: uapi::PAGE_IS_WRITTEN,
            // A protected page is in memory, or there is a mark in its place.
            category_anyof_mask: uapi::PAGE_IS_PRESENT | uapi::PAGE_IS_SWAPPED,
            ..uapi::ScanArgument::default()
        })
    }

    /// Pages that were written to, and protects them again: each at the very moment at which it is
    /// found.
    ///
    /// # Errors
    ///
    /// As [`unwritten`](Self::unwritten).
    pub(crate) fn protect_written(&self) -> io::Result<Vec<Range<usize>>> {
        self.scan(uapi::ScanArgument {
            flags: uapi::SCAN_WP_MATCHING,
            category_mask: uapi::PAGE_IS_WRITTEN,
            ..uapi::ScanArgument::default()
        })
    }

    fn scan(&self, wanted: uapi::ScanArgument) -> io::Result<Vec<Range<usize>>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        let mut regions = [uapi::PageRegion::default(); 512];
        let (mut start, end) = (self.addresses.start as u64, self.addresses.end as u64);
        while start < end {
            let mut argument = uapi::ScanArgument {
                size: size_of::<uapi::ScanArgument>() as u64,
                flags: wanted.flags | uapi::SCAN_CHECK_WPASYNC,
                start,
                end,
                regions: regions.as_mut_ptr().expose_provenance() as u64,
                regions_len: regions.len() as u64,
                return_mask: uapi::PAGE_IS_WRITTEN,
                ..wanted
            };
            // SAFETY: the struct is that of the request, and has the place and the length of an
            // array of regions, of which the kernel fills as many as it returns.
            let count = unsafe { request(&self.pagemap, uapi::PAGEMAP_SCAN, &mut argument) }?;
            for region in &regions[..count] {
                let region = region.start as usize..region.end as usize;
                match found.last_mut() {
                    Some(last) if last.end == region.start => last.end = region.end,
                    _ => found.push(region),
                }
            }
            if argument.walk_end <= start {
                return Err(io::ErrorKind::InvalidData.into());
            }
            start = argument.walk_end;
        }
        Ok(found)
    }
}

/// Makes a request of `ioctl(2)`.
///
/// # Safety
///
/// `argument` is what the request takes, and the request is sound with what it contains.
#[cfg(feature = "image")]
unsafe fn request<T>(
    file: &impl AsRawFd,
    opcode: rustix::ioctl::Opcode,
    argument: &mut T,
) -> io::Result<usize> {
    let argument: *mut T = argument;
    // SAFETY: the safety section.
    match unsafe { libc::ioctl(file.as_raw_fd(), opcode as _, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value as usize),
    }
}

/// The C string of a path or an argument.
///
/// # Errors
///
/// `InvalidInput` if it has a NUL.
pub(crate) fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn memfd(length: u64) -> File {
        let file = memfd::MemfdOptions::default().create("sys").unwrap();
        file.as_file().set_len(length).unwrap();
        file.into_file()
    }

    #[test]
    fn bytes_are_written_by_a_mapping_at_any_place() {
        let file = memfd(3 * 4096);
        let mapping = SharedMapping::new(&file, 4096..3 * 4096).unwrap();
        for (offset, length) in [
            (0, 0),
            (0, 1),
            (3, 4),
            (7, 30),
            (8, 16),
            (8191, 1),
            (1, 8191),
        ] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * 7 + offset) as u8 | 1).collect();
            mapping.write(offset, &bytes);
            let mut found = vec![0; length];
            file.read_exact_at(&mut found, 4096 + offset as u64)
                .unwrap();
            assert_eq!(found, bytes, "{length} at {offset}");
        }
        assert!(SharedMapping::new(&file, 4096..4096).is_err());
        assert!(SharedMapping::new(&file, Range { start: 2, end: 1 }).is_err());
        assert!(mapping.advise(0..8193, Advice::Normal).is_err());
        mapping.advise(0..8192, Advice::Normal).unwrap();
    }

    #[test]
    #[should_panic(expected = "beyond the mapping")]
    fn nothing_is_written_beyond_a_mapping() {
        let mapping = SharedMapping::new(&memfd(4096), 0..4096).unwrap();
        mapping.write(4095, &[1, 2]);
    }

    #[test]
    fn a_descriptor_is_adopted_for_what_it_is_alone() {
        let file = rustix::io::fcntl_dupfd_cloexec(memfd(1), 500).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let identity = Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        let number = file.as_raw_fd();
        assert!(adopt_inherited(number, identity).is_none(), "FD_CLOEXEC");
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let other = Identity {
            inode: identity.inode + 1,
            ..identity
        };
        assert!(adopt_inherited(number, other).is_none());
        for wrong in [-1, RawFd::MIN, RawFd::MAX] {
            assert!(adopt_inherited(wrong, identity).is_none());
        }
        // From here on the number is another owner's.
        std::mem::forget(file);
        let adopted = adopt_inherited(number, identity).unwrap();
        assert!(adopt_inherited(number, identity).is_none(), "once");
        drop(adopted);
    }
}
