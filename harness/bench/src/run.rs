// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One live update, measured: the old side up to the jump, and the new side behind it.
//!
//! Both sides are processes that `luo bench` starts; they tell it what they do as lines of JSON on
//! their standard output, which every jump inherits. What the new side has to know of the old one
//! crosses in a memfd of its own, under token 0, like the files that are measured.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context, Result};
use luo_handler_api::Token;
use memfd::MemfdOptions;
use rustix::process::{getrlimit, setrlimit, Resource};
use rustix::time::{clock_gettime, ClockId};
use serde::{Deserialize, Serialize};

use crate::report::duration;
use crate::workload::{allocated_bytes, MakeError};
use crate::{Case, Transport};
use luo_orchestrator::handover::Arrival;
use luo_orchestrator::holes;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::program::Program;
use luo_orchestrator::transport::{exec, image};

/// The hidden command of the old side.
pub const DEPART_COMMAND: &str = "bench-depart";
/// The hidden command of the new side.
pub const ARRIVE_COMMAND: &str = "bench-arrive";

/// The memfd with what the new side has to know.
const STATE: Token = Token(0);

/// What a run tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// So many bytes more were filled, written, read or compared.
    Bytes(u64),
    /// The machine cannot do it.
    Skipped(String),
    /// The update is finished.
    Done(Box<Outcome>),
}

/// How long each phase took, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// All calls of prepare.
    pub prepare_ns: u64,
    /// All calls of freeze.
    pub freeze_ns: u64,
    /// The transport's work on the old side: sealing the metadata, writing the image.
    pub handover_ns: u64,
    /// From the exec or reboot call to the first moment at which the new side can retrieve.
    pub blackout_ns: u64,
    /// All calls of retrieve; with images, reading the contents is a part of it.
    pub retrieve_ns: u64,
    /// Finish.
    pub finish_ns: u64,
}

