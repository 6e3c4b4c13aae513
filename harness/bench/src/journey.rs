// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A series of live updates over real kexecs: prepare before the jump, retrieve and compare after
//! it.
//!
//! ```text
//! kernel 1          kernel 2             kernel 3          kernel 4
//! make, prepare  →  retrieve, compare →  make, prepare  →  retrieve, compare → ...
//! ```
//!
//! So each update but the first begins in a fresh kernel. What the next kernel has to know, the
//! series and what came of it so far, crosses in a memfd of its own; the moment of the jump is
//! written to it last. Only a fresh kernel in which our handler is switched off cannot take over a
//! memfd that ours has preserved: it finds a note on the disk instead, which its command line
//! names. The caller decides how a kernel is loaded, and what is done with the figures.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{anyhow, bail, ensure, Context, Result};
use luo_handler_api::Token;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::case::{Case, Implementation};
use crate::clock::Moment;
use crate::counters::{self, moved_bytes, preserved_bytes, Counters};
use crate::limits::allow_many_files;
use crate::memory::free_bytes;
use crate::outcome::Outcome;
use crate::phase::Phase;
use crate::profile::{Profiler, PROFILE_ROOM};
use crate::rehearsal;
use crate::report::{Row, Skipped};
use crate::series::{Series, Step, OURS_OFF};
use crate::subject::fill::Fill;
use crate::subject::memfd::MakeError;
use crate::subject::pages::{thp_size, Pages};
use crate::subject::Subject;
use crate::update::{Files, NewSide, Update};
use luo_liveupdate::kexec;
use luo_liveupdate::{Device, Session};

const STATE_SESSION: &str = "luo-bench-state";
const STATE_TOKEN: Token = Token(0);
/// It is a memfd, whatever is measured.
const STATE: Subject = Subject::Memfd {
    size: STATE_MAX,
    pages: Pages::Base,
    fill: Fill::Dense,
};
/// The state is written before it is complete, and cannot grow once it is preserved: room for what
/// is still to come, and a few bytes for each file.
const STATE_ROOM: usize = 4096;
const FILE_ROOM: usize = 128;
/// More than the longest series comes to; what is larger is not a state.
const STATE_MAX: u64 = 64 << 20;
const SESSION: &str = "luo-bench";
const GARBLED: &str = "what the previous kernel left cannot be continued";
/// The kernel parameter that names the note; the kernel ignores parameters with this prefix.
const NOTE_PARAMETER: &str = "luo.bench_note=";
/// What mainline's handler writes of each folio, `struct memfd_luo_folio_ser`.
const MAINLINE_FOLIO_BYTES: u64 = 16;

/// A journey through kernels. `E` is what the caller needs in each of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Journey<E> {
    series: Series,
    /// That of the next kernels, but for what belongs to a single one.
    command_line: String,
    /// Where a note goes, if one is needed.
    note: PathBuf,
    /// Of the first steps of the series.
    outcomes: Vec<Outcome>,
    /// For the caller.
    pub extra: E,
    /// Whether this kernel has measured nothing yet.
    #[serde(skip)]
    fresh: bool,
    /// Brings disks in order: a jump is not an orderly shutdown, and what is not on them by then
    /// never gets there.
    #[serde(skip, default = "syncing")]
    settle: fn(),
}

fn syncing() -> fn() {
    rustix::fs::sync
}

/// Why a step cannot be measured on this machine or with this kernel, which is not an error.
#[derive(Debug, Error)]
#[error("{0}")]
struct Unmeasurable(String);

/// What crosses beside the files.
#[derive(Serialize, Deserialize)]
struct State<J> {
    journey: J,
    /// `None` if nothing but the state crosses.
    departure: Option<Departure>,
}

/// The old side of a measured live update.
#[derive(Serialize, Deserialize)]
struct Departure {
    update: Update,
    /// When it ended.
    jumped: Moment,
}

