// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo lab bench`: whole live updates over real kexecs, of our handler and of the kernel's own in turn.
//!
//! All of them happen in one guest, one after another, each from a fresh kernel into a fresh kernel of the same image;
//! which handler takes the files is decided by a boot parameter. So what is compared differs in nothing else.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::accel;
use super::cache::Cache;
use super::job::{Event, Job};
use super::runner::{failure, guest};
use super::{Built, GuestOptions};
use crate::bench::environment::Environment;
use crate::bench::options::{Outputs, Workloads};
use crate::bench::report::{duration, Implementation, Report, Row, Spread, SCHEMA};
use crate::bench::run::Outcome;
use crate::bench::{Case, Plan, Transport};

/// With this the kernel's own handler takes memfds.
const OURS_OFF: &str = "luo_handlers.disable=memfd";

/// What `luo lab bench` may be told.
#[derive(Args, Clone, Debug)]
pub struct LabBenchOptions {
    /// How to boot the guest
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    workloads: Workloads,
    /// Measure another handler as well, in turn with ours
    #[arg(long, value_enum, value_name = "HANDLER")]
    compare: Option<Peer>,
    #[command(flatten)]
    outputs: Outputs,
}

/// Whom to compare with.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Peer {
    /// The handler in C that the kernel brings along
    MainlineC,
}

/// What a guest is to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Series {
    plan: Plan,
    compare: bool,
}

/// One live update: two stages, one on each side of the jump.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) case: Case,
    pub(super) implementation: Implementation,
}

impl Series {
    fn new(workloads: Workloads, compare: Option<Peer>) -> Self {
        Self {
            plan: workloads.plan(vec![Transport::Kexec], "/".into()),
            compare: compare.is_some(),
        }
    }

    fn implementations(&self) -> &'static [Implementation] {
        match self.compare {
            true => &[Implementation::Ours, Implementation::MainlineC],
            false => &[Implementation::Ours],
        }
    }

    /// All live updates in their order: round by round, and in each round the peers in turn.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..self.plan.runs {
            for case in self.plan.cases() {
                for &implementation in self.implementations() {
                    steps.push(Step {
                        case: case.clone(),
                        implementation,
                    });
                }
            }
        }
        steps
    }

    /// The live update that a stage, counted from 1, is a side of.
    pub(super) fn step(&self, stage: usize) -> Option<Step> {
        self.steps().into_iter().nth(stage.checked_sub(1)? / 2)
    }

    /// The parameters that the kernel of a stage boots with.
    pub(super) fn parameters(&self, stage: usize) -> &'static str {
        match self.step(stage).map(|step| step.implementation) {
            Some(Implementation::MainlineC) => OURS_OFF,
            _ => "",
        }
    }

    /// A generous bound, emulated, on a busy machine.
    fn timeout(&self) -> Duration {
        const JUMP_SECONDS: u64 = 60;
        const GIB_SECONDS: u64 = 120;
        let seconds = |step: &Step| {
            let size = step.case.size * u64::from(step.case.files);
            2 * JUMP_SECONDS + GIB_SECONDS * size.div_ceil(1 << 30)
        };
        Duration::from_secs(self.steps().iter().map(seconds).sum())
    }
}

