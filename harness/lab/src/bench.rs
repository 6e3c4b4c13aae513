// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo lab bench`: whole live updates over real kexecs, of our handler and of the kernel's own in
//! turn.
//!
//! All of them happen in one guest, one after another, each from a fresh kernel into a fresh
//! kernel of the same image: see [`journey`](luo_bench::journey).

use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::accel;
use crate::cache::Cache;
use crate::job::{Event, Job};
use crate::qemu::Machine;
use crate::runner::{failure, guest};
use crate::{Built, GuestOptions};
use luo_bench::environment::Environment;
use luo_bench::report::Report;
use luo_bench::series::{Series, Step};
use luo_bench::subject::Subject;

/// Measures a series in a guest.
///
/// # Errors
///
/// Whatever kept the guest from measuring all of it.
pub fn measure(options: &GuestOptions, series: &Series) -> Result<Report> {
    let cache = Cache::open()?;
    let built = super::build(&cache, &options.build)?;
    measure_in(&cache, &built, options, series)
}

fn measure_in(
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
    guest.timeout = options
        .timeout
        .map(Duration::from_secs)
        .or(Some(timeout(&steps)));
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
    let mut environment = environment.context("the guest did not say where it runs")?;
    environment.accel = format!("QEMU with {}", accel.name());
    Ok(Report::new(environment, series.rows(&outcomes), Vec::new()))
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
