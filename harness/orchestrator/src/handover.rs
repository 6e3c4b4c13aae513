// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What passes between the orchestrator, its caller and the transports.

use luo_handler_api::{Compatible, Errno, Token};

use crate::error::Failure;
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;

/// A frozen set of files, for a transport to carry.
#[derive(Debug)]
pub struct Handover<'a> {
    /// The flattened devicetree.
    pub devicetree: Vec<u8>,
    /// The bytes and files that handlers preserved.
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

/// What is known of a file that crossed.
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
    /// Whether it was retrieved, and the error if that failed.
    pub retrieved: Option<Result<(), Errno>>,
    /// What its handler reported of a file that was retrieved: what is not as it was at freeze.
    pub report: Option<String>,
}

/// The failures of calls that complete nevertheless, such as an undo: each names its participant.
pub type Complaints = Vec<Failure>;