impl<E: Serialize + DeserializeOwned> Journey<E> {
    /// One that begins in this kernel. The next ones boot with `command_line`.
    pub fn new(series: Series, command_line: &str, note: PathBuf, extra: E) -> Self {
        let of_one_kernel = |word: &&str| *word == OURS_OFF || word.starts_with(NOTE_PARAMETER);
        let words = command_line.split_whitespace();
        let words: Vec<&str> = words.filter(|word| !of_one_kernel(word)).collect();
        Self {
            series,
            command_line: words.join(" "),
            note,
            outcomes: Vec::new(),
            extra,
            fresh: true,
            settle: syncing(),
        }
    }

    /// Has this done before each jump of this kernel, in place of sync(2).
    pub fn settle_with(&mut self, settle: fn()) {
        self.settle = settle;
    }

    /// The one that came from the previous kernel, if one did; if that one measured, this is the
    /// new side.
    ///
    /// # Errors
    ///
    /// What crossed cannot be continued.
    pub fn arrived() -> Result<Option<Self>> {
        let device = Device::open()?;
        let arrived = Moment::now()?;
        let state = match incoming_session(&device, STATE_SESSION)? {
            Some(session) => Some(read_state(&session)?),
            None => read_note()?,
        };
        let Some(State::<Self> {
            mut journey,
            departure,
        }) = state
        else {
            return Ok(None);
        };
        journey.series.check()?;
        journey.fresh = departure.is_none();
        if let Some(departure) = departure {
            let step = journey.step().context("nothing is left to measure")?;
            let profile = journey.series.has_profile();
            let outcome = arrive(&device, &step, departure, &arrived, profile);
            journey.outcomes.push(outcome);
        }
        Ok(Some(journey))
    }

    /// What is to be measured next.
    fn step(&self) -> Option<Step> {
        self.series.steps().into_iter().nth(self.outcomes.len())
    }

    /// What was measured last, if this kernel is the new side of it.
    pub fn news(&self) -> Option<(Step, &Outcome)> {
        let index = self.outcomes.len().checked_sub(1)?;
        let step = self.series.steps().into_iter().nth(index)?;
        (!self.fresh).then(|| (step, &self.outcomes[index]))
    }

    /// How many live updates were measured, and of how many.
    pub fn progress(&self) -> (usize, usize) {
        (self.outcomes.len(), self.series.steps().len())
    }

    /// Notes why the next live update could not be made; the one after it begins in a fresh kernel.
    /// Returns it, if there is one.
    pub fn give_up_step(&mut self, reason: &str) -> Option<Step> {
        let step = self.step()?;
        self.outcomes.push(Outcome {
            mismatch: Some(reason.to_owned()),
            ..Outcome::default()
        });
        self.fresh = false;
        Some(step)
    }

