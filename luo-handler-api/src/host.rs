// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The few services that a host offers a handler: bytes that cross the jump, and in a hosted
//! process files that cross it; and somebody to tell why a call fails.

use core::{
    ffi::c_void,
    fmt::{self, Write as _},
    marker::PhantomData,
};

use crate::{Errno, FileRef, OwnedFile, RawFile};

/// What a host implements; handlers call it through [`Host`].
///
/// A `handle` is the `u64` under which bytes or a file are found on either side of the jump. One
/// that comes from the previous side is untrusted: an unknown handle is `ENOENT`.
pub trait HostServices: Sync {
    /// Keeps a copy of `bytes` across the jump and yields their handle.
    ///
    /// # Errors
    ///
    /// `ENOMEM` or `ENOSPC` if there is no room.
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno>;

    /// How many bytes are kept under `handle`.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown handle, `EBADMSG` if the bytes are not what was kept.
    fn bytes_len(&self, handle: u64) -> Result<u64, Errno>;

    /// Copies kept bytes from `offset` on; fills all of `buffer`.
    ///
    /// # Errors
    ///
    /// Those of [`bytes_len`](Self::bytes_len), and `ERANGE` if there are not so many.
    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno>;

    /// Gives kept bytes back; an unknown handle is ignored.
    fn release_bytes(&self, handle: u64);

    /// Keeps a file across the jump, beside the caller's own hold on it.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` on a host where files do not cross by themselves, such as the kernel.
    fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno>;

    /// Takes a kept file out, once.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown handle or one that was taken before, `EOPNOTSUPP` as above.
    fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno>;

    /// Gives a kept file back that nobody takes; an unknown handle is ignored.
    fn release_file(&self, handle: u64);

    /// Is told why the call under way is about to fail, for people: an error number alone does not
    /// say which of many things was wrong. The kernel logs it, a process adds it to its error.
    fn explain(&self, reason: &str) {
        let _ = reason;
    }
}

/// [`HostServices`] in C form.
///
/// Functions that can fail return 0 or a negative error number. `context` is the host's own and is
/// the first argument of each.
#[repr(C)]
#[derive(Debug)]
pub struct HostOps {
    /// [`ABI_VERSION`](crate::ABI_VERSION).
    pub(crate) abi_version: u32,
    /// Bytes of this struct.
    pub(crate) size: u32,
    pub(crate) preserve_bytes:
        unsafe extern "C" fn(*const c_void, bytes: *const u8, len: usize, out: *mut u64) -> i32,
    pub(crate) bytes_len: unsafe extern "C" fn(*const c_void, handle: u64, out: *mut u64) -> i32,
    pub(crate) read_bytes: unsafe extern "C" fn(
        *const c_void,
        handle: u64,
        offset: u64,
        buffer: *mut u8,
        len: usize,
    ) -> i32,
    pub(crate) release_bytes: unsafe extern "C" fn(*const c_void, handle: u64),
    pub(crate) preserve_file:
        unsafe extern "C" fn(*const c_void, file: RawFile, out: *mut u64) -> i32,
    pub(crate) take_file:
        unsafe extern "C" fn(*const c_void, handle: u64, out: *mut RawFile) -> i32,
    pub(crate) release_file: unsafe extern "C" fn(*const c_void, handle: u64),
    pub(crate) explain: unsafe extern "C" fn(*const c_void, reason: *const u8, len: usize),
}

