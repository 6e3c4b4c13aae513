// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The C form of handlers and subsystems, generated from their traits by a const.
//!
//! In C it is `include/luo_handler.h`. **Version means meaning, size means growth**: callbacks are
//! appended, and one that is absent is `None`. A host takes ops that are shorter than its own,
//! whose later callbacks are absent then, and longer ones, whose later callbacks it does not know.
//! The first size of a version is the least that it takes. What a callback means, or the place of a
//! field, changes with the version alone.

#![allow(unsafe_code)] // an edge: the C form

use core::{
    ffi::c_void,
    fmt,
    mem::{offset_of, MaybeUninit},
};

use crate::{
    c::{answer, slice, status, store},
    host::RawHost,
    pairs::RawPairs,
    panics::caught,
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, InvalidCompatible, NeededBy,
    OwnedFile, Pairs, Prepared, Preserved, RawFile, Retrieved, Subsystem, COMPATIBLE_LENGTH,
    NO_FILE,
};

/// Version of the C form: changes with the meaning of a field or of a callback, not with a new one.
pub const ABI_VERSION: u32 = 3;

/// The largest alignment of a private state, in bytes: what `malloc` gives.
pub const PRIVATE_ALIGN_MAX: u32 = 16;

/// Handlers that one subsystem may name, so that a wild number is not taken for a count.
const NEEDED_BY_MAX: u32 = 1024;

type Context = *const c_void;
type Private = *mut c_void;

/// A callback that gets the private state and the `u64`, and may change neither.
pub(crate) type Undo =
    unsafe extern "C" fn(Context, RawFile, *const RawHost, Private, data: u64) -> i32;
type Step = unsafe extern "C" fn(Context, RawFile, *const RawHost, Private, data: *mut u64) -> i32;
type Ask = unsafe extern "C" fn(Context, *const RawHost, u64, RawFile, retrieved: i32) -> i32;
pub(crate) type SubsystemUndo =
    unsafe extern "C" fn(Context, *const RawHost, Private, data: u64) -> i32;
type SubsystemStep = unsafe extern "C" fn(Context, *const RawHost, Private, data: *mut u64) -> i32;
type Describe = unsafe extern "C" fn(Context, *const RawHost, u64, *const RawPairs) -> i32;
type Init = unsafe extern "C" fn(Context, *const RawHost) -> i32;
type DropPrivate = unsafe extern "C" fn(Private) -> i32;

/// What both kinds of ops begin with. The first three fields stay where they are in every version.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OpsHeader {
    pub(crate) abi_version: u32,
    /// Bytes of the whole struct, as it was built.
    pub(crate) size: u32,
    pub(crate) compatible: [u8; COMPATIBLE_LENGTH],
    /// [`Hosts`].
    pub(crate) hosts: u32,
    pub(crate) private_size: u32,
    pub(crate) private_align: u32,
    /// Of a subsystem: how many handlers it names; 0 for every one. Otherwise 0.
    pub(crate) needed_by_count: u32,
    /// The crate that it lives in: bytes of UTF-8 and their number.
    pub(crate) origin: *const u8,
    pub(crate) origin_len: usize,
    /// The first argument of each callback.
    pub(crate) context: Context,
}

/// A handler as it is registered and called: the same for every compiler, so also across a dlopen.
///
/// Status codes are 0 or a negative error number; questions answer 1 for yes, 0 for no. `retrieved`
/// is 0 if nobody asked for the file, negative with the error number if it could not be rebuilt, 1
/// if it was. `private` points to memory that the host provides, of the size and alignment asked
/// for here: `prepare` fills it if it returns 0, `drop_private` ends it, exactly once.
///
/// # Invariants
///
/// The value was made by [`HandlerOps::of`] or read by [`HandlerOps::read`]: its pointers lead to
/// what lives as long as the program, and its callbacks do what `include/luo_handler.h` demands.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HandlerOps {
    pub(crate) header: OpsHeader,
    pub(crate) can_preserve: Option<unsafe extern "C" fn(Context, RawFile) -> i32>,
    pub(crate) file_id: Option<unsafe extern "C" fn(Context, RawFile, id: *mut u64) -> i32>,
    pub(crate) prepare: Option<Step>,
    pub(crate) freeze: Option<Step>,
    pub(crate) unfreeze: Option<Undo>,
    pub(crate) cancel: Option<Undo>,
    pub(crate) drop_private: Option<DropPrivate>,
    pub(crate) retrieve:
        Option<unsafe extern "C" fn(Context, *const RawHost, data: u64, *mut RawFile) -> i32>,
    pub(crate) can_finish: Option<Ask>,
    pub(crate) finish: Option<Ask>,
    // The first size ends here.
    pub(crate) describe: Option<Describe>,
    pub(crate) init: Option<Init>,
}

/// A subsystem as it is registered and called; the rules are those of [`HandlerOps`].
///
/// # Invariants
///
/// The value was made by [`SubsystemOps::of`] or read by [`SubsystemOps::read`], as for
/// [`HandlerOps`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SubsystemOps {
    pub(crate) header: OpsHeader,
    /// The handlers whose files need it, by compatible.
    pub(crate) needed_by: *const Compatible,
    pub(crate) prepare: Option<SubsystemStep>,
    pub(crate) freeze: Option<SubsystemStep>,
    pub(crate) unfreeze: Option<SubsystemUndo>,
    pub(crate) cancel: Option<SubsystemUndo>,
    pub(crate) drop_private: Option<DropPrivate>,
    pub(crate) retrieve: Option<unsafe extern "C" fn(Context, *const RawHost, data: u64) -> i32>,
    pub(crate) can_finish: Option<unsafe extern "C" fn(Context, *const RawHost, data: u64) -> i32>,
    pub(crate) finish:
        Option<unsafe extern "C" fn(Context, *const RawHost, data: u64, retrieved: i32) -> i32>,
    // The first size ends here.
    pub(crate) describe: Option<Describe>,
    pub(crate) init: Option<Init>,
}

