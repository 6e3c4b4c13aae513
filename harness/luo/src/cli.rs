// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::bench::{self, BenchArguments};
use crate::check::{self, CheckOptions};
use crate::inspect;
use crate::integrate::{self, IntegrateOptions};
use crate::lab::{self, LabCommand};
use crate::manual;
use crate::new::{self, NewOptions};
use crate::session::{self, SessionCommand};
use crate::sys;
use crate::table::table;
use luo_bench::hosted;
use luo_orchestrator::plugin;
use luo_orchestrator::registry::Registry;

/// Preserves file descriptors across live updates, and measures how fast
#[derive(Debug, Parser)]
#[command(name = "luo", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Args, Debug)]
struct Plugins {
    /// Also use the handlers of this plugin; may be given several times
    #[arg(long, value_name = "FILE")]
    plugin: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// List the handlers that are built in or come from plugins
    Handlers {
        #[command(flatten)]
        plugins: Plugins,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Take large memfds, or devices and port files, through live updates and report how long each
    /// phase takes
    Bench(BenchArguments),
    /// Show what a handover holds: entries, handlers, sizes, bad entries
    Inspect {
        /// A devicetree, or the directory of an image; without it, the sessions of this kernel
        file: Option<PathBuf>,
        #[command(flatten)]
        plugins: Plugins,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Sessions of the running kernel's Live Update Orchestrator
    #[command(subcommand)]
    Session(SessionCommand),
    /// Check before a jump whether the next kernel can take what is preserved now
    Check(CheckOptions),
    /// Make the crate of a new handler, in the tree or anywhere, which works as it is
    New(NewOptions),
    /// Put the kernel module and handlers into a kernel tree, or take them out again
    Integrate(IntegrateOptions),
    /// Build, boot and test kernels with the handlers in them
    #[command(subcommand)]
    Lab(LabCommand),
    /// Write man pages and completions below the share directory of a prefix, as make install does
    #[command(hide = true)]
    Manual {
        /// The directory, such as /usr/local/share
        share: PathBuf,
    },
    /// Both sides of one measured update
    #[command(name = bench::WORKER_COMMAND, hide = true)]
    BenchWorker {
        /// What to do, in JSON
        task: String,
    },
}

/// Runs the command: 0 if all is well, 1 if it failed, with the reason on stderr, 2 on wrong usage.
pub fn main() -> ExitCode {
    sys::end_quietly_without_readers();
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("luo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self) -> Result<ExitCode> {
        match self.command {
            Cmd::Handlers { plugins, json } => handlers(&plugins.plugin, json)?,
            Cmd::Bench(arguments) => return bench::run(arguments),
            Cmd::Inspect {
                file: None, json, ..
            } => session::inspect(json)?,
            Cmd::Inspect {
                file: Some(file),
                plugins,
                json,
            } => {
                let (registry, _) = registry(&plugins.plugin)?;
                let inspection = inspect::inspect(&file, &registry)?;
                match json {
                    true => print_json(&inspection)?,
                    false => println!("{}", inspect::text(&inspection)),
                }
            }
            Cmd::Session(command) => return session::run(command),
            Cmd::Check(options) => return check::run(&options),
            Cmd::New(options) => println!("{}", new::run(&options)?),
            Cmd::Integrate(options) => return integrate::run(&options),
            Cmd::Lab(command) => return lab::run(command),
            Cmd::Manual { share } => manual::write(Self::command(), &share)?,
            Cmd::BenchWorker { task } => hosted::work(&task)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A handler as it is listed.
#[derive(Serialize)]
struct ListedHandler {
    compatible: String,
    /// `handler` or `subsystem`.
    kind: &'static str,
    /// The crate or the plugin it comes from.
    origin: String,
    hosts: &'static [&'static str],
    abi_version: u32,
}

/// The handlers linked in and those of plugins, each of which is named.
fn registry(plugins: &[PathBuf]) -> Result<(Registry, Vec<(String, PathBuf)>)> {
    let registry = Registry::linked()?;
    let mut origins = Vec::new();
    for file in plugins {
        for handler in plugin::load(file, &registry)? {
            origins.push((handler.to_string(), file.clone()));
        }
    }
    Ok((registry, origins))
}

fn handlers(plugins: &[PathBuf], json: bool) -> Result<()> {
    let (registry, origins) = registry(plugins)?;
    let plugin_or = |compatible: String, origin: &str| {
        let plugin = origins.iter().find(|(name, _)| *name == compatible);
        plugin.map_or(origin.to_owned(), |(_, file)| file.display().to_string())
    };
    let handlers = registry
        .handlers()
        .into_iter()
        .map(|handler| ListedHandler {
            kind: "handler",
            origin: plugin_or(handler.compatible().to_string(), handler.origin()),
            hosts: handler.hosts().names(),
            abi_version: handler.abi_version(),
            compatible: handler.compatible().to_string(),
        });
    let subsystems = registry
        .subsystems()
        .into_iter()
        .map(|subsystem| ListedHandler {
            kind: "subsystem",
            origin: plugin_or(subsystem.compatible().to_string(), subsystem.origin()),
            hosts: subsystem.hosts().names(),
            abi_version: subsystem.abi_version(),
            compatible: subsystem.compatible().to_string(),
        });
    let listed: Vec<ListedHandler> = handlers.chain(subsystems).collect();
    if json {
        return print_json(&listed);
    }
    let mut table = table(["compatible", "kind", "crate or plugin", "hosts", "ABI"]);
    for handler in listed {
        table.add_row([
            handler.compatible,
            handler.kind.to_owned(),
            handler.origin,
            handler.hosts.join(", "),
            handler.abi_version.to_string(),
        ]);
    }
    println!("{table}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
