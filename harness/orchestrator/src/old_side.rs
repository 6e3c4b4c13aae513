// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The old side's file table: what was offered, and the steps that all of it takes together.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;

use luo_handler_api::hosted::Handler;
use luo_handler_api::{Compatible, Errno, NeededBy, Token};
use rustix::fs::FileType;

use crate::devicetree::{FileEntry, SubsystemEntry, Tree};
use crate::error::{Failure, Participant, Phase};
use crate::handover::Complaints;
use crate::member::Member;
use crate::outgoing::Outgoing;
use crate::reason::explained;
use crate::registry::Registry;
use crate::sys;

/// Files that were offered; from prepare on, the subsystems as well.
#[derive(Debug, Default)]
pub(crate) struct OldSide {
    /// In the order in which they were offered and prepared.
    members: Vec<Member>,
    tokens: HashMap<Token, FileKey>,
    keys: HashSet<FileKey>,
    outgoing: Outgoing,
}

/// What makes two offers the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FileKey {
    /// What the handler identifies it by, among its own files.
    Handler(Compatible, u64),
    /// The inode of a regular file, where the handler leaves it to the host.
    Inode(Inode),
    /// The open file, where several share an inode: a device, a pipe, the anonymous inode of
    /// eventfds. It has no name but that of its offer.
    OpenFile(Inode, Token),
}

/// Device and number.
type Inode = (u64, u64);

impl OldSide {
    /// Takes an offer; once the others are prepared, prepares it as well.
    pub(crate) fn offer(
        &mut self,
        registry: &Registry,
        token: Token,
        file: BorrowedFd<'_>,
        is_prepared: bool,
    ) -> Result<Compatible, Failure> {
        let failed = |handler, errno: Errno| {
            Failure::new(Phase::Preserve, Participant::File(token), handler, errno)
        };
        if self.tokens.contains_key(&token) {
            return Err(failed(None, Errno::EEXIST));
        }
        rustix::io::fcntl_getfd(file).map_err(|_| failed(None, Errno::EBADF))?;
        let handler = registry
            .handler_for(file)
            .map_err(|(handler, errno)| failed(handler, errno))?;
        let compatible = *handler.compatible();
        let failed = |errno| failed(Some(compatible), errno);
        let key = FileKey::of(&handler, file, token).map_err(failed)?;
        if self.has(key, file) {
            return Err(failed(Errno::EBUSY));
        }
        let file = file.try_clone_to_owned();
        let file = file.map_err(|error| failed(error.into()))?;
        let mut member = Member::file(token, handler, file);
        if is_prepared {
            explained(|| member.prepare(&self.outgoing))
                .map_err(|cause| member.failure(Phase::Prepare, cause))?;
        }
        self.keys.insert(key);
        self.tokens.insert(token, key);
        self.members.push(member);
        Ok(compatible)
    }

    /// Takes an offer back, and cancels what was prepared for it.
    pub(crate) fn withdraw(&mut self, token: Token) -> Result<Complaints, Failure> {
        let participant = Participant::File(token);
        let Some(key) = self.tokens.remove(&token) else {
            let phase = Phase::Preserve;
            return Err(Failure::new(phase, participant, None, Errno::ENOENT));
        };
        self.keys.remove(&key);
        let is_it = |member: &Member| member.participant == participant;
        let Some(place) = self.members.iter().position(is_it) else {
            return Ok(Complaints::new());
        };
        let mut member = self.members.remove(place);
        Ok(cancel_backward(
            std::slice::from_mut(&mut member),
            &self.outgoing,
        ))
    }

    /// Prepares every file in the order in which they were offered, then every subsystem.
    pub(crate) fn prepare(&mut self, registry: &Registry) -> Result<(), Failure> {
        let files = self.members.len();
        let mut subsystems = registry.subsystems();
        subsystems.retain(|subsystem| {
            let needed_by = subsystem.needed_by();
            let mut handlers = self.members.iter().map(Member::compatible);
            needed_by == NeededBy::Every || handlers.any(|handler| needed_by.includes(&handler))
        });
        self.members
            .extend(subsystems.into_iter().map(Member::subsystem));
        let Self {
            members, outgoing, ..
        } = self;
        let prepared = forward(members, Phase::Prepare, |member| member.prepare(outgoing));
        prepared.map_err(|(failure, done)| {
            cancel_backward(&mut members[..done], outgoing);
            outgoing.clear();
            members.truncate(files);
            failure
        })
    }

    /// Freezes every participant, in the order of prepare.
    pub(crate) fn freeze(&mut self) -> Result<(), Failure> {
        let Self {
            members, outgoing, ..
        } = self;
        let frozen = forward(members, Phase::Freeze, |member| member.freeze(outgoing));
        frozen.map_err(|(failure, done)| {
            unfreeze_backward(&mut members[..done], outgoing);
            failure
        })
    }

    /// Undoes freeze.
    pub(crate) fn unfreeze(&mut self) -> Complaints {
        unfreeze_backward(&mut self.members, &self.outgoing)
    }

    /// Undoes prepare; the files stay offered.
    pub(crate) fn cancel(&mut self) -> Complaints {
        let complaints = cancel_backward(&mut self.members, &self.outgoing);
        self.outgoing.clear();
        self.members.retain(|member| member.token().is_some());
        complaints
    }

    /// Drops everything; nothing is cancelled.
    pub(crate) fn clear(&mut self) {
        self.members.clear();
    }

    /// What handlers preserved.
    pub(crate) fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    /// What crosses, as numbers and names.
    pub(crate) fn tree(&self, update_number: u64) -> Tree {
        let mut tree = Tree {
            update_number,
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

    /// Whether this file was offered before.
    fn has(&self, key: FileKey, file: BorrowedFd<'_>) -> bool {
        let FileKey::OpenFile(inode, _) = key else {
            return self.keys.contains(&key);
        };
        self.members.iter().any(|member| {
            let (Some(token), Some(offered)) = (member.token(), member.open_file()) else {
                return false;
            };
            self.tokens.get(&token) == Some(&FileKey::OpenFile(inode, token))
                && sys::is_same_open_file(offered, file)
        })
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

/// Takes every member one step; on a failure, returns it and how many were done before.
fn forward(
    members: &mut [Member],
    phase: Phase,
    mut step: impl FnMut(&mut Member) -> Result<(), Errno>,
) -> Result<(), (Failure, usize)> {
    for (index, member) in members.iter_mut().enumerate() {
        explained(|| step(member)).map_err(|cause| (member.failure(phase, cause), index))?;
    }
    Ok(())
}

/// Undoes a step of every member, the last one first, whatever fails.
fn backward(
    members: &mut [Member],
    phase: Phase,
    mut step: impl FnMut(&mut Member) -> Result<(), Errno>,
) -> Complaints {
    let mut complaints = Complaints::new();
    for member in members.iter_mut().rev() {
        if let Err(cause) = explained(|| step(member)) {
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