// SAFETY: the context is a `&'static T` with `T: Sync`, the texts are static, and nobody writes
// them.
unsafe impl Sync for OpsHeader {}
// SAFETY: what the pointers lead to is shared by all threads, see Sync.
unsafe impl Send for OpsHeader {}
// SAFETY: beside the header there are only functions.
unsafe impl Sync for HandlerOps {}
// SAFETY: beside the header there are only functions.
unsafe impl Send for HandlerOps {}
// SAFETY: beside the header there are functions and a pointer to static names, which nobody writes.
unsafe impl Sync for SubsystemOps {}
// SAFETY: beside the header there are functions and a pointer to static names, which nobody writes.
unsafe impl Send for SubsystemOps {}

/// Why ops cannot be used, and whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidHandler {
    /// What it calls itself; its readable beginning if that is not a compatible. `None` if not even
    /// that can be read.
    pub compatible: Option<Compatible>,
    /// What is wrong with it.
    pub reason: InvalidReason,
}

/// What is wrong with a [`HandlerOps`] or a [`SubsystemOps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidReason {
    /// The address is not that of a struct: it is NULL or not aligned.
    Address,
    /// It was built for another version of the C form.
    AbiVersion {
        /// The version it was built for.
        found: u32,
    },
    /// It is shorter than the first size of its version.
    Size {
        /// The bytes it claims to have.
        found: u32,
        /// The least that this version has.
        least: u32,
    },
    /// Its name does not follow the syntax.
    Compatible(InvalidCompatible),
    /// A callback that it needs is missing.
    MissingCallback(&'static str),
    /// The alignment of its private state is not a power of two up to 16.
    PrivateAlign {
        /// The alignment asked for, in bytes.
        found: u32,
    },
    /// It names no host that it was written for.
    Hosts {
        /// What it has instead.
        found: u32,
    },
    /// It was not written for this host.
    OtherHost,
    /// The crate it comes from is not named in UTF-8.
    Origin,
    /// A subsystem does not name handlers, or too many.
    NeededBy,
    /// It cannot work here.
    Init {
        /// The error that `init` returned.
        errno: Errno,
        /// What it explained; empty if it did not.
        reason: &'static str,
    },
    /// Another one has the same compatible.
    Duplicate,
}

/// What handlers and subsystems have in common in C form.
///
/// # Safety
///
/// All bytes zero is a value of the type, and the type begins with an [`OpsHeader`].
pub(crate) unsafe trait Ops: Copy + 'static {
    /// Bytes of the type in the first layout of this version.
    const FIRST_SIZE: usize;

    /// The callbacks that must be there.
    fn required(&self) -> impl Iterator<Item = (&'static str, bool)>;

    fn header(&self) -> &OpsHeader;
}

// SAFETY: integers may be zero, pointers NULL and optional functions absent, and all bytes zero is
// that; `header` is the first field of a repr(C) struct.
unsafe impl Ops for HandlerOps {
    const FIRST_SIZE: usize = offset_of!(Self, describe);

    fn required(&self) -> impl Iterator<Item = (&'static str, bool)> {
        [
            ("can_preserve", self.can_preserve.is_some()),
            ("prepare", self.prepare.is_some()),
            ("cancel", self.cancel.is_some()),
            ("drop_private", self.drop_private.is_some()),
            ("retrieve", self.retrieve.is_some()),
            ("finish", self.finish.is_some()),
        ]
        .into_iter()
    }

    fn header(&self) -> &OpsHeader {
        &self.header
    }
}

// SAFETY: integers, pointers and optional functions may all be zero; `header` is the first field of
// a repr(C) struct.
unsafe impl Ops for SubsystemOps {
    const FIRST_SIZE: usize = offset_of!(Self, describe);

    fn required(&self) -> impl Iterator<Item = (&'static str, bool)> {
        [
            ("prepare", self.prepare.is_some()),
            ("cancel", self.cancel.is_some()),
            ("drop_private", self.drop_private.is_some()),
            ("retrieve", self.retrieve.is_some()),
            ("finish", self.finish.is_some()),
        ]
        .into_iter()
    }

    fn header(&self) -> &OpsHeader {
        &self.header
    }
}

