// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! For hosts with std: calls handlers and subsystems through their C form, without any `unsafe` of
//! the host's own.
//!
//! [`Handler`] and [`SubsystemRef`] are validated ops; [`PreparedFile`] and [`PreparedSubsystem`]
//! are what their `prepare` makes. [`files`] has what several handlers and hosts do with a
//! descriptor.

#![allow(unsafe_code)] // an edge: calls through the C form

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr::NonNull;
use std::alloc::{alloc, dealloc};
use std::boxed::Box;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::string::String;
use std::sync::Mutex;
use std::vec::Vec;

use crate::{
    host::RawHost,
    ops::{self, PRIVATE_ALIGN_MAX},
    Compatible, Errno, FileRef, HandlerOps, Host, HostServices, Hosts, InvalidHandler,
    InvalidReason, NeededBy, OwnedFile, Pairs, RawFile, Retrieved, SubsystemOps, NO_FILE,
};

pub mod files;

/// Pairs that a description may have; a handler that a previous side leads astray ends here.
pub const DESCRIPTION_MAX: usize = 4096;

/// A handler that was validated and can be used.
///
/// # Invariants
///
/// [`HandlerOps::validate`] accepted `ops`: the required callbacks are there.
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    ops: &'static HandlerOps,
}

/// A subsystem that was validated and can be used.
///
/// # Invariants
///
/// [`SubsystemOps::validate`] accepted `ops`: the required callbacks are there.
#[derive(Clone, Copy, Debug)]
pub struct SubsystemRef {
    ops: &'static SubsystemOps,
}

/// A file that was prepared: its `u64` and its private state, which is dropped with this value.
///
/// # Invariants
///
/// The state was made by the `prepare` of `handler`.
#[derive(Debug)]
pub struct PreparedFile {
    handler: Handler,
    state: State,
}

/// A subsystem that was prepared: its `u64` and its private state, which is dropped with this
/// value.
///
/// # Invariants
///
/// The state was made by the `prepare` of `subsystem`.
#[derive(Debug)]
pub struct PreparedSubsystem {
    subsystem: SubsystemRef,
    state: State,
}

/// What a prepare made.
///
/// # Invariants
///
/// `room` holds a private state for which `drop_private` was made.
#[derive(Debug)]
struct State {
    data: u64,
    room: Room,
    drop_private: unsafe extern "C" fn(*mut c_void) -> i32,
}

/// Room for a private state, as aligned as one may ask for.
///
/// # Invariants
///
/// `start` was allocated with `layout`, or dangles if that has no size.
#[derive(Debug)]
struct Room {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a private state is `Send` by the traits' bound, and the room is reached through `&mut`
// alone.
unsafe impl Send for Room {}
// SAFETY: a `&Room` reaches nothing of the state.
unsafe impl Sync for Room {}

/// Nothing, as aligned as a private state may ask for.
#[repr(align(16))]
struct Aligned;

const _: () = assert!(align_of::<Aligned>() == PRIVATE_ALIGN_MAX as usize);

impl Room {
    /// Room for `bytes`, or `ENOMEM`.
    #[inline]
    fn of(bytes: usize) -> Result<Self, Errno> {
        // Padded, because allocators are slow where the alignment is larger than the size.
        let layout = Layout::from_size_align(bytes, PRIVATE_ALIGN_MAX as usize)
            .map_err(|_| Errno::ENOMEM)?
            .pad_to_align();
        let start = match layout.size() {
            0 => Some(NonNull::<Aligned>::dangling().cast()),
            // SAFETY: this arm has a layout whose size is not 0.
            _ => NonNull::new(unsafe { alloc(layout) }),
        };
        let start = start.ok_or(Errno::ENOMEM)?;
        Ok(Self { start, layout })
    }

    #[inline]
    fn as_ptr(&mut self) -> *mut c_void {
        self.start.as_ptr().cast()
    }
}

impl Drop for Room {
    #[inline]
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: by the invariant it was allocated with this layout.
            unsafe { dealloc(self.start.as_ptr(), self.layout) };
        }
    }
}

impl State {
    /// Calls a prepare with room for its state, and holds what it makes.
    #[inline]
    fn of(
        header: &ops::OpsHeader,
        drop_private: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
        prepare: impl FnOnce(*mut c_void, *mut u64) -> i32,
    ) -> Result<Self, Errno> {
        let drop_private = drop_private.ok_or(Errno::EIO)?;
        let mut room = Room::of(header.private_size as usize)?;
        let mut data = 0;
        done(prepare(room.as_ptr(), &mut data))?;
        Ok(Self {
            data,
            room,
            drop_private,
        })
    }

