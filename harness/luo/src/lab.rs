// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo lab`: the commands of the lab, and the one that measures there.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::bench::{print_comparison, publish};
use crate::bench_arguments::{OutputArguments, PeerArgument, WorkloadArguments};
use luo_bench::outputs::Outputs;
use luo_lab::GuestOptions;

/// What `luo lab` can do.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Everything but measuring.
    #[command(flatten)]
    Lab(luo_lab::LabCommand),
    /// Measure live updates over real kexecs, if asked also those of the kernel's own handler
    Bench(LabBenchArguments),
}

/// What `luo lab bench` may be told.
#[derive(Args, Clone, Debug)]
pub struct LabBenchArguments {
    /// How to boot the guest
    #[command(flatten)]
    guest: GuestOptions,
    #[command(flatten)]
    workloads: WorkloadArguments,
    /// Measure another handler as well, in turn with ours
    #[arg(long, value_enum, value_name = "HANDLER")]
    compare: Option<PeerArgument>,
    #[command(flatten)]
    outputs: OutputArguments,
}

/// Runs one command of the lab.
///
/// # Errors
///
/// Those of the command.
pub fn run(command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Lab(command) => luo_lab::run(command),
        LabCommand::Bench(arguments) => bench(arguments),
    }
}

fn bench(arguments: LabBenchArguments) -> Result<ExitCode> {
    let series = arguments.workloads.series(arguments.compare);
    let outputs = Outputs::from(arguments.outputs);
    outputs.check()?;
    let report = luo_lab::bench::measure(&arguments.guest, &series)?;
    publish(&report, &outputs)?;
    print_comparison(&report);
    Ok(match report.verified() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