/// Copies ops of this version out of a plugin: as much as is there and is known here. What is not
/// there is zero, which is an absent callback.
///
/// # Safety
///
/// If `ops` is not NULL and aligned, the first three fields of an [`OpsHeader`] are there, in any
/// version; in this version as many bytes of an `O` as `size` counts, and they meet the contract of
/// `include/luo_handler.h`.
unsafe fn read<O: Ops>(ops: *const O) -> Result<O, InvalidHandler> {
    if ops.is_null() || !ops.is_aligned() {
        return Err(InvalidHandler {
            compatible: None,
            reason: InvalidReason::Address,
        });
    }
    let header = ops.cast::<OpsHeader>();
    // SAFETY: the safety section has these three fields there in every version. They are read one
    // by one, without a reference to more than them.
    let (abi_version, size, compatible) = unsafe {
        (
            (&raw const (*header).abi_version).read(),
            (&raw const (*header).size).read(),
            (&raw const (*header).compatible).read(),
        )
    };
    let invalid = |reason| InvalidHandler {
        compatible: readable_name(&compatible),
        reason,
    };
    if abi_version != ABI_VERSION {
        return Err(invalid(InvalidReason::AbiVersion { found: abi_version }));
    }
    let least = O::FIRST_SIZE as u32;
    if size < least {
        return Err(invalid(InvalidReason::Size { found: size, least }));
    }
    // A callback of which only a part is there is absent.
    let there = size as usize / size_of::<usize>() * size_of::<usize>();
    let known = there.min(size_of::<O>());
    let mut copy = MaybeUninit::<O>::zeroed();
    // SAFETY: the safety section has `size` bytes at `ops`; `known` is at most that and at most the
    // size of `copy`. After the first size there are only optional functions, of which each is
    // copied whole or stays zero, which is one of their values by the contract of Ops.
    Ok(unsafe {
        core::ptr::copy_nonoverlapping(ops.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), known);
        copy.assume_init()
    })
}

/// What can be read of a name, to report whose ops are refused.
fn readable_name(name: &[u8; COMPATIBLE_LENGTH]) -> Option<Compatible> {
    let length = match Compatible::parse(name) {
        Ok(compatible) => return Some(compatible),
        Err(InvalidCompatible::Empty) => 0,
        Err(InvalidCompatible::TooLong) => COMPATIBLE_LENGTH - 1,
        Err(InvalidCompatible::BadByte { position, .. }) => position,
    };
    Compatible::parse(&name[..length]).ok()
}

impl OpsHeader {
    /// Of an `O` for a `context` whose private state is a `P`.
    const fn of<O, P>(
        compatible: &Compatible,
        hosts: Hosts,
        origin: &'static str,
        context: Context,
    ) -> Self {
        const {
            assert!(
                align_of::<P>() <= PRIVATE_ALIGN_MAX as usize,
                "the private state of a handler is at most 16 bytes aligned"
            );
            assert!(
                size_of::<P>() <= u32::MAX as usize,
                "the private state of a handler is smaller than 4 GiB"
            );
        }
        Self {
            abi_version: ABI_VERSION,
            size: size_of::<O>() as u32,
            compatible: *compatible.as_bytes(),
            hosts: hosts as u32,
            private_size: size_of::<P>() as u32,
            private_align: align_of::<P>() as u32,
            needed_by_count: 0,
            origin: origin.as_ptr(),
            origin_len: origin.len(),
            context,
        }
    }

    fn origin(&self) -> &'static str {
        if self.origin.is_null() {
            return "";
        }
        // SAFETY: by the invariant of HandlerOps and SubsystemOps `origin` leads to as many bytes
        // of static text.
        let bytes = unsafe { slice(self.origin, self.origin_len) };
        core::str::from_utf8(bytes).unwrap_or("")
    }

    fn invalid(&self, reason: InvalidReason) -> InvalidHandler {
        InvalidHandler {
            compatible: readable_name(&self.compatible),
            reason,
        }
    }

    /// Checks all but the callbacks.
    fn check(&self) -> Result<Compatible, InvalidReason> {
        if self.abi_version != ABI_VERSION {
            return Err(InvalidReason::AbiVersion {
                found: self.abi_version,
            });
        }
        let compatible = Compatible::parse(&self.compatible).map_err(InvalidReason::Compatible)?;
        if !self.private_align.is_power_of_two() || self.private_align > PRIVATE_ALIGN_MAX {
            return Err(InvalidReason::PrivateAlign {
                found: self.private_align,
            });
        }
        let hosts =
            Hosts::from_raw(self.hosts).ok_or(InvalidReason::Hosts { found: self.hosts })?;
        if !hosts.include(Hosts::Hosted) {
            return Err(InvalidReason::OtherHost);
        }
        if self.origin().is_empty() {
            return Err(InvalidReason::Origin);
        }
        Ok(compatible)
    }
}

/// Checks whether a hosted process can use `ops`; reports the first thing that is wrong.
fn validate<O: Ops>(ops: &O) -> Result<Compatible, InvalidHandler> {
    let header = ops.header();
    let compatible = header.check().map_err(|reason| header.invalid(reason))?;
    match ops.required().find(|(_, there)| !there) {
        Some((name, _)) => Err(header.invalid(InvalidReason::MissingCallback(name))),
        None => Ok(compatible),
    }
}

impl HandlerOps {
    /// The C form of `handler`, which comes from the crate `origin`.
    pub const fn of<T: FileHandler>(handler: &'static T, origin: &'static str) -> Self {
        Self {
            header: OpsHeader::of::<Self, T::Private>(
                &T::COMPATIBLE,
                T::HOSTS,
                origin,
                core::ptr::from_ref(handler).cast(),
            ),
            can_preserve: Some(can_preserve::<T>),
            file_id: Some(file_id::<T>),
            prepare: Some(prepare::<T>),
            freeze: Some(freeze::<T>),
            unfreeze: Some(unfreeze::<T>),
            cancel: Some(cancel::<T>),
            drop_private: Some(drop_private::<T::Private>),
            retrieve: Some(retrieve::<T>),
            can_finish: Some(can_finish::<T>),
            finish: Some(finish::<T>),
            describe: Some(describe::<T>),
            init: Some(init::<T>),
        }
    }

