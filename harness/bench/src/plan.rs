// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What to measure: every combination of some lists, within bounds.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::case::Case;
use crate::subject::fill::Fill;
use crate::subject::memfd::Workload;
use crate::subject::pages::Pages;
use crate::subject::{FileType, Subject};
use crate::transport::Transport;

/// The largest memfd that is measured, in bytes.
pub const SIZE_MAX: u64 = 16 << 40;
/// The most files that cross together.
pub const FILES_MAX: u32 = 100_000;
/// The most often that a combination is measured.
pub const RUNS_MAX: u32 = 10_000;
/// The most live updates of a plan.
pub const UPDATES_MAX: usize = 100_000;

/// What to measure: every combination of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The ways over the jump.
    pub transports: Vec<Transport>,
    /// Types of files. Sizes, page kinds and fills are of memfds only.
    pub file_types: Vec<FileType>,
    /// A program that makes files of another type, and compares them after the jump.
    pub program: Option<PathBuf>,
    /// Sizes of one memfd, in bytes, up to [`SIZE_MAX`].
    pub sizes: Vec<u64>,
    /// Memfds of one size each, in numbers of their own.
    #[serde(default)]
    pub sets: Vec<Set>,
    /// Page kinds.
    pub pages: Vec<Pages>,
    /// What is filled.
    pub fills: Vec<Fill>,
    /// How many files of one kind cross together, up to [`FILES_MAX`].
    pub files: u32,
    /// How often each combination is measured, up to [`RUNS_MAX`].
    pub runs: u32,
    /// Where images are written; a directory inside it is made and removed. By default memory, or
    /// else where there is room.
    pub image_directory: Option<PathBuf>,
}

/// Memfds that cross together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// How many.
    pub files: u32,
    /// Of each, in bytes.
    pub size: u64,
}

/// Why a plan cannot be measured anywhere.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadPlan {
    /// A number beyond its bounds.
    #[error("the plan has sizes, files or runs that cannot be measured")]
    Bounds,
    /// More or fewer live updates than are possible.
    #[error("a plan has 1 to {UPDATES_MAX} live updates, not {0}")]
    Updates(usize),
    /// A fill without a page to fill.
    #[error(
        "{fill} of {} comes to no page of {}; fill more, or name a larger size",
        ByteSize(*size), ByteSize(pages.size())
    )]
    NoPage {
        /// Of the memfd, in bytes.
        size: u64,
        /// Its page kind.
        pages: Pages,
        /// What was to be filled.
        fill: Fill,
    },
}

impl Default for Plan {
    /// Memfds of 64 MiB to 1 GiB, by exec and as images, three times.
    fn default() -> Self {
        Self {
            transports: vec![Transport::Exec, Transport::Image],
            file_types: vec![FileType::Memfd],
            program: None,
            sizes: vec![64 << 20, 256 << 20, 1 << 30],
            sets: Vec::new(),
            pages: vec![Pages::Base],
            fills: vec![Fill::Dense, Fill::sparse(500), Fill::Shuffled],
            files: 1,
            runs: 3,
            image_directory: None,
        }
    }
}

impl Plan {
    /// Refuses what would take for ever, or would measure nothing.
    ///
    /// # Errors
    ///
    /// [`BadPlan`].
    pub fn check(&self) -> Result<(), BadPlan> {
        let in_bounds = (1..=RUNS_MAX).contains(&self.runs)
            && (1..=FILES_MAX).contains(&self.files)
            && self.all_sets().all(|set| {
                (1..=SIZE_MAX).contains(&set.size) && (1..=FILES_MAX).contains(&set.files)
            });
        if !in_bounds {
            return Err(BadPlan::Bounds);
        }
        let updates = [self.transports.len(), self.subject_count()]
            .iter()
            .fold(self.runs as usize, |product, length| {
                product.saturating_mul(*length)
            });
        if !(1..=UPDATES_MAX).contains(&updates) {
            return Err(BadPlan::Updates(updates));
        }
        let empty = self
            .subjects()
            .into_iter()
            .find_map(|(subject, _)| match subject {
                Subject::Memfd { size, pages, fill } => {
                    let workload = Workload {
                        size,
                        pages,
                        fill,
                        seed: 0,
                    };
                    (workload.count() == 0).then_some(BadPlan::NoPage { size, pages, fill })
                }
                Subject::Vfio | Subject::Ioport | Subject::Program(_) => None,
            });
        empty.map_or(Ok(()), Err)
    }