    /// Calls a freeze; the `u64` is that of before if it fails.
    #[inline]
    fn freeze(&mut self, freeze: impl FnOnce(*mut c_void, *mut u64) -> i32) -> Result<(), Errno> {
        let mut data = self.data;
        done(freeze(self.room.as_ptr(), &mut data))?;
        self.data = data;
        Ok(())
    }
}

impl Drop for State {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: by the invariant the room holds a state for this function, and this is its only
        // end. A panic in the drop was caught and printed; nobody can take its status.
        unsafe { (self.drop_private)(self.room.as_ptr()) };
    }
}

#[inline]
fn raw(file: BorrowedFd<'_>) -> RawFile {
    FileRef::from(file).as_raw()
}

/// Success is 0; anything else that is not an error number is garbage.
#[inline]
fn done(status: i32) -> Result<(), Errno> {
    match status {
        0 => Ok(()),
        _ => Err(failure(status)),
    }
}

/// Yes is 1, no is 0; anything else that is not an error number is garbage.
#[inline]
fn answer(status: i32) -> Result<bool, Errno> {
    match status {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(failure(status)),
    }
}

/// Out of the way of the calls that succeed.
#[cold]
fn failure(status: i32) -> Errno {
    Errno::from_status(status).err().unwrap_or(Errno::EIO)
}

/// The host of `init`: takes a reason and offers nothing else.
#[derive(Default)]
struct Explained(Mutex<String>);

impl HostServices for Explained {
    fn explain(&self, reason: &str) {
        if let Ok(mut explained) = self.0.lock() {
            *explained = String::from(reason);
        }
    }
}

/// Asks validated ops whether they can work here.
fn initialize(
    compatible: Compatible,
    header: &ops::OpsHeader,
    init: Option<unsafe extern "C" fn(*const c_void, *const RawHost) -> i32>,
) -> Result<(), InvalidHandler> {
    let Some(init) = init else {
        return Ok(());
    };
    let explained = Explained::default();
    let host = Host::new(&explained).as_raw();
    // SAFETY: the context belongs to the callback by the invariant of the ops; the host is valid
    // until it returns.
    done(unsafe { init(header.context, &host) }).map_err(|errno| {
        let reason = explained.0.into_inner().unwrap_or_default();
        InvalidHandler {
            compatible: Some(compatible),
            reason: InvalidReason::Init {
                errno,
                // An error without allocations; few handlers are ever refused.
                reason: String::leak(reason),
            },
        }
    })
}

/// Calls a describe and collects what it reports.
fn description(
    describe: impl FnOnce(&Pairs<'_>) -> i32,
) -> (Vec<(String, String)>, Result<(), Errno>) {
    let mut found = Vec::new();
    let mut sink = |key: &str, value: &str| {
        if found.len() < DESCRIPTION_MAX {
            found.push((String::from(key), String::from(value)));
        }
    };
    let result = done(describe(&Pairs::new(&mut sink)));
    (found, result)
}

macro_rules! about_ops {
    ($type:ident, $ops:ident) => {
        impl $type {
            /// Validates `ops` and takes them if they can be used and want to be: `init` is called.
            ///
            /// # Errors
            ///
            /// [`InvalidHandler`], which names the handler and what is wrong with it.
            pub fn new(ops: &'static $ops) -> Result<Self, InvalidHandler> {
                let compatible = ops.validate()?;
                initialize(compatible, &ops.header, ops.init)?;
                Ok(Self { ops })
            }

            /// The same of ops that another compiler or another version of this crate built. They
            /// are copied, once for each call, to the length that this version knows.
            ///
            /// # Errors
            ///
            /// [`InvalidHandler`], which names the handler and what is wrong with it.
            ///
            /// # Safety
            ///
            #[doc = concat!("As [`", stringify!($ops), "::read`].")]
            pub unsafe fn from_raw(ops: *const $ops) -> Result<Self, InvalidHandler> {
                // SAFETY: the safety section is that of `read`.
                let ops = unsafe { $ops::read(ops) }?;
                ops.validate()?;
                Self::new(Box::leak(Box::new(ops)))
            }

            /// The name of its format.
            pub const fn compatible(&self) -> &Compatible {
                // SAFETY: by the invariant the bytes were parsed as a name, and Compatible is
                // transparent over them.
                unsafe { &*core::ptr::from_ref(&self.ops.header.compatible).cast() }
            }

            /// The crate it comes from.
            pub fn origin(&self) -> &'static str {
                self.ops.origin()
            }

            /// Version of the C form it was built for.
            pub const fn abi_version(&self) -> u32 {
                self.ops.header.abi_version
            }

            /// The hosts that it was written for.
            pub const fn hosts(&self) -> Hosts {
                match Hosts::from_raw(self.ops.header.hosts) {
                    Some(hosts) => hosts,
                    // By the invariant it was validated, so this is one of them.
                    None => Hosts::Hosted,
                }
            }

            /// What `data` stands for, at most [`DESCRIPTION_MAX`] pairs, and how the call ended;
            /// see [`FileHandler::describe`](crate::FileHandler::describe).
            pub fn describe(
                &self,
                data: u64,
                host: Host<'_>,
            ) -> (Vec<(String, String)>, Result<(), Errno>) {
                description(|pairs| match self.ops.describe {
                    // SAFETY: the context belongs to the callback by the invariant of the ops; host
                    // and pairs are borrowed until it returns.
                    Some(describe) => unsafe {
                        describe(
                            self.ops.header.context,
                            &host.as_raw(),
                            data,
                            &pairs.as_raw(),
                        )
                    },
                    None => 0,
                })
            }
        }
    };
}

