// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The C-ABI form of a handler, generated from its trait by a const.

use core::{ffi::c_void, fmt};

use crate::{
    host::RawHost, panics::caught, subsystem::WithoutFile, Compatible, Crossed, Errno, FileHandler,
    FileRef, Host, InvalidCompatible, Preserved, RawFile, Subsystem, COMPATIBLE_LENGTH,
};

/// Version of the C form. It changes whenever the layout or the meaning of [`HandlerOps`] or of the
/// host's services changes.
pub const ABI_VERSION: u32 = 1;

/// The largest alignment of a handler's private state, in bytes: what `kmalloc` and `malloc` give.
pub const PRIVATE_ALIGN_MAX: u32 = 16;

type Handler = *const c_void;
type Private = *mut c_void;

/// A handler as it is registered and called: the same for every compiler, so also across a dlopen.
///
/// `handler` is the first argument of each callback. Status codes are 0 or a negative error number;
/// questions answer 1 for yes, 0 for no. `private` points to memory that the host provides, of the
/// size and alignment asked for here: `prepare` fills it if it returns 0, `drop_private` ends it,
/// exactly once. The three first fields stay where they are in every version.
///
/// # Invariants
///
/// The value was made by [`HandlerOps::of`], [`HandlerOps::of_subsystem`] or, in a plugin, by code
/// that follows this description.
#[repr(C)]
#[derive(Debug)]
pub struct HandlerOps {
    pub(crate) abi_version: u32,
    /// Bytes of this struct.
    pub(crate) size: u32,
    pub(crate) compatible: [u8; COMPATIBLE_LENGTH],
    pub(crate) private_size: u32,
    pub(crate) private_align: u32,
    /// The crate that the handler lives in: bytes of UTF-8 and their number.
    pub(crate) origin: *const u8,
    pub(crate) origin_len: usize,
    pub(crate) handler: Handler,

    pub(crate) can_preserve: Option<unsafe extern "C" fn(Handler, RawFile) -> i32>,
    pub(crate) file_id: Option<unsafe extern "C" fn(Handler, RawFile, id: *mut u64) -> i32>,
    pub(crate) prepare: Option<
        unsafe extern "C" fn(Handler, RawFile, *const RawHost, Private, data: *mut u64) -> i32,
    >,
    pub(crate) freeze: Option<
        unsafe extern "C" fn(Handler, RawFile, *const RawHost, Private, data: *mut u64) -> i32,
    >,
    pub(crate) unfreeze:
        Option<unsafe extern "C" fn(Handler, RawFile, *const RawHost, Private, data: u64) -> i32>,
    pub(crate) cancel:
        Option<unsafe extern "C" fn(Handler, RawFile, *const RawHost, Private, data: u64) -> i32>,
    pub(crate) drop_private: Option<unsafe extern "C" fn(Private) -> i32>,
    pub(crate) retrieve:
        Option<unsafe extern "C" fn(Handler, *const RawHost, data: u64, *mut RawFile) -> i32>,
    pub(crate) can_finish:
        Option<unsafe extern "C" fn(Handler, *const RawHost, u64, RawFile, retrieved: i32) -> i32>,
    pub(crate) finish:
        Option<unsafe extern "C" fn(Handler, *const RawHost, u64, RawFile, retrieved: i32) -> i32>,
}

// SAFETY: the pointers lead to a `&'static T` with `T: Sync` and to static text; neither is written.
unsafe impl Sync for HandlerOps {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for HandlerOps {}

/// Why a [`HandlerOps`] cannot be used, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidHandler {
    /// What it calls itself; its readable beginning if that is no compatible. `None` if not even
    /// that can be read.
    pub compatible: Option<Compatible>,
    /// What is wrong with it.
    pub reason: InvalidReason,
}

