// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Whole live updates over real kexecs, measured: of our handler and of the kernel's own in turn.
//!
//! All of them happen in one guest, one after another, each from a fresh kernel into a fresh kernel
//! of the same image: see [`journey`](luo_bench::journey).

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
use luo_bench::environment::Environment;
use luo_bench::report::Report;
use luo_bench::series::{Series, Step};
use luo_bench::subject::Subject;

/// Measures a series in a guest.
///
/// # Errors
///
/// The guest cannot be run, or ended before the series did.
pub fn measure(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    series: &Series,
) -> Result<Report> {
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let steps = series.steps();
    let job = Job::Bench {
        series: series.clone(),
        stage: 1,
    };
    let mut guest = guest(&runs, built, options, accel, job, "bench");
    guest.timeout = options.timeout.or(Some(timeout(&steps)));
    guest.machine = machine(&steps);
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
    let mut environment = environment.context("the guest did not report where it runs")?;
    environment.accel = format!("QEMU with {}", accel.name());
    let (rows, skipped) = series.results(&outcomes);
    Ok(Report::new(environment, rows, skipped))
}

/// The one that has what is measured.
fn machine(steps: &[Step]) -> Machine {
    let devices = steps.iter().any(|step| step.case.subject == Subject::Vfio);
    match devices {
        true => Machine::Vfio,
        false => Machine::Plain,
    }
}

/// A generous bound, emulated, on a busy machine.
fn timeout(steps: &[Step]) -> Duration {
    const JUMP_SECONDS: u64 = 60;
    const GIB_SECONDS: u64 = 120;
    let seconds = |step: &Step| {
        let size = step.case.subject.size() * u64::from(step.case.files);
        2 * JUMP_SECONDS + GIB_SECONDS * size.div_ceil(1 << 30)
    };
    Duration::from_secs(steps.iter().map(seconds).sum())
}
