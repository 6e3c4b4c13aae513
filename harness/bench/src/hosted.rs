// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The two sides of a live update in ordinary processes: the old one up to the jump, the new one
//! after it.
//!
//! Both are workers that [`measure`](crate::measure) starts. What the new side has to know of the
//! old one crosses in a memfd of its own, under token 0, like the files that are measured.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use luo_handler_api::Token;
use memmap2::{Advice, MmapMut};
use rustix::fs::{memfd_create, MemfdFlags};

use crate::case::Case;
use crate::limits::allow_many_files;
use crate::message::{send_bytes, Message};
use crate::phase::{monotonic_ns, timed, Phase};
use crate::subject::memfd::MakeError;
use crate::subject::Subject;
use crate::transport::Transport;
use crate::update::{allocated, Files, NewSide, Update};
use crate::worker::{Task, Worker};
use luo_orchestrator::handover::Arrival;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::plugin;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::program::Program;
use luo_orchestrator::transport::spawn::{self, Predecessor, SpawnError};
use luo_orchestrator::transport::{
    exec,
    image::{self, Draft},
};

/// The memfd with what the new side has to know.
const STATE: Token = Token(0);
/// Room in it for the last figures, which come after the memfd was prepared.
const STATE_ROOM: usize = 4096;
/// More than the most files come to; a larger one was not written by this program.
const STATE_MAX: u64 = 64 << 20;

/// Does a task, in a process of its own, and reports on its standard output.
///
/// # Errors
///
/// Those of the work. What was changed by the jump is reported as a part of the outcome.
pub fn work(task: &str) -> Result<()> {
    match serde_json::from_str(task).context("this is not a task of a bench")? {
        Task::Depart {
            case,
            directory,
            worker,
        } => depart(&case, &directory, &worker),
        Task::Arrive {
            handover_ns,
            jumped_at_ns,
            image,
            plugins,
        } => {
            let registry = registry(&plugins)?;
            arrive(registry, handover_ns, jumped_at_ns, image.as_deref())
        }
        Task::Rehearse { plugins } => arrive_in_rehearsal(registry(&plugins)?),
    }
}

/// The handlers of plugins, which are asked first, and those that are linked in and have other
/// compatibles.
///
/// # Errors
///
/// The first plugin that cannot be used.
pub fn registry(plugins: &[PathBuf]) -> Result<Arc<Registry>> {
    let first = Registry::new();
    for file in plugins {
        plugin::load(file, &first)?;
    }
    Ok(Arc::new(Registry::linked_after(&first)?))
}

/// Bytes that the two sides of a case report in all.
pub fn bytes_of(case: &Case) -> u64 {
    // Filled and compared; an image is written, read again after freeze, and read back as well.
    let times = match case.transport {
        Transport::Exec | Transport::Kexec => 2,
        Transport::Image => 5,
    };
    case.data_bytes() * times
}

