// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! For a host in the kernel: calls a handler through its C form. The sibling of `hosted`, for files
//! that are a `struct file` and private state that lies where the host likes.

use core::ffi::c_void;

use crate::{
    Compatible, Errno, FileRef, HandlerOps, Host, InvalidHandler, OwnedFile, Retrieved, NO_FILE,
};

/// A handler that was looked at and found usable.
///
/// # Invariants
///
/// [`HandlerOps::validate`] accepted `ops`.
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    ops: &'static HandlerOps,
    compatible: Compatible,
}

/// A prepared file and the room that its handler's private state lies in.
///
/// # Invariants
///
/// [`Handler::prepare`] filled `private`, and nobody else uses it.
#[derive(Debug)]
pub struct PreparedFile<'a> {
    file: FileRef<'a>,
    private: *mut c_void,
    host: Host<'a>,
}

impl<'a> PreparedFile<'a> {
    /// The file, with the room that [`Handler::prepare`] filled for it.
    ///
    /// # Safety
    ///
    /// `private` is what that call was given, its state was not dropped since, and nobody else uses
    /// it as long as the value lives.
    pub const unsafe fn new(file: FileRef<'a>, private: *mut c_void, host: Host<'a>) -> Self {
        Self {
            file,
            private,
            host,
        }
    }
}

/// Yes is 1, no is 0; anything else that is no error number is garbage.
fn answer(status: i32) -> Result<bool, Errno> {
    match Errno::from_status(status)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Errno::EIO),
    }
}

impl Handler {
    /// Looks at `ops` and takes it if it is usable.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`], which names the handler and what is wrong with it.
    pub fn new(ops: &'static HandlerOps) -> Result<Self, InvalidHandler> {
        let compatible = ops.validate()?;
        Ok(Self { ops, compatible })
    }

    /// The name of its format.
    pub const fn compatible(&self) -> &Compatible {
        &self.compatible
    }

