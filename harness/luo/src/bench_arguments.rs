// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What may be asked of a measurement on the command line, wherever it is made, and how that
//! becomes plain data.

use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::{Args, ValueEnum};

use luo_bench::outputs::Outputs;
use luo_bench::plan::{Plan, Set, FILES_MAX, RUNS_MAX, SIZE_MAX};
use luo_bench::scale;
use luo_bench::series::{mainline_takes, Series};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::pages::Pages;
use luo_bench::subject::FileType;
use luo_bench::transport::Transport;

/// Ways over the jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportArgument {
    /// The process replaces itself and inherits everything: nothing is copied
    Exec,
    /// Contents go to a directory, and a process that inherits nothing reads them
    Image,
    /// The kernel preserves them while this machine jumps into the next one, which ends all that
    /// runs; for root, measured alone
    Kexec,
}

impl From<TransportArgument> for Transport {
    fn from(argument: TransportArgument) -> Self {
        match argument {
            TransportArgument::Exec => Self::Exec,
            TransportArgument::Image => Self::Image,
            TransportArgument::Kexec => Self::Kexec,
        }
    }
}

/// Types of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileTypeArgument {
    /// Memfds of each size, page kind and fill
    Memfd,
    /// Devices that are bound to vfio-pci, the first ones by their addresses; for root
    Vfio,
    /// Files of /dev/port, each at another port; for root
    Ioport,
}

impl From<FileTypeArgument> for FileType {
    fn from(argument: FileTypeArgument) -> Self {
        match argument {
            FileTypeArgument::Memfd => Self::Memfd,
            FileTypeArgument::Vfio => Self::Vfio,
            FileTypeArgument::Ioport => Self::Ioport,
        }
    }
}

/// Handlers to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeerArgument {
    /// The handler in C that the kernel brings along
    MainlineC,
}

/// Every combination of the lists is measured.
#[derive(Args, Clone, Debug)]
pub struct WorkloadArguments {
    /// Types of files, by default memfd; sizes, page kinds and fills are of memfds
    #[arg(long, value_enum, value_delimiter = ',')]
    handler: Vec<FileTypeArgument>,
    /// Sizes of one memfd, such as 64M, 4G, 1.5GiB, or 1000x1M for 1000 memfds together
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "64M,256M,1G",
        value_parser = parse_memfds
    )]
    size: Vec<Memfds>,
    /// Page kinds: 4k (base pages), collapsed (base pages that are put into huge ones before
    /// prepare), thp, hugetlb, or hugetlb:SIZE such as hugetlb:1G
    #[arg(long, value_delimiter = ',', default_value = "4k", value_parser = Pages::from_str)]
    pages: Vec<Pages>,
    /// What is filled: dense, shuffled (all pages, in random order), sparse:P% (P percent of the
    /// pages)
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "dense,sparse:5%,shuffled",
        value_parser = Fill::from_str
    )]
    fill: Vec<Fill>,
    /// Measure cases of base pages also with their pages collapsed into huge ones before prepare,
    /// and show what that costs the workload and what it wins
    #[arg(long)]
    collapse: bool,
    /// How many files of one kind cross together
    #[arg(
        long,
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(FILES_MAX))
    )]
    files: u32,
    /// How often each combination is measured, after a run that warms up and does not count
    #[arg(
        long,
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(RUNS_MAX))
    )]
    runs: u32,
}

/// A size, and how many memfds there are of it, if that was given with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memfds {
    files: Option<u32>,
    size: u64,
}

/// `64M`, `1000x1M`.
fn parse_memfds(text: &str) -> Result<Memfds, String> {
    let (files, size) = match text.split_once('x') {
        None => (None, text),
        Some((files, size)) => {
            let files = files.parse().ok();
            let files = files.filter(|files| (1..=FILES_MAX).contains(files));
            let usage = || format!("{text:?}: from 1 to {FILES_MAX} memfds cross together");
            (Some(files.ok_or_else(usage)?), size)
        }
    };
    let size = parse_size(size)?;
    Ok(Memfds { files, size })
}