    /// Copies ops that another compiler or another version of this crate built.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`] if the address is not that of ops, if they are of another version, or if
    /// they are too short.
    ///
    /// # Safety
    ///
    /// If `ops` is not NULL and aligned, a `struct luo_handler_ops` of any version is there that
    /// meets the contract of `include/luo_handler.h` and lives as long as the program.
    pub unsafe fn read(ops: *const Self) -> Result<Self, InvalidHandler> {
        // SAFETY: a `struct luo_handler_ops` begins with a header, whose `size` counts its bytes.
        unsafe { read(ops) }
    }

    /// Its name.
    ///
    /// # Errors
    ///
    /// [`InvalidCompatible`], which [`validate`](Self::validate) reports as well.
    pub const fn compatible(&self) -> Result<Compatible, InvalidCompatible> {
        Compatible::parse(&self.header.compatible)
    }

    /// The crate it comes from; empty if that is not named in UTF-8.
    pub fn origin(&self) -> &'static str {
        self.header.origin()
    }

    /// Checks whether a hosted process can use it.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`], with the first thing that is wrong.
    pub fn validate(&self) -> Result<Compatible, InvalidHandler> {
        validate(self)
    }
}

impl SubsystemOps {
    /// The C form of `subsystem`, which comes from the crate `origin`.
    pub const fn of<S: Subsystem>(subsystem: &'static S, origin: &'static str) -> Self {
        let needed_by: &'static [Compatible] = match S::NEEDED_BY {
            NeededBy::Every => &[],
            NeededBy::Handlers(handlers) => {
                assert!(
                    !handlers.is_empty() && handlers.len() <= NEEDED_BY_MAX as usize,
                    "a subsystem names the handlers whose files need it, or every one"
                );
                handlers
            }
        };
        let mut header = OpsHeader::of::<Self, S::Private>(
            &S::COMPATIBLE,
            S::HOSTS,
            origin,
            core::ptr::from_ref(subsystem).cast(),
        );
        header.needed_by_count = needed_by.len() as u32;
        Self {
            header,
            needed_by: needed_by.as_ptr(),
            prepare: Some(subsystem_prepare::<S>),
            freeze: Some(subsystem_freeze::<S>),
            unfreeze: Some(subsystem_unfreeze::<S>),
            cancel: Some(subsystem_cancel::<S>),
            drop_private: Some(drop_private::<S::Private>),
            retrieve: Some(subsystem_retrieve::<S>),
            can_finish: Some(subsystem_can_finish::<S>),
            finish: Some(subsystem_finish::<S>),
            describe: Some(subsystem_describe::<S>),
            init: Some(subsystem_init::<S>),
        }
    }

    /// Copies ops that another compiler or another version of this crate built.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`] if the address is not that of ops, if they are of another version, or if
    /// they are too short.
    ///
    /// # Safety
    ///
    /// If `ops` is not NULL and aligned, a `struct luo_subsystem_ops` of any version is there that
    /// meets the contract of `include/luo_handler.h` and lives as long as the program.
    pub unsafe fn read(ops: *const Self) -> Result<Self, InvalidHandler> {
        // SAFETY: a `struct luo_subsystem_ops` begins with a header, whose `size` counts its bytes.
        unsafe { read(ops) }
    }

    /// Its name.
    ///
    /// # Errors
    ///
    /// [`InvalidCompatible`], which [`validate`](Self::validate) reports as well.
    pub const fn compatible(&self) -> Result<Compatible, InvalidCompatible> {
        Compatible::parse(&self.header.compatible)
    }

    /// The crate it comes from; empty if that is not named in UTF-8.
    pub fn origin(&self) -> &'static str {
        self.header.origin()
    }

    /// Whose files need it; `None` if the list is missing, or its count is out of bounds.
    pub fn needed_by(&self) -> Option<NeededBy> {
        let count = self.header.needed_by_count;
        if count == 0 {
            return Some(NeededBy::Every);
        }
        if self.needed_by.is_null() || count > NEEDED_BY_MAX {
            return None;
        }
        // The names are looked at as bytes first: a plugin may have written anything.
        // SAFETY: by the type's invariant `needed_by` leads to `needed_by_count` names of 48 bytes.
        let names =
            unsafe { slice::<[u8; COMPATIBLE_LENGTH]>(self.needed_by.cast(), count as usize) };
        if names.iter().any(|name| Compatible::parse(name).is_err()) {
            return None;
        }
        // SAFETY: Compatible is transparent over these bytes, and each of them was parsed just now.
        Some(NeededBy::Handlers(unsafe {
            slice(self.needed_by, count as usize)
        }))
    }

    /// Checks whether a hosted process can use it.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`], with the first thing that is wrong.
    pub fn validate(&self) -> Result<Compatible, InvalidHandler> {
        let compatible = validate(self)?;
        match self.needed_by() {
            Some(_) => Ok(compatible),
            None => Err(self.header.invalid(InvalidReason::NeededBy)),
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
            InvalidReason::Address => f.write_str("its address is not that of any ops"),
            InvalidReason::AbiVersion { found } => write!(
                f,
                "built for version {found} of the handler ABI, this host has {ABI_VERSION}; \
                 rebuild it"
            ),
            InvalidReason::Size { found, least } => write!(
                f,
                "its ops have {found} bytes, version {ABI_VERSION} has at least {least}"
            ),
            InvalidReason::Compatible(reason) => write!(f, "{reason}"),
            InvalidReason::MissingCallback(name) => write!(f, "the callback {name} is missing"),
            InvalidReason::PrivateAlign { found } => write!(
                f,
                "private state aligned to {found} bytes; a power of two up to \
                 {PRIVATE_ALIGN_MAX} is possible"
            ),
            InvalidReason::Hosts { found } => {
                write!(f, "{found:#x} names no host that it was written for")
            }
            InvalidReason::OtherHost => {
                f.write_str("written for the kernel alone; a process cannot use it")
            }
            InvalidReason::Origin => f.write_str("the crate it comes from is not named"),
            InvalidReason::NeededBy => {
                f.write_str("the handlers whose files need it are not named")
            }
            InvalidReason::Init { errno, reason: "" } => {
                write!(f, "it cannot work here: {errno}")
            }
            InvalidReason::Init { errno, reason } => {
                write!(f, "it cannot work here: {reason}: {errno}")
            }
            InvalidReason::Duplicate => {
                f.write_str("another handler has the same compatible; leave one of them out")
            }
        }
    }
}

