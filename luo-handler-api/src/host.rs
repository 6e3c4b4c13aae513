// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The few services that a host offers a handler: bytes that cross the jump, in a hosted process
//! files that cross it, and a place for the reason why a call fails.

#![allow(unsafe_code)] // an edge: the C form of a host

use core::{ffi::c_void, fmt, marker::PhantomData, mem::offset_of};

use crate::{
    c::{slice, status, store},
    panics::caught,
    text::Text,
    Errno, FileRef, OwnedFile, RawFile,
};

/// What a host implements; handlers call it through [`Host`]. A service that a host does not have
/// is `EOPNOTSUPP`.
///
/// A `handle` is the `u64` under which bytes or a file are found on either side of the jump. One
/// that comes from the previous side is untrusted: an unknown handle is `ENOENT`.
pub trait HostServices: Sync {
    /// Preserves a copy of `bytes` across the jump and returns their handle.
    ///
    /// # Errors
    ///
    /// `ENOMEM` or `ENOSPC` if there is no room.
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        let _ = bytes;
        Err(Errno::EOPNOTSUPP)
    }

    /// How many bytes are preserved under `handle`.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown handle, `EBADMSG` if the bytes are not what was preserved.
    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        let _ = handle;
        Err(Errno::EOPNOTSUPP)
    }

    /// Copies preserved bytes from `offset` on; fills all of `buffer`.
    ///
    /// # Errors
    ///
    /// Those of [`bytes_len`](Self::bytes_len), and `ERANGE` if there are not so many.
    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let _ = (handle, offset, buffer);
        Err(Errno::EOPNOTSUPP)
    }

    /// Gives preserved bytes back; an unknown handle is ignored.
    ///
    /// The kernel cannot tell whose bytes they are. On the new side give back only what has shown
    /// that it is yours: [`record::release`](crate::record::release).
    fn release_bytes(&self, handle: u64) {
        let _ = handle;
    }

    /// Preserves a file across the jump, beside the caller's own hold on it. The kernel does not
    /// have this: there files do not cross by themselves.
    ///
    /// # Errors
    ///
    /// `EMFILE` and the like.
    fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        let _ = file;
        Err(Errno::EOPNOTSUPP)
    }

    /// Takes a preserved file out, once.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown handle or one that was taken before.
    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        let _ = handle;
        Err(Errno::EOPNOTSUPP)
    }

    /// Gives a preserved file back that nobody takes; an unknown handle is ignored.
    fn release_file(&self, handle: u64) {
        let _ = handle;
    }

    /// Takes the reason why the call under way is about to fail, for people: an error number alone
    /// does not show which of many things was wrong. The kernel logs it, a process adds it to its
    /// error. From a retrieve that succeeds, it is what differs from the time of freeze.
    fn explain(&self, reason: &str) {
        let _ = reason;
    }
}

/// [`HostServices`] in C form: `struct luo_host_ops` of `include/luo_handler.h`.
///
/// Services are appended in later versions of the api; one that the host does not have is `None`,
/// or lies beyond `size`. Functions that can fail return 0 or a negative error number. `context` is
/// the host's own and is the first argument of each.
#[repr(C)]
#[derive(Debug)]
pub struct HostOps {
    /// Bytes of this struct, as the host was built with it.
    pub(crate) size: u32,
    pub(crate) reserved: u32,
    pub(crate) preserve_bytes: Option<
        unsafe extern "C" fn(*const c_void, bytes: *const u8, len: usize, out: *mut u64) -> i32,
    >,
    pub(crate) bytes_len:
        Option<unsafe extern "C" fn(*const c_void, handle: u64, out: *mut u64) -> i32>,
    pub(crate) read_bytes: Option<
        unsafe extern "C" fn(
            *const c_void,
            handle: u64,
            offset: u64,
            buffer: *mut u8,
            len: usize,
        ) -> i32,
    >,
    pub(crate) release_bytes: Option<unsafe extern "C" fn(*const c_void, handle: u64)>,
    pub(crate) preserve_file:
        Option<unsafe extern "C" fn(*const c_void, file: RawFile, out: *mut u64) -> i32>,
    pub(crate) take_file:
        Option<unsafe extern "C" fn(*const c_void, handle: u64, out: *mut RawFile) -> i32>,
    pub(crate) release_file: Option<unsafe extern "C" fn(*const c_void, handle: u64)>,
    pub(crate) explain: Option<unsafe extern "C" fn(*const c_void, reason: *const u8, len: usize)>,
}

