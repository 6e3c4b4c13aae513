// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What may be asked of a measurement on the command line, wherever it is made.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{ensure, Context, Result};
use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::series::Peer;
use crate::subject::Handler;
use crate::workload::{Fill, Pages};
use crate::{write_html, Plan, Transport};

/// The largest memfd that is measured, in bytes: deciding which of its pages to fill takes seconds.
pub const SIZE_MAX: u64 = 16 << 40;
/// The most files that cross together.
pub const FILES_MAX: u32 = 100_000;
/// The most often that a combination is measured.
pub const RUNS_MAX: u32 = 10_000;

/// Every combination of the lists is measured.
#[derive(Args, Clone, Debug)]
pub struct Workloads {
    /// Types of files; sizes, page kinds and fills are of memfds
    #[arg(long, value_enum, value_delimiter = ',', default_value = "memfd")]
    pub handler: Vec<Handler>,
    /// Sizes of one memfd, such as 64M, 4G, 1.5GiB
    #[arg(long, value_delimiter = ',', default_value = "64M,256M,1G", value_parser = parse_size)]
    pub size: Vec<u64>,
    /// Page kinds: 4k (base pages), thp, hugetlb
    #[arg(long, value_delimiter = ',', default_value = "4k", value_parser = Pages::from_str)]
    pub pages: Vec<Pages>,
    /// What is filled: dense, shuffled (all pages, in random order), sparse:P% (P percent of the pages)
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "dense,sparse:5%,shuffled",
        value_parser = Fill::from_str
    )]
    pub fill: Vec<Fill>,
    /// How many files of one kind cross together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(FILES_MAX)))]
    pub files: u32,
    /// How often each combination is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(RUNS_MAX)))]
    pub runs: u32,
}

impl Workloads {
    /// Ends the program unless a peer has a handler for what is measured with ours.
    pub fn check_peer(&self, compare: Option<Peer>) {
        if compare.is_some() && !Peer::keeps(&self.handler) {
            wrong_usage("the kernel's own handler keeps memfds alone, so --compare goes with --handler memfd");
        }
    }

    /// What to measure.
    pub fn plan(self, transports: Vec<Transport>, image_directory: PathBuf) -> Plan {
        Plan {
            transports,
            handlers: self.handler,
            sizes: self.size,
            pages: self.pages,
            fills: self.fill,
            files: self.files,
            runs: self.runs,
            image_directory,
        }
    }
}

/// Ends the program as clap does.
pub fn wrong_usage(message: &str) -> ! {
    clap::Error::raw(ErrorKind::ArgumentConflict, format!("{message}\n")).exit()
}

/// Where the figures go.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outputs {
    /// Write the figures as JSON; - is the standard output, which then has no table
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl Outputs {
    /// Sees to it that the files can be written, before the work and not after it.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn check(&self) -> Result<()> {
        for file in [&self.json, &self.html].into_iter().flatten() {
            if file != Path::new("-") {
                // What an earlier run left there stays until there is something new.
                fs::File::options()
                    .create(true)
                    .append(true)
                    .open(file)
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// The same files, by names that hold for another process as well.
    ///
    /// # Errors
    ///
    /// The standard output is not another process's.
    pub fn absolute(&self) -> Result<Self> {
        let absolute = |file: &Option<PathBuf>| -> Result<Option<PathBuf>> {
            let Some(file) = file else {
                return Ok(None);
            };
            ensure!(
                file != Path::new("-"),
                "the standard output ends with this kernel; name a file"
            );
            Ok(Some(std::path::absolute(file)?))
        };
        Ok(Self {
            json: absolute(&self.json)?,
            html: absolute(&self.html)?,
        })
    }

    /// Prints the table, writes the files, and says what was not as it should be.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn publish(&self, report: &Report) -> Result<()> {
        if let Some(file) = &self.html {
            fs::write(file, write_html(report)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        match &self.json {
            Some(file) if file == Path::new("-") => {
                println!("{}", serde_json::to_string_pretty(report)?);
            }
            json => {
                print_table(report);
                if let Some(file) = json {
                    fs::write(file, serde_json::to_vec_pretty(report)?)
                        .with_context(|| format!("cannot write {}", file.display()))?;
                }
            }
        }
        for row in report.results.iter().filter(|row| !row.verified) {
            let mismatch = row.mismatch.as_deref().unwrap_or("nothing was measured");
            eprintln!(
                "luo: not verified: {} {}: {mismatch}",
                row.way(),
                row.name()
            );
        }
        Ok(())
    }
}

fn print_table(report: &Report) {
    const WIDTH: u16 = 200;
    let mut table = report.table();
    // A serial console is a terminal that does not know how wide it is.
    if !std::io::stdout().is_terminal() || table.width().unwrap_or(0) < WIDTH / 4 {
        table.set_width(WIDTH);
    }
    println!("{table}");
    for remark in report.remarks() {
        println!("{remark}");
    }
}

/// `64M` and the like: K, M, G, T are powers of 1024, as are KiB, MiB …; KB, MB … are powers of 1000.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let binary = match text.as_bytes().last() {
        Some(b'k' | b'K' | b'm' | b'M' | b'g' | b'G' | b't' | b'T') => format!("{text}iB"),
        _ => text.to_owned(),
    };
    let size = ByteSize::from_str(&binary)
        .map_err(|_| format!("{text:?} is no size; 64M, 4G or 1.5GiB are"))?
        .as_u64();
    match size {
        1..=SIZE_MAX => Ok(size),
        _ => Err(format!("sizes go from 1 byte to {}", ByteSize(SIZE_MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
