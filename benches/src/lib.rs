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

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use luo_handler_api::Errno;
use luo_orchestrator::error::Error;
use luo_orchestrator::incoming::{FileSource, Incoming};
use luo_orchestrator::orchestrator::{Arrival, Handover, Orchestrator};
use luo_orchestrator::outgoing::Outgoing;
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
    update
        .handover(
            |Handover {
                 devicetree,
                 outgoing,
             }| { Ok::<_, Error>(arrival(devicetree, outgoing)) },
        )
        .expect("a frozen set")
}

/// The arrival of `devicetree` and of what was kept: bytes by way of a memfd, files as duplicates.
///
/// # Panics
///
/// If files cannot be made or duplicated.
pub fn arrival(devicetree: Vec<u8>, outgoing: &Outgoing) -> Arrival {
    let mut memory = Vec::new();
    let mut file = memfd("memory file");
    outgoing.write_memory(&file).expect("a memory file");
    file.rewind().expect("its beginning");
    file.read_to_end(&mut memory).expect("its bytes");
    let mut files = HashMap::new();
    outgoing
        .each_file(|handle, file| {
            files.insert(handle, file.try_clone()?);
            Ok::<_, io::Error>(())
        })
        .expect("as many files as are kept");
    Arrival {
        devicetree,
        incoming: Incoming::new(memory, Carried(Mutex::new(files))).expect("a memory file"),
    }
}

/// Files that crossed.
#[derive(Debug)]
struct Carried(Mutex<HashMap<u64, OwnedFd>>);

impl Carried {
    fn remove(&self, handle: u64) -> Option<OwnedFd> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(&handle)
    }
}

impl FileSource for Carried {
    fn take(&self, handle: u64) -> Result<OwnedFd, Errno> {
        self.remove(handle).ok_or(Errno::ENOENT)
    }

    fn release(&self, handle: u64) {
        drop(self.remove(handle));
    }
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

/// Lets this process open as many files as it may, and tells how many a bench can use.
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
