// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The hosted orchestrator: the RFC's `luo_files.c` and `luo_core.c` as a library.
//!
//! `Normal → Prepared → Frozen → (jump) → Updated → Normal`. Files are offered in `Normal`, go through
//! [`prepare`](Orchestrator::prepare) and [`freeze`](Orchestrator::freeze), and leave by a
//! [`Handover`] that a transport carries. On the other side [`Orchestrator::arrived`] makes the
//! `Updated` orchestrator, files are retrieved, and [`finish`](Orchestrator::finish) ends it.
//!
//! A call that does not fit the state changes nothing. When a participant fails, those before it are
//! undone in reverse order, and the state is what it was before.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use luo_handler_api::hosted::Handler;
use luo_handler_api::{Compatible, Errno, NeededBy, Token};
use rustix::fs::FileType;

use crate::arrived::Arrived;
use crate::devicetree::{self, BadEntry, FileEntry, SubsystemEntry, Tree};
use crate::error::{Error, Failure, Participant, Phase, State};
use crate::incoming::Incoming;
use crate::member::{Member, Part};
use crate::outgoing::Outgoing;
use crate::reason::heard;
use crate::registry::Registry;
use crate::sys;

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
    /// Offered files in their order; from prepare on, the subsystems behind them.
    members: Vec<Member>,
    tokens: HashMap<Token, FileKey>,
    keys: HashSet<FileKey>,
    outgoing: Outgoing,
    arrived: Option<Arrived>,
}

/// What makes two offers the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FileKey {
    /// What the handler says, among its own files.
    Handler(Compatible, u64),
    /// The inode of a regular file, if the handler leaves it to the host.
    Inode(Inode),
    /// The open file of an inode that several share: a device, a pipe, the anonymous inode of eventfds.
    /// Which one it is has no name but that of its offer.
    OpenFile(Inode, Token),
}

/// Device and number.
type Inode = (u64, u64);

/// A frozen set of files, for a transport to carry.
#[derive(Debug)]
pub struct Handover<'a> {
    /// The flattened devicetree.
    pub devicetree: Vec<u8>,
    /// The bytes and files that handlers kept.
    pub outgoing: &'a Outgoing,
}

/// What a transport brings to the new side.
#[derive(Debug)]
pub struct Arrival {
    /// The flattened devicetree.
    pub devicetree: Vec<u8>,
    /// The bytes and files that crossed.
    pub incoming: Incoming,
}

/// What is known of an incoming file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// Its name.
    pub token: Token,
    /// The handler it needs.
    pub compatible: Compatible,
    /// What crossed for it.
    pub data: u64,
    /// Whether such a handler is registered by now.
    pub claimed: bool,
    /// Whether it was retrieved, and if that failed, why.
    pub retrieved: Option<Result<(), Errno>>,
}

/// Calls that could not do all of their undoing or releasing: what they were asked for is done all
/// the same, and these participants complained.
pub type Complaints = Vec<Failure>;