impl core::error::Error for InvalidHandler {}

// The functions below are only reachable through `HandlerOps::of::<T>(handler)` and
// `SubsystemOps::of::<S>(subsystem)`: their first argument is the context that is stored there, a
// `&'static T` or `&'static S`. Unwinding ends in each of them.

/// What the context of ops is.
///
/// # Safety
///
/// `context` is a `&'static T`.
unsafe fn this<T>(context: Context) -> &'static T {
    // SAFETY: the safety section demands a `&'static T`.
    unsafe { &*context.cast() }
}

/// The host of a call.
///
/// # Safety
///
/// `host` is valid for reads, and what it names for `'a`.
unsafe fn lent<'a>(host: *const RawHost) -> Host<'a> {
    // SAFETY: the safety section demands a host that is valid as long as the result is used.
    unsafe { Host::from_raw(host.read()) }
}

/// Stores what a prepare made, or nothing if it failed.
///
/// # Safety
///
/// `private` is valid for a write of `P`, `data` for a write.
unsafe fn store_prepared<P>(
    private: Private,
    data: *mut u64,
    prepared: Result<Prepared<P>, Errno>,
) -> i32 {
    status(prepared.map(|prepared| {
        // SAFETY: the safety section demands both to be valid for these writes.
        unsafe {
            private.cast::<P>().write(prepared.private);
            data.write(prepared.data);
        }
    }))
}

/// # Safety
///
/// `context` is a `&'static T`; `file` is open during the call.
unsafe extern "C" fn can_preserve<T: FileHandler>(context: Context, file: RawFile) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`, and the file is open until the
    // call returns.
    let (handler, file) = unsafe { (this::<T>(context), FileRef::from_raw(file)) };
    answer(caught(|| handler.can_preserve(file)))
}

/// Answers 1 and writes `id`, or 0 if the handler leaves the identity to the host.
///
/// # Safety
///
/// `context` is a `&'static T`; `file` is open during the call; `id` is valid for a write.
unsafe extern "C" fn file_id<T: FileHandler>(context: Context, file: RawFile, id: *mut u64) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`, and the file is open until the
    // call returns.
    let (handler, file) = unsafe { (this::<T>(context), FileRef::from_raw(file)) };
    answer(caught(|| handler.file_id(file)).map(|known| {
        if let Some(value) = known {
            // SAFETY: by the safety section `id` is valid for a write.
            unsafe { id.write(value) };
        }
        known.is_some()
    }))
}

/// # Safety
///
/// `context` is a `&'static T`; `file` is open and `host` valid during the call; `private` is
/// valid for a write of `T::Private`; `data` is valid for a write.
unsafe extern "C" fn prepare<T: FileHandler>(
    context: Context,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: *mut u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; file and host are valid until
    // the call returns.
    let (handler, file, host) =
        unsafe { (this::<T>(context), FileRef::from_raw(file), lent(host)) };
    let prepared = caught(|| handler.prepare(file, host));
    // SAFETY: by the safety section `private` and `data` are valid for these writes.
    unsafe { store_prepared(private, data, prepared) }
}

/// # Safety
///
/// `file` is open and `host` valid for `'a`; `private` was filled by a prepare that made a `P`, and
/// is nobody else's for `'a`.
unsafe fn preserved<'a, P>(
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> Preserved<'a, P> {
    // SAFETY: the safety section demands each of the three to be valid for `'a`, the state
    // exclusively.
    unsafe {
        Preserved {
            file: FileRef::from_raw(file),
            data,
            private: &mut *private.cast(),
            host: lent(host),
        }
    }
}

/// # Safety
///
/// As [`prepare`], but `private` was filled by it, nobody else uses it during the call, and `data`
/// is valid for reads as well.
unsafe extern "C" fn freeze<T: FileHandler>(
    context: Context,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: *mut u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; file, host and the state that
    // prepare made are valid until the call returns; `data` is valid for a read.
    let (handler, preserved) = unsafe {
        (
            this::<T>(context),
            preserved(file, host, private, data.read()),
        )
    };
    // SAFETY: by the safety section `data` is valid for a write.
    unsafe { store(data, caught(|| handler.freeze(preserved))) }
}

