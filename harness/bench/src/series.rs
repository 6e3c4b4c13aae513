// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What is measured over real kexecs, and in which order: round by round, our handler and a peer in turn.
//!
//! A boot parameter decides which handler takes the files; all else about the kernels is the same.

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use crate::options::{FILES_MAX, RUNS_MAX, SIZE_MAX};
use crate::report::{Implementation, Row};
use crate::run::Outcome;
use crate::subject::Handler;
use crate::{Case, Plan};

/// The most live updates of a series: each leaves its figures in what crosses.
const UPDATES_MAX: usize = 100_000;
/// With this the kernel's own handler takes memfds.
pub const OURS_OFF: &str = "luo_handlers.disable=memfd";

/// Whom to compare with.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Peer {
    /// The handler in C that the kernel brings along
    MainlineC,
}

impl Peer {
    /// Whether the kernel's own handlers keep such files too.
    pub fn keeps(handlers: &[Handler]) -> bool {
        handlers.iter().all(|handler| *handler == Handler::Memfd)
    }
}

/// A series of live updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    plan: Plan,
    compare: bool,
}

/// One live update.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub case: Case,
    pub implementation: Implementation,
}

impl Series {
    pub fn new(plan: Plan, compare: Option<Peer>) -> Self {
        Self {
            plan,
            compare: compare.is_some(),
        }
    }

    /// Refuses what would take for ever, or cannot have been asked for: a series also comes from a previous kernel.
    pub fn check(&self) -> Result<()> {
        let plan = &self.plan;
        ensure!(
            (1..=RUNS_MAX).contains(&plan.runs)
                && (1..=FILES_MAX).contains(&plan.files)
                && plan.sizes.iter().all(|size| (1..=SIZE_MAX).contains(size)),
            "the series has sizes, files or runs that cannot be asked for"
        );
        ensure!(
            !self.compare || Peer::keeps(&plan.handlers),
            "the kernel's own handler keeps memfds alone"
        );
        let rounds = plan.runs as usize * self.implementations().len();
        let updates = [plan.transports.len(), plan.subject_count()]
            .iter()
            .fold(rounds, |product, length| product.saturating_mul(*length));
        ensure!(
            (1..=UPDATES_MAX).contains(&updates),
            "a series of {updates} live updates is none; up to {UPDATES_MAX} are"
        );
        Ok(())
    }

    pub fn cases(&self) -> Vec<Case> {
        self.plan.cases()
    }

    fn implementations(&self) -> &'static [Implementation] {
        match self.compare {
            true => &[Implementation::Ours, Implementation::MainlineC],
            false => &[Implementation::Ours],
        }
    }

    /// All live updates in their order. In each round every case has its turn; the peers take turns at it, and at going
    /// first.
    pub fn steps(&self) -> Vec<Step> {
        let mut peers = self.implementations().to_vec();
        let mut steps = Vec::new();
        for _ in 0..self.plan.runs {
            for case in self.plan.cases() {
                steps.extend(peers.iter().map(|&implementation| Step {
                    case: case.clone(),
                    implementation,
                }));
            }
            peers.reverse();
        }
        steps
    }

    /// A row for each case and implementation that was measured; `outcomes` are those of the first steps.
    pub fn rows(&self, outcomes: &[Outcome]) -> Vec<Row> {
        let steps = self.steps();
        let mut rows = Vec::new();
        for case in self.plan.cases() {
            for &implementation in self.implementations() {
                let mine = steps
                    .iter()
                    .zip(outcomes)
                    .filter(|(step, _)| step.case == case && step.implementation == implementation);
                let mine: Vec<Outcome> = mine.map(|(_, outcome)| outcome.clone()).collect();
                if !mine.is_empty() {
                    rows.push(Row::new(&case, implementation, &mine));
                }
            }
        }
        rows
    }
}

impl Step {
    /// What its kernels boot with, on both sides of the jump.
    pub fn parameter(&self) -> Option<&'static str> {
        match self.implementation {
            Implementation::Ours => None,
            Implementation::MainlineC => Some(OURS_OFF),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.case, self.implementation)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::workload::{Fill, Pages};
    use crate::Transport;

    pub fn series(compare: bool) -> Series {
        Series {
            plan: Plan {
                transports: vec![Transport::Kexec],
                handlers: vec![Handler::Memfd],
                sizes: vec![1 << 20, 2 << 20],
                pages: vec![Pages::Base],
                fills: vec![Fill::Dense],
                files: 1,
                runs: 2,
                image_directory: "/".into(),
            },
            compare,
        }
    }

    #[test]
    fn peers_take_turns_also_at_going_first() {
        let steps = series(true).steps();
        let ours: Vec<bool> = steps
            .iter()
            .map(|step| step.parameter().is_none())
            .collect();
        assert_eq!(ours, [true, false, true, false, false, true, false, true]);
        let sizes: Vec<u64> = steps
            .iter()
            .map(|step| step.case.subject.size() >> 20)
            .collect();
        assert_eq!(sizes, [1, 1, 2, 2, 1, 1, 2, 2]);
    }

    #[test]
    fn outcomes_go_to_the_rows_of_their_steps() {
        let series = series(true);
        let outcomes: Vec<Outcome> = (0..8)
            .map(|number| Outcome {
                extra_memory_bytes: number,
                ..Outcome::default()
            })
            .collect();
        let rows = series.rows(&outcomes);
        let greatest: Vec<u64> = rows.iter().map(|row| row.extra_memory_bytes).collect();
        assert_eq!(greatest, [5, 4, 7, 6]);
        assert!(rows.iter().all(|row| row.runs == 2));
        assert_eq!(series.rows(&outcomes[..1]).len(), 1);
    }

    #[test]
    fn a_series_that_nobody_can_have_asked_for_is_refused() {
        assert!(series(true).check().is_ok());
        for change in [
            |plan: &mut Plan| plan.runs = u32::MAX,
            |plan: &mut Plan| plan.files = 0,
            |plan: &mut Plan| plan.sizes.push(u64::MAX),
            |plan: &mut Plan| plan.handlers.clear(),
            |plan: &mut Plan| plan.handlers = vec![Handler::Vfio; UPDATES_MAX],
            |plan: &mut Plan| plan.sizes.clear(),
            |plan: &mut Plan| plan.fills = vec![Fill::Dense; UPDATES_MAX],
        ] {
            let mut series = series(false);
            change(&mut series.plan);
            assert!(series.check().is_err());
        }
        let mut devices = series(false);
        devices.plan.handlers.push(Handler::Vfio);
        assert!(devices.check().is_ok());
        devices.compare = true;
        assert!(devices.check().is_err(), "mainline keeps no devices");
    }
}
