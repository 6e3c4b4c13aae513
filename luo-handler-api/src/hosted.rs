// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! For hosts with std: calls a handler through its C form, without any `unsafe` of the host's own.

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr::NonNull;
use std::alloc::{alloc, dealloc};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{
    host::RawHost, ops::PRIVATE_ALIGN_MAX, Compatible, Errno, FileRef, HandlerOps, Host, Hosts,
    InvalidHandler, OwnedFile, RawFile, Retrieved, NO_FILE,
};

/// A handler, or a subsystem, that was looked at and found usable.
///
/// # Invariants
///
/// [`HandlerOps::validate`] accepted `ops`: the required callbacks are there.
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    ops: &'static HandlerOps,
}

/// A file that was prepared: its `u64` and its private state, which is dropped with this value.
///
/// # Invariants
///
/// `room` is as large as the handler asks for, and holds what its `prepare` put there.
#[derive(Debug)]
pub struct PreparedFile {
    handler: Handler,
    data: u64,
    room: Room,
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

// SAFETY: FileHandler asks `Private: Send`, and the room is reached through `&mut` alone.
unsafe impl Send for Room {}
// SAFETY: as above.
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
            // SAFETY: the layout has a size.
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

#[inline]
fn raw(file: Option<BorrowedFd<'_>>) -> RawFile {
    file.map_or(NO_FILE, |fd| FileRef::from(fd).as_raw())
}

/// Success is 0; anything else that is no error number is garbage.
#[inline]
fn done(status: i32) -> Result<(), Errno> {
    match status {
        0 => Ok(()),
        _ => Err(failure(status)),
    }
}

/// Yes is 1, no is 0; anything else that is no error number is garbage.
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

impl Handler {
    /// Looks at `ops` and takes it if it is usable.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`], which names the handler and what is wrong with it.
    pub fn new(ops: &'static HandlerOps) -> Result<Self, InvalidHandler> {
        ops.validate()?;
        Ok(Self { ops })
    }

    /// The name of its format.
    pub const fn compatible(&self) -> &Compatible {
        // SAFETY: by the invariant the bytes are a name, and Compatible is transparent over them.
        unsafe { &*core::ptr::from_ref(&self.ops.compatible).cast() }
    }

    /// The crate it comes from.
    pub fn origin(&self) -> &'static str {
        self.ops.origin()
    }

    /// Version of the C form it was built for.
    pub const fn abi_version(&self) -> u32 {
        self.ops.abi_version
    }

    /// The hosts that it was written for.
    pub const fn hosts(&self) -> Hosts {
        match self.ops.hosts() {
            Some(hosts) => hosts,
            // By the invariant there are some.
            None => Hosts::Hosted,
        }
    }

    /// See [`FileHandler::can_preserve`](crate::FileHandler::can_preserve).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or answers neither yes nor no.
    #[inline]
    pub fn can_preserve(&self, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        let can_preserve = self.ops.can_preserve.ok_or(Errno::EIO)?;
        // SAFETY: the ops come with their handler, and the file is open during the call.
        answer(unsafe { can_preserve(self.ops.handler, raw(Some(file))) })
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
        // SAFETY: as above; `id` outlives the call.
        let known = answer(unsafe { file_id(self.ops.handler, raw(Some(file)), &mut id) })?;
        Ok(known.then_some(id))
    }

    /// See [`FileHandler::prepare`](crate::FileHandler::prepare); no file for a subsystem.
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it panics or returns garbage, `ENOMEM` if there is no room for its
    /// private state.
    #[inline]
    pub fn prepare(
        &self,
        file: Option<BorrowedFd<'_>>,
        host: Host<'_>,
    ) -> Result<PreparedFile, Errno> {
        let prepare = self.ops.prepare.ok_or(Errno::EIO)?;
        let mut room = Room::of(self.ops.private_size as usize)?;
        let mut data = 0;
        // SAFETY: the ops come with their handler; the file is open and the host valid during the
        // call; the room is as large and aligned as the ops ask for; `data` outlives the call.
        let status = unsafe {
            prepare(
                self.ops.handler,
                raw(file),
                &host.as_raw(),
                room.as_ptr(),
                &mut data,
            )
        };
        done(status)?;
        Ok(PreparedFile {
            handler: *self,
            data,
            room,
        })
    }

    /// Takes a subsystem's state back; see [`Subsystem::retrieve`](crate::Subsystem::retrieve).
    ///
    /// # Errors
    ///
    /// The subsystem's; `EIO` if it panics or returns garbage.
    pub fn retrieve_subsystem(&self, data: u64, host: Host<'_>) -> Result<(), Errno> {
        self.retrieve_raw(data, host).map(|_| ())
    }

