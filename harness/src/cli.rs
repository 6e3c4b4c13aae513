// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The command line.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::Ordering;

use anyhow::{bail, Context, Result};
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::Table;
use rustix::fs::statfs;
use serde::Serialize;

use crate::bench::run::{self, ArriveOptions};
use crate::bench::{self, Plan, Transport};
use crate::inspect;
use crate::plugin;
use crate::registry::Registry;
use crate::workload::{Fill, Pages};

/// Keeps file descriptors alive across live updates, and measures how fast
#[derive(Debug, Parser)]
#[command(name = "luo", version, propagate_version = true)]
struct Cli {
    /// Also use the handlers of this plugin; may be given several times
    #[arg(long, global = true, value_name = "FILE")]
    plugin: Vec<PathBuf>,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// List the handlers that are built in or come from plugins
    Handlers {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Take large memfds through live updates and report how long each phase takes
    Bench(BenchOptions),
    /// Show what a handover holds: entries, handlers, sizes, bad entries
    Inspect {
        /// A devicetree, or the directory of an image
        file: PathBuf,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// The old side of one measured update
    #[command(name = run::DEPART_COMMAND, hide = true)]
    BenchDepart {
        /// The case, in JSON
        case: String,
        /// Where an image goes
        directory: PathBuf,
    },
    /// The new side of one measured update
    #[command(name = run::ARRIVE_COMMAND, hide = true)]
    BenchArrive(ArriveOptions),
}

/// Every combination of the lists is measured.
#[derive(Args, Debug)]
struct BenchOptions {
    /// Ways over the jump
    #[arg(long, value_enum, value_delimiter = ',', default_value = "exec,image")]
    transport: Vec<Transport>,
    /// Sizes of one memfd, such as 64M, 4G, 1.5GiB
    #[arg(long, value_delimiter = ',', default_value = "64M,256M,1G", value_parser = parse_size)]
    size: Vec<u64>,
    /// Page kinds: 4k (base pages), thp, hugetlb
    #[arg(long, value_delimiter = ',', default_value = "4k", value_parser = Pages::from_str)]
    pages: Vec<Pages>,
    /// What is filled: dense, shuffled (all pages, in random order), sparse:P% (P percent of the pages)
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "dense,sparse:5%,shuffled",
        value_parser = Fill::from_str
    )]
    fill: Vec<Fill>,
    /// How many memfds of that size cross together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    files: u32,
    /// How often each combination is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Where images are written; by default memory, /dev/shm, or else the directory for temporary files
    #[arg(long, value_name = "DIR")]
    image_dir: Option<PathBuf>,
    /// Write the figures as JSON; - is the standard output, which then has no table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command: 0 if all is well, 1 if it failed, with the reason on stderr, 2 on wrong usage.
pub fn main() -> ExitCode {
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
            Cmd::Handlers { json } => handlers(&self.plugin, json)?,
            Cmd::Bench(options) => return options.run(),
            Cmd::Inspect { file, json } => {
                let (registry, _) = registry(&self.plugin)?;
                let inspection = inspect::inspect(&file, &registry)?;
                match json {
                    true => print_json(&inspection)?,
                    false => println!("{}", inspection.text()),
                }
            }
            Cmd::BenchDepart { case, directory } => {
                run::depart(&serde_json::from_str(&case)?, &directory)?;
            }
            Cmd::BenchArrive(options) => run::arrive(&options)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The largest memfd that is measured, in bytes: deciding which of its pages to fill takes seconds.
const SIZE_MAX: u64 = 16 << 40;

/// `64M` and the like: K, M, G, T are powers of 1024, as are KiB, MiB …; KB, MB … are powers of 1000.
fn parse_size(text: &str) -> Result<u64, String> {
    let binary = match text.as_bytes().last() {
        Some(b'k' | b'K' | b'm' | b'M' | b'g' | b'G' | b't' | b'T') => format!("{text}iB"),
        _ => text.to_owned(),
    };
    ByteSize::from_str(&binary)
        .map(|size| size.as_u64())
        .map_err(|_| format!("{text:?} is no size; 64M, 4G or 1.5GiB are"))
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
    let kinds = [
        ("handler", registry.handlers()),
        ("subsystem", registry.subsystems()),
    ];
    let listed: Vec<ListedHandler> = kinds
        .iter()
        .flat_map(|(kind, handlers)| handlers.iter().map(move |handler| (*kind, handler)))
        .map(|(kind, handler)| {
            let compatible = handler.compatible().to_string();
            let plugin = origins.iter().find(|(name, _)| *name == compatible);
            ListedHandler {
                kind,
                origin: match plugin {
                    Some((_, file)) => file.display().to_string(),
                    None => handler.origin().to_owned(),
                },
                hosts: &["hosted"],
                abi_version: handler.abi_version(),
                compatible,
            }
        })
        .collect();
    if json {
        return print_json(&listed);
    }
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["compatible", "kind", "crate or plugin", "hosts", "ABI"]);
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

impl BenchOptions {
    fn run(self) -> Result<ExitCode> {
        if !self.size.iter().all(|size| (1..=SIZE_MAX).contains(size)) {
            bail!("--size takes 1 byte to {}", ByteSize(SIZE_MAX));
        }
        // Asked before the work, not after it.
        for file in [&self.json, &self.html].into_iter().flatten() {
            if file != Path::new("-") {
                fs::File::create(file)
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        ctrlc::set_handler(|| bench::INTERRUPTED.store(true, Ordering::Relaxed))
            .context("cannot listen for interrupts")?;
        let report = bench::measure(&Plan {
            transports: self.transport,
            sizes: self.size,
            pages: self.pages,
            fills: self.fill,
            files: self.files,
            runs: self.runs,
            image_directory: self.image_dir.unwrap_or_else(default_image_directory),
        })?;
        if let Some(file) = &self.html {
            fs::write(file, bench::write_html(&report)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        match &self.json {
            Some(file) if file == Path::new("-") => print_json(&report)?,
            json => {
                print_table(&report);
                if let Some(file) = json {
                    fs::write(file, serde_json::to_vec_pretty(&report)?)
                        .with_context(|| format!("cannot write {}", file.display()))?;
                }
            }
        }
        for row in report.results.iter().filter(|row| !row.verified) {
            let mismatch = row.mismatch.as_deref().unwrap_or("nothing was measured");
            eprintln!(
                "luo: not verified: {} {}: {mismatch}",
                row.transport, row.fill
            );
        }
        Ok(match report.verified() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

fn print_table(report: &bench::report::Report) {
    let mut table = report.table();
    if !std::io::stdout().is_terminal() {
        table.set_width(200);
    }
    println!("{table}");
    for remark in report.remarks() {
        println!("{remark}");
    }
}

fn default_image_directory() -> PathBuf {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let memory = Path::new("/dev/shm");
    match statfs(memory) {
        Ok(statfs) if statfs.f_type == TMPFS_MAGIC => memory.to_owned(),
        _ => std::env::temp_dir(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_binary_unless_they_say_otherwise() {
        for (text, size) in [
            ("64M", 64 << 20),
            ("4G", 4 << 30),
            ("1.5GiB", 3 << 29),
            ("1k", 1024),
            ("1MB", 1_000_000),
            ("4096", 4096),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "M", "-1", "many", "1X"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