/// A host in C form, as it is passed to every callback that may use it.
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

    /// The host behind its C form.
    ///
    /// # Safety
    ///
    /// `raw.ops` points to functions that do what [`HostServices`] says and may be called with
    /// `raw.context`, for as long as the value is used.
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

    fn ops(&self) -> &HostOps {
        // SAFETY: by the type's invariant `ops` points to a HostOps that outlives the value.
        unsafe { &*self.raw.ops }
    }

    /// See [`HostServices::preserve_bytes`].
    pub fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        let mut handle = 0;
        // SAFETY: by the invariant the function may be called with this context; the slice and
        // `handle` outlive the call.
        let status = unsafe {
            (self.ops().preserve_bytes)(self.raw.context, bytes.as_ptr(), bytes.len(), &mut handle)
        };
        Errno::from_status(status).map(|_| handle)
    }

    /// See [`HostServices::bytes_len`].
    pub fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        let mut length = 0;
        // SAFETY: as above; `length` outlives the call.
        let status = unsafe { (self.ops().bytes_len)(self.raw.context, handle, &mut length) };
        Errno::from_status(status).map(|_| length)
    }

    /// See [`HostServices::read_bytes`].
    pub fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        // SAFETY: as above; the buffer is ours alone during the call.
        let status = unsafe {
            (self.ops().read_bytes)(
                self.raw.context,
                handle,
                offset,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        Errno::from_status(status).map(|_| ())
    }

    /// See [`HostServices::release_bytes`].
    pub fn release_bytes(&self, handle: u64) {
        // SAFETY: as above.
        unsafe { (self.ops().release_bytes)(self.raw.context, handle) }
    }

    /// See [`HostServices::preserve_file`].
    pub fn preserve_file(&self, file: FileRef<'_>) -> Result<u64, Errno> {
        let mut handle = 0;
        // SAFETY: as above; `file` is open during the call.
        let status =
            unsafe { (self.ops().preserve_file)(self.raw.context, file.as_raw(), &mut handle) };
        Errno::from_status(status).map(|_| handle)
    }

    /// See [`HostServices::take_file`].
    pub fn take_file(&self, handle: u64) -> Result<OwnedFile, Errno> {
        let mut raw = crate::NO_FILE;
        // SAFETY: as above; `raw` outlives the call.
        let status = unsafe { (self.ops().take_file)(self.raw.context, handle, &mut raw) };
        Errno::from_status(status)?;
        // SAFETY: on success the host gave an open file away.
        Ok(unsafe { OwnedFile::from_raw(raw) })
    }

    /// See [`HostServices::release_file`].
    pub fn release_file(&self, handle: u64) {
        // SAFETY: as above.
        unsafe { (self.ops().release_file)(self.raw.context, handle) }
    }

    /// See [`HostServices::explain`]; what does not fit into [`REASON_MAX`] bytes is cut off.
    pub fn explain(&self, reason: fmt::Arguments<'_>) {
        let mut text = Text::new();
        // What does not fit is cut off.
        let _ = text.write_fmt(reason);
        let bytes = text.as_str().as_bytes();
        // SAFETY: as above; the text outlives the call.
        unsafe { (self.ops().explain)(self.raw.context, bytes.as_ptr(), bytes.len()) }
    }

    /// Explains a failure and yields its error number.
    ///
    /// ```
    /// # use luo_handler_api::{Errno, Host};
    /// fn check(port: u64, host: Host<'_>) -> Result<(), Errno> {
    ///     match port {
    ///         0..=0xffff => Ok(()),
    ///         _ => Err(host.refuse(Errno::ERANGE, format_args!("port {port:#x} is none"))),
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

/// A reason, without an allocation.
///
/// # Invariants
///
/// The first `len` bytes are UTF-8.
struct Text {
    bytes: [u8; REASON_MAX],
    len: usize,
}

impl Text {
    const fn new() -> Self {
        Self {
            bytes: [0; REASON_MAX],
            len: 0,
        }
    }

    fn as_str(&self) -> &str {
        let text = self.bytes.get(..self.len).unwrap_or_default();
        core::str::from_utf8(text).unwrap_or_default()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = REASON_MAX - self.len;
        let fits = (0..=room.min(more.len()))
            .rev()
            .find(|&end| more.is_char_boundary(end))
            .unwrap_or(0);
        if let Some(place) = self.bytes.get_mut(self.len..self.len + fits) {
            place.copy_from_slice(&more.as_bytes()[..fits]);
            self.len += fits;
        }
        match fits == more.len() {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

impl HostOps {
    /// The C form of `H`; the context of each function is a `&H`.
    const fn of<H: HostServices>() -> Self {
        Self {
            abi_version: crate::ABI_VERSION,
            size: size_of::<Self>() as u32,
            preserve_bytes: preserve_bytes::<H>,
            bytes_len: bytes_len::<H>,
            read_bytes: read_bytes::<H>,
            release_bytes: release_bytes::<H>,
            preserve_file: preserve_file::<H>,
            take_file: take_file::<H>,
            release_file: release_file::<H>,
            explain: explain::<H>,
        }
    }
}

/// Runs a service that yields a `T`, stores it and tells the status.
///
/// # Safety
///
/// `out` is valid for a write of `T`.
unsafe fn answer<T>(out: *mut T, service: impl FnOnce() -> Result<T, Errno>) -> i32 {
    match crate::panics::caught(service).and_then(|result| result) {
        Ok(value) => {
            // SAFETY: the caller says so.
            unsafe { out.write(value) };
            0
        }
        Err(errno) => errno.to_status(),
    }
}

// The functions below are only reachable through `HostOps::of::<H>()`, whose context is a `&H`.

/// # Safety
///
/// `context` is a `&H`, `bytes` is valid for reads of `len` bytes, `out` for a write.
unsafe extern "C" fn preserve_bytes<H: HostServices>(
    context: *const c_void,
    bytes: *const u8,
    len: usize,
    out: *mut u64,
) -> i32 {
    // SAFETY: the caller says so.
    let (host, bytes) = unsafe {
        (
            &*context.cast::<H>(),
            core::slice::from_raw_parts(bytes, len),
        )
    };
    // SAFETY: the caller says so.
    unsafe { answer(out, || host.preserve_bytes(bytes)) }
}

/// # Safety
///
/// `context` is a `&H`, `out` is valid for a write.
unsafe extern "C" fn bytes_len<H: HostServices>(
    context: *const c_void,
    handle: u64,
    out: *mut u64,
) -> i32 {
    // SAFETY: the caller says so.
    let host = unsafe { &*context.cast::<H>() };
    // SAFETY: the caller says so.
    unsafe { answer(out, || host.bytes_len(handle)) }
}

/// # Safety
///
/// `context` is a `&H`, `buffer` is valid for reads and writes of `len` bytes.
unsafe extern "C" fn read_bytes<H: HostServices>(
    context: *const c_void,
    handle: u64,
    offset: u64,
    buffer: *mut u8,
    len: usize,
) -> i32 {
    // SAFETY: the caller says so.
    let (host, buffer) = unsafe {
        (
            &*context.cast::<H>(),
            core::slice::from_raw_parts_mut(buffer, len),
        )
    };
    let mut done = ();
    // SAFETY: `done` is ours.
    unsafe { answer(&mut done, || host.read_bytes(handle, offset, buffer)) }
}

/// # Safety
///
/// `context` is a `&H`.
unsafe extern "C" fn release_bytes<H: HostServices>(context: *const c_void, handle: u64) {
    // SAFETY: the caller says so.
    let host = unsafe { &*context.cast::<H>() };
    let _ = crate::panics::caught(|| host.release_bytes(handle));
}

/// # Safety
///
/// `context` is a `&H`, `file` is open during the call, `out` is valid for a write.
unsafe extern "C" fn preserve_file<H: HostServices>(
    context: *const c_void,
    file: RawFile,
    out: *mut u64,
) -> i32 {
    // SAFETY: the caller says so.
    let (host, file) = unsafe { (&*context.cast::<H>(), FileRef::from_raw(file)) };
    // SAFETY: the caller says so.
    unsafe { answer(out, || host.preserve_file(file)) }
}

/// # Safety
///
/// `context` is a `&H`, `out` is valid for a write.
unsafe extern "C" fn take_file<H: HostServices>(
    context: *const c_void,
    handle: u64,
    out: *mut RawFile,
) -> i32 {
    // SAFETY: the caller says so.
    let host = unsafe { &*context.cast::<H>() };
    // SAFETY: the caller says so.
    unsafe { answer(out, || host.take_file(handle).map(OwnedFile::into_raw)) }
}

/// # Safety
///
/// `context` is a `&H`.
unsafe extern "C" fn release_file<H: HostServices>(context: *const c_void, handle: u64) {
    // SAFETY: the caller says so.
    let host = unsafe { &*context.cast::<H>() };
    let _ = crate::panics::caught(|| host.release_file(handle));
}

/// # Safety
///
/// `context` is a `&H`, `reason` is valid for reads of `len` bytes.
unsafe extern "C" fn explain<H: HostServices>(
    context: *const c_void,
    reason: *const u8,
    len: usize,
) {
    // SAFETY: the caller says so.
    let (host, reason) = unsafe {
        (
            &*context.cast::<H>(),
            core::slice::from_raw_parts(reason, len),
        )
    };
    let reason = core::str::from_utf8(reason).unwrap_or("a reason that is no UTF-8");
    let _ = crate::panics::caught(|| host.explain(reason));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_reason_is_cut_off_between_characters(pieces in proptest::collection::vec(".{0,60}", 0..6)) {
            let mut text = Text::new();
            let _ = pieces.iter().try_for_each(|piece| text.write_str(piece));
            let whole = pieces.concat();
            prop_assert!(whole.starts_with(text.as_str()));
            let cut = text.as_str().len();
            prop_assert!(cut == whole.len() || cut + 4 > REASON_MAX);
        }
    }
}