    /// Every combination; of memfds the smallest first.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for (subject, files) in self.subjects() {
            cases.extend(self.transports.iter().map(|&transport| Case {
                transport,
                subject: subject.clone(),
                files,
            }));
        }
        cases
    }

    fn all_sets(&self) -> impl Iterator<Item = Set> + '_ {
        let files = self.files;
        let sizes = self.sizes.iter().map(move |&size| Set { files, size });
        sizes.chain(self.sets.iter().copied())
    }

    /// With how many files there are of each.
    fn subjects(&self) -> Vec<(Subject, u32)> {
        let subjects = self
            .file_types
            .iter()
            .flat_map(|file_type| match file_type {
                FileType::Memfd => self.memfds(),
                FileType::Vfio => vec![(Subject::Vfio, self.files)],
                FileType::Ioport => vec![(Subject::Ioport, self.files)],
            });
        let program = self.program.iter().cloned().map(Subject::Program);
        let program = program.map(|subject| (subject, self.files));
        subjects.chain(program).collect()
    }

    /// How many cases there are of each transport, without listing them.
    fn subject_count(&self) -> usize {
        let sets = self.sizes.len().saturating_add(self.sets.len());
        let lists = [sets, self.pages.len(), self.fills.len()];
        let memfds = lists
            .iter()
            .fold(1, |product: usize, length| product.saturating_mul(*length));
        let counts = self.file_types.iter().map(|file_type| match file_type {
            FileType::Memfd => memfds,
            FileType::Vfio | FileType::Ioport => 1,
        });
        counts.fold(self.program.iter().count(), usize::saturating_add)
    }

    fn memfds(&self) -> Vec<(Subject, u32)> {
        let mut memfds = Vec::new();
        for Set { files, size } in self.all_sets() {
            for &pages in &self.pages {
                let fills = self.fills.iter();
                let memfd = |&fill| (Subject::Memfd { size, pages, fill }, files);
                memfds.extend(fills.map(memfd));
            }
        }
        memfds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memfds_are_combined_with_what_they_are_made_of() {
        let plan = Plan {
            file_types: vec![FileType::Ioport, FileType::Memfd, FileType::Vfio],
            sizes: vec![1 << 20, 2 << 20],
            fills: vec![Fill::Dense, Fill::Shuffled],
            files: 2,
            runs: 1,
            ..Plan::default()
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
            let text = serde_json::to_string(&case).unwrap();
            assert_eq!(serde_json::from_str::<Case>(&text).unwrap(), case);
        }
    }

    #[test]
    fn a_set_has_a_number_of_files_of_its_own() {
        let set = Set {
            files: 1000,
            size: 1 << 20,
        };
        let plan = Plan {
            transports: vec![Transport::Exec],
            sizes: vec![2 << 20],
            sets: vec![set],
            fills: vec![Fill::Dense],
            ..Plan::default()
        };
        let names: Vec<String> = plan.cases().iter().map(ToString::to_string).collect();
        let expected = ["exec 2.0 MiB 4k dense", "exec 1.0 MiB 4k dense x1000"];
        assert_eq!(names, expected);
        assert_eq!(plan.cases().len(), plan.subject_count());
        assert_eq!(plan.check(), Ok(()));
        for wrong in [Set { files: 0, ..set }, Set { size: 0, ..set }] {
            let sets = vec![wrong];
            assert_eq!(
                Plan {
                    sets,
                    ..plan.clone()
                }
                .check(),
                Err(BadPlan::Bounds)
            );
        }
    }

    #[test]
    fn a_plan_that_nobody_can_have_asked_for_is_refused() {
        assert_eq!(Plan::default().check(), Ok(()));
        for change in [
            |plan: &mut Plan| plan.runs = u32::MAX,
            |plan: &mut Plan| plan.files = 0,
            |plan: &mut Plan| plan.sizes.push(u64::MAX),
            |plan: &mut Plan| plan.file_types.clear(),
            |plan: &mut Plan| plan.file_types = vec![FileType::Vfio; UPDATES_MAX],
            |plan: &mut Plan| plan.sizes.clear(),
            |plan: &mut Plan| plan.fills = vec![Fill::Dense; UPDATES_MAX],
        ] {
            let mut plan = Plan::default();
            change(&mut plan);
            assert!(plan.check().is_err());
        }
    }

    #[test]
    fn a_fill_that_comes_to_no_page_is_refused() {
        let plan = |size, fill: &str| Plan {
            sizes: vec![size],
            fills: vec![Fill::Dense, fill.parse().unwrap()],
            ..Plan::default()
        };
        assert_eq!(plan(1 << 40, "sparse:0.001%").check(), Ok(()));
        assert_eq!(plan(64 << 20, "sparse:0.01%").check(), Ok(()));
        for (size, fill) in [(1 << 20, "sparse:0.01%"), (1 << 40, "sparse:0%")] {
            let error = plan(size, fill).check().unwrap_err().to_string();
            assert!(error.contains("comes to no page"), "{error}");
        }
    }
}
