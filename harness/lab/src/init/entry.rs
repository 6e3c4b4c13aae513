// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where init begins: it mounts what is needed, does its job, ends the machine.

use std::fs;
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use rustix::system::{reboot, RebootCommand};

use crate::event::Event;
use crate::guest::mounts::mount_all;
use crate::guest::reporter::Reporter;
use crate::init::commands::{run_command, shell};
use crate::init::series::measure;
use crate::init::soak::soak;
use crate::init::stages::run_stage;
use crate::job::Job;

/// Runs as init. Never returns in a guest: its end is the machine's.
///
/// # Errors
///
/// This is not init, or the machine cannot be ended.
pub fn run() -> Result<ExitCode> {
    ensure!(
        std::process::id() == 1,
        "this is the init of the lab's guests; it does nothing on a running system"
    );
    let result = mount_all()
        .and_then(|()| Reporter::open())
        .and_then(|mut reporter| {
            let result = work(&mut reporter);
            if let Err(error) = &result {
                reporter.report(&Event::Failed {
                    reason: format!("{error:#}"),
                })?;
            }
            result
        });
    if let Err(error) = result {
        eprintln!("luo: the guest gives up: {error:#}");
    }
    // QEMU ends at a reboot (`-no-reboot`), and a reboot needs no ACPI.
    reboot(RebootCommand::Restart).context("ending the guest")?;
    bail!("the guest did not end");
}

fn work(reporter: &mut Reporter) -> Result<()> {
    let command_line =
        fs::read_to_string("/proc/cmdline").context("reading the kernel's command line")?;
    match Job::parse(&command_line)? {
        Job::Probe => reporter.report(&Event::Ready),
        Job::Shell => shell(),
        Job::Run(command) => {
            let code = run_command(&command)?;
            reporter.report(&Event::Exit { code })
        }
        Job::Test { name, stage } => run_stage(reporter, &command_line, &name, stage),
        Job::Soak { options, stage } => soak(reporter, &command_line, options, stage),
        Job::Systemd { .. } => bail!("systemd is the init of this job"),
        Job::Bench { series, stage } => measure(reporter, &command_line, series, stage),
    }
}