about_ops!(Handler, HandlerOps);
about_ops!(SubsystemRef, SubsystemOps);

impl Handler {
    /// See [`FileHandler::can_preserve`](crate::FileHandler::can_preserve).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or answers neither yes nor no.
    #[inline]
    pub fn can_preserve(&self, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        let can_preserve = self.ops.can_preserve.ok_or(Errno::EIO)?;
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps, and a
        // borrowed descriptor is open.
        answer(unsafe { can_preserve(self.ops.header.context, raw(file)) })
    }

    /// See [`FileHandler::file_id`](crate::FileHandler::file_id).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or answers neither yes nor no.
    #[inline]
    pub fn file_id(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
        let Some(file_id) = self.ops.file_id else {
            return Ok(None);
        };
        let mut id = 0;
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps; a borrowed
        // descriptor is open, and `id` is borrowed until the call returns.
        let known = answer(unsafe { file_id(self.ops.header.context, raw(file), &mut id) })?;
        Ok(known.then_some(id))
    }

    /// See [`FileHandler::prepare`](crate::FileHandler::prepare).
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it panics or returns garbage, `ENOMEM` if there is no room for its
    /// private state.
    #[inline]
    pub fn prepare(&self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<PreparedFile, Errno> {
        let HandlerOps {
            header,
            prepare,
            drop_private,
            ..
        } = self.ops;
        let prepare = prepare.ok_or(Errno::EIO)?;
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps; a borrowed
        // descriptor is open and the host borrowed until the call returns; the room is as large as
        // the header asks for and more aligned than it may ask for.
        let state = State::of(header, *drop_private, |room, data| unsafe {
            prepare(header.context, raw(file), &host.as_raw(), room, data)
        })?;
        Ok(PreparedFile {
            handler: *self,
            state,
        })
    }

    /// See [`FileHandler::retrieve`](crate::FileHandler::retrieve).
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it panics or returns garbage, `EBADF` if what it yields is not an
    /// open file.
    pub fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFd, Errno> {
        let retrieve = self.ops.retrieve.ok_or(Errno::EIO)?;
        let mut file = NO_FILE;
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps; the host and
        // `file` are borrowed until the call returns.
        done(unsafe { retrieve(self.ops.header.context, &host.as_raw(), data, &mut file) })?;
        if i32::try_from(file).map_or(true, |fd| fd < 0) {
            return Err(Errno::EBADF);
        }
        // SAFETY: a retrieve that returns 0 has written an open descriptor and given it away, by
        // its contract in `luo_handler.h`.
        let fd = OwnedFd::from(unsafe { OwnedFile::from_raw(file) });
        match rustix::io::fcntl_getfd(&fd) {
            Ok(_) => Ok(fd),
            // A plugin that breaks the contract; there is nothing to close.
            Err(_) => {
                core::mem::forget(fd);
                Err(Errno::EBADF)
            }
        }
    }

    /// See [`FileHandler::can_finish`](crate::FileHandler::can_finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or answers neither yes nor no.
    pub fn can_finish(
        &self,
        data: u64,
        retrieved: Retrieved<'_>,
        host: Host<'_>,
    ) -> Result<bool, Errno> {
        let Some(can_finish) = self.ops.can_finish else {
            return Ok(true);
        };
        let (file, status) = retrieved.to_raw();
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps; the host and
        // the file, which Retrieved borrows, are valid until the call returns.
        answer(unsafe { can_finish(self.ops.header.context, &host.as_raw(), data, file, status) })
    }

    /// See [`FileHandler::finish`](crate::FileHandler::finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or returns garbage; the file is finished all the same.
    pub fn finish(&self, data: u64, retrieved: Retrieved<'_>, host: Host<'_>) -> Result<(), Errno> {
        let finish = self.ops.finish.ok_or(Errno::EIO)?;
        let (file, status) = retrieved.to_raw();
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps; the host and
        // the file, which Retrieved borrows, are valid until the call returns.
        done(unsafe { finish(self.ops.header.context, &host.as_raw(), data, file, status) })
    }
}

impl PreparedFile {
    /// Who prepared it.
    pub const fn handler(&self) -> &Handler {
        &self.handler
    }