    /// See [`FileHandler::retrieve`](crate::FileHandler::retrieve).
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it panics or returns garbage, `EBADF` if what it yields is no open
    /// file.
    pub fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFd, Errno> {
        let raw = self.retrieve_raw(data, host)?;
        let fd = i32::try_from(raw)
            .ok()
            .filter(|&fd| fd >= 0)
            .ok_or(Errno::EBADF)?;
        // SAFETY: F_GETFD only looks at the descriptor, whatever the number is.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(Errno::EBADF);
        }
        // SAFETY: the handler gave the file away, and it is open.
        Ok(unsafe { OwnedFile::from_raw(raw) }.into())
    }

    fn retrieve_raw(&self, data: u64, host: Host<'_>) -> Result<RawFile, Errno> {
        let retrieve = self.ops.retrieve.ok_or(Errno::EIO)?;
        let mut file = NO_FILE;
        // SAFETY: the ops come with their handler; the host is valid during the call, which `file`
        // outlives.
        done(unsafe { retrieve(self.ops.handler, &host.as_raw(), data, &mut file) })?;
        Ok(file)
    }

    /// See [`FileHandler::can_finish`](crate::FileHandler::can_finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or answers neither yes nor no.
    pub fn can_finish(&self, data: u64, end: Reclaimed<'_>, host: Host<'_>) -> Result<bool, Errno> {
        let Some(can_finish) = self.ops.can_finish else {
            return Ok(true);
        };
        let (file, retrieved) = end.raw();
        // SAFETY: the ops come with their handler; file and host are valid during the call.
        answer(unsafe { can_finish(self.ops.handler, &host.as_raw(), data, file, retrieved) })
    }

    /// See [`FileHandler::finish`](crate::FileHandler::finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or returns garbage; the file is finished all the same.
    pub fn finish(&self, data: u64, end: Reclaimed<'_>, host: Host<'_>) -> Result<(), Errno> {
        let finish = self.ops.finish.ok_or(Errno::EIO)?;
        let (file, retrieved) = end.raw();
        // SAFETY: as above.
        done(unsafe { finish(self.ops.handler, &host.as_raw(), data, file, retrieved) })
    }
}

/// What became of a participant after the jump.
#[derive(Clone, Copy, Debug)]
pub enum Reclaimed<'a> {
    /// Nobody asked for it.
    No,
    /// It was asked for, and could not be rebuilt.
    Failed(Errno),
    /// This file was retrieved.
    File(BorrowedFd<'a>),
    /// The subsystem took its state back.
    Subsystem,
}

impl Reclaimed<'_> {
    fn raw(&self) -> (RawFile, i32) {
        match self {
            Self::No => Retrieved::NotAsked.to_raw(),
            Self::Failed(errno) => Retrieved::Failed(*errno).to_raw(),
            Self::File(fd) => Retrieved::File(fd.as_fd().into()).to_raw(),
            Self::Subsystem => (NO_FILE, 1),
        }
    }
}

impl PreparedFile {
    /// Who prepared it.
    pub const fn handler(&self) -> &Handler {
        &self.handler
    }

    /// The `u64` that crosses.
    pub const fn data(&self) -> u64 {
        self.data
    }

    /// See [`FileHandler::freeze`](crate::FileHandler::freeze).
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it panics or returns garbage. The `u64` is unchanged then.
    #[inline]
    pub fn freeze(&mut self, file: Option<BorrowedFd<'_>>, host: Host<'_>) -> Result<(), Errno> {
        let Some(freeze) = self.handler.ops.freeze else {
            return Ok(());
        };
        let mut data = self.data;
        // SAFETY: the ops come with their handler; file and host are valid during the call; the
        // private state is ours alone and was filled by prepare.
        done(unsafe {
            freeze(
                self.handler.ops.handler,
                raw(file),
                &host.as_raw(),
                self.room.as_ptr(),
                &mut data,
            )
        })?;
        self.data = data;
        Ok(())
    }

    /// See [`FileHandler::unfreeze`](crate::FileHandler::unfreeze).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or returns garbage.
    pub fn unfreeze(&mut self, file: Option<BorrowedFd<'_>>, host: Host<'_>) -> Result<(), Errno> {
        self.undo(self.handler.ops.unfreeze, file, host)
    }

    /// Gives the file up and drops its private state; see
    /// [`FileHandler::cancel`](crate::FileHandler::cancel).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler panics or returns garbage; the file is given up all the same.
    #[inline]
    pub fn cancel(mut self, file: Option<BorrowedFd<'_>>, host: Host<'_>) -> Result<(), Errno> {
        self.undo(self.handler.ops.cancel, file, host)
    }

    #[inline]
    fn undo(
        &mut self,
        callback: Option<
            unsafe extern "C" fn(*const c_void, RawFile, *const RawHost, *mut c_void, u64) -> i32,
        >,
        file: Option<BorrowedFd<'_>>,
        host: Host<'_>,
    ) -> Result<(), Errno> {
        let Some(callback) = callback else {
            return Ok(());
        };
        // SAFETY: as in `freeze`.
        done(unsafe {
            callback(
                self.handler.ops.handler,
                raw(file),
                &host.as_raw(),
                self.room.as_ptr(),
                self.data,
            )
        })
    }
}

impl Drop for PreparedFile {
    #[inline]
    fn drop(&mut self) {
        if let Some(drop_private) = self.handler.ops.drop_private {
            // SAFETY: prepare filled the room, and this is its only end. A panic in the drop was
            // caught and printed; there is nobody to hand its status to.
            unsafe { drop_private(self.room.as_ptr()) };
        }
    }
}

#[cfg(test)]
mod tests;
