// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The states of a live update: the RFC's `luo_files.c` and `luo_core.c` as a library.
//!
//! `Normal → Prepared → Frozen → (jump) → Updated → Normal`. Files are offered until
//! [`freeze`](Orchestrator::freeze), and leave by a [`Handover`] that a transport carries. On the
//! other side [`Orchestrator::arrived`] makes the `Updated` orchestrator, files are retrieved, and
//! [`finish`](Orchestrator::finish) ends it.
//!
//! A call that does not fit the state changes nothing. When a participant fails, those before it
//! are undone in reverse order, and the state is what it was before.
//!
//! # Files that cannot be retrieved
//!
//! A file whose handler failed or is missing is not lost. [`take_left`](Orchestrator::take_left)
//! takes it as a plain descriptor, before [`finish`](Orchestrator::finish) or after it.
//! [`pass_on`](Orchestrator::pass_on) hands everything that arrived to another program, such as the
//! version before. Only [`drop_left`](Orchestrator::drop_left) closes it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use luo_handler_api::{Compatible, Token};

use crate::devicetree::{self, BadEntry, SubsystemEntry};
use crate::error::{Error, Phase, State};
use crate::files::HeldFile;
use crate::handover::{Arrival, Complaints, FileStatus, Handover};
use crate::new_side::NewSide;
use crate::old_side::OldSide;
use crate::registry::Registry;

/// Keeps files alive across live updates. See the [module](self).
#[derive(Debug)]
pub struct Orchestrator {
    registry: Arc<Registry>,
    inner: RwLock<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    update_number: u64,
    old: OldSide,
    /// In `Updated` what crossed; after it what is left of that.
    new: Option<NewSide>,
}