    /// The `u64` that crosses.
    pub const fn data(&self) -> u64 {
        self.state.data
    }

    /// See [`FileHandler::freeze`](crate::FileHandler::freeze).
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it panics or returns garbage. The `u64` is unchanged then.
    #[inline]
    pub fn freeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        let HandlerOps { header, freeze, .. } = self.handler.ops;
        let Some(freeze) = freeze else {
            return Ok(());
        };
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps; a borrowed
        // descriptor is open and the host borrowed until the call returns; by the invariant of
        // PreparedFile the state is this handler's, and `&mut` makes it ours alone.
        self.state.freeze(|private, data| unsafe {
            freeze(header.context, raw(file), &host.as_raw(), private, data)
        })
    }

    /// See [`FileHandler::unfreeze`](crate::FileHandler::unfreeze).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or returns garbage.
    pub fn unfreeze(&mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        self.undo(self.handler.ops.unfreeze, file, host)
    }

    /// Gives the file up and drops its private state; see
    /// [`FileHandler::cancel`](crate::FileHandler::cancel).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or returns garbage; the file is given up all the same.
    #[inline]
    pub fn cancel(mut self, file: BorrowedFd<'_>, host: Host<'_>) -> Result<(), Errno> {
        self.undo(self.handler.ops.cancel, file, host)
    }

    #[inline]
    fn undo(
        &mut self,
        callback: Option<ops::Undo>,
        file: BorrowedFd<'_>,
        host: Host<'_>,
    ) -> Result<(), Errno> {
        let Some(callback) = callback else {
            return Ok(());
        };
        let context = self.handler.ops.header.context;
        let private = self.state.room.as_ptr();
        // SAFETY: the context belongs to the callback by the invariant of HandlerOps; a borrowed
        // descriptor is open and the host borrowed until the call returns; by the invariant of
        // PreparedFile the state is this handler's, and `&mut` makes it ours alone.
        done(unsafe { callback(context, raw(file), &host.as_raw(), private, self.state.data) })
    }
}

impl SubsystemRef {
    /// Whose files need it.
    pub fn needed_by(&self) -> NeededBy {
        // By the invariant it was validated, so there is a list.
        self.ops.needed_by().unwrap_or(NeededBy::Every)
    }

    /// See [`Subsystem::prepare`](crate::Subsystem::prepare).
    ///
    /// # Errors
    ///
    /// The subsystem's; `EIO` if it panics or returns garbage, `ENOMEM` if there is no room for its
    /// private state.
    pub fn prepare(&self, host: Host<'_>) -> Result<PreparedSubsystem, Errno> {
        let SubsystemOps {
            header,
            prepare,
            drop_private,
            ..
        } = self.ops;
        let prepare = prepare.ok_or(Errno::EIO)?;
        // SAFETY: the context belongs to the callback by the invariant of SubsystemOps; the host is
        // borrowed until the call returns; the room is as large as the header asks for and more
        // aligned than it may ask for.
        let state = State::of(header, *drop_private, |room, data| unsafe {
            prepare(header.context, &host.as_raw(), room, data)
        })?;
        Ok(PreparedSubsystem {
            subsystem: *self,
            state,
        })
    }

