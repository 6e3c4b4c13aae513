// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Whole live updates over real kexecs, measured: of our handler and of the kernel's own in turn.
//!
//! Each in a guest of its own, from its first kernel into another one of the same image. One guest
//! for all would boot less often, but an emulated processor writes slowly, for seconds in all,
//! where it has run code before: and kernels after the first are unpacked where earlier ones were.

use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::build::built::Built;
use crate::cache::directory::Cache;
use crate::cache::runs::Runs;
use crate::event::Event;
use crate::job::Job;
use crate::run::guest::guest;
use crate::run::verdict::failure;
use crate::vm::machine::Machine;
use crate::vm::options::GuestOptions;
use crate::vm::probe;
use crate::vm::qemu::GuestRun;
use luo_bench::environment::Environment;
use luo_bench::outcome::Outcome;
use luo_bench::report::Report;
use luo_bench::series::{Series, Step};
use luo_bench::subject::Subject;

/// Measures a series, each step in a guest.
///
/// # Errors
///
/// A guest cannot be run, or ended before its step did.
pub fn measure(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    series: &Series,
) -> Result<Report> {
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let steps = series.steps();
    let mut environment = None;
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let place = format!("live update {} of {}", number + 1, steps.len());
        eprintln!("lab: {place}: {step}");
        let mut earlier = steps.iter().zip(&outcomes);
        let skipped = earlier.find(|(it, outcome)| *it == step && outcome.skipped.is_some());
        if let Some((_, outcome)) = skipped {
            outcomes.push(outcome.clone());
            continue;
        }
        let job = Job::Bench {
            series: series.only(number),
            stage: 1,
        };
        let name = format!("bench-{}", number + 1);
        let mut guest = guest(&runs, built, options, accel, job, &name);
        guest.parameters = format!(
            "{} {}",
            guest.parameters,
            step.parameter().unwrap_or_default()
        );
        guest.timeout = options.timeout.or(Some(timeout(step)));
        guest.machine = machine(step);
        let run = guest.run()?;
        let (found, outcome) = measured(&run);
        let Some(outcome) = outcome else {
            let reason = failure(&run).unwrap_or(if run.timed_out {
                "it did not end in time; give it more with --timeout"
            } else {
                "it ended"
            });
            bail!(
                "the guest did not make {place}: {reason}; {}",
                run.console_end()
            );
        };
        outcomes.push(outcome);
        environment = environment.or(found);
    }
    let mut environment = environment.context("no guest reported where it runs")?;
    environment.accel = format!("QEMU with {}", accel.name());
    let (rows, skipped) = series.results(&outcomes);
    Ok(Report::new(environment, rows, skipped))
}

/// Where a guest ran, and what came of its step.
fn measured(run: &GuestRun) -> (Option<Environment>, Option<Outcome>) {
    let (mut environment, mut measured) = (None, None);
    for event in &run.events {
        match event {
            Event::Measured { outcome } => measured = Some((**outcome).clone()),
            Event::Environment { environment: found } => environment = Some((**found).clone()),
            _ => {}
        }
    }
    (environment, measured)
}

/// The one that has what is measured.
fn machine(step: &Step) -> Machine {
    match step.case.subject {
        Subject::Vfio => Machine::Vfio,
        _ => Machine::Plain,
    }
}

/// A generous bound, emulated, on a busy machine.
fn timeout(step: &Step) -> Duration {
    const JUMP_SECONDS: u64 = 60;
    const GIB_SECONDS: u64 = 120;
    let size = step.case.subject.size() * u64::from(step.case.files);
    Duration::from_secs(2 * JUMP_SECONDS + GIB_SECONDS * size.div_ceil(1 << 30))
}
