// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A participant on the old side, and its way through the phases.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_handler_api::hosted::{Handler, PreparedFile, PreparedSubsystem, SubsystemRef};
use luo_handler_api::{Compatible, Errno, Host, Token};

use crate::error::{Failure, Participant, Phase};
use crate::outgoing::Outgoing;
use crate::reason::Cause;

/// A participant on the old side: the RFC's `struct luo_file`.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) participant: Participant,
    part: Part,
}

/// What it takes part with; prepared from prepare on.
#[derive(Debug)]
enum Part {
    File {
        handler: Handler,
        file: OwnedFd,
        prepared: Option<PreparedFile>,
    },
    Subsystem {
        subsystem: SubsystemRef,
        prepared: Option<PreparedSubsystem>,
    },
}

impl Member {
    pub(crate) fn file(token: Token, handler: Handler, file: OwnedFd) -> Self {
        Self {
            participant: Participant::File(token),
            part: Part::File {
                handler,
                file,
                prepared: None,
            },
        }
    }

    pub(crate) fn subsystem(subsystem: SubsystemRef) -> Self {
        Self {
            participant: Participant::Subsystem(*subsystem.compatible()),
            part: Part::Subsystem {
                subsystem,
                prepared: None,
            },
        }
    }

    /// `None` for a subsystem.
    pub(crate) fn token(&self) -> Option<Token> {
        match self.participant {
            Participant::File(token) => Some(token),
            Participant::Subsystem(_) => None,
        }
    }

    /// The file; `None` for a subsystem.
    pub(crate) fn open_file(&self) -> Option<BorrowedFd<'_>> {
        match &self.part {
            Part::File { file, .. } => Some(file.as_fd()),
            Part::Subsystem { .. } => None,
        }
    }

    pub(crate) fn compatible(&self) -> Compatible {
        match &self.part {
            Part::File { handler, .. } => *handler.compatible(),
            Part::Subsystem { subsystem, .. } => *subsystem.compatible(),
        }
    }

    /// The `u64` that crosses, from prepare on.
    pub(crate) fn data(&self) -> Option<u64> {
        match &self.part {
            Part::File { prepared, .. } => prepared.as_ref().map(PreparedFile::data),
            Part::Subsystem { prepared, .. } => prepared.as_ref().map(PreparedSubsystem::data),
        }
    }

    pub(crate) fn failure(&self, phase: Phase, cause: Cause) -> Failure {
        Failure::new(phase, self.participant, Some(self.compatible()), cause)
    }

    pub(crate) fn prepare(&mut self, outgoing: &Outgoing) -> Result<(), Errno> {
        let services = outgoing.for_file(self.token());
        let host = Host::new(&services);
        match &mut self.part {
            Part::File {
                handler,
                file,
                prepared,
            } => *prepared = Some(handler.prepare(file.as_fd(), host)?),
            Part::Subsystem {
                subsystem,
                prepared,
            } => *prepared = Some(subsystem.prepare(host)?),
        }
        Ok(())
    }

    /// `EINVAL` before prepare.
    pub(crate) fn freeze(&mut self, outgoing: &Outgoing) -> Result<(), Errno> {
        let services = outgoing.for_file(self.token());
        let host = Host::new(&services);
        match &mut self.part {
            Part::File { file, prepared, .. } => {
                let prepared = prepared.as_mut().ok_or(Errno::EINVAL)?;
                prepared.freeze(file.as_fd(), host)
            }
            Part::Subsystem { prepared, .. } => {
                prepared.as_mut().ok_or(Errno::EINVAL)?.freeze(host)
            }
        }
    }

    /// Does nothing before prepare.
    pub(crate) fn unfreeze(&mut self, outgoing: &Outgoing) -> Result<(), Errno> {
        let host = Host::new(outgoing);
        match &mut self.part {
            Part::File { file, prepared, .. } => prepared
                .as_mut()
                .map_or(Ok(()), |prepared| prepared.unfreeze(file.as_fd(), host)),
            Part::Subsystem { prepared, .. } => prepared
                .as_mut()
                .map_or(Ok(()), |prepared| prepared.unfreeze(host)),
        }
    }

    /// Does nothing before prepare.
    pub(crate) fn cancel(&mut self, outgoing: &Outgoing) -> Result<(), Errno> {
        let host = Host::new(outgoing);
        match &mut self.part {
            Part::File { file, prepared, .. } => prepared
                .take()
                .map_or(Ok(()), |prepared| prepared.cancel(file.as_fd(), host)),
            Part::Subsystem { prepared, .. } => prepared
                .take()
                .map_or(Ok(()), |prepared| prepared.cancel(host)),
        }
    }
}