    /// The crate it comes from.
    pub fn origin(&self) -> &'static str {
        self.ops.origin()
    }

    /// Bytes of its private state; 16 bytes aligned is always aligned enough.
    pub const fn private_size(&self) -> usize {
        self.ops.private_size as usize
    }

    /// See [`FileHandler::can_preserve`](crate::FileHandler::can_preserve).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler answers neither yes nor no.
    pub fn can_preserve(&self, file: FileRef<'_>) -> Result<bool, Errno> {
        let can_preserve = self.ops.can_preserve.ok_or(Errno::EIO)?;
        // SAFETY: the ops come with their handler, and the file is open during the call.
        answer(unsafe { can_preserve(self.ops.handler, file.as_raw()) })
    }

    /// See [`FileHandler::file_id`](crate::FileHandler::file_id).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler answers neither yes nor no.
    pub fn file_id(&self, file: FileRef<'_>) -> Result<Option<u64>, Errno> {
        let Some(file_id) = self.ops.file_id else {
            return Ok(None);
        };
        let mut id = 0;
        // SAFETY: as above; `id` outlives the call.
        let known = answer(unsafe { file_id(self.ops.handler, file.as_raw(), &mut id) })?;
        Ok(known.then_some(id))
    }

    /// See [`FileHandler::prepare`](crate::FileHandler::prepare); fills `private` if it succeeds.
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it returns garbage.
    ///
    /// # Safety
    ///
    /// `private` is valid for writes of [`private_size`](Self::private_size) bytes and 16 bytes
    /// aligned.
    pub unsafe fn prepare(
        &self,
        file: FileRef<'_>,
        private: *mut c_void,
        host: Host<'_>,
    ) -> Result<u64, Errno> {
        let prepare = self.ops.prepare.ok_or(Errno::EIO)?;
        let mut data = 0;
        // SAFETY: the ops come with their handler; file and host are valid during the call, `data`
        // outlives it, and the caller vouches for `private`.
        Errno::check(unsafe {
            prepare(
                self.ops.handler,
                file.as_raw(),
                &host.as_raw(),
                private,
                &mut data,
            )
        })?;
        Ok(data)
    }

    /// See [`FileHandler::freeze`](crate::FileHandler::freeze); yields the `u64` that crosses.
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it returns garbage.
    ///
    /// # Safety
    ///
    /// This handler prepared the file.
    pub unsafe fn freeze(&self, prepared: PreparedFile<'_>, data: u64) -> Result<u64, Errno> {
        let Some(freeze) = self.ops.freeze else {
            return Ok(data);
        };
        let mut frozen = data;
        // SAFETY: the ops come with their handler; file and host are valid during the call, which
        // `frozen` outlives; the private state is this handler's, as the caller says.
        Errno::check(unsafe {
            freeze(
                self.ops.handler,
                prepared.file.as_raw(),
                &prepared.host.as_raw(),
                prepared.private,
                &mut frozen,
            )
        })?;
        Ok(frozen)
    }

    /// See [`FileHandler::unfreeze`](crate::FileHandler::unfreeze).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler returns garbage.
    ///
    /// # Safety
    ///
    /// As [`freeze`](Self::freeze).
    pub unsafe fn unfreeze(&self, prepared: PreparedFile<'_>, data: u64) -> Result<(), Errno> {
        let Some(unfreeze) = self.ops.unfreeze else {
            return Ok(());
        };
        // SAFETY: as in `freeze`.
        Errno::check(unsafe {
            unfreeze(
                self.ops.handler,
                prepared.file.as_raw(),
                &prepared.host.as_raw(),
                prepared.private,
                data,
            )
        })
    }

    /// See [`FileHandler::cancel`](crate::FileHandler::cancel). The private state is dropped; its
    /// room is the caller's again.
    ///
    /// # Errors
    ///
    /// `EIO` if the handler returns garbage; the file is given up all the same.
    ///
    /// # Safety
    ///
    /// As [`freeze`](Self::freeze).
    pub unsafe fn cancel(&self, prepared: PreparedFile<'_>, data: u64) -> Result<(), Errno> {
        let cancel = self.ops.cancel.ok_or(Errno::EIO)?;
        // SAFETY: as in `freeze`.
        let cancelled = Errno::check(unsafe {
            cancel(
                self.ops.handler,
                prepared.file.as_raw(),
                &prepared.host.as_raw(),
                prepared.private,
                data,
            )
        });
        if let Some(drop_private) = self.ops.drop_private {
            // SAFETY: the state was filled by prepare, and the value that owned it ends here.
            unsafe { drop_private(prepared.private) };
        }
        cancelled
    }

    /// See [`FileHandler::retrieve`](crate::FileHandler::retrieve).
    ///
    /// # Errors
    ///
    /// The handler's; `EIO` if it returns garbage, `EBADF` if what it yields is no file.
    pub fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let retrieve = self.ops.retrieve.ok_or(Errno::EIO)?;
        let mut file = NO_FILE;
        // SAFETY: the ops come with their handler; the host is valid during the call, which `file`
        // outlives.
        Errno::check(unsafe { retrieve(self.ops.handler, &host.as_raw(), data, &mut file) })?;
        if file == NO_FILE || file == 0 {
            return Err(Errno::EBADF);
        }
        // SAFETY: the handler gave the file away.
        Ok(unsafe { OwnedFile::from_raw(file) })
    }

    /// See [`FileHandler::can_finish`](crate::FileHandler::can_finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler answers neither yes nor no.
    pub fn can_finish(
        &self,
        data: u64,
        retrieved: Retrieved<'_>,
        host: Host<'_>,
    ) -> Result<bool, Errno> {
        let Some(can_finish) = self.ops.can_finish else {
            return Ok(true);
        };
        let (file, retrieved) = retrieved.to_raw();
        // SAFETY: the ops come with their handler; file and host are valid during the call.
        answer(unsafe { can_finish(self.ops.handler, &host.as_raw(), data, file, retrieved) })
    }

    /// See [`FileHandler::finish`](crate::FileHandler::finish).
    ///
    /// # Errors
    ///
    /// `EIO` if the handler returns garbage; the file is finished all the same.
    pub fn finish(&self, data: u64, retrieved: Retrieved<'_>, host: Host<'_>) -> Result<(), Errno> {
        let finish = self.ops.finish.ok_or(Errno::EIO)?;
        let (file, retrieved) = retrieved.to_raw();
        // SAFETY: as above.
        Errno::check(unsafe { finish(self.ops.handler, &host.as_raw(), data, file, retrieved) })
    }
}
