// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a stick measures: as it lies there, and what that comes to on a machine.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use luo_bench::case::{Case, Implementation};
use luo_bench::obstacle::obstacle;
use luo_bench::plan::{BadPlan, Plan};
use luo_bench::report::Skipped;
use luo_bench::series::Series;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::pages::Pages;
use luo_bench::subject::FileType;
use luo_bench::transport::Transport;

/// Without sizes, the largest is half of the memory, and each of the others so much smaller.
const STEP: u64 = 8;
const SIZES: usize = 3;
/// Sizes are multiples of this, and none is smaller.
const GRAIN: u64 = 64 << 20;

/// What a stick measures, as the user may edit it there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StickPlan {
    /// Sizes of a memfd, in bytes; without any, half of the machine's memory and less.
    pub sizes: Vec<u64>,
    /// Page kinds.
    pub pages: Vec<Pages>,
    /// What is filled.
    pub fills: Vec<Fill>,
    /// How often each combination is measured.
    pub runs: u32,
    /// Whether the kernel's own handler is measured as well, in turn with ours.
    pub compare: bool,
}

impl Default for StickPlan {
    fn default() -> Self {
        Self {
            sizes: Vec::new(),
            pages: vec![Pages::Base, Pages::Thp, Pages::Hugetlb],
            fills: vec![Fill::Dense, Fill::sparse(500), Fill::Shuffled],
            runs: 3,
            compare: true,
        }
    }
}

impl StickPlan {
    /// Refuses what no machine can measure.
    ///
    /// # Errors
    ///
    /// [`BadPlan`].
    pub fn check(&self) -> Result<(), BadPlan> {
        let sizes = match self.sizes.is_empty() {
            true => vec![GRAIN],
            false => self.sizes.clone(),
        };
        self.plan(sizes, self.pages.clone()).check()
    }

    /// What of it a machine with so many bytes of memory can measure, and what not.
    ///
    /// # Errors
    ///
    /// A plan that no machine can measure, or nothing that this one can.
    pub(crate) fn on_machine(&self, memory: u64) -> Result<(Series, Vec<Skipped>)> {
        self.possible(memory, |case| obstacle(case, None))
    }

    fn possible(
        &self,
        memory: u64,
        obstacle: impl Fn(&Case) -> Option<String>,
    ) -> Result<(Series, Vec<Skipped>)> {
        let sizes = match self.sizes.is_empty() {
            true => sizes_for(memory),
            false => self.sizes.clone(),
        };
        let wanted = self.plan(sizes, self.pages.clone());
        wanted.check()?;
        // A page kind that is impossible in every size, then sizes that are in what is left.
        let is_possible = |sizes: &[u64], pages: &[Pages]| {
            let cases = self.plan(sizes.to_vec(), pages.to_vec()).cases();
            cases.iter().map(|case| obstacle(case).is_none()).collect()
        };
        let any = |pages: &&Pages| -> bool {
            let possible: Vec<bool> = is_possible(&wanted.sizes, &[**pages]);
            possible.contains(&true)
        };
        let pages: Vec<Pages> = self.pages.iter().filter(any).copied().collect();
        let all = |size: &&u64| -> bool {
            let possible: Vec<bool> = is_possible(&[**size], &pages);
            !possible.contains(&false)
        };
        let sizes: Vec<u64> = wanted.sizes.iter().filter(all).copied().collect();
        let plan = self.plan(sizes, pages);
        let measured = plan.cases();
        let skipped = wanted.cases().into_iter().filter_map(|case| {
            let reason = || obstacle(&case).unwrap_or("others of this size are impossible".into());
            (!measured.contains(&case)).then(|| Skipped::new(&case, Implementation::Ours, reason()))
        });
        let skipped = skipped.collect();
        let series = Series::new(plan, self.compare);
        series
            .check()
            .context("this machine can measure nothing of the plan")?;
        Ok((series, skipped))
    }

    fn plan(&self, sizes: Vec<u64>, pages: Vec<Pages>) -> Plan {
        Plan {
            transports: vec![Transport::Kexec],
            file_types: vec![FileType::Memfd],
            program: None,
            sizes,
            sets: Vec::new(),
            pages,
            fills: self.fills.clone(),
            files: 1,
            runs: self.runs,
            image_directory: None,
        }
    }
}

/// Half of the memory and less, the smallest first.
fn sizes_for(memory: u64) -> Vec<u64> {
    let mut sizes = Vec::new();
    let mut size = memory / 2;
    while sizes.len() < SIZES && size >= GRAIN {
        sizes.push(size / GRAIN * GRAIN);
        size /= STEP;
    }
    sizes.reverse();
    sizes
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn sizes_go_up_to_half_of_the_memory() {
        let mib = |memory: u64| -> Vec<u64> {
            let sizes = sizes_for(memory << 20);
            sizes.iter().map(|size| size >> 20).collect()
        };
        assert_eq!(mib(16_000), [64, 960, 8000]);
        assert_eq!(mib(2048), [128, 1024]);
        assert!(mib(100).is_empty());
    }

    #[test]
    fn what_a_machine_cannot_measure_is_skipped_with_its_reason() {
        let plan = StickPlan {
            sizes: vec![64 << 20, 1 << 30],
            ..StickPlan::default()
        };
        let is_large = |case: &Case| (case.subject.size() == 1 << 30).then(|| "large".to_owned());
        let no_hugetlb = |case: &Case| {
            let name = case.to_string();
            name.contains("hugetlb").then(|| "no hugetlb".to_owned())
        };
        let (series, skipped) = plan.possible(0, no_hugetlb).unwrap();
        assert_eq!((series.cases().len(), skipped.len()), (2 * 2 * 3, 2 * 3));
        assert!(skipped.iter().all(|skipped| skipped.reason == "no hugetlb"));
        let (series, skipped) = plan
            .possible(0, |case| no_hugetlb(case).or_else(|| is_large(case)))
            .unwrap();
        assert_eq!((series.cases().len(), skipped.len()), (2 * 3, 3 + 9));
        assert!(plan.possible(0, |_| Some("no".to_owned())).is_err());
        assert!(StickPlan::default().possible(0, |_| None).is_err());
        assert!(StickPlan::default().check().is_ok() && plan.check().is_ok());
        let tiny = StickPlan {
            sizes: vec![1 << 20],
            ..plan
        };
        assert!(tiny.check().is_err(), "5 % of it are no huge page");
    }

    #[test]
    fn a_plan_is_read_as_it_was_written_and_a_misspelt_one_is_refused() {
        let plan = StickPlan::default();
        let text = serde_json::to_string_pretty(&plan).unwrap();
        assert_eq!(serde_json::from_str::<StickPlan>(&text).unwrap(), plan);
        let misspelt = text.replace("runs", "runz");
        assert!(serde_json::from_str::<StickPlan>(&misspelt).is_err());
    }
}