/// What is wrong with a [`HandlerOps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidReason {
    /// It was built for another version of the C form.
    AbiVersion {
        /// The version it was built for.
        found: u32,
    },
    /// It is shorter than the C form of its version.
    Size {
        /// The bytes it claims to have.
        found: u32,
    },
    /// Its name is none.
    Compatible(InvalidCompatible),
    /// A callback that every handler needs is missing.
    MissingCallback(&'static str),
    /// The alignment of its private state is no power of two up to 16.
    PrivateAlign {
        /// The alignment asked for, in bytes.
        found: u32,
    },
    /// The crate it comes from is not named in UTF-8.
    Origin,
    /// Another handler has the same compatible.
    Duplicate,
}

impl HandlerOps {
    /// The C form of `handler`, which comes from the crate `origin`.
    pub const fn of<T: FileHandler>(handler: &'static T, origin: &'static str) -> Self {
        const {
            assert!(
                align_of::<T::Private>() <= PRIVATE_ALIGN_MAX as usize,
                "the private state of a handler is at most 16 bytes aligned"
            );
            assert!(
                size_of::<T::Private>() <= u32::MAX as usize,
                "the private state of a handler is smaller than 4 GiB"
            );
        }
        Self {
            abi_version: ABI_VERSION,
            size: size_of::<Self>() as u32,
            compatible: *T::COMPATIBLE.as_bytes(),
            private_size: size_of::<T::Private>() as u32,
            private_align: align_of::<T::Private>() as u32,
            origin: origin.as_ptr(),
            origin_len: origin.len(),
            handler: core::ptr::from_ref(handler).cast(),
            can_preserve: Some(can_preserve::<T>),
            file_id: Some(file_id::<T>),
            prepare: Some(prepare::<T>),
            freeze: Some(freeze::<T>),
            unfreeze: Some(unfreeze::<T>),
            cancel: Some(cancel::<T>),
            drop_private: Some(drop_private::<T>),
            retrieve: Some(retrieve::<T>),
            can_finish: Some(can_finish::<T>),
            finish: Some(finish::<T>),
        }
    }

    /// The C form of `subsystem`: its callbacks get no file and ignore that argument.
    pub const fn of_subsystem<S: Subsystem>(subsystem: &'static S, origin: &'static str) -> Self {
        Self::of(WithoutFile::wrap(subsystem), origin)
    }

    /// Version of the C form it was built for.
    pub const fn abi_version(&self) -> u32 {
        self.abi_version
    }

    /// Its name.
    ///
    /// # Errors
    ///
    /// [`InvalidCompatible`], which [`validate`](Self::validate) tells as well.
    pub const fn compatible(&self) -> Result<Compatible, InvalidCompatible> {
        Compatible::parse(&self.compatible)
    }

    /// The crate it comes from; empty if that is not said in UTF-8.
    pub fn origin(&self) -> &'static str {
        if self.origin.is_null() {
            return "";
        }
        // SAFETY: by the type's invariant `origin` points to `origin_len` bytes of static text.
        let bytes = unsafe { core::slice::from_raw_parts(self.origin, self.origin_len) };
        core::str::from_utf8(bytes).unwrap_or("")
    }

    /// Looks whether a host can use it.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`], with the first thing that is wrong.
    pub fn validate(&self) -> Result<Compatible, InvalidHandler> {
        let named = self.compatible();
        let invalid = |reason| InvalidHandler {
            compatible: named.ok(),
            reason,
        };
        if self.abi_version != ABI_VERSION {
            return Err(invalid(InvalidReason::AbiVersion {
                found: self.abi_version,
            }));
        }
        if (self.size as usize) < size_of::<Self>() {
            return Err(invalid(InvalidReason::Size { found: self.size }));
        }
        let compatible = named.map_err(|reason| invalid(InvalidReason::Compatible(reason)))?;
        if !self.private_align.is_power_of_two() || self.private_align > PRIVATE_ALIGN_MAX {
            return Err(invalid(InvalidReason::PrivateAlign {
                found: self.private_align,
            }));
        }
        if self.origin().is_empty() {
            return Err(invalid(InvalidReason::Origin));
        }
        let required = [
            ("can_preserve", self.can_preserve.is_some()),
            ("prepare", self.prepare.is_some()),
            ("cancel", self.cancel.is_some()),
            ("drop_private", self.drop_private.is_some()),
            ("retrieve", self.retrieve.is_some()),
            ("finish", self.finish.is_some()),
        ];
        match required.iter().find(|(_, there)| !there) {
            Some((name, _)) => Err(invalid(InvalidReason::MissingCallback(name))),
            None => Ok(compatible),
        }
    }
}

