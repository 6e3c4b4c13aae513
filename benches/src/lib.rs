// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the benches share: a jump within one process, and handlers that do next to nothing.
//!
//! ```text
//! cargo bench -p luo-benches                         # all of them
//! cargo bench -p luo-benches --bench handler_call    # one
//! cargo bench -p luo-benches -- --test               # each once, without measuring
//! ```
//!
//! # Map
//!
//! In this crate:
//!
//! - [`carry_over`], [`arrival`]: a handover becomes an arrival, as over an exec
//! - [`handlers`]: handlers whose own work is as small as can be
//! - [`raise_file_limit`]: as many open files as this process may have
//!
//! In `benches/`:
//!
//! - `handler_call`: a call through `HandlerOps` against a direct one and against `dyn`
//! - `devicetree`: encode, decode, and decode + restore, by number of files
//! - `extents`: pages merged into extents, for dense, sparse and shuffled maps
//! - `cycle`: a whole live update of small memfds, by number of files

pub mod handlers;

use std::fs::File;

use luo_orchestrator::error::Error;
use luo_orchestrator::handover::{Arrival, Handover};
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::outgoing::Outgoing;
use luo_orchestrator::transport::loopback;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

/// Numbers of files that the devicetree is measured with.
pub const FILES: [usize; 4] = [1, 100, 10_000, 100_000];

/// What is left of the limit for everything that is not being measured.
const OTHER_FILES: u64 = 64;

/// Takes a frozen set of files to a new side that is this process.
///
/// # Panics
///
/// If the set is not frozen, or files cannot be duplicated.
pub fn carry_over(update: &Orchestrator) -> Arrival {
    let arrival = update.handover(|handover| Ok::<_, Error>(loopback::cross(&handover)));
    arrival.expect("a frozen set").expect("as many files")
}

/// The arrival of `devicetree`, without any bytes or files.
///
/// # Panics
///
/// If a file cannot be made.
pub fn arrival(devicetree: Vec<u8>) -> Arrival {
    let outgoing = &Outgoing::default();
    let handover = Handover {
        devicetree,
        outgoing,
    };
    loopback::cross(&handover).expect("a memory file")
}

/// An empty memfd that can be sealed.
///
/// # Panics
///
/// If there can be no more.
pub fn memfd(name: &str) -> File {
    let options = memfd::MemfdOptions::default().allow_sealing(true);
    options.create(name).expect("a memfd").into_file()
}

/// Lets this process open as many files as it may, and returns how many a bench can use.
pub fn raise_file_limit() -> usize {
    let now = getrlimit(Resource::Nofile);
    let wanted = (*FILES.iter().max().unwrap_or(&0) as u64) + OTHER_FILES;
    let both = |limit| Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    // Only a privileged process may go beyond the hard limit; any may go up to it.
    let hard = now.maximum.unwrap_or(u64::MAX);
    if hard >= wanted || setrlimit(Resource::Nofile, both(wanted)).is_err() {
        let soft = Rlimit {
            current: now.maximum,
            ..now
        };
        // If even that fails, the limit stays what it is.
        let _ = setrlimit(Resource::Nofile, soft);
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit
        .saturating_sub(OTHER_FILES)
        .try_into()
        .unwrap_or(usize::MAX)
}
