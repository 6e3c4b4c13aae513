// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the author of a handler implements.

use crate::{Compatible, Errno, FileRef, Host, OwnedFile};

/// Keeps files of one type alive across a live update.
///
/// Mirrors `struct liveupdate_filesystem` of the LUO RFC (v2, patch 08/16) and
/// `struct liveupdate_file_ops` of mainline's `include/linux/liveupdate.h`. The handler value itself
/// is the context of every call; what belongs to one file lives in [`Private`](Self::Private).
///
/// The host calls in the order of the methods below, and never two at once for the same file.
pub trait FileHandler: Sync + 'static {
    /// Names the serialized format; unique among all handlers of a host.
    const COMPATIBLE: Compatible;

    /// The runtime state of one prepared file. It is never serialized. The record of the file owns
    /// it: [`prepare`](Self::prepare) creates it, the others borrow it, and it is dropped exactly
    /// once, after [`cancel`](Self::cancel) or when the old side ends. At most 16 bytes aligned.
    type Private: Send + 'static;

    /// Whether this handler can keep `file`. Cheap and without side effects: it is asked of every
    /// file that is offered, and the first handler to say yes takes the file.
    fn can_preserve(&self, file: FileRef<'_>) -> bool;

    /// Under which identity a second offer of the same file is refused (`EBUSY`). `None` leaves it
    /// to the host: the inode in a process, the `struct file` in the kernel.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        let _ = file;
        None
    }

    /// Does the heavy work, while the workload is still running.
    ///
    /// # Errors
    ///
    /// Any; nothing is left behind then.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno>;

    /// Picks up what changed since prepare, now that the workload stands still, and yields the
    /// `u64` that crosses.
    ///
    /// # Errors
    ///
    /// Any; the file is then as prepare left it.
    fn freeze(&self, file: Preserved<'_, Self::Private>) -> Result<u64, Errno> {
        Ok(file.data)
    }

    /// Undoes freeze, and only that: a later file failed to freeze, or the jump was given up. The
    /// `u64` stays what freeze made it, as in mainline.
    fn unfreeze(&self, file: Preserved<'_, Self::Private>) {
        let _ = file;
    }

    /// Undoes prepare: afterwards the file is as if it had never been offered.
    fn cancel(&self, file: Preserved<'_, Self::Private>);

    /// Rebuilds the file after the jump, from what comes from the previous side: trust none of it.
    ///
    /// # Errors
    ///
    /// Any; it is kept and told again to whoever asks for the file again.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno>;

    /// Whether [`finish`](Self::finish) may come now; a `false` keeps the whole set unfinished.
    fn can_finish(&self, file: Crossed<'_>) -> bool {
        let _ = file;
        true
    }

    /// Releases what is left. Where nobody retrieved the file, that is all that crossed for it.
    fn finish(&self, file: Crossed<'_>);
}

/// What [`FileHandler::prepare`] yields.
#[derive(Debug)]
pub struct Prepared<P> {
    /// What crosses: the handle of a record, most often.
    pub data: u64,
    /// What stays.
    pub private: P,
}

/// A prepared file, on the old side of the jump.
#[derive(Debug)]
pub struct Preserved<'a, P> {
    /// The file.
    pub file: FileRef<'a>,
    /// What prepare, or the last freeze, said.
    pub data: u64,
    /// The file's own state.
    pub private: &'a mut P,
    /// The host's services.
    pub host: Host<'a>,
}

/// A file on the new side of the jump.
#[derive(Clone, Copy, Debug)]
pub struct Crossed<'a> {
    /// What crossed.
    pub data: u64,
    /// The file, if it was reclaimed (retrieved); `None` if nobody asked for it or it failed.
    pub retrieved: Option<FileRef<'a>>,
    /// The host's services.
    pub host: Host<'a>,
}
