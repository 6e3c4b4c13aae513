// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What is measured over real kexecs, and in which order: round by round, our handler and a peer
//! in turn.
//!
//! A boot parameter decides which handler takes the files; all else about the kernels is the same.

use std::collections::BTreeSet;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use crate::case::{Case, Implementation};
use crate::outcome::Outcome;
use crate::plan::{Plan, UPDATES_MAX};
use crate::report::{Row, Skipped};
use crate::subject::FileType;

/// With this the kernel's own handler takes memfds.
pub const OURS_OFF: &str = "luo_handlers.disable=memfd";

/// Whether the kernel's own handler takes such files too.
pub fn mainline_takes(file_types: &[FileType]) -> bool {
    file_types
        .iter()
        .all(|&file_type| file_type == FileType::Memfd)
}

/// A series of live updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    plan: Plan,
    compare: bool,
    /// Whether the kernel is sampled meanwhile.
    #[serde(default)]
    profile: bool,
    /// The one of all steps that is made, if not all are.
    #[serde(default)]
    only: Option<usize>,
}

/// One live update of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What is measured.
    pub case: Case,
    /// Whose handler takes the files.
    pub implementation: Implementation,
}

impl Series {
    /// A plan, measured with our handlers, and if `compare` also with the kernel's own.
    pub const fn new(plan: Plan, compare: bool) -> Self {
        Self {
            plan,
            compare,
            profile: false,
            only: None,
        }
    }

    /// The step with this number, counted from 0, alone.
    #[must_use]
    pub fn only(&self, step: usize) -> Self {
        Self {
            only: Some(step),
            ..self.clone()
        }
    }

    /// The same with a profile of prepare and retrieve.
    #[must_use]
    pub fn with_profile(self, profile: bool) -> Self {
        Self { profile, ..self }
    }

    /// Whether the kernel is sampled.
    pub const fn has_profile(&self) -> bool {
        self.profile
    }

    /// Refuses what would take for ever, or cannot have been asked for: a series also comes from a
    /// previous kernel, which is not trusted.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn check(&self) -> Result<()> {
        self.plan.check()?;
        ensure!(
            !self.compare || mainline_takes(&self.plan.file_types),
            "the kernel's own handler takes memfds alone"
        );
        ensure!(
            self.plan.program.is_none(),
            "files of a program are measured in processes alone"
        );
        let rounds = self.plan.runs as usize * self.implementations().len();
        let updates = rounds.saturating_mul(self.plan.cases().len());
        ensure!(
            updates <= UPDATES_MAX,
            "a series has up to {UPDATES_MAX} live updates, not {updates}"
        );
        Ok(())
    }

    /// What is measured.
    pub fn cases(&self) -> Vec<Case> {
        self.plan.cases()
    }

    /// The formats in which its files cross.
    pub fn formats(&self) -> BTreeSet<&'static str> {
        let cases = self.cases();
        let peers = self.implementations().iter();
        let of_peer = |peer: &Implementation| {
            let formats = cases.iter().map(|case| peer.compatible(&case.subject));
            formats.collect::<Vec<_>>()
        };
        peers.flat_map(of_peer).collect()
    }

    /// Whether some of its kernels cannot take over what our handler preserved, and find a note
    /// instead.
    pub const fn needs_notes(&self) -> bool {
        self.compare
    }

    fn implementations(&self) -> &'static [Implementation] {
        match self.compare {
            true => &[Implementation::Ours, Implementation::MainlineC],
            false => &[Implementation::Ours],
        }
    }

    /// All live updates in their order. In each round every case has its turn; the peers take
    /// turns at it, and at going first.
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
        match self.only {
            None => steps,
            Some(step) => steps.into_iter().skip(step).take(1).collect(),
        }
    }

    /// A row for each case and implementation that was measured, and what was not, with the first
    /// reason; `outcomes` are those of the first steps.
    pub fn results(&self, outcomes: &[Outcome]) -> (Vec<Row>, Vec<Skipped>) {
        let steps = self.steps();
        let (mut rows, mut skipped) = (Vec::new(), Vec::new());
        for case in self.plan.cases() {
            for &implementation in self.implementations() {
                let is_mine =
                    |step: &Step| step.case == case && step.implementation == implementation;
                let mine = steps.iter().zip(outcomes).filter(|(step, _)| is_mine(step));
                let mine: Vec<Outcome> = mine.map(|(_, outcome)| outcome.clone()).collect();
                if let Some(reason) = mine.iter().find_map(|outcome| outcome.skipped.clone()) {
                    skipped.push(Skipped::new(&case, implementation, reason));
                } else if !mine.is_empty() {
                    rows.push(Row::new(&case, implementation, &mine));
                }
            }
        }
        (rows, skipped)
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
pub(crate) mod tests {
    use super::*;
    use crate::subject::fill::Fill;
    use crate::transport::Transport;

    pub(crate) fn series(compare: bool) -> Series {
        Series {
            plan: Plan {
                transports: vec![Transport::Kexec],
                sizes: vec![1 << 20, 2 << 20],
                fills: vec![Fill::Dense],
                runs: 2,
                ..Plan::default()
            },
            compare,
            profile: false,
            only: None,
        }
    }

    #[test]
    fn a_step_can_be_made_alone() {
        let steps = series(true).steps();
        for (number, step) in steps.iter().enumerate() {
            assert_eq!(
                series(true).only(number).steps(),
                std::slice::from_ref(step)
            );
        }
        assert!(series(true).only(steps.len()).steps().is_empty());
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
        let (rows, skipped) = series.results(&outcomes);
        assert!(skipped.is_empty());
        let greatest: Vec<u64> = rows.iter().map(|row| row.extra_memory_bytes).collect();
        assert_eq!(greatest, [5, 4, 7, 6]);
        assert!(rows.iter().all(|row| row.runs == 2));
        assert_eq!(series.results(&outcomes[..1]).0.len(), 1);
    }

    #[test]
    fn what_a_kernel_cannot_do_is_no_row() {
        let series = series(true);
        let outcome = |number| Outcome {
            skipped: (number % 4 == 1).then(|| format!("refused, step {number}")),
            ..Outcome::default()
        };
        let outcomes: Vec<Outcome> = (0..8).map(outcome).collect();
        let (rows, skipped) = series.results(&outcomes);
        assert_eq!((rows.len(), skipped.len()), (2, 2));
        let names = skipped
            .iter()
            .map(|it| format!("{}: {}", it.case, it.reason));
        let names: Vec<String> = names.collect();
        assert_eq!(names[0], "kexec 1.0 MiB 4k dense: refused, step 5");
        assert_eq!(
            names[1],
            "kexec mainline-c 1.0 MiB 4k dense: refused, step 1"
        );
    }

    #[test]
    fn a_series_that_nobody_can_have_asked_for_is_refused() {
        assert!(series(true).check().is_ok());
        let mut endless = series(true);
        endless.plan.fills = vec![Fill::Dense; UPDATES_MAX / 8 + 1];
        assert!(endless.check().is_err());
        endless.plan.runs = u32::MAX;
        assert!(endless.check().is_err());
        let mut devices = series(false);
        devices.plan.file_types.push(FileType::Vfio);
        assert!(devices.check().is_ok());
        devices.compare = true;
        assert!(devices.check().is_err(), "mainline takes no devices");
    }
}
