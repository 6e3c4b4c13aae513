// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One command in a guest, or a shell.

use std::fs;
use std::time::Duration;

use anyhow::{bail, Result};

use crate::build::built::Built;
use crate::cache::directory::Cache;
use crate::cache::runs::Runs;
use crate::event::Event;
use crate::job::Job;
use crate::run::guest::guest;
use crate::run::verdict::failure;
use crate::units::duration;
use crate::vm::machine::Machine;
use crate::vm::options::GuestOptions;
use crate::vm::probe;

/// A command may take this long, unless the user gives it another time.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(600);

/// How a command in a guest ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: u8,
    /// What it printed.
    pub output: String,
}

/// Runs one command in a guest.
///
/// # Errors
///
/// The guest cannot be run, or ended before the command did.
pub fn run_command(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    machine: Machine,
    command: &[String],
) -> Result<Ended> {
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let job = Job::Run(command.to_vec());
    let mut guest = guest(&runs, built, options, accel, job, "command");
    guest.machine = machine;
    guest.timeout = options.timeout.or(Some(COMMAND_TIMEOUT));
    let run = guest.run()?;
    let output = fs::read(guest.output()).unwrap_or_default();
    let output = String::from_utf8_lossy(&output).replace('\r', "");
    let code = run.events.iter().find_map(|event| match event {
        Event::Exit { code } => Some(*code),
        _ => None,
    });
    match code {
        Some(code) => Ok(Ended { code, output }),
        None => {
            if let Some(reason) = failure(&run) {
                bail!("the guest gave up: {reason}");
            }
            if run.timed_out {
                bail!(
                    "the command did not end in {}; give it more with --timeout; it \
                     printed:\n{output}",
                    duration(run.elapsed.as_secs_f64())
                );
            }
            bail!(
                "the guest ended before the command did; {}",
                run.console_end()
            )
        }
    }
}

/// Gives the user a shell in a guest, on the terminal.
///
/// # Errors
///
/// The guest cannot be run.
pub fn run_shell(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    machine: Machine,
) -> Result<()> {
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let mut guest = guest(&runs, built, options, accel, Job::Shell, "shell");
    guest.machine = machine;
    eprintln!(
        "lab: files the guest leaves in /results are in {}",
        guest.directory.join("results").display()
    );
    guest.run_on_terminal()?;
    Ok(())
}
