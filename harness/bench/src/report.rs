// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What was measured, as programs read it: JSON, schema 2.

use serde::{Deserialize, Serialize};

use crate::case::{Case, Implementation};
use crate::environment::Environment;
use crate::format::times;
use crate::outcome::{Collapse, Outcome, RefusedBlocks};
use crate::phase::{PerPhase, Phase};
use crate::profile::Profiles;
use crate::spread::Spread;
use crate::subject::fill::Fill;
use crate::subject::pages::Pages;
use crate::subject::Subject;
use crate::transport::Transport;

/// Version of the JSON.
pub const SCHEMA: u32 = 2;

const GIB: f64 = (1u64 << 30) as f64;

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where it was measured.
    pub environment: Environment,
    /// One row a case.
    pub results: Vec<Row>,
    /// What the machine could not do.
    pub skipped: Vec<Skipped>,
}

/// What was planned, as rows and skipped cases name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Name {
    /// The way over the jump.
    pub transport: Transport,
    /// Whose code preserved the files.
    pub implementation: Implementation,
    /// The handler's compatible.
    pub handler: String,
    /// The size of one memfd, in bytes; 0 of what is not a memfd.
    pub size_bytes: u64,
    /// Its page kind; `None` for what is not a memfd.
    pub pages: Option<Pages>,
    /// What was filled; likewise.
    pub fill: Option<Fill>,
    /// How many files crossed together.
    pub files: u32,
    /// The name of the program that made them, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// A case that was not measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// What was asked for.
    #[serde(flatten)]
    pub case: Name,
    /// Why it could not be done.
    pub reason: String,
}

/// One case, measured by one implementation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    #[serde(flatten)]
    pub case: Name,
    /// How often it was measured.
    pub runs: u32,
    /// How long each phase took.
    pub phases: PerPhase<Spread>,
    /// How long the workload did not run: freeze, handover, blackout and retrieve of each run
    /// together.
    pub downtime_ns: Spread,
    /// Bytes of data that crossed, in all files.
    pub data_bytes: u64,
    /// Bytes of metadata that crossed.
    pub metadata_bytes: u64,
    /// Bytes of memory taken beyond what the files had.
    pub extra_memory_bytes: u64,
    /// Bytes that prepare had to move to other memory; 0 where that is not known.
    pub moved_bytes: u64,
    /// Bytes that lay in huge pages before the jump; `None` where that is not known.
    pub huge_page_bytes: Option<u64>,
    /// Collapsing single pages before prepare, which is not downtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse: Option<CollapseRow>,
    /// One thread copying as many bytes of memory to a fresh file beside the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_write_ns: Option<Spread>,
    /// Where the time of some phases went, in all runs together, if that was asked for.
    #[serde(default, skip_serializing_if = "Profiles::is_empty")]
    pub profiles: Profiles,
    /// Why the jump could not be rehearsed before a run, if that was tried in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrehearsed: Option<String>,
    /// Whether every byte, size, seal, position and hole was as before, in every run; of devices
    /// where they are and what, of port files position, access mode and flags.
    pub verified: bool,
    /// What was not, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
}

/// What collapsing came to in all runs of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollapseRow {
    /// How long it took, while the workload ran.
    pub collapse_ns: Spread,
    /// What the kernel was asked for: data in whole blocks of the size of a huge page.
    pub asked_bytes: u64,
    /// What lay in huge pages then, in the run in which it was least.
    pub collapsed_bytes: u64,
    /// What did not, in that run.
    pub refused: Vec<RefusedBlocks>,
}

impl CollapseRow {
    fn of(outcomes: &[Outcome]) -> Option<Self> {
        let runs: Vec<&Collapse> = outcomes
            .iter()
            .filter_map(|it| it.collapse.as_ref())
            .collect();
        let worst = runs.iter().min_by_key(|run| run.collapsed_bytes)?;
        Some(Self {
            collapse_ns: Spread::of(runs.iter().map(|run| run.nanoseconds)),
            asked_bytes: worst.asked_bytes,
            collapsed_bytes: worst.collapsed_bytes,
            refused: worst.refused.clone(),
        })
    }
}