    /// The formats of all that crosses: the files of the series, and the memfd with the state.
    pub fn formats(&self) -> BTreeSet<&'static str> {
        let mut formats = self.series.formats();
        formats.insert(Implementation::Ours.compatible(&STATE));
        formats
    }

    /// The figures so far, and what could not be measured.
    pub fn results(&self) -> (Vec<Row>, Vec<Skipped>) {
        self.series.results(&self.outcomes)
    }

    /// Jumps on. Returns at its end, without anything; and with a step that this machine or its
    /// kernel cannot do, and its outcome, to be called again.
    ///
    /// # Errors
    ///
    /// The reason why it did not jump. Then nothing is loaded any more, the sessions are given up,
    /// and all runs on.
    pub fn go_on(
        &mut self,
        load: impl FnOnce(&E, &str) -> Result<()>,
    ) -> Result<Option<(Step, Outcome)>> {
        let Some(step) = self.step() else {
            return Ok(None);
        };
        if let Some(reason) = self.skipped_before(&step) {
            return Ok(Some(self.skip(step, reason)));
        }
        // Loaded first: it takes memory, and between prepare and the jump there should be as
        // little as possible.
        load(&self.extra, &self.next_command_line(&step))?;
        let Err(error) = if self.fresh {
            self.depart(&step)
        } else if self.needs_note(&step) {
            self.jump_with_note()
        } else {
            self.jump_with_state()
        };
        if let Err(still_loaded) = kexec::unload() {
            return Err(error.context(still_loaded));
        }
        let Unmeasurable(reason) = error.downcast()?;
        // What was tried has left its traces in this kernel.
        self.fresh = false;
        Ok(Some(self.skip(step, reason)))
    }

    /// Why this case was skipped in an earlier round.
    fn skipped_before(&self, step: &Step) -> Option<String> {
        let steps = self.series.steps();
        let mut same = steps
            .iter()
            .zip(&self.outcomes)
            .filter(|(it, _)| *it == step);
        same.find_map(|(_, outcome)| outcome.skipped.clone())
    }

    fn skip(&mut self, step: Step, reason: String) -> (Step, Outcome) {
        let outcome = Outcome {
            skipped: Some(reason),
            ..Outcome::default()
        };
        self.outcomes.push(outcome.clone());
        (step, outcome)
    }

    fn next_command_line(&self, step: &Step) -> String {
        let mut more = step.parameter().unwrap_or_default().to_owned();
        if self.needs_note(step) {
            more += &format!(" {NOTE_PARAMETER}{}", self.note.display());
        }
        kexec::with_parameters(&self.command_line, &more)
    }

    /// Whether the next kernel is a fresh one that cannot take over what our handler preserves.
    fn needs_note(&self, step: &Step) -> bool {
        !self.fresh && step.parameter().is_some()
    }

    /// To a fresh kernel, with nothing.
    fn jump_with_note(&self) -> Result<Infallible> {
        let state = State {
            journey: self,
            departure: None,
        };
        fs::write(&self.note, serde_json::to_vec(&state)?)
            .with_context(|| format!("writing {}", self.note.display()))?;
        (self.settle)();
        let refused = kexec::jump();
        // Without the jump nobody reads it.
        let _ = fs::remove_file(&self.note);
        Err(refused.into())
    }

    /// To a fresh kernel, with the state alone.
    fn jump_with_state(&self) -> Result<Infallible> {
        let state = HeldState::new(&Device::open()?, self, 0)?;
        state.jump(self, |_| None)
    }

    /// The old side of a live update.
    fn depart(&self, step: &Step) -> Result<Infallible> {
        if let Some(reason) = counters::obstacle() {
            bail!("{reason}");
        }
        allow_many_files()?;
        provide_pages(&step.case)?;
        let device = Device::open()?;
        let state = HeldState::new(&device, self, step.case.files as usize)?;
        let rehearsal = rehearsal::make(&step.case)?;
        let (mut update, files) =
            Update::begin(&step.case, |_| ()).map_err(|error| match error {
                MakeError::Unavailable(reason) => Unmeasurable(reason).into(),
                error => anyhow!(error),
            })?;
        let _rehearsed = rehearse(&device, &rehearsal)?;
        let session = device.create_session(SESSION)?;
        let profiler = profiler_if(self.series.has_profile())?;
        let before = Before::look()?;
        let phases = &mut update.outcome.phases;
        phases.time(Phase::Prepare, || {
            sampled(profiler.as_ref(), || {
                preserve(&session, &files).map_err(|error| refusal(step, error))
            })
        })?;
        before.compare(step, &mut update.outcome)?;
        // The samples are memory that is freed by this.
        note_profile(Phase::Prepare, profiler, &mut update.outcome);
        state.jump(self, |jumped| Some(Departure { update, jumped }))
    }
}

/// The state's session on the old side. Dropping it gives the state up.
struct HeldState {
    file: File,
    _session: Session,
}

