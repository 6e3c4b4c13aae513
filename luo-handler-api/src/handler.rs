// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the author of a handler implements.

use crate::{Compatible, Errno, FileRef, Host, OwnedFile, RawFile, NO_FILE};

/// Keeps files of one type alive across a live update.
///
/// Mirrors `struct liveupdate_filesystem` of the LUO RFC (v2, patch 08/16) and
/// `struct liveupdate_file_ops` of mainline's `include/linux/liveupdate.h`. The handler value itself
/// is the context of every call; what belongs to one file lives in [`Private`](Self::Private).
///
/// The host calls in the order of the methods below, and never two at once for the same file. Where an
/// error number does not say enough, [`Host::refuse`] says why.
pub trait FileHandler: Sync + 'static {
    /// Names the serialized format; unique among all handlers of a host.
    const COMPATIBLE: Compatible;

    /// The runtime state of one prepared file. It is never serialized. The record of the file owns
    /// it: [`prepare`](Self::prepare) creates it, the others borrow it, and it is dropped exactly
    /// once, after [`cancel`](Self::cancel) or when the old side ends. At most 16 bytes aligned.
    type Private: Send + 'static;

    /// The hosts that the handler was written for.
    const HOSTS: Hosts = Hosts::Hosted;

    /// Whether this handler can keep `file`. Cheap and without side effects: it is asked of every
    /// file that is offered, and the first handler to say yes takes the file.
    fn can_preserve(&self, file: FileRef<'_>) -> bool;

    /// Under which identity a second offer of the same file is refused (`EBUSY`). `None` leaves it
    /// to the host: in a process the inode, or of a device the open file; in the kernel the open file.
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
    /// What became of it.
    pub retrieved: Retrieved<'a>,
    /// The host's services.
    pub host: Host<'a>,
}

/// What became of a file after the jump: mainline's `retrieve_status`.
#[derive(Clone, Copy, Debug)]
pub enum Retrieved<'a> {
    /// Nobody asked for it.
    NotAsked,
    /// It was asked for, and could not be rebuilt.
    Failed(Errno),
    /// It was reclaimed.
    File(FileRef<'a>),
}

impl<'a> Retrieved<'a> {
    /// The file, if it was reclaimed.
    pub const fn file(self) -> Option<FileRef<'a>> {
        match self {
            Self::File(file) => Some(file),
            _ => None,
        }
    }

    /// Whether somebody asked for it, with whatever success.
    pub const fn was_asked(self) -> bool {
        !matches!(self, Self::NotAsked)
    }

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
    /// With a status above 0, `file` is what retrieve yielded, still open for `'a`.
    pub const unsafe fn from_raw(file: RawFile, status: i32) -> Self {
        match Errno::from_status(status) {
            Ok(0) => Self::NotAsked,
            // SAFETY: the caller says so.
            Ok(_) => Self::File(unsafe { FileRef::from_raw(file) }),
            Err(errno) => Self::Failed(errno),
        }
    }
}

/// `None` for a file that nobody asked for.
impl<'a> From<Option<FileRef<'a>>> for Retrieved<'a> {
    fn from(file: Option<FileRef<'a>>) -> Self {
        file.map_or(Self::NotAsked, Self::File)
    }
}

/// The kinds of host that a handler can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hosts {
    /// An ordinary process.
    Hosted = 1,
    /// The kernel.
    Kernel = 2,
    /// Both, from one source.
    Both = 3,
}

impl Hosts {
    /// From the C form; `None` for a number that is none.
    pub(crate) const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Hosted),
            2 => Some(Self::Kernel),
            3 => Some(Self::Both),
            _ => None,
        }
    }

    /// Their names: `hosted`, `kernel`.
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Hosted => &["hosted"],
            Self::Kernel => &["kernel"],
            Self::Both => &["hosted", "kernel"],
        }
    }
}
