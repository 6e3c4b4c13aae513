// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What can fail in a live update: always with what, in which phase, and why.

use std::fmt;

use luo_handler_api::{Compatible, Errno, Token};
use thiserror::Error;

use crate::devicetree::DecodeError;
use crate::reason::Cause;

/// The state of a live update, `enum liveupdate_state` of the RFC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No update is under way; files may be offered.
    Normal,
    /// The files are prepared, the workload still runs.
    Prepared,
    /// The files are frozen, the workload does not run, the jump may come.
    Frozen,
    /// The jump is done; files may be retrieved.
    Updated,
}

/// What was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Offering a file, and taking it back.
    Preserve,
    /// See [`FileHandler::prepare`](luo_handler_api::FileHandler::prepare).
    Prepare,
    /// See [`FileHandler::freeze`](luo_handler_api::FileHandler::freeze).
    Freeze,
    /// See [`FileHandler::unfreeze`](luo_handler_api::FileHandler::unfreeze).
    Unfreeze,
    /// See [`FileHandler::cancel`](luo_handler_api::FileHandler::cancel).
    Cancel,
    /// Handing over to a transport.
    Handover,
    /// See [`FileHandler::retrieve`](luo_handler_api::FileHandler::retrieve).
    Retrieve,
    /// See [`FileHandler::finish`](luo_handler_api::FileHandler::finish).
    Finish,
}

/// Who takes part in a live update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Participant {
    /// The file with this token.
    File(Token),
    /// The subsystem of this name.
    Subsystem(Compatible),
}

/// A participant that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In which phase.
    pub phase: Phase,
    /// Which one.
    pub participant: Participant,
    /// Whose it is; `None` if no handler took it or that handler is missing.
    pub handler: Option<Compatible>,
    /// Why.
    pub errno: Errno,
    /// The same in words, if the handler or the transport reported any.
    pub reason: Option<String>,
}

impl Failure {
    pub(crate) fn new(
        phase: Phase,
        participant: Participant,
        handler: Option<Compatible>,
        cause: impl Into<Cause>,
    ) -> Self {
        let Cause { errno, reason } = cause.into();
        Self {
            phase,
            participant,
            handler,
            errno,
            reason,
        }
    }
}

/// Why a call to the orchestrator failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The call does not fit the state; nothing changed.
    #[error("{phase} is not possible in state {state}")]
    State {
        /// What was asked for.
        phase: Phase,
        /// The state it was asked in.
        state: State,
    },
    /// A participant failed; the state is what it was before.
    #[error("{0}")]
    Failed(Failure),
    /// What crossed cannot be read at all.
    #[error("what crossed cannot be read: {0}")]
    Devicetree(#[from] DecodeError),
    /// What crossed cannot be handed on.
    #[error("what crossed cannot be handed on: {errno}{}", after_colon(reason))]
    Handover {
        /// Why.
        errno: Errno,
        /// The same in words, if there was a report.
        reason: Option<String>,
    },
    /// There are too many files for one devicetree.
    #[error("{0}")]
    TooLarge(#[from] crate::devicetree::TooLarge),
}

/// A reason, to be appended.
fn after_colon(reason: &Option<String>) -> String {
    let reason = reason.as_ref();
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

impl Error {
    /// The error number a kernel would return.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::State { .. } | Self::Devicetree(_) => Errno::EINVAL,
            Self::Failed(failure) => failure.errno,
            Self::Handover { errno, .. } => *errno,
            Self::TooLarge(_) => Errno::EFBIG,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Normal => "normal",
            Self::Prepared => "prepared",
            Self::Frozen => "frozen",
            Self::Updated => "updated",
        })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Preserve => "preserve",
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Unfreeze => "unfreeze",
            Self::Cancel => "cancel",
            Self::Handover => "handover",
            Self::Retrieve => "retrieve",
            Self::Finish => "finish",
        })
    }
}

impl fmt::Display for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(token) => write!(f, "file {token}"),
            Self::Subsystem(compatible) => write!(f, "subsystem {compatible}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} failed", self.phase, self.participant)?;
        if let Some(handler) = &self.handler {
            write!(f, " in handler {handler}")?;
        }
        write!(f, ": {}{}", self.errno, after_colon(&self.reason))
    }
}

impl std::error::Error for Failure {}