/// # Safety
///
/// `context` is a `&'static T`; `file` is open and `host` valid during the call; `private` was
/// filled by [`prepare`], and nobody else uses it during the call.
unsafe extern "C" fn unfreeze<T: FileHandler>(
    context: Context,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; file, host and the state that
    // prepare made are valid until the call returns.
    let (handler, preserved) =
        unsafe { (this::<T>(context), preserved(file, host, private, data)) };
    status(caught(|| handler.unfreeze(preserved)))
}

/// # Safety
///
/// As [`unfreeze`].
unsafe extern "C" fn cancel<T: FileHandler>(
    context: Context,
    file: RawFile,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; file, host and the state that
    // prepare made are valid until the call returns.
    let (handler, preserved) =
        unsafe { (this::<T>(context), preserved(file, host, private, data)) };
    status(caught(|| handler.cancel(preserved)))
}

/// # Safety
///
/// `private` was filled by a prepare that made a `P`, and is not used again.
unsafe extern "C" fn drop_private<P>(private: Private) -> i32 {
    // SAFETY: by the safety section there is a `P`, and this is its end.
    status(caught(|| unsafe { private.cast::<P>().drop_in_place() }))
}

/// # Safety
///
/// `context` is a `&'static T`; `host` is valid during the call; `file` is valid for a write.
unsafe extern "C" fn retrieve<T: FileHandler>(
    context: Context,
    host: *const RawHost,
    data: u64,
    file: *mut RawFile,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; the host is valid until the call
    // returns.
    let (handler, host) = unsafe { (this::<T>(context), lent(host)) };
    let retrieved = caught(|| handler.retrieve(data, host).map(OwnedFile::into_raw));
    // SAFETY: by the safety section `file` is valid for a write.
    unsafe { store(file, retrieved) }
}

/// # Safety
///
/// `host` is valid for `'a`; if `retrieved` is above 0, `file` is what `retrieve` wrote, still
/// open.
unsafe fn crossed<'a>(
    host: *const RawHost,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> Crossed<'a> {
    // SAFETY: the safety section demands the host to be valid for `'a`, and with a status above 0,
    // which is when the file is looked at, an open file.
    unsafe {
        Crossed {
            data,
            retrieved: Retrieved::from_raw(file, retrieved),
            host: lent(host),
        }
    }
}

impl Retrieved<'_> {
    /// The C form: a file and a status, which is 0, a negative error number or 1.
    pub const fn to_raw(self) -> (RawFile, i32) {
        match self {
            Self::NotAsked => (NO_FILE, 0),
            Self::Failed(errno) => (NO_FILE, errno.to_status()),
            Self::File(file) => (file.as_raw(), 1),
        }
    }

    /// The reverse.
    ///
    /// # Safety
    ///
    /// With a status above 0, `file` is what retrieve yielded, still open as long as the value is
    /// used.
    pub const unsafe fn from_raw(file: RawFile, status: i32) -> Self {
        match Errno::from_status(status) {
            Ok(0) => Self::NotAsked,
            // SAFETY: the status is above 0, and the safety section demands an open file then.
            Ok(_) => Self::File(unsafe { FileRef::from_raw(file) }),
            Err(errno) => Self::Failed(errno),
        }
    }
}

/// # Safety
///
/// `context` is a `&'static T`; for the others see [`crossed`].
unsafe extern "C" fn can_finish<T: FileHandler>(
    context: Context,
    host: *const RawHost,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; host and file are valid until
    // the call returns.
    let (handler, crossed) = unsafe { (this::<T>(context), crossed(host, data, file, retrieved)) };
    answer(caught(|| handler.can_finish(crossed)))
}

/// # Safety
///
/// As [`can_finish`].
unsafe extern "C" fn finish<T: FileHandler>(
    context: Context,
    host: *const RawHost,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; host and file are valid until
    // the call returns.
    let (handler, crossed) = unsafe { (this::<T>(context), crossed(host, data, file, retrieved)) };
    status(caught(|| handler.finish(crossed)))
}

/// # Safety
///
/// `context` is a `&'static T`; `host` and `pairs` are valid during the call.
unsafe extern "C" fn describe<T: FileHandler>(
    context: Context,
    host: *const RawHost,
    data: u64,
    pairs: *const RawPairs,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; host and pairs are valid until
    // the call returns.
    let (handler, host, mut pairs) = unsafe {
        (
            this::<T>(context),
            lent(host),
            Pairs::from_raw(pairs.read()),
        )
    };
    status(caught(|| handler.describe(data, host, &mut pairs)))
}

/// # Safety
///
/// `context` is a `&'static T`; `host` is valid during the call.
unsafe extern "C" fn init<T: FileHandler>(context: Context, host: *const RawHost) -> i32 {
    // SAFETY: by the safety section the context is a `&'static T`; the host is valid until the call
    // returns.
    let (handler, host) = unsafe { (this::<T>(context), lent(host)) };
    status(caught(|| handler.init(host)))
}

/// # Safety
///
/// `context` is a `&'static S`; `host` is valid during the call; `private` is valid for a write of
/// `S::Private`; `data` is valid for a write.
unsafe extern "C" fn subsystem_prepare<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    private: Private,
    data: *mut u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host is valid until the call
    // returns.
    let (subsystem, host) = unsafe { (this::<S>(context), lent(host)) };
    let prepared = caught(|| subsystem.prepare(host));
    // SAFETY: by the safety section `private` and `data` are valid for these writes.
    unsafe { store_prepared(private, data, prepared) }
}