/// The old side. Returns only without a jump.
fn depart(case: &Case, directory: &Path, worker: &Worker) -> Result<()> {
    let limit = allow_many_files()?;
    // Each file is open three times: the workload's own, the orchestrator's, the handler's.
    let wanted = u64::from(case.files) * 3 + 64;
    if wanted > limit {
        Message::Skipped(format!(
            "it needs {wanted} open files, {limit} are allowed; `ulimit -n {wanted}` asks for more"
        ))
        .send();
        return Ok(());
    }
    let (mut update, files) = match Update::begin(case, send_bytes) {
        Ok(begun) => begun,
        Err(MakeError::Unavailable(reason)) => {
            Message::Skipped(reason).send();
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if case.transport == Transport::Image {
        let time = reference_write(directory, update.outcome.data_bytes)?;
        update.outcome.reference_write_ns = Some(time);
    }
    let Err(error) = jump(&files, update, directory, worker);
    if !Path::new("/proc/self").exists() {
        // Handlers look at open files there. One that does not need it does not fail.
        Message::Skipped(format!("{error:#}; mount /proc: it is missing")).send();
        return Ok(());
    }
    let has_contents = !matches!(case.subject, Subject::Program(_));
    if case.transport == Transport::Image && !has_contents {
        Message::Skipped(format!(
            "{error:#}; an image holds contents, exec passes open files on"
        ))
        .send();
        return Ok(());
    }
    Err(error)
}

fn jump(
    files: &Files,
    mut update: Update,
    directory: &Path,
    worker: &Worker,
) -> Result<Infallible> {
    let state = File::from(memfd_create("luo-bench-state", MemfdFlags::CLOEXEC)?);
    let orchestrator = Orchestrator::new(registry(&worker.plugins)?);
    orchestrator.preserve(STATE, &state)?;
    for (token, file) in files {
        let handler = orchestrator.preserve(*token, file)?.to_string();
        update.outcome.handler.get_or_insert(handler);
    }
    let before = allocated(files)?;
    let phases = &mut update.outcome.phases;
    let mut draft = phases.time(Phase::Prepare, || {
        orchestrator.prepare()?;
        let is_image = update.case.transport == Transport::Image;
        is_image.then(|| copy(&orchestrator, directory)).transpose()
    })?;
    // The state's own record has to show the size it will have, so it is written before the freeze,
    // and again with the last figures in the same place.
    let room = serde_json::to_vec(&update)?.len() + STATE_ROOM;
    write_state(&state, &update, room)?;
    update.outcome.unrehearsed = rehearse(&orchestrator, worker)?;
    let phases = &mut update.outcome.phases;
    phases.time(Phase::Freeze, || orchestrator.freeze())?;
    let outcome = &mut update.outcome;
    outcome.metadata_bytes = orchestrator.metadata_bytes();
    outcome.extra_memory_bytes = allocated(files)?.saturating_sub(before) + outcome.metadata_bytes;
    write_state(&state, &update, room)?;

    let mut program = Program::from_command(&worker.bare_command());
    let arrive = |handover_ns, image: Option<&Path>| {
        serde_json::to_string(&Task::Arrive {
            handover_ns,
            jumped_at_ns: monotonic_ns(),
            image: image.map(Path::to_owned),
            plugins: worker.plugins.clone(),
        })
    };
    let mut handover_ns = 0;
    let error = orchestrator.handover(|handover| match update.case.transport {
        Transport::Exec => {
            let mut departure = timed(&mut handover_ns, || {
                exec::Departure::new(&handover, &mut program)
            })?;
            departure.program().arg(arrive(handover_ns, None)?);
            let Err(error) = departure.jump();
            Ok::<_, anyhow::Error>(error)
        }
        Transport::Kexec => bail!("a process cannot make a kexec and measure it"),
        Transport::Image => {
            let draft = draft.take().context("nothing was copied")?;
            timed(&mut handover_ns, || draft.finish(&handover, &send_bytes))?;
            program.arg(arrive(handover_ns, Some(directory))?);
            Ok(program.replace_process())
        }
    })?;
    Err(error).context("cannot start the new side")
}

/// The last so many before a freeze were not a tenth faster than the first of them.
const REHEARSALS: u32 = 4;

/// What the new side of a rehearsal gives up with.
const REHEARSED: &str = "it was a rehearsal";

/// Characters of the reason why there was none.
const REASON_MAX: usize = 500;

/// How long the new side of a rehearsal may take.
const REHEARSAL_TIME: Duration = Duration::from_secs(10);

/// Free memory that is used before a freeze, in bytes: far more than the start of a program needs.
const FREE_BYTES: usize = 64 << 20;

/// Goes through what comes from freeze on, with a child as the new side, which gives everything
/// back; until that gets no faster: [`REHEARSALS`].
///
/// While large files are made all other memory rests, and hosts of virtual machines put away what
/// rests. In one, a start took 2 ms, and 30 ms after nine seconds of sleep; a page fault 3 µs, and
/// 12 µs where free memory had not been used for a while. A downtime must not depend on that, and
/// so on how long the files took to make.
///
/// Returns why the child did not come to its end, if it did not: a host that allows no child
/// measures without one.
fn rehearse(orchestrator: &Orchestrator, worker: &Worker) -> Result<Option<String>> {
    let plugins = worker.plugins.clone();
    let program = Program::from_command(&worker.command(&Task::Rehearse { plugins })?);
    let (mut best, mut left) = (Duration::MAX, REHEARSALS);
    let mut failure = None;
    while left > 0 {
        use_free_memory();
        let start = Instant::now();
        orchestrator.freeze()?;
        let ended = orchestrator.handover(|handover| {
            Ok::<_, anyhow::Error>(spawn::spawn(&handover, &program, REHEARSAL_TIME))
        })?;
        failure = match ended {
            Ok(_) => bail!("the new side of a rehearsal took over"),
            Err(SpawnError::GaveUp { reason, .. }) if reason == REHEARSED => None,
            Err(error) => Some(error.to_string().chars().take(REASON_MAX).collect()),
        };
        orchestrator.unfreeze()?;
        let took = start.elapsed();
        if took < best.mul_f64(0.9) {
            (best, left) = (took, REHEARSALS);
        }
        left -= 1;
    }
    Ok(failure)
}

/// Takes memory and gives it back, in small pages: the kernel gives out next what it got last. A
/// host that has not so much measures without it.
fn use_free_memory() {
    if let Ok(memory) = MmapMut::map_anon(FREE_BYTES) {
        let _ = memory.advise(Advice::NoHugePage);
        let _ = memory.advise(Advice::PopulateWrite);
    }
}

/// The contents of the image, while the workload runs.
fn copy(orchestrator: &Orchestrator, directory: &Path) -> Result<Draft> {
    let mut draft = Draft::new(directory)?;
    draft.copy(&orchestrator.held(), &send_bytes)?;
    Ok(draft)
}

fn write_state(file: &File, update: &Update, room: usize) -> Result<()> {
    let mut state = serde_json::to_vec(update)?;
    ensure!(
        state.len() <= room,
        "the state of a run has {} bytes, expected at most {room}",
        state.len()
    );
    state.resize(room, b' ');
    Ok(file.write_all_at(&state, 0)?)
}

/// What an image is compared with: one thread copies memory to a fresh file in the same place, in
/// pieces of the same size, and does nothing else.
fn reference_write(directory: &Path, bytes: u64) -> Result<u64> {
    const SOURCE_BYTES: u64 = 256 << 20;
    let source = vec![0x5a_u8; bytes.min(SOURCE_BYTES) as usize];
    let mut time = 0;
    let mut file = tempfile::tempfile_in(directory)?;
    timed(&mut time, || write(&source, bytes, &mut file))?;
    Ok(time)
}

fn write(source: &[u8], bytes: u64, file: &mut File) -> std::io::Result<()> {
    let mut left = bytes as usize;
    while left > 0 {
        for piece in source[..left.min(source.len())].chunks(image::CHUNK_BYTES as usize) {
            file.write_all(piece)?;
            left -= piece.len();
        }
    }
    file.sync_all()
}

/// The new side.
fn arrive(
    registry: Arc<Registry>,
    handover_ns: u64,
    jumped_at_ns: u64,
    image: Option<&Path>,
) -> Result<()> {
    let orchestrator = Orchestrator::arrived(registry, arrival(image)?);
    // Before it can retrieve, the file table has to be there.
    orchestrator.files()?;
    let blackout_ns = monotonic_ns() - jumped_at_ns;

    let mut update = read_state(&orchestrator)?;
    update.outcome.phases[Phase::Handover] = handover_ns;
    update.outcome.phases[Phase::Blackout] = blackout_ns;
    update.take_back(&orchestrator, send_bytes)?;
    Message::Done(Box::new(update.outcome)).send();
    Ok(())
}

/// The new side of a rehearsal: it goes as far as the files, and gives them up.
fn arrive_in_rehearsal(registry: Arc<Registry>) -> Result<()> {
    let predecessor = Predecessor::find()?.context("nobody waits for this process")?;
    let orchestrator = Orchestrator::arrived(registry, arrival(None)?);
    for sample in read_state(&orchestrator)?.case.samples() {
        orchestrator.retrieve(sample.token)?;
    }
    Ok(predecessor.give_up(REHEARSED)?)
}

fn arrival(image: Option<&Path>) -> Result<Arrival> {
    match image {
        Some(directory) => Ok(image::load(directory, send_bytes)?),
        None => exec::arrive()?.context("nothing was handed over to this process"),
    }
}

impl NewSide for Orchestrator {
    type File = Arc<OwnedFd>;

    fn retrieve(&self, token: Token) -> Result<Self::File> {
        Ok(self.retrieve(token)?)
    }

    fn finish(&self) -> Result<Option<String>> {
        Ok(self.finish()?.first().map(ToString::to_string))
    }
}

fn read_state(orchestrator: &Orchestrator) -> Result<Update> {
    let state = orchestrator
        .retrieve(STATE)
        .context("the bench's own state did not cross")?;
    let state = File::from(state.as_fd().try_clone_to_owned()?);
    let length = state.metadata()?.len();
    ensure!(
        length <= STATE_MAX,
        "the bench's own state has {length} bytes"
    );
    let mut text = vec![0; length as usize];
    state.read_exact_at(&mut text, 0)?;
    serde_json::from_slice(&text).context("the bench's own state is garbled")
}

#[cfg(test)]
mod tests {
    use super::*;
    use luo_orchestrator::error::State;

    const PLUGIN: &str = "/a/plugin.so";

    /// Why a rehearsal with `program` as the new side failed. It leaves everything prepared.
    fn rehearsed_with(program: &str, arguments: &[&str]) -> String {
        let orchestrator = Orchestrator::new(registry(&[]).unwrap());
        orchestrator.prepare().unwrap();
        let worker = Worker {
            program: program.into(),
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            plugins: vec![PLUGIN.into()],
        };
        let failure = rehearse(&orchestrator, &worker).unwrap();
        assert_eq!(orchestrator.state(), State::Prepared);
        failure.unwrap()
    }

    #[test]
    fn a_new_side_that_fails_or_does_not_start_is_told_of_and_leaves_everything_prepared() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!("test \"$LUO_HANDOVER\" && echo \"$0\" >> {}", log.display());
        let failure = rehearsed_with("/bin/sh", &["-c", &script]);
        assert!(failure.contains("ended before it was ready"), "{failure}");
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.lines().count() >= REHEARSALS as usize);
        for task in log.lines().map(serde_json::from_str) {
            let Task::Rehearse { plugins } = task.unwrap() else {
                panic!("{log}");
            };
            assert_eq!(plugins, [Path::new(PLUGIN)]);
        }
        let failure = rehearsed_with("/nonexistent", &[]);
        assert!(failure.contains("/nonexistent"), "{failure}");
    }
}
