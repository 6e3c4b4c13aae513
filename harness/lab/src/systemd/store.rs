// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A service that updates itself by the transport fdstore, as its documentation has it.
//!
//! It counts its starts in a memfd. What it has is in the store from the start on, so that a crash
//! loses nothing, and once more when it is asked to end. A socket is among it, which no kexec
//! takes.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;

use anyhow::{Context, Result};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::{Errno, Token};
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::fdstore::FdStore;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{memfd_create, MemfdFlags};

use crate::systemd::client::{ready, report};
use crate::systemd::found::{Found, FoundFile};

pub(super) const UNIT: &str = "luo-store";

const MEMORY: Token = Token(1);
const COUNT: Token = Token(2);
const LISTENER: Token = Token(3);
/// In the namespace of names that no file has.
const ADDRESS: &[u8] = b"luo-lab-store";

const WORKLOAD: Workload = Workload {
    size: 8 << 20,
    pages: Pages::Base,
    fill: Fill::Dense,
    seed: 3,
};

/// What the service has.
struct Files {
    memory: File,
    /// So many starts.
    count: File,
    listener: UnixListener,
}

/// How the count of starts is told from that of orderly ends.
const STARTS: u64 = 0;
const ENDS: u64 = 8;

pub(super) fn serve(registry: Registry) -> Result<()> {
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.thread_block().context("blocking SIGTERM")?;
    let registry = Arc::new(registry);
    let mut store = FdStore::open("luo")?;
    let (files, found) = match store.arrive()? {
        Some(arrival) => {
            let update = Orchestrator::arrived(registry.clone(), arrival);
            take(&update, &store)?
        }
        None => (
            Files::new()?,
            Found {
                unit: UNIT.into(),
                has_arrived: false,
                files: Vec::new(),
                remarks: Vec::new(),
            },
        ),
    };
    files.add_one(STARTS)?;
    hand_over(&registry, &files, &mut store)?;
    report(found)?;
    ready()?;

    ending.wait().context("waiting for SIGTERM")?;
    files.add_one(ENDS)?;
    hand_over(&registry, &files, &mut store)
}

impl Files {
    fn new() -> Result<Self> {
        let count = File::from(memfd_create("count", MemfdFlags::CLOEXEC)?);
        count.write_all_at(&[0; 16], 0)?;
        Ok(Self {
            memory: WORKLOAD.make(|_| ())?,
            count,
            listener: listen()?,
        })
    }

    fn number(&self, place: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.count.read_exact_at(&mut bytes, place)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn add_one(&self, place: u64) -> Result<()> {
        let number = self.number(place)? + 1;
        Ok(self.count.write_all_at(&number.to_le_bytes(), place)?)
    }
}

fn address() -> Result<SocketAddr> {
    Ok(SocketAddr::from_abstract_name(ADDRESS)?)
}

fn listen() -> Result<UnixListener> {
    Ok(UnixListener::bind_addr(&address()?)?)
}

/// Everything that crossed, and what of it is not as it was.
fn take(update: &Orchestrator, store: &FdStore) -> Result<(Files, Found)> {
    let mut found = Vec::new();
    let memory = File::from(update.retrieve(MEMORY)?.try_clone()?);
    let mismatch = WORKLOAD.verify(memory.as_fd(), |_| ()).err();
    let differences = mismatch.map(|mismatch| mismatch.to_string());
    found.push(FoundFile::new("memory", differences.into_iter().collect()));

    let count = File::from(update.retrieve(COUNT)?.try_clone()?);
    found.push(FoundFile::new("count", Vec::new()));

    let (listener, differences) = match update.retrieve(LISTENER) {
        Ok(listener) => {
            let listener = UnixListener::from(listener.try_clone()?);
            let _client = UnixStream::connect_addr(&address()?)?;
            let accepted = listener.accept().err();
            (listener, accepted.map(|error| error.to_string()))
        }
        Err(error) if error.errno() == Errno::ENOENT => (listen()?, Some("missing".into())),
        Err(error) => return Err(error.into()),
    };
    found.push(FoundFile::new(
        "listener",
        differences.into_iter().collect(),
    ));

    let complaints = update.finish()?;
    let complaints = complaints.iter().map(|complaint| complaint.to_string());
    let problems = store.problems().iter().map(|problem| problem.to_string());
    let files = Files {
        memory,
        count,
        listener,
    };
    let mut remarks: Vec<String> = problems.chain(complaints).collect();
    remarks.insert(
        0,
        format!(
            "start {}, {} of them ended orderly",
            files.number(STARTS)? + 1,
            files.number(ENDS)?
        ),
    );
    let found = Found {
        unit: UNIT.into(),
        has_arrived: true,
        files: found,
        remarks,
    };
    Ok((files, found))
}

/// Everything goes to systemd, and the service goes on. What was there before is replaced.
fn hand_over(registry: &Arc<Registry>, files: &Files, store: &mut FdStore) -> Result<()> {
    let update = Orchestrator::new(registry.clone());
    update.preserve(MEMORY, &files.memory)?;
    update.preserve(COUNT, &files.count)?;
    update.preserve(LISTENER, &files.listener)?;
    update.prepare()?;
    update.freeze()?;
    update.handover(|handover| store.store(&handover).map_err(anyhow::Error::from))?;
    update.unfreeze()?;
    Ok(())
}