impl Name {
    fn new(case: &Case, implementation: Implementation) -> Self {
        let (pages, fill) = match case.subject {
            Subject::Memfd { pages, fill, .. } => (Some(pages), Some(fill)),
            Subject::Vfio | Subject::Ioport | Subject::Program(_) => (None, None),
        };
        Self {
            transport: case.transport,
            implementation,
            handler: implementation.compatible(&case.subject).to_owned(),
            size_bytes: case.subject.size(),
            pages,
            fill,
            files: case.files,
            program: case.subject.program(),
        }
    }

    /// What crossed, as people read it: of what is not a memfd, the compatible without vendor and
    /// version.
    pub fn files(&self) -> String {
        let name = match self.kind() {
            Some((fill, pages)) => {
                let size = self.size_bytes;
                Subject::Memfd { size, pages, fill }.to_string()
            }
            None if self.program.is_some() => self.program.clone().unwrap_or_default(),
            None => {
                let name = self.handler.rsplit(',').next().unwrap_or_default();
                name.split('-').next().unwrap_or_default().to_owned()
            }
        };
        name + &times(self.files)
    }

    /// What is filled and with which pages, of memfds.
    pub fn kind(&self) -> Option<(Fill, Pages)> {
        self.fill.zip(self.pages)
    }

    /// The transport, and the implementation unless it is ours.
    pub fn way(&self) -> String {
        match self.implementation {
            Implementation::Ours => self.transport.to_string(),
            Implementation::MainlineC => format!("{} {}", self.transport, self.implementation),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.way(), self.files())
    }
}

impl Skipped {
    /// A case, and why it was not measured.
    pub fn new(case: &Case, implementation: Implementation, reason: String) -> Self {
        Self {
            case: Name::new(case, implementation),
            reason,
        }
    }
}

impl Row {
    /// What the runs of a case have in common.
    pub fn new(case: &Case, implementation: Implementation, outcomes: &[Outcome]) -> Self {
        let greatest = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
        let spread = |phase: Phase| Spread::of(outcomes.iter().map(|run| run.phases[phase]));
        let references = outcomes.iter().filter_map(|run| run.reference_write_ns);
        let references: Vec<u64> = references.collect();
        let huge_pages = outcomes.iter().map(|run| run.huge_page_bytes);
        let mismatch = outcomes.iter().find_map(|run| run.mismatch.clone());
        let mut name = Name::new(case, implementation);
        if let Some(handler) = outcomes.iter().find_map(|run| run.handler.clone()) {
            name.handler = handler;
        }
        let mut profiles = Profiles::new();
        for (phase, profile) in outcomes.iter().flat_map(|run| &run.profiles) {
            profiles.entry(phase.clone()).or_default().merge(profile);
        }
        Self {
            case: name,
            runs: outcomes.len() as u32,
            phases: PerPhase::from_fn(spread),
            downtime_ns: Spread::of(outcomes.iter().map(|run| run.phases.downtime())),
            data_bytes: greatest(|run| run.data_bytes),
            metadata_bytes: greatest(|run| run.metadata_bytes),
            extra_memory_bytes: greatest(|run| run.extra_memory_bytes),
            moved_bytes: greatest(|run| run.moved_bytes),
            huge_page_bytes: huge_pages.min().flatten(),
            collapse: CollapseRow::of(outcomes),
            reference_write_ns: (!references.is_empty()).then(|| Spread::of(references)),
            profiles,
            unrehearsed: outcomes.iter().find_map(|run| run.unrehearsed.clone()),
            verified: mismatch.is_none() && !outcomes.is_empty(),
            mismatch,
        }
    }

    /// Notes that something was not as before, in a run that is not among the measured ones.
    pub fn refute(&mut self, mismatch: &str) {
        self.verified = false;
        self.mismatch.get_or_insert_with(|| mismatch.to_owned());
    }