/// A host in C form, as it is passed to every callback that may use it: `struct luo_host`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawHost {
    pub(crate) ops: *const HostOps,
    pub(crate) context: *const c_void,
}

/// The host, lent to a handler for the length of one call.
///
/// # Invariants
///
/// `raw` was made by [`Host::new`] or meets the conditions of `Host::from_raw`.
#[derive(Clone, Copy, Debug)]
pub struct Host<'h> {
    raw: RawHost,
    lent: PhantomData<&'h ()>,
}

/// One service of a host, `None` if the host was built without it.
macro_rules! service {
    ($host:expr, $name:ident) => {{
        let ops = $host.raw.ops;
        let end = offset_of!(HostOps, $name) + size_of::<usize>();
        // SAFETY: by the invariant of Host, `ops` points to as many bytes of a HostOps as its first
        // field counts. The field is read only if it lies within them.
        unsafe {
            match (&raw const (*ops).size).read() as usize >= end {
                true => (&raw const (*ops).$name).read(),
                false => None,
            }
        }
    }};
}

impl<'h> Host<'h> {
    /// Lends `services` to handlers.
    pub const fn new<H: HostServices>(services: &'h H) -> Self {
        Self {
            raw: RawHost {
                ops: const { &HostOps::of::<H>() },
                context: core::ptr::from_ref(services).cast(),
            },
            lent: PhantomData,
        }
    }

    /// The host that a C form stands for.
    ///
    /// # Safety
    ///
    /// `raw.ops` points to a [`HostOps`], of which `size` bytes are there, aligned. Its functions
    /// do what [`HostServices`] describes and may be called with `raw.context`, for as long as the
    /// value is used.
    #[cfg(not(luo_kernel))]
    pub(crate) const unsafe fn from_raw(raw: RawHost) -> Self {
        Self {
            raw,
            lent: PhantomData,
        }
    }

    /// The C form, for calls through [`HandlerOps`](crate::HandlerOps).
    pub const fn as_raw(&self) -> RawHost {
        self.raw
    }