    /// See [`Subsystem::retrieve`](crate::Subsystem::retrieve).
    ///
    /// # Errors
    ///
    /// The subsystem's; `EIO` if it panics or returns garbage.
    pub fn retrieve(&self, data: u64, host: Host<'_>) -> Result<(), Errno> {
        let retrieve = self.ops.retrieve.ok_or(Errno::EIO)?;
        // SAFETY: the context belongs to the callback by the invariant of SubsystemOps; the host is
        // borrowed until the call returns.
        done(unsafe { retrieve(self.ops.header.context, &host.as_raw(), data) })
    }

    /// See [`Subsystem::can_finish`](crate::Subsystem::can_finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the subsystem panics or answers neither yes nor no.
    pub fn can_finish(&self, data: u64, host: Host<'_>) -> Result<bool, Errno> {
        let Some(can_finish) = self.ops.can_finish else {
            return Ok(true);
        };
        // SAFETY: the context belongs to the callback by the invariant of SubsystemOps; the host is
        // borrowed until the call returns.
        answer(unsafe { can_finish(self.ops.header.context, &host.as_raw(), data) })
    }

    /// See [`Subsystem::finish`](crate::Subsystem::finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the subsystem panics or returns garbage; it is finished all the same.
    pub fn finish(&self, data: u64, retrieved: bool, host: Host<'_>) -> Result<(), Errno> {
        let finish = self.ops.finish.ok_or(Errno::EIO)?;
        let retrieved = i32::from(retrieved);
        // SAFETY: the context belongs to the callback by the invariant of SubsystemOps; the host is
        // borrowed until the call returns.
        done(unsafe { finish(self.ops.header.context, &host.as_raw(), data, retrieved) })
    }
}

impl PreparedSubsystem {
    /// Who prepared it.
    pub const fn subsystem(&self) -> &SubsystemRef {
        &self.subsystem
    }

    /// The `u64` that crosses.
    pub const fn data(&self) -> u64 {
        self.state.data
    }

    /// See [`Subsystem::freeze`](crate::Subsystem::freeze).
    ///
    /// # Errors
    ///
    /// The subsystem's; `EIO` if it panics or returns garbage. The `u64` is unchanged then.
    pub fn freeze(&mut self, host: Host<'_>) -> Result<(), Errno> {
        let SubsystemOps { header, freeze, .. } = self.subsystem.ops;
        let Some(freeze) = freeze else {
            return Ok(());
        };
        // SAFETY: the context belongs to the callback by the invariant of SubsystemOps; the host is
        // borrowed until the call returns; by the invariant of PreparedSubsystem the state is this
        // subsystem's, and `&mut` makes it ours alone.
        self.state.freeze(|private, data| unsafe {
            freeze(header.context, &host.as_raw(), private, data)
        })
    }

    /// See [`Subsystem::unfreeze`](crate::Subsystem::unfreeze).
    ///
    /// # Errors
    ///
    /// `EIO` if the subsystem panics or returns garbage.
    pub fn unfreeze(&mut self, host: Host<'_>) -> Result<(), Errno> {
        self.undo(self.subsystem.ops.unfreeze, host)
    }

    /// Gives the update up and drops the private state; see
    /// [`Subsystem::cancel`](crate::Subsystem::cancel).
    ///
    /// # Errors
    ///
    /// `EIO` if the subsystem panics or returns garbage; it is given up all the same.
    pub fn cancel(mut self, host: Host<'_>) -> Result<(), Errno> {
        self.undo(self.subsystem.ops.cancel, host)
    }

    fn undo(&mut self, callback: Option<ops::SubsystemUndo>, host: Host<'_>) -> Result<(), Errno> {
        let Some(callback) = callback else {
            return Ok(());
        };
        let context = self.subsystem.ops.header.context;
        let private = self.state.room.as_ptr();
        // SAFETY: the context belongs to the callback by the invariant of SubsystemOps; the host is
        // borrowed until the call returns; by the invariant of PreparedSubsystem the state is this
        // subsystem's, and `&mut` makes it ours alone.
        done(unsafe { callback(context, &host.as_raw(), private, self.state.data) })
    }
}

#[cfg(test)]
mod tests;