impl Orchestrator {
    /// A host without an update under way.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self::with(registry, State::Normal, None)
    }

    /// The new side of a jump. What crossed is read by the first call that needs it, once.
    pub fn arrived(registry: Arc<Registry>, arrival: Arrival) -> Self {
        Self::with(registry, State::Updated, Some(NewSide::new(arrival)))
    }

    fn with(registry: Arc<Registry>, state: State, new: Option<NewSide>) -> Self {
        Self {
            registry,
            inner: RwLock::new(Inner {
                state,
                update_number: 0,
                old: OldSide::default(),
                new,
            }),
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.read().state
    }

    /// The handlers it works with.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Offers a file, under a token of the caller's choice; returns the handler that takes it. In
    /// `Prepared` the file is prepared as well.
    ///
    /// # Errors
    ///
    /// `EEXIST` if the token is in use, `EBADF` if the descriptor is not open, `ENOENT` if no
    /// handler takes the file, `EBUSY` if it was offered before, `EINVAL` in any state but `Normal`
    /// and `Prepared`; in `Prepared` also the handler's own.
    pub fn preserve(&self, token: Token, file: impl AsFd) -> Result<Compatible, Error> {
        let mut inner = self.write();
        let is_prepared = inner.expect_offers()?;
        let old = &mut inner.old;
        Ok(old.offer(&self.registry, token, file.as_fd(), is_prepared)?)
    }

    /// Takes an offer back; in `Prepared` the file is cancelled.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the token is not in use, `EINVAL` in any state but `Normal` and `Prepared`.
    pub fn unpreserve(&self, token: Token) -> Result<Complaints, Error> {
        let mut inner = self.write();
        inner.expect_offers()?;
        Ok(inner.old.withdraw(token)?)
    }

    /// Prepares every file in the order in which they were offered, then every subsystem.
    ///
    /// # Errors
    ///
    /// The first failure; those before it are cancelled, in reverse order. `EINVAL` in any state
    /// but `Normal`.
    pub fn prepare(&self) -> Result<(), Error> {
        let mut inner = self.write_in(Phase::Prepare, State::Normal)?;
        inner.old.prepare(&self.registry)?;
        inner.state = State::Prepared;
        Ok(())
    }

    /// Freezes every participant, in the order of prepare. The workload does not run from here on.
    ///
    /// # Errors
    ///
    /// The first failure; those before it are unfrozen, in reverse order, and all stay prepared.
    /// `EINVAL` in any state but `Prepared`.
    pub fn freeze(&self) -> Result<(), Error> {
        let mut inner = self.write_in(Phase::Freeze, State::Prepared)?;
        inner.old.freeze()?;
        inner.state = State::Frozen;
        Ok(())
    }

    /// Gives the jump up, but not the update: back from `Frozen` to `Prepared`.
    ///
    /// # Errors
    ///
    /// `EINVAL` in any state but `Frozen`.
    pub fn unfreeze(&self) -> Result<Complaints, Error> {
        let mut inner = self.write_in(Phase::Unfreeze, State::Frozen)?;
        let complaints = inner.old.unfreeze();
        inner.state = State::Prepared;
        Ok(complaints)
    }

    /// Gives the update up: back from `Prepared` or `Frozen` to `Normal`. The files stay offered.
    ///
    /// # Errors
    ///
    /// `EINVAL` in any other state.
    pub fn cancel(&self) -> Result<Complaints, Error> {
        let mut inner = self.write();
        match inner.state {
            State::Prepared | State::Frozen => Ok(inner.cancel()),
            state => Err(Error::State {
                phase: Phase::Cancel,
                state,
            }),
        }
    }

    /// What a transport carries over. The state stays `Frozen`: a jump that fails can be undone.
    ///
    /// # Errors
    ///
    /// `EINVAL` in any state but `Frozen`; otherwise those of `jump`, and `EFBIG` if there are too
    /// many files for a devicetree.
    pub fn handover<R, E: From<Error>>(
        &self,
        jump: impl FnOnce(Handover<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let inner = self.read_in(Phase::Handover, State::Frozen)?;
        // The number came from the previous side, so it may be the largest there is.
        let tree = inner.old.tree(inner.update_number.wrapping_add(1));
        jump(Handover {
            devicetree: devicetree::encode(&tree).map_err(Error::from)?,
            outgoing: inner.old.outgoing(),
        })
    }

    /// Ends the old side after a jump that does not end this process: private states are dropped,
    /// nothing is cancelled.
    pub fn depart(self) {
        let mut inner = self.write();
        inner.old.clear();
        inner.state = State::Normal;
    }

    /// Bytes of metadata that handlers preserved so far, on the old side.
    pub fn metadata_bytes(&self) -> u64 {
        self.read().old.outgoing().metadata_bytes()
    }

    /// How many blocks of bytes and how many files handlers preserved so far, on the old side: none
    /// after a cancel.
    pub fn preserved(&self) -> (usize, usize) {
        self.read().old.outgoing().count()
    }

    /// The files that handlers preserved so far, on the old side: for a transport that copies
    /// contents before freeze.
    pub fn held(&self) -> Vec<(HeldFile, Arc<OwnedFd>)> {
        self.read().old.outgoing().held()
    }

    /// The file with this token, rebuilt on the first call; later calls, also from other threads,
    /// return the same one. A failure is remembered and returned again, except that the handler was
    /// missing: one that is registered later takes the file.
    ///
    /// A file that others changed after freeze is returned as it is now; [`files`](Self::files) has
    /// what its handler reported.
    ///
    /// # Errors
    ///
    /// `ENOENT` if no such file crossed or its handler is missing, the handler's own, and `EINVAL`
    /// in any state but `Updated`.
    pub fn retrieve(&self, token: Token) -> Result<Arc<OwnedFd>, Error> {
        self.read_updated()?
            .crossed()?
            .retrieve(&self.registry, token)
    }

    /// Gives a subsystem its state back, once.
    ///
    /// # Errors
    ///
    /// As [`retrieve`](Self::retrieve).
    pub fn retrieve_subsystem(&self, compatible: Compatible) -> Result<(), Error> {
        self.read_updated()?
            .crossed()?
            .retrieve_subsystem(&self.registry, compatible)
    }

    /// The files that crossed, in the order in which they were offered.
    ///
    /// # Errors
    ///
    /// `EINVAL` in any state but `Updated`, or if what crossed cannot be read at all.
    pub fn files(&self) -> Result<Vec<FileStatus>, Error> {
        Ok(self.read_updated()?.crossed()?.files(&self.registry)?)
    }

    /// The subsystems that crossed.
    ///
    /// # Errors
    ///
    /// As [`files`](Self::files).
    pub fn subsystems(&self) -> Result<Vec<SubsystemEntry>, Error> {
        Ok(self.read_updated()?.crossed()?.subsystems()?)
    }

    /// The entries that cannot be used, each with its reason.
    ///
    /// # Errors
    ///
    /// As [`files`](Self::files).
    pub fn bad_entries(&self) -> Result<Vec<BadEntry>, Error> {
        Ok(self.read_updated()?.crossed()?.bad_entries()?)
    }

    /// Hands everything that arrived to another program, as it arrived: the jump back to the
    /// version before, if this one cannot work with it. Nothing is finished, and a jump that fails
    /// changes nothing. A file that was retrieved crosses as it is now.
    ///
    /// The bytes and the devicetree cross as they are; a file of an image is read for that.
    ///
    /// # Errors
    ///
    /// `EINVAL` in any state but `Updated`, those of `jump`, and those of duplicating descriptors.
    pub fn pass_on<R, E: From<Error>>(
        &self,
        jump: impl FnOnce(Handover<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let inner = self.read_in(Phase::Handover, State::Updated)?;
        let new = inner.crossed()?;
        let outgoing = new.carry_on()?;
        jump(Handover {
            devicetree: new.devicetree().to_vec(),
            outgoing: &outgoing,
        })
    }

    /// Ends the update, if every handler agrees. What nobody retrieved is released, except files
    /// that could not be retrieved: see [`left`](Self::left).
    ///
    /// # Errors
    ///
    /// `EBUSY` of the first participant that does not agree, or its error; nothing is finished
    /// then.
    /// `EINVAL` in any state but `Updated`.
    pub fn finish(&self) -> Result<Complaints, Error> {
        let mut inner = self.write_in(Phase::Finish, State::Updated)?;
        let new = inner.crossed()?;
        let (complaints, left) = new.finish(&self.registry)?;
        inner.update_number = new.update_number()?;
        if !left {
            inner.new = None;
        }
        inner.state = State::Normal;
        Ok(complaints)
    }

    /// Tokens of the files that crossed and could not be retrieved, because their handler failed or
    /// is missing.
    pub fn left(&self) -> Vec<Token> {
        let inner = self.read();
        let new = inner.new.as_ref();
        new.map_or_else(Vec::new, |new| new.left(&self.registry))
    }

    /// Takes such a file as a plain descriptor, as it crossed; there may be several, if its handler
    /// preserved several for it. It is not left any more then.
    ///
    /// # Errors
    ///
    /// `ENOENT` if no such file is left, and those of the transport that brought it.
    pub fn take_left(&self, token: Token) -> Result<Vec<OwnedFd>, Error> {
        let inner = self.read();
        let none = || NewSide::nothing_left(token);
        let new = inner.new.as_ref().ok_or_else(none)?;
        Ok(new.take_left(&self.registry, token)?)
    }

    /// Closes the files that are left of an update that is finished.
    pub fn drop_left(&self) {
        let mut inner = self.write();
        if inner.state != State::Updated {
            inner.new = None;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_in(&self, phase: Phase, state: State) -> Result<RwLockReadGuard<'_, Inner>, Error> {
        let inner = self.read();
        inner.expect(phase, state)?;
        Ok(inner)
    }

    fn read_updated(&self) -> Result<RwLockReadGuard<'_, Inner>, Error> {
        self.read_in(Phase::Retrieve, State::Updated)
    }

    fn write_in(&self, phase: Phase, state: State) -> Result<RwLockWriteGuard<'_, Inner>, Error> {
        let inner = self.write();
        inner.expect(phase, state)?;
        Ok(inner)
    }
}

/// An update that nobody carried over is given up.
impl Drop for Orchestrator {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if matches!(inner.state, State::Prepared | State::Frozen) {
            inner.cancel();
        }
    }
}

impl Inner {
    fn expect(&self, phase: Phase, state: State) -> Result<(), Error> {
        if self.state == state {
            return Ok(());
        }
        Err(Error::State {
            phase,
            state: self.state,
        })
    }

    /// Whether files that are offered now are prepared at once.
    fn expect_offers(&self) -> Result<bool, Error> {
        match self.state {
            State::Prepared => Ok(true),
            _ => self.expect(Phase::Preserve, State::Normal).map(|()| false),
        }
    }

    fn crossed(&self) -> Result<&NewSide, Error> {
        self.new.as_ref().ok_or(Error::State {
            phase: Phase::Retrieve,
            state: self.state,
        })
    }

    fn cancel(&mut self) -> Complaints {
        let mut complaints = Complaints::new();
        if self.state == State::Frozen {
            complaints.extend(self.old.unfreeze());
        }
        complaints.extend(self.old.cancel());
        self.state = State::Normal;
        complaints
    }
}