    /// See [`HostServices::preserve_bytes`].
    pub fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        let service = service!(self, preserve_bytes).ok_or(Errno::EOPNOTSUPP)?;
        let mut handle = 0;
        // SAFETY: by the invariant of Host the service may be called with its context; `bytes` and
        // `handle` are borrowed until it returns.
        let status = unsafe { service(self.raw.context, bytes.as_ptr(), bytes.len(), &mut handle) };
        Errno::check(status).map(|()| handle)
    }

    /// See [`HostServices::bytes_len`].
    pub fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        let service = service!(self, bytes_len).ok_or(Errno::EOPNOTSUPP)?;
        let mut length = 0;
        // SAFETY: by the invariant of Host the service may be called with its context; `length` is
        // borrowed until it returns.
        let status = unsafe { service(self.raw.context, handle, &mut length) };
        Errno::check(status).map(|()| length)
    }

    /// See [`HostServices::read_bytes`].
    pub fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let service = service!(self, read_bytes).ok_or(Errno::EOPNOTSUPP)?;
        let (start, count) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: by the invariant of Host the service may be called with its context; `buffer` is
        // borrowed exclusively until it returns, and `count` is its length.
        Errno::check(unsafe { service(self.raw.context, handle, offset, start, count) })
    }

    /// See [`HostServices::release_bytes`].
    pub fn release_bytes(&self, handle: u64) {
        if let Some(service) = service!(self, release_bytes) {
            // SAFETY: by the invariant of Host the service may be called with its context.
            unsafe { service(self.raw.context, handle) }
        }
    }

    /// See [`HostServices::preserve_file`].
    pub fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        let service = service!(self, preserve_file).ok_or(Errno::EOPNOTSUPP)?;
        let mut handle = 0;
        // SAFETY: by the invariant of Host the service may be called with its context; a FileRef is
        // open while it is borrowed, and `handle` is borrowed until the service returns.
        let status = unsafe { service(self.raw.context, file.as_raw(), &mut handle) };
        Errno::check(status).map(|()| handle)
    }

    /// See [`HostServices::take_file`].
    pub fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        let service = service!(self, take_file).ok_or(Errno::EOPNOTSUPP)?;
        let mut raw = crate::NO_FILE;
        // SAFETY: by the invariant of Host the service may be called with its context; `raw` is
        // borrowed until it returns.
        Errno::check(unsafe { service(self.raw.context, handle, &mut raw) })?;
        // SAFETY: by the contract of `take_file` a host that returns 0 has written an open file and
        // given it away.
        Ok(unsafe { OwnedFile::from_raw(raw) })
    }

    /// See [`HostServices::release_file`].
    pub fn release_file(&self, handle: u64) {
        if let Some(service) = service!(self, release_file) {
            // SAFETY: by the invariant of Host the service may be called with its context.
            unsafe { service(self.raw.context, handle) }
        }
    }

    /// See [`HostServices::explain`]; what does not fit into [`REASON_MAX`] bytes is cut off.
    pub fn explain(&self, reason: fmt::Arguments<'_>) {
        let Some(service) = service!(self, explain) else {
            return;
        };
        let text = Text::<REASON_MAX>::of(reason);
        let bytes = text.as_str().as_bytes();
        // SAFETY: by the invariant of Host the service may be called with its context; the text is
        // borrowed until it returns.
        unsafe { service(self.raw.context, bytes.as_ptr(), bytes.len()) }
    }

    /// Explains a failure and yields its error number.
    ///
    /// ```
    /// # use luo_handler_api::{Errno, Host};
    /// fn check(port: u64, host: Host<'_>) -> Result<(), Errno> {
    ///     match port {
    ///         0..=0xffff => Ok(()),
    ///         _ => Err(host.refuse(Errno::ERANGE, format_args!("there is no port {port:#x}"))),
    ///     }
    /// }
    /// ```
    pub fn refuse(&self, errno: Errno, reason: fmt::Arguments<'_>) -> Errno {
        self.explain(reason);
        errno
    }
}

/// Bytes that a reason has room for.
pub const REASON_MAX: usize = 160;

impl HostOps {
    /// The C form of `H`; the context of each function is a `&H`.
    const fn of<H: HostServices>() -> Self {
        Self {
            size: size_of::<Self>() as u32,
            reserved: 0,
            preserve_bytes: Some(preserve_bytes::<H>),
            bytes_len: Some(bytes_len::<H>),
            read_bytes: Some(read_bytes::<H>),
            release_bytes: Some(release_bytes::<H>),
            preserve_file: Some(preserve_file::<H>),
            take_file: Some(take_file::<H>),
            release_file: Some(release_file::<H>),
            explain: Some(explain::<H>),
        }
    }
}

// The functions below are the fields of `HostOps::of::<H>()`. Only `Host` calls them, with the
// context that `Host::new` took from a `&H`; a plugin calls them as `luo_handler.h` demands, with
// that context.

/// The host that a context stands for.
///
/// # Safety
///
/// `context` is a `&H` that lives for `'a`.
unsafe fn host<'a, H: HostServices>(context: *const c_void) -> &'a H {
    // SAFETY: the safety section demands a `&H` of this lifetime.
    unsafe { &*context.cast() }
}

/// # Safety
///
/// `context` is a `&H`; `bytes` is valid for reads of `len` bytes, `out` for a write.
unsafe extern "C" fn preserve_bytes<H: HostServices>(
    context: *const c_void,
    bytes: *const u8,
    len: usize,
    out: *mut u64,
) -> i32 {
    // SAFETY: `context` is a `&H` that outlives the call, and `bytes` has `len` bytes, by the
    // safety section.
    let (host, bytes) = unsafe { (host::<H>(context), slice(bytes, len)) };
    // SAFETY: `out` is valid for a write, by the safety section.
    unsafe { store(out, caught(|| host.preserve_bytes(bytes))) }
}

