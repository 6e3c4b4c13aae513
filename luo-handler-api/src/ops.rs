// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The C-ABI form of a handler, generated from its trait by a const.

use core::{ffi::c_void, fmt};

use crate::{
    host::RawHost, panics::caught, subsystem::WithoutFile, Compatible, Crossed, Errno, FileHandler,
    FileRef, Host, Hosts, InvalidCompatible, Preserved, RawFile, Retrieved, Subsystem,
    COMPATIBLE_LENGTH,
};

/// Version of the C form. It changes whenever the layout or the meaning of [`HandlerOps`] or of the
/// host's services changes.
pub const ABI_VERSION: u32 = 2;

/// The largest alignment of a handler's private state, in bytes: what `kmalloc` and `malloc` give.
pub const PRIVATE_ALIGN_MAX: u32 = 16;

type Handler = *const c_void;
type Private = *mut c_void;

/// A handler as it is registered and called: the same for every compiler, so also across a dlopen.
///
/// `handler` is the first argument of each callback. Status codes are 0 or a negative error number;
/// questions answer 1 for yes, 0 for no. `retrieved` is 0 if nobody asked for the file, negative
/// with the error number if it could not be rebuilt, 1 if it was. `private` points to memory that the host provides, of the
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
    /// [`Hosts`].
    pub(crate) hosts: u32,
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
    /// It names no host that it was written for.
    Hosts {
        /// What it says instead.
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
            hosts: T::HOSTS as u32,
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

    /// The hosts that it was written for; `None` if it names none.
    pub const fn hosts(&self) -> Option<Hosts> {
        Hosts::from_raw(self.hosts)
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

    /// What can be read of its name, to say whose ops are refused.
    fn readable_name(&self) -> Option<Compatible> {
        let length = match self.compatible() {
            Ok(compatible) => return Some(compatible),
            Err(InvalidCompatible::Empty) => 0,
            Err(InvalidCompatible::TooLong) => COMPATIBLE_LENGTH - 1,
            Err(InvalidCompatible::BadByte { position, .. }) => position,
        };
        Compatible::parse(&self.compatible[..length]).ok()
    }

    /// Looks whether a host can use it.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`], with the first thing that is wrong.
    pub fn validate(&self) -> Result<Compatible, InvalidHandler> {
        let named = self.compatible();
        let invalid = |reason| InvalidHandler {
            compatible: self.readable_name(),
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
        if self.hosts().is_none() {
            return Err(invalid(InvalidReason::Hosts { found: self.hosts }));
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
            InvalidReason::Hosts { found } => {
                write!(f, "{found:#x} names no host that it was written for")
            }
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
unsafe extern "C" fn file_id<T: FileHandler>(handler: Handler, file: RawFile, id: *mut u64) -> i32 {
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
    let (handler, preserved) = unsafe {
        (
            this::<T>(handler),
            preserved::<T>(file, host, private, data),
        )
    };
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
    let (handler, preserved) = unsafe {
        (
            this::<T>(handler),
            preserved::<T>(file, host, private, data),
        )
    };
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
/// `host` is valid for `'a`; if `retrieved` is above 0, `file` is what `retrieve` wrote, still open.
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
            retrieved: Retrieved::from_raw(file, retrieved),
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
    let (handler, crossed) = unsafe { (this::<T>(handler), crossed(host, data, file, retrieved)) };
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
    let (handler, crossed) = unsafe { (this::<T>(handler), crossed(host, data, file, retrieved)) };
    status(caught(|| handler.finish(crossed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{registry::refuse_duplicates, Host, OwnedFile, Prepared};

    struct Null;

    impl FileHandler for Null {
        const COMPATIBLE: Compatible = Compatible::new("null-v1");
        type Private = u64;

        fn can_preserve(&self, _: FileRef<'_>) -> bool {
            false
        }
        fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<u64>, Errno> {
            Err(Errno::EOPNOTSUPP)
        }
        fn cancel(&self, _: Preserved<'_, u64>) {}
        fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
            Err(Errno::EOPNOTSUPP)
        }
        fn finish(&self, _: Crossed<'_>) {}
    }

    fn usable() -> HandlerOps {
        HandlerOps::of(&Null, "tests")
    }

    /// What is wrong with the ops after `change`; the message names the handler.
    fn reason(change: impl FnOnce(&mut HandlerOps)) -> InvalidReason {
        let (name, reason) = named_reason(change);
        assert_eq!(name, "null-v1");
        reason
    }

    fn named_reason(change: impl FnOnce(&mut HandlerOps)) -> (String, InvalidReason) {
        let mut ops = usable();
        change(&mut ops);
        let invalid = ops.validate().unwrap_err();
        let name = invalid.compatible.map_or(String::new(), |c| c.to_string());
        let message = invalid.to_string();
        let expected = match invalid.compatible {
            Some(_) => format!("handler {name}: "),
            None => "a handler without a name: ".to_owned(),
        };
        assert!(message.starts_with(&expected), "{message}");
        (name, invalid.reason)
    }

    #[test]
    fn what_the_const_makes_is_usable() {
        assert_eq!(usable().validate(), Ok(Null::COMPATIBLE));
        assert_eq!(usable().origin(), "tests");
        assert_eq!(usable().private_size, 8);
    }

    #[test]
    fn another_version_is_refused_before_anything_else() {
        for version in [0, ABI_VERSION + 1, u32::MAX] {
            let found = reason(|ops| {
                ops.abi_version = version;
                ops.prepare = None;
            });
            assert_eq!(found, InvalidReason::AbiVersion { found: version });
        }
    }

    #[test]
    fn shorter_ops_are_refused_and_longer_ones_are_not() {
        let size = size_of::<HandlerOps>() as u32;
        for found in [0, 8, size - 1] {
            assert_eq!(
                reason(|ops| ops.size = found),
                InvalidReason::Size { found }
            );
        }
        let mut longer = usable();
        longer.size = size + 8;
        assert!(longer.validate().is_ok());
    }

    #[test]
    fn a_name_that_is_none_is_refused_and_told_as_far_as_it_can_be_read() {
        let refused = |name: &[u8], reason| {
            let mut padded = [0; COMPATIBLE_LENGTH];
            padded[..name.len()].copy_from_slice(name);
            let (readable, found) = named_reason(|ops| ops.compatible = padded);
            assert_eq!(found, InvalidReason::Compatible(reason));
            readable
        };
        let bad_byte = |position, byte| InvalidCompatible::BadByte { position, byte };
        assert_eq!(refused(b"", InvalidCompatible::Empty), "");
        let too_long = refused(&[b'x'; 48], InvalidCompatible::TooLong);
        assert_eq!(too_long, "x".repeat(47));
        assert_eq!(refused(b"null v1", bad_byte(4, b' ')), "null");
        assert_eq!(refused(b"null\0v1", bad_byte(5, b'v')), "null");
        assert_eq!(refused(b"\xff", bad_byte(0, 0xff)), "");
    }

    #[test]
    fn an_alignment_that_no_host_has_is_refused() {
        for found in [0, 3, 32, 4096, u32::MAX] {
            let expected = InvalidReason::PrivateAlign { found };
            assert_eq!(reason(|ops| ops.private_align = found), expected);
        }
        for align in [1, 2, 4, 8, 16] {
            let mut ops = usable();
            ops.private_align = align;
            assert!(ops.validate().is_ok());
        }
    }

    #[test]
    fn a_handler_for_no_host_is_refused() {
        for found in [0, 4, u32::MAX] {
            let expected = InvalidReason::Hosts { found };
            assert_eq!(reason(|ops| ops.hosts = found), expected);
        }
    }

    #[test]
    fn a_crate_without_a_name_is_refused() {
        assert_eq!(
            reason(|ops| ops.origin = core::ptr::null()),
            InvalidReason::Origin
        );
        assert_eq!(reason(|ops| ops.origin_len = 0), InvalidReason::Origin);
        let latin1 = reason(|ops| {
            ops.origin = b"\xe4".as_ptr();
            ops.origin_len = 1;
        });
        assert_eq!(latin1, InvalidReason::Origin);
    }

    #[test]
    fn every_missing_callback_is_named() {
        let missing = |change: fn(&mut HandlerOps)| match reason(change) {
            InvalidReason::MissingCallback(name) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(missing(|ops| ops.can_preserve = None), "can_preserve");
        assert_eq!(missing(|ops| ops.prepare = None), "prepare");
        assert_eq!(missing(|ops| ops.cancel = None), "cancel");
        assert_eq!(missing(|ops| ops.drop_private = None), "drop_private");
        assert_eq!(missing(|ops| ops.retrieve = None), "retrieve");
        assert_eq!(missing(|ops| ops.finish = None), "finish");
    }

    #[test]
    fn optional_callbacks_may_be_missing() {
        let mut ops = usable();
        ops.file_id = None;
        ops.freeze = None;
        ops.unfreeze = None;
        ops.can_finish = None;
        assert!(ops.validate().is_ok());
    }

    #[test]
    fn duplicates_are_named() {
        let (first, second) = (usable(), usable());
        assert_eq!(refuse_duplicates(&[&first]), Ok(()));
        let invalid = refuse_duplicates(&[&first, &second]).unwrap_err();
        assert_eq!(invalid.compatible, Some(Null::COMPATIBLE));
        assert_eq!(invalid.reason, InvalidReason::Duplicate);
    }
}
