// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The stages of a test: each in a kernel of its own.

use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};

use crate::event::Event;
use crate::guest::kmemleak;
use crate::guest::next_kernel::{load_next, load_variant};
use crate::guest::programs::{exit_code, install_shell_commands, program};
use crate::guest::reporter::Reporter;
use crate::job::next_stage;
use crate::tests::case;
use crate::tests::held_open::HeldOpen;
use crate::tests::table;
use crate::tests::test::{Action, Stage};
use luo_bench::counters::{self, Share, Shares};
use luo_liveupdate::kexec;

/// Runs one stage of a test, and if there is another, jumps to it.
pub(crate) fn run_stage(
    reporter: &mut Reporter,
    command_line: &str,
    name: &str,
    number: usize,
) -> Result<()> {
    let test = table::find(name).with_context(|| format!("this luo knows no test {name}"))?;
    let stage = number
        .checked_sub(1)
        .and_then(|index| test.stages.get(index));
    let stage = stage.with_context(|| format!("{name} has no stage {number}"))?;
    reporter.report(&Event::Stage { stage: number })?;

    // Loaded first: it takes memory, and between prepare and the jump there should be as little as
    // possible.
    let next = test.stages.get(number);
    if let Some(next) = next {
        let command_line = next_stage(command_line, number + 1, stage.parameters, next.parameters);
        match next.kernel {
            None => load_next(&command_line)?,
            Some(kernel) => load_variant(kernel, &command_line)?,
        }
    }
    let started = Instant::now();
    if let Action::Jump(jump) = stage.action {
        // Nobody comes back to report.
        reporter.report(&Event::Passed {
            stage: number,
            seconds: 0.0,
            ours: Shares::new(),
        })?;
        jump(command_line)?;
    }
    let mut held = HeldOpen::default();
    act(stage, &mut held, reporter).with_context(|| format!("stage {number}"))?;
    let seconds = started.elapsed().as_secs_f64();
    kmemleak::check().with_context(|| format!("stage {number}"))?;
    let ours = check_share(stage.ours).with_context(|| format!("stage {number}"))?;
    reporter.report(&Event::Passed {
        stage: number,
        seconds,
        ours,
    })?;
    if next.is_some() {
        bail!("before stage {}: {}", number + 1, kexec::jump());
    }
    Ok(())
}

/// What our handlers did in this kernel, if it is enough: that a file crossed does not show which
/// handler took it.
fn check_share(least: Share) -> Result<Shares> {
    let shares = counters::shares()?;
    let ours = counters::sum(&shares);
    ensure!(
        ours.prepared >= least.prepared && ours.retrieved >= least.retrieved,
        "our handlers prepared {} and retrieved {} files, at least {} and {} were for them",
        ours.prepared,
        ours.retrieved,
        least.prepared,
        least.retrieved
    );
    Ok(shares)
}

fn act(stage: &Stage, held: &mut HeldOpen, reporter: &mut Reporter) -> Result<()> {
    let mut report = |name: &str, problem: Result<()>| {
        reporter.report(&Event::Case {
            name: name.into(),
            problem: problem.err().map(|error| format!("{error:#}")),
        })
    };
    match stage.action {
        Action::Depart(cases) => case::depart(cases, held, &mut report),
        Action::Arrive(cases) => case::arrive(cases, &mut report),
        Action::Check(check) => check(held),
        Action::Jump(_) => bail!("it did not jump"),
        Action::Program(command) => {
            install_shell_commands()?;
            let (name, arguments) = command.split_first().context("the stage has no command")?;
            match exit_code(&mut program(name, arguments))? {
                0 => Ok(()),
                code => bail!("{} exited with {code}", command.join(" ")),
            }
        }
    }
}
