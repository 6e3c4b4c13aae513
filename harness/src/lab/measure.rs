// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The guest's side of a measured live update: prepare before the jump, retrieve and compare behind it.
//!
//! What the new side has to know of the old one crosses like the files that are measured, in a memfd of its own, to
//! which the moment of the jump is written last.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{bail, ensure, Context, Result};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::bench::Step;
use super::clock::Moment;
use super::counters::{kept_bytes, Counters};
use super::memory::free_bytes;
use crate::bench::report::Implementation;
use crate::bench::run::{allow_many_files, timed, Outcome};
use crate::kexec;
use crate::liveupdate::{Device, Session};
use crate::workload::{Pages, Workload};

const STATE_SESSION: &str = "luo-bench-state";
const STATE_TOKEN: u64 = 0;
/// Room for the state, whatever its numbers come to.
const STATE_BYTES: usize = 4096;
const SESSION: &str = "luo-bench";
/// What mainline's handler keeps of each folio, `struct memfd_luo_folio_ser`.
const MAINLINE_FOLIO_BYTES: u64 = 16;

/// What crosses beside the files.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    outcome: Outcome,
    /// When the old side ended.
    jumped: Moment,
}

/// The old side. Returns only if the jump was refused.
pub(super) fn depart(step: &Step) -> Result<()> {
    allow_many_files()?;
    allow_huge_pages(&step.case.workloads())?;
    let device = Device::open()?;
    let state_session = device.create_session(STATE_SESSION)?;
    let state = File::from(rustix::fs::memfd_create(
        STATE_SESSION,
        MemfdFlags::CLOEXEC,
    )?);
    state.write_all_at(&[b' '; STATE_BYTES], 0)?;
    state_session.preserve(STATE_TOKEN, state.as_fd())?;

    let workloads = step.case.workloads();
    let files = workloads
        .iter()
        .map(|workload| workload.make(|_| ()))
        .collect::<Result<Vec<_>, _>>()?;
    let session = device.create_session(SESSION)?;
    let before = Before::look()?;
    let mut outcome = Outcome {
        data_bytes: step.case.data_bytes(),
        ..Outcome::default()
    };
    timed(&mut outcome.phases.prepare_ns, || {
        preserve(&session, &workloads, &files)
    })?;
    before.compare(step, &mut outcome)?;

    let jumped = Moment::now()?;
    write_state(&state, &State { outcome, jumped })?;
    bail!("the jump was refused: {}", kexec::jump())
}

fn allow_huge_pages(workloads: &[Workload]) -> Result<()> {
    const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    if workloads
        .iter()
        .any(|workload| workload.pages == Pages::Thp)
    {
        fs::write(SWITCH, "advise").with_context(|| format!("writing to {SWITCH}"))?;
    }
    Ok(())
}

fn preserve(session: &Session, workloads: &[Workload], files: &[File]) -> Result<()> {
    for (workload, file) in workloads.iter().zip(files) {
        session.preserve(workload.seed, file.as_fd())?;
    }
    Ok(())
}

/// How things stand before prepare.
struct Before {
    free_bytes: u64,
    counters: Counters,
    kept_bytes: u64,
}

impl Before {
    fn look() -> Result<Self> {
        Ok(Self {
            counters: Counters::read()?,
            kept_bytes: kept_bytes()?,
            free_bytes: free_bytes()?,
        })
    }

    /// What prepare took, and that it was done by whom it should have been.
    fn compare(&self, step: &Step, outcome: &mut Outcome) -> Result<()> {
        outcome.extra_memory_bytes = self.free_bytes.saturating_sub(free_bytes()?);
        let counters = Counters::read()?;
        let prepared = counters.share().prepared - self.counters.share().prepared;
        let expected = match step.implementation {
            Implementation::Ours => u64::from(step.case.files),
            Implementation::MainlineC => 0,
        };
        ensure!(
            prepared == expected,
            "our handler prepared {prepared} files, {expected} were for it"
        );
        outcome.metadata_bytes = match step.implementation {
            Implementation::Ours => kept_bytes()?.saturating_sub(self.kept_bytes),
            Implementation::MainlineC => mainline_metadata(step),
        };
        Ok(())
    }
}

/// Mainline's handler does not tell; it keeps a record of every folio, those of holes it has filled among them.
fn mainline_metadata(step: &Step) -> u64 {
    let folio = match step.case.pages {
        Pages::Base => rustix::param::page_size() as u64,
        Pages::Thp | Pages::Hugetlb => 2 << 20,
    };
    step.case.size.div_ceil(folio) * u64::from(step.case.files) * MAINLINE_FOLIO_BYTES
}

fn write_state(file: &File, state: &State) -> Result<()> {
    let mut text = serde_json::to_vec(state)?;
    ensure!(
        text.len() <= STATE_BYTES,
        "the state of a run has {} bytes",
        text.len()
    );
    text.resize(STATE_BYTES, b' ');
    Ok(file.write_all_at(&text, 0)?)
}

/// The new side.
pub(super) fn arrive(step: &Step) -> Result<Outcome> {
    let device = Device::open()?;
    let arrived = Moment::now()?;
    allow_many_files()?;
    let State {
        mut outcome,
        jumped,
    } = read_state(&device)?;

    let session = device.retrieve_session(SESSION)?;
    let workloads = step.case.workloads();
    let files = timed(&mut outcome.phases.retrieve_ns, || {
        let tokens = workloads.iter().map(|workload| workload.seed);
        tokens
            .map(|token| session.retrieve(token))
            .collect::<Result<Vec<_>, _>>()
    })?;
    timed(&mut outcome.phases.finish_ns, || session.finish())?;
    for (workload, file) in workloads.iter().zip(&files) {
        if let Err(mismatch) = workload.verify(file.as_fd(), |_| ()) {
            let mismatch = format!("memfd {}: {mismatch}", workload.seed);
            outcome.mismatch.get_or_insert(mismatch);
        }
    }
    // Long after the arrival, so that the rate is known well.
    let rate = arrived.rate_until(&Moment::now()?)?;
    outcome.phases.blackout_ns = jumped.nanoseconds_until(&arrived, rate)?;
    Ok(outcome)
}

fn read_state(device: &Device) -> Result<State> {
    let session = device.retrieve_session(STATE_SESSION)?;
    let state = File::from(session.retrieve(STATE_TOKEN)?);
    session.finish()?;
    let mut text = vec![0; STATE_BYTES];
    state.read_exact_at(&mut text, 0)?;
    serde_json::from_slice(&text).context("the state of the old side is garbled")
}