impl Orchestrator {
    /// A host without an update under way.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self::with(registry, State::Normal, None)
    }

    /// The new side of a jump. Reading what crossed waits for the first call that needs it, and is
    /// done once.
    pub fn arrived(registry: Arc<Registry>, arrival: Arrival) -> Self {
        let arrived = Arrived::new(arrival);
        Self::with(registry, State::Updated, Some(arrived))
    }

    fn with(registry: Arc<Registry>, state: State, arrived: Option<Arrived>) -> Self {
        Self {
            registry,
            inner: RwLock::new(Inner {
                state,
                update_number: 0,
                members: Vec::new(),
                tokens: HashMap::new(),
                keys: HashSet::new(),
                outgoing: Outgoing::default(),
                arrived,
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

    /// Offers a file, under a token of the caller's choice; returns the handler that takes it.
    ///
    /// # Errors
    ///
    /// `EEXIST` if the token is in use, `EBADF` if the descriptor is not open, `ENOENT` if no handler
    /// takes the file, `EBUSY` if it was offered before, `EINVAL` in any state but `Normal`.
    pub fn preserve(&self, token: Token, file: impl AsFd) -> Result<Compatible, Error> {
        let file = file.as_fd();
        let mut inner = self.write_in(Phase::Preserve, State::Normal)?;
        let failed = |handler, errno: Errno| {
            Failure::new(Phase::Preserve, Participant::File(token), handler, errno)
        };
        if inner.tokens.contains_key(&token) {
            return Err(failed(None, Errno::EEXIST).into());
        }
        rustix::io::fcntl_getfd(file).map_err(|_| failed(None, Errno::EBADF))?;
        let handler = self
            .registry
            .handler_for(file)
            .map_err(|(handler, errno)| failed(handler, errno))?;
        let compatible = *handler.compatible();
        let key = FileKey::of(&handler, file, token);
        let key = key.map_err(|errno| failed(Some(compatible), errno))?;
        if inner.has(key, file) {
            return Err(failed(Some(compatible), Errno::EBUSY).into());
        }
        let file = file
            .try_clone_to_owned()
            .map_err(|error| failed(Some(compatible), error.into()))?;
        inner.keys.insert(key);
        inner.tokens.insert(token, key);
        inner.members.push(Member::file(token, handler, file));
        Ok(compatible)
    }

    /// Takes an offer back.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the token is not in use, `EINVAL` in any state but `Normal`.
    pub fn unpreserve(&self, token: Token) -> Result<(), Error> {
        let mut inner = self.write_in(Phase::Preserve, State::Normal)?;
        let participant = Participant::File(token);
        let Some(key) = inner.tokens.remove(&token) else {
            return Err(Failure::new(Phase::Preserve, participant, None, Errno::ENOENT).into());
        };
        inner.keys.remove(&key);
        inner
            .members
            .retain(|member| member.participant != participant);
        Ok(())
    }

    /// Prepares every file in the order they were offered, then every subsystem.
    ///
    /// # Errors
    ///
    /// The first failure; those before it are cancelled, in reverse order. `EINVAL` in any state but
    /// `Normal`.
    pub fn prepare(&self) -> Result<(), Error> {
        let mut inner = self.write_in(Phase::Prepare, State::Normal)?;
        let files = inner.members.len();
        let mut subsystems = self.registry.subsystems();
        subsystems.retain(|subsystem| {
            let needed_by = subsystem.needed_by();
            let mut handlers = inner.members.iter().map(Member::compatible);
            needed_by == NeededBy::Every || handlers.any(|handler| needed_by.includes(&handler))
        });
        inner
            .members
            .extend(subsystems.into_iter().map(Member::subsystem));
        let Inner {
            members, outgoing, ..
        } = &mut *inner;
        let prepared = forward(members, Phase::Prepare, |member| member.prepare(outgoing));
        if let Err((failure, done)) = prepared {
            cancel_backward(&mut members[..done], outgoing);
            outgoing.clear();
            members.truncate(files);
            return Err(failure.into());
        }
        inner.state = State::Prepared;
        Ok(())
    }

    /// Freezes every participant, in the order of prepare. The workload stands still from here on.
    ///
    /// # Errors
    ///
    /// The first failure; those before it are unfrozen, in reverse order, and all stay prepared.
    /// `EINVAL` in any state but `Prepared`.
    pub fn freeze(&self) -> Result<(), Error> {
        let mut inner = self.write_in(Phase::Freeze, State::Prepared)?;
        let Inner {
            members, outgoing, ..
        } = &mut *inner;
        let frozen = forward(members, Phase::Freeze, |member| member.freeze(outgoing));
        if let Err((failure, done)) = frozen {
            unfreeze_backward(&mut members[..done], outgoing);
            return Err(failure.into());
        }
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
        let Inner {
            members, outgoing, ..
        } = &mut *inner;
        let complaints = unfreeze_backward(members, outgoing);
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
        let state = inner.state;
        if !matches!(state, State::Prepared | State::Frozen) {
            return Err(Error::State {
                phase: Phase::Cancel,
                state,
            });
        }
        Ok(inner.cancel())
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
        let devicetree = devicetree::encode(&inner.tree()).map_err(Error::from)?;
        jump(Handover {
            devicetree,
            outgoing: &inner.outgoing,
        })
    }

    /// Ends the old side after a jump that leaves this process behind: private states are dropped,
    /// nothing is cancelled.
    pub fn depart(self) {
        let mut inner = self.write();
        inner.members.clear();
        inner.state = State::Normal;
    }

    /// Bytes of metadata that handlers kept so far, on the old side.
    pub fn metadata_bytes(&self) -> u64 {
        self.read().outgoing.metadata_bytes()
    }

    /// Bytes and files kept so far, on the old side: nothing after a cancel.
    pub fn kept(&self) -> (usize, usize) {
        self.read().outgoing.count()
    }

    /// The file with this token, rebuilt on the first call; later calls, also from other threads,
    /// yield the same one. A failure is kept and told again, except that nobody was there to do it:
    /// a handler registered later takes the file.
    ///
    /// # Errors
    ///
    /// `ENOENT` if no such file crossed or no handler takes it, the handler's own, and `EINVAL` in any
    /// state but `Updated`.
    pub fn retrieve(&self, token: Token) -> Result<Arc<OwnedFd>, Error> {
        let inner = self.read_in(Phase::Retrieve, State::Updated)?;
        inner.arrived()?.retrieve(&self.registry, token)
    }

    /// Gives a subsystem what it said before the jump, once.
    ///
    /// # Errors
    ///
    /// As [`retrieve`](Self::retrieve).
    pub fn retrieve_subsystem(&self, compatible: Compatible) -> Result<(), Error> {
        let inner = self.read_in(Phase::Retrieve, State::Updated)?;
        inner
            .arrived()?
            .retrieve_subsystem(&self.registry, compatible)
    }

    /// The files that crossed, in the order they were offered.
    ///
    /// # Errors
    ///
    /// `EINVAL` in any state but `Updated`, or if what crossed cannot be read at all.
    pub fn files(&self) -> Result<Vec<FileStatus>, Error> {
        let inner = self.read_in(Phase::Retrieve, State::Updated)?;
        Ok(inner.arrived()?.files(&self.registry)?)
    }

    /// The subsystems that crossed.
    ///
    /// # Errors
    ///
    /// As [`files`](Self::files).
    pub fn subsystems(&self) -> Result<Vec<SubsystemEntry>, Error> {
        let inner = self.read_in(Phase::Retrieve, State::Updated)?;
        Ok(inner.arrived()?.subsystems()?)
    }

    /// The entries that cannot be used, each with its reason.
    ///
    /// # Errors
    ///
    /// As [`files`](Self::files).
    pub fn bad_entries(&self) -> Result<Vec<BadEntry>, Error> {
        let inner = self.read_in(Phase::Retrieve, State::Updated)?;
        Ok(inner.arrived()?.bad_entries()?)
    }

    /// Ends the update, if every handler agrees. What nobody retrieved is released.
    ///
    /// # Errors
    ///
    /// `EBUSY` of the first participant that does not agree, or its error; nothing is finished then.
    /// `EINVAL` in any state but `Updated`.
    pub fn finish(&self) -> Result<Complaints, Error> {
        let mut inner = self.write_in(Phase::Finish, State::Updated)?;
        let arrived = inner.arrived()?;
        let complaints = arrived.finish(&self.registry)?;
        inner.update_number = arrived.update_number()?;
        inner.arrived = None;
        inner.state = State::Normal;
        Ok(complaints)
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

    /// Whether this file was offered before.
    fn has(&self, key: FileKey, file: BorrowedFd<'_>) -> bool {
        let FileKey::OpenFile(inode, _) = key else {
            return self.keys.contains(&key);
        };
        self.members.iter().any(|member| {
            let (Participant::File(token), Part::File { file: offered, .. }) =
                (member.participant, &member.part)
            else {
                return false;
            };
            self.tokens.get(&token) == Some(&FileKey::OpenFile(inode, token))
                && sys::is_same_open_file(offered.as_fd(), file)
        })
    }

    fn arrived(&self) -> Result<&Arrived, Error> {
        self.arrived.as_ref().ok_or(Error::State {
            phase: Phase::Retrieve,
            state: self.state,
        })
    }

    fn cancel(&mut self) -> Complaints {
        let mut complaints = Complaints::new();
        if self.state == State::Frozen {
            complaints.extend(unfreeze_backward(&mut self.members, &self.outgoing));
        }
        complaints.extend(cancel_backward(&mut self.members, &self.outgoing));
        self.outgoing.clear();
        self.members
            .retain(|member| matches!(member.part, Part::File { .. }));
        self.state = State::Normal;
        complaints
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree {
            // The number came from the previous side, so it may be the largest there is.
            update_number: self.update_number.wrapping_add(1),
            files: Vec::with_capacity(self.tokens.len()),
            subsystems: Vec::new(),
        };
        for member in &self.members {
            let Some(data) = member.data() else {
                continue;
            };
            let compatible = member.compatible();
            match member.participant {
                Participant::File(token) => tree.files.push(FileEntry {
                    token,
                    compatible,
                    data,
                }),
                Participant::Subsystem(_) => {
                    tree.subsystems.push(SubsystemEntry { compatible, data });
                }
            }
        }
        tree
    }
}

impl FileKey {
    fn of(handler: &Handler, file: BorrowedFd<'_>, token: Token) -> Result<Self, Errno> {
        if let Some(id) = handler.file_id(file)? {
            return Ok(Self::Handler(*handler.compatible(), id));
        }
        let stat = rustix::fs::fstat(file)?;
        let inode = (stat.st_dev, stat.st_ino);
        Ok(match FileType::from_raw_mode(stat.st_mode).is_file() {
            true => Self::Inode(inode),
            false => Self::OpenFile(inode, token),
        })
    }
}

/// Takes every member one step; on a failure, tells it and how many were done before.
fn forward(
    members: &mut [Member],
    phase: Phase,
    mut step: impl FnMut(&mut Member) -> Result<(), Errno>,
) -> Result<(), (Failure, usize)> {
    for (index, member) in members.iter_mut().enumerate() {
        heard(|| step(member)).map_err(|cause| (member.failure(phase, cause), index))?;
    }
    Ok(())
}

/// Undoes a step of every member, the last one first, whatever they complain of.
fn backward(
    members: &mut [Member],
    phase: Phase,
    mut step: impl FnMut(&mut Member) -> Result<(), Errno>,
) -> Complaints {
    let mut complaints = Complaints::new();
    for member in members.iter_mut().rev() {
        if let Err(cause) = heard(|| step(member)) {
            complaints.push(member.failure(phase, cause));
        }
    }
    complaints
}

fn cancel_backward(members: &mut [Member], outgoing: &Outgoing) -> Complaints {
    backward(members, Phase::Cancel, |member| member.cancel(outgoing))
}

fn unfreeze_backward(members: &mut [Member], outgoing: &Outgoing) -> Complaints {
    backward(members, Phase::Unfreeze, |member| member.unfreeze(outgoing))
}
