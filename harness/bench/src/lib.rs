// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench`: takes files through whole live updates, in processes of their own, and reports.
//!
//! - this module: what to measure, and the rounds of it
//! - [`subject`]: what it is measured with, large memfds or others
//! - [`run`]: one live update, on both sides of the jump
//! - [`report`]: what comes out, for programs and for people; `html`: the same as pictures; `comparison`: ours against a peer
//! - [`environment`]: where it was measured; [`options`]: what may be asked for
//!
//! Over real kexecs, which end all that runs:
//!
//! - `journey`: from kernel to kernel, both sides of each jump; [`series`]: what is measured on the way
//! - [`machine`]: the journey of a real machine; that of a virtual one is a part of luo-lab
//! - `clock`: goes on through the jump; `memory`: how much is free; `counters`: what the kernel module says

#![allow(unsafe_code)] // until its unsafe code lies in edge modules alone

mod clock;
pub mod comparison;
pub mod counters;
pub mod environment;
mod html;
pub mod journey;
pub mod machine;
pub mod memory;
pub mod options;
pub mod port;
pub mod report;
pub mod run;
pub mod series;
pub mod subject;
pub mod vfio;
pub mod workload;

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::workload::{Fill, Pages};
use environment::Environment;
use report::{Implementation, Report, Row};
use run::{Message, Outcome};
use subject::{Handler, Sample, Subject};

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
    /// Types of files. Sizes, page kinds and fills are of memfds only.
    pub handlers: Vec<Handler>,
    /// Sizes of one memfd, in bytes.
    pub sizes: Vec<u64>,
    /// Page kinds.
    pub pages: Vec<Pages>,
    /// What is filled.
    pub fills: Vec<Fill>,
    /// How many files of one kind cross together.
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
    /// What crosses.
    #[serde(flatten)]
    pub subject: Subject,
    /// How many there are.
    pub files: u32,
}

impl Case {
    /// The files of this case, in the order of their tokens, which begin at 1.
    fn samples(&self) -> Vec<Sample> {
        let numbers = 1..=u64::from(self.files);
        numbers.map(|number| self.subject.sample(number)).collect()
    }

    /// Bytes of data in all files together.
    pub fn data_bytes(&self) -> u64 {
        self.samples().iter().map(Sample::data_bytes).sum()
    }

    /// Why this machine cannot do it here and now.
    fn obstacle(&self) -> Option<String> {
        subject::obstacle(self)
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            transport,
            subject,
            files,
        } = self;
        write!(f, "{transport} {subject}{}", times(*files))
    }
}

/// How often there is what was named before, unless once.
fn times(files: u32) -> String {
    match files {
        1 => String::new(),
        _ => format!(" x{files}"),
    }
}

impl Plan {
    /// Every combination; of memfds the cheapest first.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for subject in self.subjects() {
            cases.extend(self.transports.iter().map(|&transport| Case {
                transport,
                subject,
                files: self.files,
            }));
        }
        cases
    }

    fn subjects(&self) -> Vec<Subject> {
        let subjects = self.handlers.iter().flat_map(|handler| match handler {
            Handler::Memfd => self.memfds(),
            Handler::Vfio => vec![Subject::Vfio],
            Handler::Ioport => vec![Subject::Ioport],
        });
        subjects.collect()
    }

    /// How many cases there are of each transport, without listing them.
    fn subject_count(&self) -> usize {
        let lists = [self.sizes.len(), self.pages.len(), self.fills.len()];
        let memfds = lists
            .iter()
            .fold(1, |product: usize, length| product.saturating_mul(*length));
        let counts = self.handlers.iter().map(|handler| match handler {
            Handler::Memfd => memfds,
            Handler::Vfio | Handler::Ioport => 1,
        });
        counts.fold(0, usize::saturating_add)
    }

    fn memfds(&self) -> Vec<Subject> {
        let mut memfds = Vec::new();
        for &size in &self.sizes {
            for &pages in &self.pages {
                memfds.extend(
                    self.fills
                        .iter()
                        .map(|&fill| Subject::Memfd { size, pages, fill }),
                );
            }
        }
        memfds
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memfds_are_combined_with_what_they_are_made_of() {
        let plan = Plan {
            transports: vec![Transport::Exec, Transport::Image],
            handlers: vec![Handler::Ioport, Handler::Memfd, Handler::Vfio],
            sizes: vec![1 << 20, 2 << 20],
            pages: vec![Pages::Base],
            fills: vec![Fill::Dense, Fill::Shuffled],
            files: 2,
            runs: 1,
            image_directory: "/".into(),
        };
        let cases = plan.cases();
        assert_eq!(cases.len(), 2 * (1 + 4 + 1));
        assert_eq!(cases.len(), 2 * plan.subject_count());
        let names = [0, 2, 11].map(|index| cases[index].to_string());
        assert_eq!(
            names,
            [
                "exec ioport x2",
                "exec 1.0 MiB 4k dense x2",
                "image vfio x2"
            ]
        );
        for case in cases {
            let row = Row::new(&case, Implementation::Ours, &[]);
            assert_eq!(case.to_string(), format!("{} {}", row.way(), row.name()));
            let text = serde_json::to_string(&case).unwrap();
            assert_eq!(serde_json::from_str::<Case>(&text).unwrap(), case);
        }
    }
}