impl fmt::Display for InvalidHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.compatible {
            Some(compatible) => write!(f, "handler {compatible}: ")?,
            None => f.write_str("a handler without a name: ")?,
        }
        match self.reason {
            InvalidReason::AbiVersion { found } => write!(
                f,
                "built for version {found} of the handler ABI, this host has {ABI_VERSION}; rebuild it"
            ),
            InvalidReason::Size { found } => write!(
                f,
                "its ops have {found} bytes, version {ABI_VERSION} has {}",
                size_of::<HandlerOps>()
            ),
            InvalidReason::Compatible(reason) => write!(f, "{reason}"),
            InvalidReason::MissingCallback(name) => write!(f, "the callback {name} is missing"),
            InvalidReason::PrivateAlign { found } => write!(
                f,
                "private state aligned to {found} bytes; a power of two up to {PRIVATE_ALIGN_MAX} is possible"
            ),
            InvalidReason::Origin => f.write_str("the crate it comes from is not named"),
            InvalidReason::Duplicate => {
                f.write_str("another handler has the same compatible; leave one of them out")
            }
        }
    }
}

impl core::error::Error for InvalidHandler {}

/// Status of a callback that yields nothing.
fn status(result: Result<(), Errno>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(errno) => errno.to_status(),
    }
}

// The functions below are only reachable through `HandlerOps::of::<T>(handler)`, whose first
// argument is that `&'static T`. `$handler` is valid for that reason alone; what else a callback
// needs is in its safety section. Unwinding ends in each of them.

/// # Safety
///
/// `handler` is a `&'static T`.
unsafe fn this<T: FileHandler>(handler: Handler) -> &'static T {
    // SAFETY: the caller says so.
    unsafe { &*handler.cast() }
}

/// # Safety
///
/// `handler` is a `&'static T`; `file` is open during the call.
unsafe extern "C" fn can_preserve<T: FileHandler>(handler: Handler, file: RawFile) -> i32 {
    // SAFETY: the caller says so.
    let (handler, file) = unsafe { (this::<T>(handler), FileRef::from_raw(file)) };
    match caught(|| handler.can_preserve(file)) {
        Ok(yes) => i32::from(yes),
        Err(errno) => errno.to_status(),
    }
}

/// Answers 1 and writes `id`, or 0 if the handler leaves the identity to the host.
///
/// # Safety
///
/// `handler` is a `&'static T`; `file` is open during the call; `id` is valid for a write.
unsafe extern "C" fn file_id<T: FileHandler>(
    handler: Handler,
    file: RawFile,
    id: *mut u64,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, file) = unsafe { (this::<T>(handler), FileRef::from_raw(file)) };
    match caught(|| handler.file_id(file)) {
        Ok(Some(value)) => {
            // SAFETY: the caller says so.
            unsafe { id.write(value) };
            1
        }
        Ok(None) => 0,
        Err(errno) => errno.to_status(),
    }
}

/// # Safety
///
/// `handler` is a `&'static T`; `file` is open and `host` valid during the call; `private` is
/// valid for a write of `T::Private`; `data` is valid for a write.
unsafe extern "C" fn prepare<T: FileHandler>(
    handler: Handler,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: *mut u64,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, file, host) = unsafe {
        (
            this::<T>(handler),
            FileRef::from_raw(file),
            Host::from_raw(*host),
        )
    };
    match caught(|| handler.prepare(file, host)).and_then(|result| result) {
        Ok(prepared) => {
            // SAFETY: the caller says so.
            unsafe {
                private.cast::<T::Private>().write(prepared.private);
                data.write(prepared.data);
            }
            0
        }
        Err(errno) => errno.to_status(),
    }
}