impl Phases {
    /// The phases in their order, with the names they have in reports.
    pub const fn in_order(&self) -> [(&'static str, u64); 6] {
        [
            ("prepare", self.prepare_ns),
            ("freeze", self.freeze_ns),
            ("handover", self.handover_ns),
            ("blackout", self.blackout_ns),
            ("retrieve", self.retrieve_ns),
            ("finish", self.finish_ns),
        ]
    }

    /// The whole update.
    pub fn total(&self) -> u64 {
        self.in_order().iter().map(|(_, time)| time).sum()
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// How long it took.
    pub phases: Phases,
    /// Bytes of data that crossed; holes are none.
    pub data_bytes: u64,
    /// Bytes of metadata that crossed.
    pub metadata_bytes: u64,
    /// Memory that the update took on the old side, beyond what the files had: metadata, and holes that
    /// were filled. Contents on their way are not counted.
    pub extra_memory_bytes: u64,
    /// One thread copying as many bytes of memory to a fresh file beside the image, in nanoseconds.
    pub reference_write_ns: Option<u64>,
    /// What was not as before, if anything.
    pub mismatch: Option<String>,
}

impl Outcome {
    /// In a few words.
    pub fn summary(&self) -> String {
        let total = duration(self.phases.total());
        match &self.mismatch {
            None => format!("{total}, verified"),
            Some(mismatch) => format!("{total}, WRONG: {mismatch}"),
        }
    }
}

/// What crosses under [`STATE`].
#[derive(Debug, Serialize, Deserialize)]
struct Crossing {
    case: Case,
    outcome: Outcome,
}

fn say(message: &Message) {
    if let Ok(line) = serde_json::to_string(message) {
        // Who does not listen any more has no use for the run either.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            std::process::exit(1);
        }
    }
}

fn say_bytes(bytes: u64) {
    say(&Message::Bytes(bytes));
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub fn timed<R>(nanoseconds: &mut u64, work: impl FnOnce() -> R) -> R {
    let start = now();
    let result = work();
    *nanoseconds = now() - start;
    result
}

/// Bytes that a run of this case tells of in all.
pub fn bytes_of(case: &Case) -> u64 {
    // Filled and compared; an image is written and read, and so is its reference.
    let times = match case.transport {
        Transport::Exec | Transport::Kexec => 2,
        Transport::Image => 4,
    };
    case.data_bytes() * times
}

/// The old side: makes the files, prepares, freezes and jumps. Returns only without a jump.
///
/// # Errors
///
/// Whatever keeps it from jumping.
pub fn depart(case: &Case, directory: &Path) -> Result<()> {
    let limit = allow_many_files()?;
    // Each file is open three times: the workload's own, the orchestrator's, the handler's.
    let wanted = u64::from(case.files) * 3 + 64;
    if wanted > limit {
        say(&Message::Skipped(format!(
            "it needs {wanted} open files, {limit} are allowed; `ulimit -n {wanted}` asks for more"
        )));
        return Ok(());
    }
    let mut files = Vec::new();
    for sample in case.samples() {
        match sample.make(say_bytes) {
            Ok(file) => files.push(file),
            Err(MakeError::Unavailable(reason)) => {
                say(&Message::Skipped(reason));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mut crossing = Crossing {
        case: case.clone(),
        outcome: Outcome {
            data_bytes: case.data_bytes(),
            ..Outcome::default()
        },
    };
    if case.transport == Transport::Image {
        let time = reference_write(directory, crossing.outcome.data_bytes)?;
        crossing.outcome.reference_write_ns = Some(time);
    }
    update(&files, crossing, directory)
}

fn update(files: &[File], mut crossing: Crossing, directory: &Path) -> Result<()> {
    let state = MemfdOptions::default()
        .create("luo-bench-state")?
        .into_file();
    let orchestrator = Orchestrator::new(Arc::new(Registry::linked()?));
    orchestrator.preserve(STATE, &state)?;
    for (token, file) in (1..).zip(files) {
        orchestrator.preserve(Token(token), file)?;
    }
    let before = allocated(files)?;
    timed(&mut crossing.outcome.phases.prepare_ns, || {
        orchestrator.prepare()
    })?;
    // The state's own record has to show the size it will have, so it is written before the freeze,
    // and again with the last figures in the same place.
    write_state(&state, &crossing)?;
    timed(&mut crossing.outcome.phases.freeze_ns, || {
        orchestrator.freeze()
    })?;
    let outcome = &mut crossing.outcome;
    outcome.metadata_bytes = orchestrator.metadata_bytes();
    outcome.extra_memory_bytes = allocated(files)?.saturating_sub(before) + outcome.metadata_bytes;
    write_state(&state, &crossing)?;

    let mut program = Program::new("/proc/self/exe");
    program.arg(ARRIVE_COMMAND);
    let mut handover_ns = 0;
    let error = orchestrator.handover(|handover| match crossing.case.transport {
        Transport::Exec => {
            let mut departure = timed(&mut handover_ns, || {
                exec::Departure::new(&handover, &mut program)
            })?;
            departure
                .program()
                .args([handover_ns.to_string(), now().to_string()]);
            match departure.jump() {
                Ok(never) => match never {},
                Err(error) => Ok::<_, anyhow::Error>(error),
            }
        }
        Transport::Kexec => bail!("a kexec is no matter of this process"),
        Transport::Image => {
            timed(&mut handover_ns, || {
                image::save(&handover, directory, &say_bytes)
            })?;
            program.args([handover_ns.to_string(), now().to_string()]);
            program.arg(directory);
            Ok(program.replace_process())
        }
    })?;
    Err(error).context("cannot start the new side")
}

/// Room for the state, whatever its numbers come to.
const STATE_BYTES: usize = 4096;

fn write_state(file: &File, crossing: &Crossing) -> Result<()> {
    let mut state = serde_json::to_vec(crossing)?;
    if state.len() > STATE_BYTES {
        bail!("the state of a run has {} bytes", state.len());
    }
    state.resize(STATE_BYTES, b' ');
    Ok(file.write_all_at(&state, 0)?)
}

fn allocated(files: &[File]) -> Result<u64> {
    let mut bytes = 0;
    for file in files {
        bytes += allocated_bytes(file)?;
    }
    Ok(bytes)
}

/// Raises the limit of open files as far as an ordinary user may; yields it.
pub fn allow_many_files() -> Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// What an image is compared with: one thread copies memory to a fresh file in the same place, in pieces
/// of the same size, and does nothing else.
fn reference_write(directory: &Path, bytes: u64) -> Result<u64> {
    const SOURCE_BYTES: u64 = 256 << 20;
    let source = vec![0x5a_u8; bytes.min(SOURCE_BYTES) as usize];
    let mut time = 0;
    // Whoever comes first also waits for the machine to find the memory: a round is not counted.
    for _ in 0..2 {
        let mut file = tempfile::tempfile_in(directory)?;
        timed(&mut time, || copy(&source, bytes, &mut file))?;
    }
    Ok(time)
}

fn copy(source: &[u8], bytes: u64, file: &mut File) -> std::io::Result<()> {
    let mut left = bytes as usize;
    while left > 0 {
        for piece in source[..left.min(source.len())].chunks(image::CHUNK_BYTES as usize) {
            file.write_all(piece)?;
            left -= piece.len();
        }
    }
    file.sync_all()
}

/// What the new side is told by its command line, beside what crosses.
#[derive(Clone, Debug, clap::Args)]
pub struct ArriveOptions {
    /// How long the handover took, in nanoseconds
    handover_ns: u64,
    /// When the old side ended, in nanoseconds of CLOCK_MONOTONIC
    jumped_at: u64,
    /// The directory with the image; without it, an exec brought everything
    image: Option<PathBuf>,
}

/// The new side: retrieves, compares and finishes.
///
/// # Errors
///
/// Whatever keeps it from doing so. What it finds changed is told as a part of the outcome.
pub fn arrive(options: &ArriveOptions) -> Result<()> {
    let arrival = arrival(options)?;
    let orchestrator = Orchestrator::arrived(Arc::new(Registry::linked()?), arrival);
    // Before it can retrieve, the file table has to be there.
    orchestrator.files()?;
    let blackout_ns = now() - options.jumped_at;

    let mut crossing = read_state(&orchestrator)?;
    let outcome = &mut crossing.outcome;
    outcome.phases.handover_ns = options.handover_ns;
    outcome.phases.blackout_ns = blackout_ns;
    let samples = crossing.case.samples();
    let files = timed(&mut outcome.phases.retrieve_ns, || {
        (1..=samples.len() as u64)
            .map(|token| orchestrator.retrieve(Token(token)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut complaints = Vec::new();
    timed(&mut outcome.phases.finish_ns, || {
        orchestrator.finish().map(|found| complaints = found)
    })?;
    outcome.mismatch = complaints.first().map(ToString::to_string);
    for (sample, file) in samples.iter().zip(&files) {
        if let Err(mismatch) = sample.verify(file.as_fd(), say_bytes) {
            outcome
                .mismatch
                .get_or_insert_with(|| format!("{mismatch:#}"));
        }
    }
    say(&Message::Done(Box::new(crossing.outcome)));
    Ok(())
}

fn arrival(options: &ArriveOptions) -> Result<Arrival> {
    match &options.image {
        Some(directory) => Ok(image::load(directory, say_bytes)?),
        None => exec::arrive()?.context("nothing was handed over to this process"),
    }
}

fn read_state(orchestrator: &Orchestrator) -> Result<Crossing> {
    let state = orchestrator
        .retrieve(STATE)
        .context("the harness's own state did not cross")?;
    let mut state = holes::reopen(state.as_fd())?;
    let mut text = String::new();
    state.rewind()?;
    state.read_to_string(&mut text)?;
    Ok(serde_json::from_str(text.trim_end())?)
}