/// # Safety
///
/// As [`subsystem_prepare`], but `private` was filled by it, nobody else uses it during the call,
/// and `data` is valid for reads as well.
unsafe extern "C" fn subsystem_freeze<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    private: Private,
    data: *mut u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host and the state that
    // prepare made are valid until the call returns; `data` is valid for a read.
    let (subsystem, host, private, before) = unsafe {
        (
            this::<S>(context),
            lent(host),
            &mut *private.cast(),
            data.read(),
        )
    };
    let frozen = caught(|| subsystem.freeze(before, private, host));
    // SAFETY: by the safety section `data` is valid for a write.
    unsafe { store(data, frozen) }
}

/// # Safety
///
/// `context` is a `&'static S`; `host` is valid during the call; `private` was filled by
/// [`subsystem_prepare`], and nobody else uses it during the call.
unsafe extern "C" fn subsystem_unfreeze<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host and the state that
    // prepare made are valid until the call returns.
    let (subsystem, host, private) =
        unsafe { (this::<S>(context), lent(host), &mut *private.cast()) };
    status(caught(|| subsystem.unfreeze(data, private, host)))
}

/// # Safety
///
/// As [`subsystem_unfreeze`].
unsafe extern "C" fn subsystem_cancel<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    private: Private,
    data: u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host and the state that
    // prepare made are valid until the call returns.
    let (subsystem, host, private) =
        unsafe { (this::<S>(context), lent(host), &mut *private.cast()) };
    status(caught(|| subsystem.cancel(data, private, host)))
}

/// # Safety
///
/// `context` is a `&'static S`; `host` is valid during the call.
unsafe extern "C" fn subsystem_retrieve<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    data: u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host is valid until the call
    // returns.
    let (subsystem, host) = unsafe { (this::<S>(context), lent(host)) };
    status(caught(|| subsystem.retrieve(data, host)))
}

/// # Safety
///
/// As [`subsystem_retrieve`].
unsafe extern "C" fn subsystem_can_finish<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    data: u64,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host is valid until the call
    // returns.
    let (subsystem, host) = unsafe { (this::<S>(context), lent(host)) };
    answer(caught(|| subsystem.can_finish(data, host)))
}

/// # Safety
///
/// As [`subsystem_retrieve`].
unsafe extern "C" fn subsystem_finish<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    data: u64,
    retrieved: i32,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host is valid until the call
    // returns.
    let (subsystem, host) = unsafe { (this::<S>(context), lent(host)) };
    status(caught(|| subsystem.finish(data, retrieved > 0, host)))
}

/// # Safety
///
/// As [`describe`], with a `&'static S`.
unsafe extern "C" fn subsystem_describe<S: Subsystem>(
    context: Context,
    host: *const RawHost,
    data: u64,
    pairs: *const RawPairs,
) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; host and pairs are valid until
    // the call returns.
    let (subsystem, host, mut pairs) = unsafe {
        (
            this::<S>(context),
            lent(host),
            Pairs::from_raw(pairs.read()),
        )
    };
    status(caught(|| subsystem.describe(data, host, &mut pairs)))
}

