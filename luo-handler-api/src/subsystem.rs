// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Participants of a live update that are not files.

use crate::{Compatible, Errno, Host, Hosts, Pairs, Prepared};

/// State that several files share: one `u64`, one private state, no file.
///
/// It has two models, and each item below names its word in both: `struct liveupdate_subsystem_ops`
/// of the LUO RFC (v2, patch 07/16), called *RFC* here, and file-lifecycle-bound state, `struct
/// liveupdate_flb_ops` of `include/linux/liveupdate.h`, called *mainline*. A subsystem is preserved
/// with the first file that needs it and finished with the last; [`NEEDED_BY`](Self::NEEDED_BY)
/// names the handlers of those files.
///
/// The host calls in the order of the methods below, and never two at once.
pub trait Subsystem: Sync + 'static {
    /// Names the serialized format; unique among all subsystems of a host.
    ///
    /// RFC `name`; mainline `compatible[48]`.
    const COMPATIBLE: Compatible;

    /// The runtime state between prepare and cancel or the jump; see
    /// [`FileHandler::Private`](crate::FileHandler::Private).
    ///
    /// Not in the RFC; mainline `obj`.
    type Private: Send + 'static;

    /// The hosts that the subsystem was written for; others refuse it.
    const HOSTS: Hosts = Hosts::Hosted;

    /// Whose files bring the subsystem along.
    ///
    /// Not in the RFC, where a subsystem takes part in every update; in mainline, one
    /// `liveupdate_register_flb()` for each handler.
    const NEEDED_BY: NeededBy = NeededBy::Every;

    /// Looks whether the subsystem can work here at all, as
    /// [`FileHandler::init`](crate::FileHandler::init) does for a handler.
    ///
    /// # Errors
    ///
    /// Any; the subsystem is left out, and the reason is reported.
    fn init(&self, host: Host<'_>) -> Result<(), Errno> {
        let _ = host;
        Ok(())
    }

    /// Saves the state while the workload is still running.
    ///
    /// RFC `prepare`; mainline `preserve`, which comes before the first file's own.
    ///
    /// # Errors
    ///
    /// Any; nothing of it is left then.
    fn prepare(&self, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno>;

    /// Picks up what changed since prepare and returns the `u64` that crosses.
    ///
    /// RFC `freeze`; not in mainline. The trait therefore has it in a process only: a subsystem
    /// that implements it does not compile in the kernel, where nobody would call it.
    ///
    /// # Errors
    ///
    /// Any; the subsystem is then as prepare left it.
    #[cfg(not(luo_kernel))]
    fn freeze(&self, data: u64, private: &mut Self::Private, host: Host<'_>) -> Result<u64, Errno> {
        let _ = (private, host);
        Ok(data)
    }

    /// Undoes freeze, and only that. Neither in the RFC nor in mainline; in a process only.
    #[cfg(not(luo_kernel))]
    fn unfreeze(&self, data: u64, private: &mut Self::Private, host: Host<'_>) {
        let _ = (data, private, host);
    }

    /// Undoes prepare.
    ///
    /// RFC `cancel`; mainline `unpreserve`, which comes after the last file's own.
    fn cancel(&self, data: u64, private: &mut Self::Private, host: Host<'_>);

    /// Takes the state back after the jump, from what comes from the previous side, which is not
    /// trusted. Called once: in a process when somebody asks, in the kernel at boot, before any
    /// file is retrieved.
    ///
    /// RFC `boot`; mainline `retrieve`.
    ///
    /// # Errors
    ///
    /// Any; it is reported, and [`finish`](Self::finish) comes all the same.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<(), Errno>;

    /// Whether [`finish`](Self::finish) may come now.
    ///
    /// Neither in the RFC nor in mainline; in a process only.
    #[cfg(not(luo_kernel))]
    fn can_finish(&self, data: u64, host: Host<'_>) -> bool {
        let _ = (data, host);
        true
    }

    /// Releases what is left; `retrieved` is whether the state was taken back.
    ///
    /// RFC `finish`; mainline `finish`, after the last file's own.
    fn finish(&self, data: u64, retrieved: bool, host: Host<'_>);

    /// Reports what `data` stands for, as [`FileHandler::describe`](crate::FileHandler::describe)
    /// does.
    ///
    /// # Errors
    ///
    /// What is wrong with the record.
    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let _ = (data, host, pairs);
        Ok(())
    }
}

/// Whose files bring a subsystem along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeededBy {
    /// Those of every handler. In a process the subsystem takes part even without a file, as in the
    /// RFC; in the kernel nothing crosses without one.
    Every,
    /// Those of the handlers with these compatibles.
    Handlers(&'static [Compatible]),
}

impl NeededBy {
    /// Whether files of the handler called `compatible` need it.
    pub fn includes(self, compatible: &Compatible) -> bool {
        match self {
            Self::Every => true,
            Self::Handlers(handlers) => handlers.contains(compatible),
        }
    }
}