impl HeldState {
    fn new<E: Serialize>(device: &Device, journey: &Journey<E>, files: usize) -> Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create(STATE_SESSION, flags)?);
        let room = serde_json::to_vec(journey)?.len() + STATE_ROOM + files * FILE_ROOM;
        let room = room
            + if journey.series.has_profile() {
                PROFILE_ROOM
            } else {
                0
            };
        file.write_all_at(&vec![b' '; room], 0)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        let session = device.create_session(STATE_SESSION)?;
        session.preserve(STATE_TOKEN, file.as_fd())?;
        Ok(Self {
            file,
            _session: session,
        })
    }

    /// Returns only if the jump was refused.
    fn jump<E: Serialize>(
        &self,
        journey: &Journey<E>,
        depart: impl FnOnce(Moment) -> Option<Departure>,
    ) -> Result<Infallible> {
        (journey.settle)();
        let departure = depart(Moment::now()?);
        self.write(&State { journey, departure })?;
        Err(kexec::jump().into())
    }

    fn write<E: Serialize>(&self, state: &State<&Journey<E>>) -> Result<()> {
        let text = serde_json::to_vec(state)?;
        // The seals refuse to let it grow.
        self.file
            .write_all_at(&text, 0)
            .with_context(|| format!("the state has {} bytes and no room for them", text.len()))
    }
}