/// Measures, and publishes the figures.
pub(super) fn run(options: LabBenchOptions) -> Result<ExitCode> {
    options.outputs.check()?;
    let cache = Cache::open()?;
    let built = super::build(&cache, &options.guest.build)?;
    let series = Series::new(options.workloads.clone(), options.compare);
    let report = measure(&cache, &built, &options.guest, &series)?;
    options.outputs.publish(&report)?;
    for line in comparison(&report) {
        println!("{line}");
    }
    Ok(match report.verified() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn measure(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    series: &Series,
) -> Result<Report> {
    let accel = accel::choose(cache, built)?;
    let steps = series.steps();
    let mut guest = guest(
        cache,
        built,
        options,
        accel,
        Job::Bench {
            series: series.clone(),
            stage: 1,
        },
        "bench",
    );
    guest.parameters = format!("{} {}", guest.parameters, series.parameters(1));
    guest.timeout = options
        .timeout
        .map(Duration::from_secs)
        .or(Some(series.timeout()));
    eprintln!("lab: {} live updates in one guest", steps.len());
    let run = guest.run()?;

    let mut environment: Option<Environment> = None;
    let mut outcomes = Vec::new();
    for event in &run.events {
        match event {
            Event::Measured { outcome } => outcomes.push((**outcome).clone()),
            Event::Environment { environment: found } => environment = Some((**found).clone()),
            _ => {}
        }
    }
    if outcomes.len() < steps.len() {
        let reason = failure(&run).unwrap_or(if run.timed_out {
            "it did not end in time; give it more with --timeout"
        } else {
            "it ended"
        });
        bail!(
            "the guest made {} of {} live updates: {reason}; {}",
            outcomes.len(),
            steps.len(),
            run.console_end()
        );
    }
    let mut environment = environment.context("the guest did not say where it runs")?;
    environment.accel = format!("QEMU with {}", accel.name());
    Ok(Report {
        schema: SCHEMA,
        environment,
        results: rows(series, &steps, &outcomes),
        skipped: Vec::new(),
    })
}

fn rows(series: &Series, steps: &[Step], outcomes: &[Outcome]) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in series.plan.cases() {
        for &implementation in series.implementations() {
            let mine = steps
                .iter()
                .zip(outcomes)
                .filter(|(step, _)| step.case == case && step.implementation == implementation);
            let mine: Vec<Outcome> = mine.map(|(_, outcome)| outcome.clone()).collect();
            rows.push(Row::new(&case, implementation, &mine));
        }
    }
    rows
}

/// Ours against the peer's, a line for each case that both were measured with.
fn comparison(report: &Report) -> Vec<String> {
    let pairs = report.results.chunks(2).filter_map(|pair| match pair {
        [ours, theirs] if theirs.implementation == Implementation::MainlineC => {
            Some((ours, theirs))
        }
        _ => None,
    });
    pairs.map(|(ours, theirs)| compare(ours, theirs)).collect()
}

fn compare(ours: &Row, theirs: &Row) -> String {
    let phases = [
        ("prepare", ours.phases.prepare_ns, theirs.phases.prepare_ns),
        (
            "blackout",
            ours.phases.blackout_ns,
            theirs.phases.blackout_ns,
        ),
        (
            "retrieve",
            ours.phases.retrieve_ns,
            theirs.phases.retrieve_ns,
        ),
    ];
    let phases = phases.map(|(name, ours, theirs)| {
        format!(
            "{name} {} against {}, {}",
            duration(ours.median),
            duration(theirs.median),
            ratio(ours, theirs)
        )
    });
    format!(
        "{} {} {}, ours against {}: {}; memory taken by prepare {} against {}",
        bytesize::ByteSize(ours.size_bytes),
        ours.pages,
        ours.fill,
        theirs.implementation,
        phases.join("; "),
        bytesize::ByteSize(ours.extra_memory_bytes),
        bytesize::ByteSize(theirs.extra_memory_bytes),
    )
}

/// How many times as fast: by the medians, and between the runs that are worst and best for us.
fn ratio(ours: Spread, theirs: Spread) -> String {
    let times = |theirs: u64, ours: u64| theirs as f64 / ours.max(1) as f64;
    format!(
        "{:.2} times as fast ({:.2}–{:.2})",
        times(theirs.median, ours.median),
        times(theirs.min, ours.max),
        times(theirs.max, ours.min)
    )
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use crate::workload::{Fill, Pages};

    fn series(compare: bool) -> Series {
        Series {
            plan: Plan {
                transports: vec![Transport::Kexec],
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
    fn peers_take_turns_and_each_update_has_two_stages() {
        let series = series(true);
        let parameters: Vec<&str> = (1..=8).map(|stage| series.parameters(stage)).collect();
        assert_eq!(
            parameters,
            ["", "", OURS_OFF, OURS_OFF, "", "", OURS_OFF, OURS_OFF]
        );
        assert_eq!(series.step(4).unwrap().case.size, 1 << 20);
        assert_eq!(series.step(5).unwrap().case.size, 2 << 20);
        assert!(series.step(16).is_some() && series.step(17).is_none());
    }

    #[test]
    fn outcomes_go_to_the_rows_of_their_steps() {
        let series = series(true);
        let steps = series.steps();
        let outcomes: Vec<Outcome> = (0..steps.len() as u64)
            .map(|number| Outcome {
                extra_memory_bytes: number,
                ..Outcome::default()
            })
            .collect();
        let rows = rows(&series, &steps, &outcomes);
        let greatest: Vec<u64> = rows.iter().map(|row| row.extra_memory_bytes).collect();
        assert_eq!(greatest, [4, 5, 6, 7]);
        assert!(rows.iter().all(|row| row.runs == 2));
    }
}