impl WorkloadArguments {
    /// What to measure. Ends the program if that comes to nothing.
    pub fn plan(
        self,
        transports: Vec<Transport>,
        image_directory: Option<PathBuf>,
        program: Option<PathBuf>,
    ) -> Plan {
        let mut file_types: Vec<FileType> = self.handler.into_iter().map(Into::into).collect();
        if file_types.is_empty() && program.is_none() {
            file_types.push(FileType::Memfd);
        }
        let mut pages = self.pages;
        if self.collapse && pages.contains(&Pages::Base) && !pages.contains(&Pages::Collapsed) {
            pages.push(Pages::Collapsed);
        }
        let alone = |memfds: &&Memfds| memfds.files.is_none();
        let in_set = |memfds: &Memfds| {
            let size = memfds.size;
            memfds.files.map(|files| Set { files, size })
        };
        let plan = Plan {
            transports,
            file_types,
            program,
            sizes: self.size.iter().filter(alone).map(|it| it.size).collect(),
            sets: self.size.iter().filter_map(in_set).collect(),
            pages,
            fills: self.fill,
            files: self.files,
            runs: self.runs,
            image_directory,
        };
        if let Err(error) = plan.check() {
            wrong_usage(&error.to_string());
        }
        plan
    }

    /// Measures how costs grow on a machine with so much memory.
    pub fn scaled_to(self, memory: u64) -> Self {
        let set = |set: Set| Memfds {
            files: Some(set.files),
            size: set.size,
        };
        let one = |size| Memfds { files: None, size };
        let sizes = scale::sizes(memory).into_iter().map(one);
        Self {
            size: sizes.chain(scale::sets().map(set)).collect(),
            fill: vec![Fill::Dense, Fill::Shuffled],
            files: 1,
            ..self
        }
    }

    /// What to measure over kexecs. Ends the program unless the peer has a handler for it, too.
    pub fn series(self, compare: Option<PeerArgument>) -> Series {
        let plan = self.plan(vec![Transport::Kexec], None, None);
        if compare.is_some() && !mainline_takes(&plan.file_types) {
            wrong_usage(
                "the kernel's own handler takes memfds alone, so --compare goes with \
                 --handler memfd",
            );
        }
        Series::new(plan, compare.is_some())
    }
}

/// Where the figures go.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArguments {
    /// Write the figures as JSON; - is the standard output, which then has no table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a table in Markdown, ours against the peer's where both were measured
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

impl From<OutputArguments> for Outputs {
    fn from(arguments: OutputArguments) -> Self {
        let OutputArguments {
            json,
            html,
            markdown,
        } = arguments;
        Self {
            json,
            html,
            markdown,
            text: None,
        }
    }
}

/// Ends the program as clap does.
pub fn wrong_usage(message: &str) -> ! {
    clap::Error::raw(ErrorKind::ArgumentConflict, format!("{message}\n")).exit()
}

/// `64M` and the like: K, M, G, T are powers of 1024, as are KiB, MiB …; KB, MB … are powers of
/// 1000.
///
/// # Errors
///
/// What is not a size from 1 byte to [`SIZE_MAX`].
pub fn parse_size(text: &str) -> Result<u64, String> {
    let binary = match text.as_bytes().last() {
        Some(b'k' | b'K' | b'm' | b'M' | b'g' | b'G' | b't' | b'T') => format!("{text}iB"),
        _ => text.to_owned(),
    };
    let size = ByteSize::from_str(&binary)
        .map_err(|_| format!("{text:?} is not a size; 64M, 4G or 1.5GiB are"))?
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
    fn a_size_may_come_with_a_number_of_memfds() {
        let memfds = |files, size| Ok(Memfds { files, size });
        assert_eq!(parse_memfds("1000x1M"), memfds(Some(1000), 1 << 20));
        assert_eq!(parse_memfds("1M"), memfds(None, 1 << 20));
        for text in ["x1M", "0x1M", "1000000x1M", "2x", "2x2x1M"] {
            assert!(parse_memfds(text).is_err(), "{text}");
        }
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