/// A session of the previous kernel, if it had one of this name.
fn incoming_session(device: &Device, name: &str) -> Result<Option<Session>> {
    match device.retrieve_session(name) {
        Ok(session) => Ok(Some(session)),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The note that this kernel's command line names. Its file system has to be mounted before a
/// journey arrives.
///
/// # Errors
///
/// No command line.
pub fn awaited_note() -> Result<Option<PathBuf>> {
    let command_line = fs::read_to_string("/proc/cmdline").context("reading the command line")?;
    let mut words = command_line.split_whitespace();
    let path = words.find_map(|word| word.strip_prefix(NOTE_PARAMETER));
    Ok(path.map(PathBuf::from))
}

/// The note is read once.
fn read_note<J: DeserializeOwned>() -> Result<Option<J>> {
    let Some(path) = awaited_note()? else {
        return Ok(None);
    };
    let note = match File::open(&path) {
        Ok(note) => note,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    parse_state(&note).map(Some).context(GARBLED)
}

fn read_state<J: DeserializeOwned>(session: &Session) -> Result<J> {
    let state = File::from(session.retrieve(STATE_TOKEN)?);
    session.finish()?;
    parse_state(&state).context(GARBLED)
}

fn parse_state<J: DeserializeOwned>(state: &File) -> Result<J> {
    let length = state.metadata()?.len();
    ensure!(
        length <= STATE_MAX,
        "it has {length} bytes, expected at most {STATE_MAX}"
    );
    let mut text = vec![0; length as usize];
    state.read_exact_at(&mut text, 0)?;
    serde_json::from_slice(&text).context("it is garbled, or another version of luo wrote it")
}

/// Each kernel has the pages of one case alone.
fn provide_pages(case: &Case) -> Result<()> {
    const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let Subject::Memfd { pages, .. } = case.subject else {
        return Ok(());
    };
    match pages {
        Pages::Base | Pages::Collapsed => Ok(()),
        Pages::Thp => fs::write(SWITCH, "advise").with_context(|| format!("writing to {SWITCH}")),
        Pages::Hugetlb | Pages::HugetlbOf(_) => {
            let bytes = case.data_bytes();
            pages
                .reserve(rehearsal::data_bytes(case))
                .with_context(|| format!("reserving pages for {case}"))?;
            match pages.missing().or_else(|| pages.cannot_reserve(bytes)) {
                None => Ok(()),
                Some(reason) => Err(Unmeasurable(reason).into()),
            }
        }
    }
}

/// A handler that does not know hugetlb pages has done what it can; any other refusal is an error.
fn refusal(step: &Step, error: luo_liveupdate::Error) -> anyhow::Error {
    let hugetlb = matches!(step.case.subject, Subject::Memfd { pages, .. } if pages.are_hugetlb());
    match error.errno() {
        Some(Errno::NOENT | Errno::OPNOTSUPP) if hugetlb => {
            let handler = match step.implementation {
                Implementation::Ours => "this kernel's handlers refuse",
                Implementation::MainlineC => "the kernel's own handler refuses",
            };
            Unmeasurable(format!("{handler} memfds of hugetlb pages: {error}")).into()
        }
        _ => error.into(),
    }
}

fn preserve(session: &Session, files: &Files) -> Result<(), luo_liveupdate::Error> {
    for (token, file) in files {
        session.preserve(*token, file.as_fd())?;
    }
    Ok(())
}

/// Preserves the small file that goes first, if there is one, for as long as the session is open.
/// If it is refused, the case will be as well.
fn rehearse(device: &Device, files: &Files) -> Result<Option<Session>> {
    let session = device.create_session(rehearsal::SESSION)?;
    let preserved = !files.is_empty() && preserve(&session, files).is_ok();
    Ok(preserved.then_some(session))
}

/// How things stand before prepare.
struct Before {
    free_bytes: u64,
    counters: Counters,
    preserved_bytes: u64,
    moved_bytes: u64,
}

impl Before {
    fn look() -> Result<Self> {
        Ok(Self {
            counters: Counters::read()?,
            preserved_bytes: preserved_bytes()?,
            moved_bytes: moved_bytes()?,
            free_bytes: free_bytes()?,
        })
    }

    /// What prepare took, and that it was done by the handler that should have done it.
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
            "our handler prepared {prepared} files, expected {expected}"
        );
        outcome.moved_bytes = moved_bytes()?.saturating_sub(self.moved_bytes);
        outcome.metadata_bytes = match step.implementation {
            Implementation::Ours => preserved_bytes()?.saturating_sub(self.preserved_bytes),
            Implementation::MainlineC => {
                let collapse = outcome.collapse.as_ref();
                mainline_metadata(step, collapse.map_or(0, |it| it.collapsed_bytes))
            }
        };
        Ok(())
    }
}

/// Mainline's handler does not report it; it writes a record of every folio, those of holes that
/// it has filled among them.
fn mainline_metadata(step: &Step, collapsed: u64) -> u64 {
    let Subject::Memfd { size, pages, .. } = step.case.subject else {
        return 0;
    };
    let whole = size.div_ceil(pages.size()) * u64::from(step.case.files);
    let folios = match (pages, thp_size()) {
        (Pages::Collapsed, Some(huge)) => whole - collapsed / pages.size() + collapsed / huge,
        _ => whole,
    };
    folios * MAINLINE_FOLIO_BYTES
}

/// The new side of a live update. What fails there makes it one that went wrong, and the series
/// goes on.
fn arrive(
    device: &Device,
    step: &Step,
    departure: Departure,
    arrived: &Moment,
    profile: bool,
) -> Outcome {
    let Departure { mut update, jumped } = departure;
    let taken = take_back(device, step, &mut update, profile);
    // Long after the arrival, so that the rate is known well.
    let blackout = Moment::now()
        .and_then(|now| arrived.rate_until(&now))
        .and_then(|rate| jumped.nanoseconds_until(arrived, rate));
    let mut outcome = update.outcome;
    let blackout = blackout.map(|ns| outcome.phases[Phase::Blackout] = ns);
    if let Err(error) = taken.and(blackout) {
        outcome.mismatch = Some(format!("{error:#}"));
    }
    outcome
}

fn take_back(device: &Device, step: &Step, update: &mut Update, profile: bool) -> Result<()> {
    ensure!(
        update.case == step.case,
        "the previous kernel measured {}, expected {}",
        update.case,
        step.case
    );
    allow_many_files()?;
    if let Some(session) = incoming_session(device, rehearsal::SESSION)? {
        session.retrieve(rehearsal::FILE)?;
        session.finish()?;
    }
    let side = SampledSession {
        session: device.retrieve_session(SESSION)?,
        profiler: profiler_if(profile)?,
    };
    update.take_back(&side, |_| ())?;
    note_profile(Phase::Retrieve, side.profiler, &mut update.outcome);
    Ok(())
}

/// A session on the new side, with a profiler if there is one.
struct SampledSession {
    session: Session,
    profiler: Option<Profiler>,
}

impl NewSide for SampledSession {
    type File = OwnedFd;

    fn retrieve(&self, token: Token) -> Result<OwnedFd> {
        sampled(self.profiler.as_ref(), || {
            Ok(self.session.retrieve(token)?)
        })
    }

    fn finish(&self) -> Result<Option<String>> {
        self.session.finish()?;
        Ok(None)
    }
}

fn profiler_if(wanted: bool) -> Result<Option<Profiler>> {
    wanted.then(Profiler::new).transpose()
}

fn sampled<R>(profiler: Option<&Profiler>, work: impl FnOnce() -> Result<R>) -> Result<R> {
    match profiler {
        Some(profiler) => profiler.sample(work),
        None => work(),
    }
}

fn note_profile(phase: Phase, profiler: Option<Profiler>, outcome: &mut Outcome) {
    if let Some(profiler) = profiler {
        let profile = profiler.finish();
        outcome.profiles.insert(phase.name().to_owned(), profile);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::series::tests::series;
    use crate::subject::FileType;
    use std::io::Write;

    fn state(text: &[u8]) -> Result<State<Journey<u8>>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        parse_state(&file)
    }

    #[test]
    fn a_journey_crosses_with_what_its_maker_needs() {
        let journey = Journey::new(series(true), "quiet", "/note".into(), 7_u8);
        let update = Update::begin(&series(true).cases()[0], |_| ());
        let departure = Some(Departure {
            update: update.unwrap().0,
            jumped: Moment::now().unwrap(),
        });
        let mut text = serde_json::to_vec(&State { journey, departure }).unwrap();
        text.extend_from_slice(b"    ");
        let State { journey, departure } = state(&text).unwrap();
        assert_eq!((journey.extra, journey.command_line.as_str()), (7, "quiet"));
        assert!(departure.is_some() && journey.step() == series(true).steps().into_iter().next());
    }

    #[test]
    fn what_is_not_a_state_is_an_error() {
        for garbled in [&b""[..], b"   ", b"{\"journey\":", &[0xff; 100]] {
            let error = state(garbled).err().unwrap();
            assert!(error.to_string().contains("garbled"), "{error}");
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(STATE_MAX + 1).unwrap();
        let error = parse_state::<State<Journey<u8>>>(&file).err().unwrap();
        assert!(error.to_string().contains("expected at most"), "{error}");
    }

    #[test]
    fn the_formats_are_those_of_the_files_and_of_the_state() {
        let formats = |series: Series| Journey::new(series, "", "/note".into(), ()).formats();
        let memfds = "luo-handlers,memfd-v1";
        assert!(formats(series(false)).iter().eq(&[memfds]));
        assert!(formats(series(true)).iter().eq(&[memfds, "memfd-v2"]));
        let plan = Plan {
            file_types: vec![FileType::Ioport],
            ..Plan::default()
        };
        let ports = formats(Series::new(plan, false));
        assert!(ports.iter().eq(&["luo-handlers,ioport-v1", memfds]));
    }

    #[test]
    fn the_next_kernel_fits_the_next_step() {
        let now = format!("a {OURS_OFF} {NOTE_PARAMETER}/old -- init");
        let mut journey = Journey::new(series(true), &now, "/note".into(), ());
        let command_line =
            |journey: &Journey<()>| journey.next_command_line(&journey.step().unwrap());
        assert_eq!(command_line(&journey), "a -- init");
        assert!(journey.news().is_none());
        assert_eq!(
            journey.give_up_step("no room").unwrap(),
            journey.series.steps()[0]
        );
        assert_eq!(journey.progress(), (1, 8));
        let noted = format!("a {OURS_OFF} {NOTE_PARAMETER}/note -- init");
        assert_eq!(command_line(&journey), noted);
        assert_eq!(
            journey.news().unwrap().0.implementation,
            Implementation::Ours
        );
    }

    #[test]
    fn what_was_skipped_once_is_not_tried_again() {
        let mut journey = Journey::new(series(true), "a", "/note".into(), ());
        let step = journey.step().unwrap();
        journey.skip(step.clone(), "no room".into());
        assert_eq!(journey.skipped_before(&step).as_deref(), Some("no room"));
        let next = journey.step().unwrap();
        assert_eq!(
            journey.skipped_before(&next),
            None,
            "that is the peer's turn"
        );
        let (rows, skipped) = journey.results();
        assert_eq!((rows.len(), skipped.len()), (0, 1));
    }
}
