// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench`: takes large memfds through whole live updates, in processes of their own, and reports.
//!
//! - this module: what to measure, and the rounds of it
//! - [`run`]: one live update, on both sides of the jump
//! - [`report`]: what comes out, for programs and for people; `html`: the same as pictures; `comparison`: ours against a peer
//! - [`environment`]: where it was measured; [`options`]: what may be asked for
//!
//! Over real kexecs, which end all that runs:
//!
//! - `journey`: from kernel to kernel, both sides of each jump; [`series`]: what is measured on the way
//! - [`machine`]: the journey of a real machine; that of a virtual one is a part of [`lab`](crate::lab)
//! - `clock`: goes on through the jump; `memory`: how much is free; `counters`: what the kernel module says

mod clock;
pub(crate) mod comparison;
pub(crate) mod counters;
pub mod environment;
mod html;
pub(crate) mod journey;
pub mod machine;
pub(crate) mod memory;
pub mod options;
pub mod report;
pub mod run;
pub mod series;

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, Context, Result};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::workload::{meminfo, Fill, Pages, Workload};
use environment::Environment;
use report::{Implementation, Report, Row};
use run::{Message, Outcome};

pub use html::write as write_html;

/// How the jump is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The process replaces itself and inherits everything: nothing is copied
    Exec,
    /// Contents go to a directory, and a process that inherits nothing reads them
    Image,
    /// The kernel keeps them while this machine jumps into the next one, which ends all that runs; for root, measured alone
    Kexec,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Exec => "exec",
            Self::Image => "image",
            Self::Kexec => "kexec",
        })
    }
}

/// What to measure: every combination of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The ways over the jump.
    pub transports: Vec<Transport>,
    /// Sizes of one memfd, in bytes.
    pub sizes: Vec<u64>,
    /// Page kinds.
    pub pages: Vec<Pages>,
    /// What is filled.
    pub fills: Vec<Fill>,
    /// How many memfds of that size cross together.
    pub files: u32,
    /// How often each combination is measured.
    pub runs: u32,
    /// Where images are written; a directory inside it is made and removed.
    pub image_directory: PathBuf,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The way over the jump.
    pub transport: Transport,
    /// The size of each memfd, in bytes.
    pub size: u64,
    /// Its page kind.
    pub pages: Pages,
    /// What is filled.
    pub fill: Fill,
    /// How many there are.
    pub files: u32,
}

impl Case {
    /// The memfds of this case; the seed of each is its token.
    pub fn workloads(&self) -> Vec<Workload> {
        let workload = |seed| Workload {
            size: self.size,
            pages: self.pages,
            fill: self.fill,
            seed,
        };
        (1..=u64::from(self.files)).map(workload).collect()
    }

    /// Bytes of data in all memfds together.
    pub fn data_bytes(&self) -> u64 {
        self.workloads().iter().map(Workload::data_bytes).sum()
    }

    /// Why this machine cannot do it here and now.
    fn obstacle(&self) -> Option<String> {
        // An image and what is made from it are there beside the memfds themselves.
        let copies = match self.transport {
            Transport::Exec | Transport::Kexec => 1,
            Transport::Image => 3,
        };
        if self.transport == Transport::Kexec && self.pages == Pages::Hugetlb {
            return Some("the kernel keeps no memfds of hugetlb pages".to_owned());
        }
        let needed = self.data_bytes().saturating_mul(copies);
        let available = meminfo("MemAvailable:")?;
        (needed > available).then(|| {
            format!(
                "it needs {} of memory, {} are available",
                ByteSize(needed),
                ByteSize(available)
            )
        })
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            transport,
            pages,
            fill,
            files,
            ..
        } = self;
        let size = ByteSize(self.size);
        write!(f, "{transport} {size} {pages} {fill}")?;
        match files {
            1 => Ok(()),
            _ => write!(f, " x{files}"),
        }
    }
}

impl Plan {
    /// Every combination, the cheapest first.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &size in &self.sizes {
            for &pages in &self.pages {
                for &fill in &self.fills {
                    for &transport in &self.transports {
                        cases.push(Case {
                            transport,
                            size,
                            pages,
                            fill,
                            files: self.files,
                        });
                    }
                }
            }
        }
        cases
    }
}