/// # Safety
///
/// `handler` is a `&'static T`; `file` is open and `host` valid for `'a`; `private` was filled by
/// `prepare` and is nobody else's for `'a`.
unsafe fn preserved<'a, T: FileHandler>(
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> Preserved<'a, T::Private> {
    // SAFETY: the caller says so.
    unsafe {
        Preserved {
            file: FileRef::from_raw(file),
            data,
            private: &mut *private.cast(),
            host: Host::from_raw(*host),
        }
    }
}

/// # Safety
///
/// As [`prepare`], but `private` was filled by it and `data` holds what it or the last freeze wrote.
unsafe extern "C" fn freeze<T: FileHandler>(
    handler: Handler,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: *mut u64,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, preserved) = unsafe {
        (
            this::<T>(handler),
            preserved::<T>(file, host, private, data.read()),
        )
    };
    match caught(|| handler.freeze(preserved)).and_then(|result| result) {
        Ok(frozen) => {
            // SAFETY: the caller says so.
            unsafe { data.write(frozen) };
            0
        }
        Err(errno) => errno.to_status(),
    }
}

/// # Safety
///
/// `handler` is a `&'static T`; `file` is open and `host` valid during the call; `private` was
/// filled by `prepare`.
unsafe extern "C" fn unfreeze<T: FileHandler>(
    handler: Handler,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, preserved) =
        unsafe { (this::<T>(handler), preserved::<T>(file, host, private, data)) };
    status(caught(|| handler.unfreeze(preserved)))
}

/// # Safety
///
/// As [`unfreeze`].
unsafe extern "C" fn cancel<T: FileHandler>(
    handler: Handler,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, preserved) =
        unsafe { (this::<T>(handler), preserved::<T>(file, host, private, data)) };
    status(caught(|| handler.cancel(preserved)))
}

/// # Safety
///
/// `private` was filled by `prepare` and is not used again.
unsafe extern "C" fn drop_private<T: FileHandler>(private: Private) -> i32 {
    // SAFETY: the caller says so.
    status(caught(|| unsafe {
        private.cast::<T::Private>().drop_in_place();
    }))
}

/// # Safety
///
/// `handler` is a `&'static T`; `host` is valid during the call; `file` is valid for a write.
unsafe extern "C" fn retrieve<T: FileHandler>(
    handler: Handler,
    host: *const RawHost,
    data: u64,
    file: *mut RawFile,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, host) = unsafe { (this::<T>(handler), Host::from_raw(*host)) };
    match caught(|| handler.retrieve(data, host)).and_then(|result| result) {
        Ok(retrieved) => {
            // SAFETY: the caller says so.
            unsafe { file.write(retrieved.into_raw()) };
            0
        }
        Err(errno) => errno.to_status(),
    }
}

/// # Safety
///
/// `host` is valid for `'a`; if `retrieved` is not 0, `file` is what `retrieve` wrote, still open.
unsafe fn crossed<'a>(
    host: *const RawHost,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> Crossed<'a> {
    // SAFETY: the caller says so.
    unsafe {
        Crossed {
            data,
            retrieved: (retrieved != 0).then(|| FileRef::from_raw(file)),
            host: Host::from_raw(*host),
        }
    }
}

/// # Safety
///
/// `handler` is a `&'static T`; for the others see [`crossed`].
unsafe extern "C" fn can_finish<T: FileHandler>(
    handler: Handler,
    host: *const RawHost,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, crossed) =
        unsafe { (this::<T>(handler), crossed(host, data, file, retrieved)) };
    match caught(|| handler.can_finish(crossed)) {
        Ok(yes) => i32::from(yes),
        Err(errno) => errno.to_status(),
    }
}

/// # Safety
///
/// As [`can_finish`].
unsafe extern "C" fn finish<T: FileHandler>(
    handler: Handler,
    host: *const RawHost,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> i32 {
    // SAFETY: the caller says so.
    let (handler, crossed) =
        unsafe { (this::<T>(handler), crossed(host, data, file, retrieved)) };
    status(caught(|| handler.finish(crossed)))
}