    /// What crossed, as people read it.
    pub fn name(&self) -> String {
        self.case.files()
    }

    /// The transport, and the implementation unless it is ours.
    pub fn way(&self) -> String {
        self.case.way()
    }

    /// GiB of data.
    pub fn gib(&self) -> f64 {
        self.data_bytes as f64 / GIB
    }

    /// Milliseconds of downtime a GiB of data; `None` without data.
    pub fn downtime_ms_per_gib(&self) -> Option<f64> {
        let milliseconds = self.downtime_ns.median as f64 / 1e6;
        (self.data_bytes > 0).then(|| milliseconds / self.gib())
    }

    /// Writing the image against copying memory to a fresh file in the same place, by one thread:
    /// 1 is as fast. `None` where nothing was written.
    pub fn image_to_reference(&self) -> Option<f64> {
        let reference = self.reference_write_ns.as_ref()?.median as f64;
        let image = self.phases[Phase::Prepare].median as f64;
        (self.data_bytes > 0).then(|| reference / image)
    }
}

impl Report {
    /// A report of this version.
    pub fn new(environment: Environment, results: Vec<Row>, skipped: Vec<Skipped>) -> Self {
        Self {
            schema: SCHEMA,
            environment,
            results,
            skipped,
        }
    }

    /// Whether something was measured, and everything of ours was also right.
    pub fn verified(&self) -> bool {
        let ours = |row: &&Row| row.case.implementation == Implementation::Ours;
        let mut ours = self.results.iter().filter(ours);
        !self.results.is_empty() && ours.all(|row| row.verified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case = Case {
        transport: Transport::Exec,
        subject: Subject::Ioport,
        files: 1,
    };

    #[test]
    fn one_wrong_run_is_enough_to_be_not_verified() {
        let right = Outcome::default();
        let wrong = Outcome {
            mismatch: Some("the size".to_owned()),
            ..Outcome::default()
        };
        let row = |outcomes: &[Outcome]| Row::new(&CASE, Implementation::Ours, outcomes);
        assert!(row(&[right.clone(), right.clone()]).verified);
        assert!(!row(&[right.clone(), wrong, right.clone()]).verified);
        assert!(!row(&[]).verified);
        let mut refuted = row(&[right]);
        refuted.refute("the seals");
        assert!(!refuted.verified);
        assert_eq!(refuted.mismatch.as_deref(), Some("the seals"));
    }

    #[test]
    fn rows_have_the_names_of_their_cases() {
        let memfd = Subject::Memfd {
            size: 1 << 20,
            pages: Pages::Thp,
            fill: Fill::sparse(500),
        };
        let program = Subject::Program("/a/pipe.sh".into());
        for subject in [memfd, Subject::Vfio, Subject::Ioport, program] {
            for files in [1, 3] {
                let case = Case {
                    subject: subject.clone(),
                    files,
                    ..CASE
                };
                let row = Row::new(&case, Implementation::Ours, &[]);
                assert_eq!(row.case.to_string(), case.to_string());
                assert_eq!(case.to_string(), format!("{} {}", row.way(), row.name()));
            }
        }
    }

    #[test]
    fn downtime_is_that_of_each_run() {
        let outcome = |freeze, retrieve, prepare| {
            let mut outcome = Outcome::default();
            outcome.phases[Phase::Freeze] = freeze;
            outcome.phases[Phase::Retrieve] = retrieve;
            outcome.phases[Phase::Prepare] = prepare;
            outcome
        };
        let outcomes = [outcome(1, 20, 500), outcome(10, 2, 500)];
        let row = Row::new(&CASE, Implementation::Ours, &outcomes);
        assert_eq!(row.downtime_ns.samples, [21, 12]);
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["downtime_ns"]["max"], 21);
        assert_eq!(json["phases"]["freeze_ns"]["samples"][1], 10);
        let back: Row = serde_json::from_value(json).unwrap();
        assert_eq!(back.downtime_ns, row.downtime_ns);
    }
}