/// # Safety
///
/// `context` is a `&H`, `out` is valid for a write.
unsafe extern "C" fn bytes_len<H: HostServices>(
    context: *const c_void,
    handle: u64,
    out: *mut u64,
) -> i32 {
    // SAFETY: `context` is a `&H` that outlives the call, by the safety section.
    let host = unsafe { host::<H>(context) };
    // SAFETY: `out` is valid for a write, by the safety section.
    unsafe { store(out, caught(|| host.bytes_len(handle))) }
}

/// # Safety
///
/// `context` is a `&H`, `buffer` is valid for writes of `len` bytes and nobody else's.
unsafe extern "C" fn read_bytes<H: HostServices>(
    context: *const c_void,
    handle: u64,
    offset: u64,
    buffer: *mut u8,
    len: usize,
) -> i32 {
    // SAFETY: `context` is a `&H` that outlives the call, by the safety section.
    let host = unsafe { host::<H>(context) };
    let buffer = match len {
        // C may pass NULL for no bytes.
        0 => &mut [],
        // SAFETY: by the safety section `buffer` has `len` bytes that are nobody else's during the
        // call. They are bytes of a Rust slice, or zeroed here, so that none is uninitialized.
        _ => unsafe { core::slice::from_raw_parts_mut(buffer, len) },
    };
    status(caught(|| host.read_bytes(handle, offset, buffer)))
}

/// # Safety
///
/// `context` is a `&H`.
unsafe extern "C" fn release_bytes<H: HostServices>(context: *const c_void, handle: u64) {
    // SAFETY: `context` is a `&H` that outlives the call, by the safety section.
    let host = unsafe { host::<H>(context) };
    let _ = caught(|| host.release_bytes(handle));
}

/// # Safety
///
/// `context` is a `&H`, `file` is open during the call, `out` is valid for a write.
unsafe extern "C" fn preserve_file<H: HostServices>(
    context: *const c_void,
    file: RawFile,
    out: *mut u64,
) -> i32 {
    // SAFETY: `context` is a `&H` that outlives the call, and `file` is open as long, by the safety
    // section.
    let (host, file) = unsafe { (host::<H>(context), FileRef::from_raw(file)) };
    // SAFETY: `out` is valid for a write, by the safety section.
    unsafe { store(out, caught(|| host.preserve_file(file))) }
}

/// # Safety
///
/// `context` is a `&H`, `out` is valid for a write.
unsafe extern "C" fn take_file<H: HostServices>(
    context: *const c_void,
    handle: u64,
    out: *mut RawFile,
) -> i32 {
    // SAFETY: `context` is a `&H` that outlives the call, by the safety section.
    let host = unsafe { host::<H>(context) };
    let taken = caught(|| host.take_file(handle).map(OwnedFile::into_raw));
    // SAFETY: `out` is valid for a write, by the safety section.
    unsafe { store(out, taken) }
}

/// # Safety
///
/// `context` is a `&H`.
unsafe extern "C" fn release_file<H: HostServices>(context: *const c_void, handle: u64) {
    // SAFETY: `context` is a `&H` that outlives the call, by the safety section.
    let host = unsafe { host::<H>(context) };
    let _ = caught(|| host.release_file(handle));
}

/// # Safety
///
/// `context` is a `&H`, `reason` is valid for reads of `len` bytes.
unsafe extern "C" fn explain<H: HostServices>(
    context: *const c_void,
    reason: *const u8,
    len: usize,
) {
    // SAFETY: `context` is a `&H` that outlives the call, and `reason` has `len` bytes, by the
    // safety section.
    let (host, reason) = unsafe { (host::<H>(context), slice(reason, len)) };
    let reason = core::str::from_utf8(reason).unwrap_or("a reason that is not UTF-8");
    let _ = caught(|| host.explain(reason));
}
