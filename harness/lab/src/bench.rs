// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo lab bench`: whole live updates over real kexecs, of our handler and of the kernel's own in turn.
//!
//! All of them happen in one guest, one after another, each from a fresh kernel into a fresh kernel of the same image:
//! see [`journey`](luo_bench::journey).

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use clap::Args;

use crate::accel;
use crate::cache::Cache;
use crate::job::{Event, Job};
use crate::qemu::Machine;
use crate::runner::{failure, guest};
use crate::{Built, GuestOptions};
use luo_bench::comparison::comparison;
use luo_bench::environment::Environment;
use luo_bench::options::{Outputs, Workloads};
use luo_bench::report::{Report, SCHEMA};
use luo_bench::series::{Peer, Series, Step};
use luo_bench::subject::Subject;
use luo_bench::Transport;

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

/// Measures, and publishes the figures.
pub(super) fn run(options: LabBenchOptions) -> Result<ExitCode> {
    options.workloads.check_peer(options.compare);
    options.outputs.check()?;
    let cache = Cache::open()?;
    let built = super::build(&cache, &options.guest.build)?;
    let plan = options.workloads.plan(vec![Transport::Kexec], "/".into());
    let series = Series::new(plan, options.compare);
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
    Ok(Report {
        schema: SCHEMA,
        environment,
        results: series.rows(&outcomes),
        skipped: Vec::new(),
    })
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
