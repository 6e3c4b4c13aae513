// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the author of a handler implements: [`FileHandler`], and the values its methods work with.

use crate::{Compatible, Errno, FileRef, Host, OwnedFile, Pairs};

/// Preserves files of one type across a live update.
///
/// It has two models, and each item below names its word in both: `struct liveupdate_filesystem` of
/// the LUO RFC (v2, patch 08/16 "luo_files: add infrastructure for FDs"), called *RFC* here, and
/// `struct liveupdate_file_ops` of `include/linux/liveupdate.h`, called *mainline*. The handler
/// value itself is the context of every call, where the RFC has an opaque `arg`; what belongs to
/// one file lives in [`Private`](Self::Private).
///
/// The host calls in the order of the methods below, and never two at once for the same file. Times
/// are in nanoseconds and sizes in bytes wherever a host reports them; the `u64` that crosses has
/// no unit but that of the handler. An error is an [`Errno`] with the kernel's meaning; where the
/// number is not enough, [`Host::refuse`] adds a reason.
pub trait FileHandler: Sync + 'static {
    /// Names the serialized format; unique among all handlers of a host.
    ///
    /// RFC `compatible`; mainline `compatible[48]`, so at most 47 bytes.
    const COMPATIBLE: Compatible;

    /// The runtime state of one prepared file. It is never serialized. The record of the file owns
    /// it: [`prepare`](Self::prepare) creates it, the others borrow it, and it is dropped exactly
    /// once, after [`cancel`](Self::cancel) or when the old side ends. At most 16 bytes aligned.
    ///
    /// Not in the RFC, whose review asked for it; mainline `private_data`.
    type Private: Send + 'static;

    /// The hosts that the handler was written for; others refuse it.
    ///
    /// Neither in the RFC nor in mainline, which have one host.
    const HOSTS: Hosts = Hosts::Hosted;

    /// What [`retrieve`](Self::retrieve) can read, beyond what [`COMPATIBLE`](Self::COMPATIBLE)
    /// promises: a word for each layout of the record and each kind of file, of at most 15 bytes.
    /// [`describe`](Self::describe) reports the words that one file takes as `needs[]`. So
    /// `luo check` knows before a jump whether another build of the handler can read it.
    ///
    /// Neither in the RFC nor in mainline.
    const READS: &'static [&'static str] = &[];

    /// Looks whether the handler can work here at all, before it is registered. May be called
    /// again, each time something registers it. The host offers nothing but [`Host::explain`].
    ///
    /// Neither in the RFC nor in mainline.
    ///
    /// # Errors
    ///
    /// Any; the handler is left out, and the reason is reported.
    fn init(&self, host: Host<'_>) -> Result<(), Errno> {
        let _ = host;
        Ok(())
    }

    /// Whether this handler can preserve `file`. Cheap and without side effects: it is asked of
    /// every file that is offered, and the first handler to answer yes takes the file.
    ///
    /// RFC and mainline `can_preserve`.
    fn can_preserve(&self, file: FileRef<'_>) -> bool;

    /// The identity under which a second offer of the same file is refused (`EBUSY`). `None` leaves
    /// it to the host: in a process that is the inode of a regular file and otherwise the open file
    /// (several eventfds share an inode), in the kernel always the open file.
    ///
    /// Not in the RFC; mainline `get_id`.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        let _ = file;
        None
    }

    /// Does the heavy work, while the workload is still running.
    ///
    /// RFC `prepare`; mainline `preserve`.
    ///
    /// # Errors
    ///
    /// Any; nothing of it is left then.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno>;

    /// Picks up what changed since prepare, now that the workload is stopped, and returns the `u64`
    /// that crosses. Costs what changed, not what is there: this is part of the downtime.
    ///
    /// RFC and mainline `freeze`.
    ///
    /// # Errors
    ///
    /// Any; the file is then as prepare left it.
    fn freeze(&self, file: Preserved<'_, Self::Private>) -> Result<u64, Errno> {
        Ok(file.data)
    }

    /// Undoes freeze, and only that: a later file failed to freeze, or the jump was aborted. The
    /// `u64` stays what freeze made it, as in mainline.
    ///
    /// Not in the RFC; mainline `unfreeze`.
    fn unfreeze(&self, file: Preserved<'_, Self::Private>) {
        let _ = file;
    }

    /// Undoes prepare: afterwards the file is as if it had never been offered.
    ///
    /// RFC `cancel`; mainline `unpreserve`.
    fn cancel(&self, file: Preserved<'_, Self::Private>);

    /// Rebuilds the file after the jump, from what comes from the previous side, which is not
    /// trusted.
    ///
    /// RFC and mainline `retrieve`.
    ///
    /// # Errors
    ///
    /// Any; the host remembers it and returns it to anyone who asks for the file again.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno>;

    /// Whether [`finish`](Self::finish) may come now; a `false` leaves the whole set unfinished.
    ///
    /// Not in the RFC; mainline `can_finish`.
    fn can_finish(&self, file: Crossed<'_>) -> bool {
        let _ = file;
        true
    }

    /// Releases what is left. If nobody retrieved the file, that is all that crossed for it.
    ///
    /// RFC `finish`, which gets whether the file was reclaimed; mainline `finish`, with
    /// `retrieve_status`.
    fn finish(&self, file: Crossed<'_>);

    /// Reports what `data` stands for, without taking anything: for `luo inspect` and other
    /// programs that do not know the handler. What crossed is not trusted here either.
    ///
    /// Neither in the RFC nor in mainline.
    ///
    /// # Errors
    ///
    /// What is wrong with the record; pairs that were reported before remain valid.
    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let _ = (data, host, pairs);
        Ok(())
    }
}

/// What [`FileHandler::prepare`] yields.
#[derive(Debug)]
pub struct Prepared<P> {
    /// What crosses: the handle of a record, most often.
    pub data: u64,
    /// What stays here.
    pub private: P,
}

/// A prepared file, on the old side of the jump.
#[derive(Debug)]
pub struct Preserved<'a, P> {
    /// The file.
    pub file: FileRef<'a>,
    /// What prepare, or the last freeze, returned.
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

    /// Whether somebody asked for it, successfully or not.
    pub const fn was_asked(self) -> bool {
        !matches!(self, Self::NotAsked)
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
    /// From the C form; `None` for any other number.
    #[cfg(not(luo_kernel))]
    pub(crate) const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Hosted),
            2 => Some(Self::Kernel),
            3 => Some(Self::Both),
            _ => None,
        }
    }

    /// Whether `host`, a single one, is among them.
    pub const fn include(self, host: Self) -> bool {
        self as u32 & host as u32 == host as u32
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