/// # Safety
///
/// As [`subsystem_retrieve`].
unsafe extern "C" fn subsystem_init<S: Subsystem>(context: Context, host: *const RawHost) -> i32 {
    // SAFETY: by the safety section the context is a `&'static S`; the host is valid until the call
    // returns.
    let (subsystem, host) = unsafe { (this::<S>(context), lent(host)) };
    status(caught(|| subsystem.init(host)))
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
        assert_eq!(usable().header.private_size, 8);
    }

    #[test]
    fn another_version_is_refused_before_anything_else() {
        for version in [0, ABI_VERSION + 1, u32::MAX] {
            let found = reason(|ops| {
                ops.header.abi_version = version;
                ops.prepare = None;
            });
            assert_eq!(found, InvalidReason::AbiVersion { found: version });
        }
    }

    #[test]
    fn ops_grow_at_their_end() {
        let whole = size_of::<HandlerOps>() as u32;
        let least = HandlerOps::FIRST_SIZE as u32;
        let mut ops = usable();
        // SAFETY: a whole HandlerOps is there, with any number in its size.
        let mut read = |size| unsafe {
            ops.header.size = size;
            HandlerOps::read(&ops)
        };
        for found in [0, 8, least - 1] {
            let invalid = read(found).unwrap_err();
            assert_eq!(invalid.compatible, Some(Null::COMPATIBLE));
            assert_eq!(invalid.reason, InvalidReason::Size { found, least });
        }
        // One of the previous layout, and two that end within a callback.
        for size in [least, least + 4, least + 7] {
            let older = read(size).unwrap();
            assert!(older.describe.is_none() && older.init.is_none());
            assert!(older.finish.is_some() && older.validate().is_ok());
        }
        let between = read(least + 8).unwrap();
        assert!(between.describe.is_some() && between.init.is_none());
        for size in [whole, whole + 8, u32::MAX] {
            assert!(read(size).unwrap().init.is_some());
        }
    }

    #[test]
    fn of_another_version_nothing_but_the_prefix_is_read() {
        // Memory that ends with the three first fields.
        let mut prefix = [0u64; 7];
        prefix[0] = u64::from(ABI_VERSION + 1);
        prefix[1] = u64::from(u32::from_le_bytes(*b"next"));
        let address = core::ptr::from_ref(&prefix).cast();
        // SAFETY: ops of another version, as far as every version has them.
        let invalid = unsafe { HandlerOps::read(address) }.unwrap_err();
        let found = ABI_VERSION + 1;
        assert_eq!(invalid.reason, InvalidReason::AbiVersion { found });
        assert_eq!(invalid.compatible.unwrap().as_str(), "next");
    }

    #[test]
    fn what_is_not_an_address_of_ops_is_refused() {
        let odd = (core::ptr::from_ref(&usable()) as usize + 1) as *const HandlerOps;
        for address in [core::ptr::null(), odd] {
            // SAFETY: nothing is demanded of such an address.
            let invalid = unsafe { HandlerOps::read(address) }.unwrap_err();
            assert_eq!(invalid.reason, InvalidReason::Address);
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused_and_told_as_far_as_it_can_be_read() {
        let refused = |name: &[u8], reason| {
            let mut padded = [0; COMPATIBLE_LENGTH];
            padded[..name.len()].copy_from_slice(name);
            let (readable, found) = named_reason(|ops| ops.header.compatible = padded);
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
            assert_eq!(reason(|ops| ops.header.private_align = found), expected);
        }
        for align in [1, 2, 4, 8, 16] {
            let mut ops = usable();
            ops.header.private_align = align;
            assert!(ops.validate().is_ok());
        }
    }

    #[test]
    fn a_handler_for_another_host_is_refused() {
        for found in [0, 4, u32::MAX] {
            let expected = InvalidReason::Hosts { found };
            assert_eq!(reason(|ops| ops.header.hosts = found), expected);
        }
        let kernel = reason(|ops| ops.header.hosts = Hosts::Kernel as u32);
        assert_eq!(kernel, InvalidReason::OtherHost);
    }

    #[test]
    fn a_crate_without_a_name_is_refused() {
        assert_eq!(
            reason(|ops| ops.header.origin = core::ptr::null()),
            InvalidReason::Origin
        );
        assert_eq!(
            reason(|ops| ops.header.origin_len = 0),
            InvalidReason::Origin
        );
        let latin1 = reason(|ops| {
            ops.header.origin = b"\xe4".as_ptr();
            ops.header.origin_len = 1;
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

    /// The header and this file describe the same structs: compiled, the header has these sizes and
    /// offsets.
    #[test]
    fn the_header_has_the_same_layout() {
        use crate::{host::HostOps, plugin::PluginDescriptor};
        macro_rules! layout {
            ($($struct:literal $type:ty { $($field:ident),+ })+) => {{
                let mut lines = Vec::new();
                $(
                    let (size, align) = (size_of::<$type>(), align_of::<$type>());
                    lines.push(format!(
                        "_Static_assert(sizeof(struct {0}) == {size}, \"{0}\");\n\
                         _Static_assert(_Alignof(struct {0}) == {align}, \"{0}\");",
                        $struct
                    ));
                    $({
                        let name = stringify!($field);
                        lines.push(format!(
                            "_Static_assert(offsetof(struct {0}, {name}) == {1}, \"{0}.{name}\");",
                            $struct,
                            offset_of!($type, $field)
                        ));
                    })+
                )+
                lines
            }};
        }
        let mut lines = vec!["#include \"luo_handler.h\"".to_owned()];
        lines.extend(layout! {
            "luo_ops_header" OpsHeader {
                abi_version, size, compatible, hosts, private_size, private_align, needed_by_count,
                origin, origin_len, context
            }
            "luo_handler_ops" HandlerOps {
                header, can_preserve, file_id, prepare, freeze, unfreeze, cancel, drop_private,
                retrieve, can_finish, finish, describe, init
            }
            "luo_subsystem_ops" SubsystemOps {
                header, needed_by, prepare, freeze, unfreeze, cancel, drop_private, retrieve,
                can_finish, finish, describe, init
            }
            "luo_host_ops" HostOps {
                size, reserved, preserve_bytes, bytes_len, read_bytes, release_bytes,
                preserve_file, take_file, release_file, explain
            }
            "luo_host" RawHost { ops, context }
            "luo_pairs" RawPairs { put, context }
        });
        lines
            .extend(PluginDescriptor::layout().map(|(name, place)| {
                format!("_Static_assert({name} == {place}, \"luo_plugin\");")
            }));
        for (name, value) in [
            ("LUO_ABI_VERSION", ABI_VERSION as usize),
            ("LUO_COMPATIBLE_LENGTH", COMPATIBLE_LENGTH),
            ("LUO_PRIVATE_ALIGN_MAX", PRIVATE_ALIGN_MAX as usize),
            ("LUO_HOSTED", Hosts::Hosted as usize),
            ("LUO_KERNEL", Hosts::Kernel as usize),
        ] {
            lines.push(format!("_Static_assert({name} == {value}, \"{name}\");"));
        }
        lines.push(format!(
            "_Static_assert(LUO_NO_FILE == {NO_FILE}, \"LUO_NO_FILE\");"
        ));

        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("layout.c");
        std::fs::write(&source, lines.join("\n")).unwrap();
        let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
        for language in ["c", "c++"] {
            let asserts = match language {
                "c" => "-D_unused",
                // The same words in C++.
                _ => "-D_Static_assert=static_assert",
            };
            let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
            let output = std::process::Command::new(compiler)
                .args([
                    "-fsyntax-only",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                    "-I",
                    include,
                ])
                .args([
                    asserts,
                    "-D_Alignof=alignof",
                    "-include",
                    "stdalign.h",
                    "-x",
                    language,
                ])
                .arg(&source)
                .output()
                .expect("a C compiler is needed: install one, or name it in CC");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{language}: {errors}");
        }
    }
}
