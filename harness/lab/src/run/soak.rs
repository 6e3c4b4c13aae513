// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Runs a soak in a guest, and shows how far it is.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::build::built::Built;
use crate::build::profile::Profile;
use crate::cache::directory::Cache;
use crate::cache::runs::Runs;
use crate::event::Event;
use crate::job::Job;
use crate::run::crossed::ours;
use crate::run::guest::guest;
use crate::run::verdict::{failure, kernel_report};
use crate::soak::options::SoakOptions;
use crate::units::duration;
use crate::vm::machine::Machine;
use crate::vm::options::GuestOptions;
use crate::vm::probe;
use crate::vm::qemu::GuestRun;

/// A jump may take this long, emulated, on a busy machine, with all that is made and compared.
const JUMP_TIMEOUT: Duration = Duration::from_secs(90);
/// The kernel that checks itself is about this much slower.
const DEBUG_SLOWNESS: u32 = 6;
/// Where there is no terminal, a line is printed after so many jumps.
const JUMPS_A_LINE: usize = 10;

/// Runs a soak and returns what there is to report.
///
/// # Errors
///
/// What was lost, and how to repeat it; or the guest cannot be run.
pub fn run_soak(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    soak: SoakOptions,
) -> Result<String> {
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let job = Job::Soak {
        options: soak,
        stage: 1,
    };
    let mut guest = guest(&runs, built, options, accel, job, "soak");
    guest.machine = Machine::Vfio;
    guest.timeout = options.timeout.or(Some(timeout(soak, built.profile)));
    eprintln!("lab: {} jumps with seed {}", soak.jumps, soak.seed);
    let progress = Progress::start(soak.jumps)?;
    let run = guest.run_and_watch(&mut |event| {
        if let Event::Stage { stage } = event {
            progress.arrived(stage - 1);
        }
    })?;
    progress.bar.finish_and_clear();
    if let Some(problem) = problem(&run, soak.jumps) {
        bail!(
            "{problem}\n  repeat it with: luo lab soak --jumps {} --seed {}{}\n  {}",
            soak.jumps,
            soak.seed,
            match soak.writes_during_freeze {
                true => " --writes-during-freeze",
                false => "",
            },
            run.console_end()
        );
    }
    Ok(format!(
        "soak: {} jumps with seed {} in {}; {}",
        soak.jumps,
        soak.seed,
        duration(run.elapsed.as_secs_f64()),
        ours(&run)
    ))
}

fn problem(run: &GuestRun, jumps: usize) -> Option<String> {
    if let Some(reason) = failure(run) {
        return Some(reason.to_owned());
    }
    if let Some(report) = kernel_report(&run.console_text()) {
        return Some(format!("the kernel reports: {report}"));
    }
    let events = run.events.iter();
    let kernels = events.filter(|event| matches!(event, Event::Passed { .. }));
    let kernels = kernels.count();
    let what = match run.timed_out {
        true => "timed out",
        false => "ended",
    };
    (kernels <= jumps).then(|| {
        format!(
            "the guest {what} in kernel {} of {}",
            kernels + 1,
            jumps + 1
        )
    })
}

fn timeout(soak: SoakOptions, profile: Profile) -> Duration {
    let slowness = match profile {
        Profile::Release | Profile::Stick => 1,
        Profile::Debug => DEBUG_SLOWNESS,
    };
    let kernels = u32::try_from(soak.jumps + 1).unwrap_or(u32::MAX);
    JUMP_TIMEOUT
        .saturating_mul(kernels)
        .saturating_mul(slowness)
}

/// A bar on a terminal, some lines elsewhere; both with the time left.
struct Progress {
    bar: ProgressBar,
    jumps: usize,
    started: Instant,
    is_plain: bool,
}

impl Progress {
    fn start(jumps: usize) -> Result<Self> {
        let is_plain = !std::io::stderr().is_terminal();
        let bar = match is_plain {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(jumps as u64),
        };
        bar.set_style(ProgressStyle::with_template(
            "{wide_bar:.cyan/dim} {pos}/{len} jumps, {eta} left",
        )?);
        bar.enable_steady_tick(Duration::from_secs(1));
        Ok(Self {
            bar,
            jumps,
            started: Instant::now(),
            is_plain,
        })
    }

    /// So many jumps are done.
    fn arrived(&self, done: usize) {
        self.bar.set_position(done as u64);
        if self.is_plain && done > 0 && (done.is_multiple_of(JUMPS_A_LINE) || done == self.jumps) {
            let each = self.started.elapsed().as_secs_f64() / done as f64;
            let left = each * self.jumps.saturating_sub(done) as f64;
            eprintln!("lab: jump {done}/{}, {} left", self.jumps, duration(left));
        }
    }
}