/// Set by an interrupt: the run under way ends, what was made is removed.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Measures everything in the plan, round by round, so that a busy moment of the machine does not fall
/// on one case alone. What the machine cannot do is said and skipped.
///
/// # Errors
///
/// A run that failed to do its work. One that did it wrongly is in the report, not `verified`.
pub fn measure(plan: &Plan) -> Result<Report> {
    let directory = tempfile::Builder::new()
        .prefix("luo-bench-")
        .tempdir_in(&plan.image_directory)
        .with_context(|| {
            format!(
                "cannot write to {}; --image-dir names another directory",
                plan.image_directory.display()
            )
        })?;
    let mut measured: Vec<(Case, Vec<Outcome>)> = Vec::new();
    let mut skipped = Vec::new();
    for case in plan.cases() {
        match case.obstacle() {
            None => measured.push((case, Vec::new())),
            Some(reason) => skip(&mut skipped, &case, reason),
        }
    }
    let progress = Progress::new(plan, measured.iter().map(|(case, _)| case));
    for round in 1..=plan.runs {
        let mut index = 0;
        while index < measured.len() {
            let (case, outcomes) = &mut measured[index];
            progress.start(round, case);
            match run_once(case, directory.path(), &progress)? {
                Ended::Outcome(outcome) => {
                    progress.end(round, case, &outcome);
                    outcomes.push(*outcome);
                    index += 1;
                }
                Ended::Skipped(reason) => {
                    let (case, _) = measured.remove(index);
                    skip(&mut skipped, &case, reason);
                }
            }
        }
    }
    progress.bar.finish_and_clear();
    if measured.is_empty() {
        bail!("nothing of what was asked for can be measured on this machine");
    }
    Ok(Report {
        schema: report::SCHEMA,
        environment: Environment::of_this_machine(&plan.image_directory),
        results: measured
            .into_iter()
            .map(|(case, outcomes)| Row::new(&case, Implementation::Ours, &outcomes))
            .collect(),
        skipped,
    })
}

fn skip(skipped: &mut Vec<report::Skipped>, case: &Case, reason: String) {
    eprintln!("skipped: {case}: {reason}");
    skipped.push(report::Skipped {
        case: case.clone(),
        reason,
    });
}

enum Ended {
    Outcome(Box<Outcome>),
    Skipped(String),
}

/// One live update in a process of its own.
fn run_once(case: &Case, directory: &Path, progress: &Progress) -> Result<Ended> {
    let mut child = Command::new("/proc/self/exe")
        .arg(run::DEPART_COMMAND)
        .arg(serde_json::to_string(case)?)
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a process for a run")?;
    let output = child.stdout.take().context("the run has no output")?;
    let mut ended = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        let message = serde_json::from_str(&line)
            .with_context(|| format!("the run of {case} said what is no message: {line}"))?;
        match message {
            Message::Bytes(bytes) => progress.bar.inc(bytes),
            Message::Skipped(reason) => ended = Some(Ended::Skipped(reason)),
            Message::Done(outcome) => ended = Some(Ended::Outcome(outcome)),
        }
    }
    let status = child.wait()?;
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted; nothing is left behind");
    }
    match ended {
        Some(ended) if status.success() => Ok(ended),
        _ => bail!("the run of {case} ended with {status}; what it said is above"),
    }
}

/// A bar on a terminal, a line a run elsewhere.
struct Progress {
    bar: ProgressBar,
    runs: u32,
    plain: bool,
}

impl Progress {
    fn new<'c>(plan: &Plan, cases: impl Iterator<Item = &'c Case>) -> Self {
        let bytes: u64 = cases.map(run::bytes_of).sum();
        let plain = !std::io::stderr().is_terminal();
        let bar = match plain {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(bytes * u64::from(plan.runs)),
        };
        if let Ok(style) = ProgressStyle::with_template(
            "{wide_bar:.cyan/dim} {bytes}/{total_bytes} {eta} left  {msg}",
        ) {
            bar.set_style(style);
        }
        Self {
            bar,
            runs: plan.runs,
            plain,
        }
    }

    fn start(&self, round: u32, case: &Case) {
        self.bar
            .set_message(format!("run {round}/{}: {case}", self.runs));
    }

    fn end(&self, round: u32, case: &Case, outcome: &Outcome) {
        if self.plain {
            eprintln!("run {round}/{}: {case}: {}", self.runs, outcome.summary());
        }
    }
}
