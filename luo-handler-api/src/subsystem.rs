// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Participants of a live update that are not files.

use crate::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, OwnedFile, Prepared, Preserved,
};

/// A participant of its own: one `u64`, one private state, no file.
///
/// The sibling of [`FileHandler`], with the same rules; mirrors `struct liveupdate_subsystem_ops`
/// of the LUO RFC (v2, patch 07/16).
pub trait Subsystem: Sync + 'static {
    /// Names the serialized format; unique among all subsystems of a host.
    const COMPATIBLE: Compatible;

    /// The runtime state between prepare and cancel or the jump; see [`FileHandler::Private`].
    type Private: Send + 'static;

    /// Saves the state while the workload is still running.
    ///
    /// # Errors
    ///
    /// Any; nothing is left behind then.
    fn prepare(&self, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno>;

    /// Picks up what changed since prepare and yields the `u64` that crosses.
    ///
    /// # Errors
    ///
    /// Any; the subsystem is then as prepare left it.
    fn freeze(&self, data: u64, private: &mut Self::Private, host: Host<'_>) -> Result<u64, Errno> {
        let _ = (private, host);
        Ok(data)
    }

    /// Undoes freeze, and only that.
    fn unfreeze(&self, data: u64, private: &mut Self::Private, host: Host<'_>) {
        let _ = (data, private, host);
    }

    /// Undoes prepare.
    fn cancel(&self, data: u64, private: &mut Self::Private, host: Host<'_>);

    /// Takes the state back after the jump; the RFC calls it `boot`.
    ///
    /// # Errors
    ///
    /// Any; it is kept.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<(), Errno>;

    /// Whether [`finish`](Self::finish) may come now.
    fn can_finish(&self, data: u64, host: Host<'_>) -> bool {
        let _ = (data, host);
        true
    }

    /// Releases what is left; `retrieved` tells whether the state was taken back.
    fn finish(&self, data: u64, retrieved: bool, host: Host<'_>);
}

/// A subsystem seen as the handler of no file, so that both have one C form and one set of rules.
#[repr(transparent)]
pub(crate) struct WithoutFile<S>(S);

impl<S> WithoutFile<S> {
    pub(crate) const fn wrap(subsystem: &'static S) -> &'static Self {
        // SAFETY: the type is transparent over S.
        unsafe { &*core::ptr::from_ref(subsystem).cast() }
    }
}

impl<S: Subsystem> FileHandler for WithoutFile<S> {
    const COMPATIBLE: Compatible = S::COMPATIBLE;
    type Private = S::Private;

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        false
    }

    fn prepare(&self, _: FileRef<'_>, host: Host<'_>) -> Result<Prepared<S::Private>, Errno> {
        self.0.prepare(host)
    }

    fn freeze(&self, p: Preserved<'_, S::Private>) -> Result<u64, Errno> {
        self.0.freeze(p.data, p.private, p.host)
    }

    fn unfreeze(&self, p: Preserved<'_, S::Private>) {
        self.0.unfreeze(p.data, p.private, p.host);
    }

    fn cancel(&self, p: Preserved<'_, S::Private>) {
        self.0.cancel(p.data, p.private, p.host);
    }

    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        self.0.retrieve(data, host).map(|()| OwnedFile::NONE)
    }

    fn can_finish(&self, c: Crossed<'_>) -> bool {
        self.0.can_finish(c.data, c.host)
    }

    fn finish(&self, c: Crossed<'_>) {
        self.0.finish(c.data, c.retrieved.file().is_some(), c.host);
    }
}
