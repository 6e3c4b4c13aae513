// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench`: parses, shows progress, prints what was measured.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::bench_arguments::{
    wrong_usage, OutputArguments, PeerArgument, TransportArgument, WorkloadArguments,
};
use luo_bench::comparison::comparison;
use luo_bench::hosted;
use luo_bench::machine::{self, NextKernel, Ready, Underway, NOTE};
use luo_bench::measure::{measure, Event};
use luo_bench::outputs::Outputs;
use luo_bench::regression;
use luo_bench::report::Report;
use luo_bench::stop::Stop;
use luo_bench::text;
use luo_bench::transport::Transport;
use luo_bench::worker::Worker;
use luo_liveupdate::kexec;

/// The hidden command that is both sides of one update.
pub const WORKER_COMMAND: &str = "bench-worker";
/// Where the help lists the options of a kexec.
const HEADING: &str = "With --transport kexec";
/// The width of the table where no terminal has one.
const WIDTH: usize = 120;

/// Every combination of the lists is measured.
#[derive(Args, Debug)]
pub struct BenchArguments {
    /// Ways over the jump
    #[arg(long, value_enum, value_delimiter = ',', default_value = "exec,image")]
    transport: Vec<TransportArgument>,
    #[command(flatten)]
    workloads: WorkloadArguments,
    /// Where images are written; by default memory, /dev/shm, or else where there is room: the
    /// directory for temporary files, /var/tmp or the current one
    #[arg(long, value_name = "DIR")]
    image_dir: Option<PathBuf>,
    /// Also use the handlers of this plugin, before those that are built in; may be given several
    /// times
    #[arg(long, value_name = "FILE")]
    plugin: Vec<PathBuf>,
    /// Measure with files of another type: `FILE make N` opens one as descriptor 3, prints a line
    /// and waits until its input ends; `FILE verify N` has it as descriptor 3 after the jump and
    /// exits with 0 if it is as it was
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    outputs: OutputArguments,
    /// Compare the downtime with that of an older report, case by case; exit code 1 if a case got
    /// slower
    #[arg(long, value_name = "OLD.json")]
    against: Option<PathBuf>,
    /// With --against, how many percent slower a case may be; less is never reported as slower
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 10.0,
        requires = "against"
    )]
    threshold: f64,
    #[command(flatten)]
    kexec: KexecArguments,
    /// After a jump, continue what a bench began in the previous kernel, if one did
    #[arg(long = "continue", exclusive = true, help_heading = HEADING)]
    resume: bool,
    /// Print a systemd unit that continues a bench after each jump
    #[arg(long, exclusive = true, help_heading = HEADING)]
    print_unit: bool,
}

/// The options of a kexec.
#[derive(Args, Clone, Debug, Default)]
struct KexecArguments {
    /// The kernel to jump into; by default that of the running one in /boot
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    kernel: Option<PathBuf>,
    /// Its initrd; by default the one beside it in /boot
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    initrd: Option<PathBuf>,
    /// Its command line; by default that of the running kernel
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true, help_heading = HEADING)]
    command_line: Option<String>,
    /// More kernel parameters
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true, help_heading = HEADING)]
    append: Option<String>,
    /// Measure another handler as well, in turn with ours
    #[arg(long, value_enum, value_name = "HANDLER", help_heading = HEADING)]
    compare: Option<PeerArgument>,
    /// With --compare, where a note waits on a disk for kernels in which our handler is switched
    /// off
    #[arg(long, value_name = "FILE", default_value = NOTE, help_heading = HEADING)]
    note: PathBuf,
    /// Jump without asking
    #[arg(long, help_heading = HEADING)]
    yes: bool,
}

impl KexecArguments {
    /// Whether anything was given that only a kexec understands.
    fn are_given(&self) -> bool {
        let Self {
            kernel,
            initrd,
            command_line,
            append,
            compare,
            note,
            yes,
        } = self;
        let files = kernel.is_some() || initrd.is_some();
        let parameters = command_line.is_some() || append.is_some();
        files || parameters || compare.is_some() || note.as_os_str() != NOTE || *yes
    }
}

/// Measures, and prints what came of it: 0 if all of it was right.
///
/// # Errors
///
/// The reason why it could not measure.
pub fn run(arguments: BenchArguments) -> Result<ExitCode> {
    if arguments.resume {
        return resume();
    }
    if arguments.print_unit {
        print!("{}", machine::unit()?);
        return Ok(ExitCode::SUCCESS);
    }
    let outputs = arguments.outputs.into();
    let transports: Vec<Transport> = arguments.transport.into_iter().map(Into::into).collect();
    if transports == [Transport::Kexec] {
        if arguments.against.is_some() {
            wrong_usage(
                "the end of a kexec bench is in another kernel; --against compares exec and image",
            );
        }
        if !arguments.plugin.is_empty() || arguments.program.is_some() {
            wrong_usage(
                "plugins have handlers for processes, and --program files for them; a kernel has \
                 its own, which `luo lab test --handler PATH --program FILE` takes over kexecs",
            );
        }
        return begin(arguments.workloads, arguments.kexec, &outputs);
    }
    if arguments.kexec.are_given() || transports.contains(&Transport::Kexec) {
        wrong_usage(
            "a kexec ends all that runs, so it is measured alone, and what only it understands \
             goes with --transport kexec",
        );
    }
    let plugins = arguments
        .plugin
        .iter()
        .map(|file| absolute(file))
        .collect::<Result<Vec<_>>>()?;
    // What cannot be used is reported before anything is measured.
    hosted::registry(&plugins)?;
    let program = arguments.program.as_deref().map(absolute).transpose()?;
    let workloads = arguments.workloads;
    let plan = workloads.plan(transports, arguments.image_dir, program);
    outputs.check()?;
    // Read before the work, and before --json writes to the same file.
    let old = match &arguments.against {
        Some(file) => Some(read_report(file)?),
        None => None,
    };
    let stop = Stop::default();
    let stopped = stop.clone();
    ctrlc::set_handler(move || stopped.stop()).context("cannot listen for interrupts")?;
    let mut worker = Worker::this_program(&[WORKER_COMMAND])?;
    worker.plugins = plugins;
    let mut progress = Progress::new();
    let report = measure(&plan, &worker, &stop, &mut |event| progress.show(&event))?;
    progress.bar.finish_and_clear();
    publish(&report, &outputs)?;
    let has_regressed = match old {
        Some(old) => print_changes(&old, &report, arguments.threshold, &outputs)?,
        None => false,
    };
    Ok(exit_code(report.verified() && !has_regressed))
}

fn absolute(file: &Path) -> Result<PathBuf> {
    let absolute = file.canonicalize();
    absolute.with_context(|| format!("cannot find {}", file.display()))
}

fn exit_code(is_good: bool) -> ExitCode {
    match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn read_report(file: &PathBuf) -> Result<Report> {
    let json = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    regression::parse(&json).with_context(|| format!("cannot compare with {}", file.display()))
}

/// Prints how each case changed; returns whether one got slower.
fn print_changes(old: &Report, new: &Report, percent: f64, outputs: &Outputs) -> Result<bool> {
    let changes = regression::compare(old, new, percent / 100.0)?;
    for line in changes.lines() {
        match outputs.json_is_printed() {
            true => eprintln!("{line}"),
            false => println!("{line}"),
        }
    }
    Ok(changes.has_regressed())
}

/// Prints the table, or the JSON, and writes the files.
///
/// # Errors
///
/// A file that cannot be written.
pub fn publish(report: &Report, outputs: &Outputs) -> Result<()> {
    outputs.write(report)?;
    if outputs.json_is_printed() {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        let width = terminal_width();
        println!("{}\n", text::table(report, width));
        println!("{}", text::summary(report, width));
    }
    for row in report.results.iter().filter(|row| !row.verified) {
        let mismatch = row.mismatch.as_deref().unwrap_or("nothing was measured");
        eprintln!("luo: not verified: {}: {mismatch}", row.case);
    }
    Ok(())
}

/// Prints ours against the peer's, where both were measured.
pub fn print_comparison(report: &Report) {
    let width = terminal_width();
    for line in comparison(report) {
        println!("{}", luo_bench::format::wrap(&line, width).join("\n"));
    }
}

/// Prints where the time of each phase went, where that was sampled.
pub fn print_profiles(report: &Report) {
    for row in &report.results {
        for (phase, profile) in &row.profiles {
            println!("\n{}, {phase}: by itself, with what it calls", row.case);
            println!("{}", profile.table());
        }
    }
}

/// By the terminal, or else by `COLUMNS`. A serial console is a terminal that does not know how
/// wide it is.
fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    let columns = size.map_or(0, |size| usize::from(size.ws_col));
    if columns > 0 {
        return columns;
    }
    let columns = std::env::var("COLUMNS").ok();
    columns
        .and_then(|columns| columns.parse().ok())
        .unwrap_or(WIDTH)
}

/// A bar on a terminal, a line a run elsewhere.
struct Progress {
    bar: ProgressBar,
    runs: u32,
}

impl Progress {
    fn new() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            runs: 0,
        }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Begun { runs, bytes } => self.begin(*runs, *bytes),
            Event::Started { round, case } => {
                let round = self.round(*round);
                self.bar.set_message(format!("{round}: {case}"));
            }
            Event::Bytes(bytes) => self.bar.inc(*bytes),
            Event::Ended {
                round,
                case,
                outcome,
            } => {
                if self.bar.is_hidden() {
                    eprintln!("{}: {case}: {}", self.round(*round), outcome.summary());
                }
            }
            Event::Skipped { case, reason } => {
                let line = format!("skipped: {case}: {reason}");
                self.bar.suspend(|| eprintln!("{line}"));
            }
        }
    }

    fn begin(&mut self, runs: u32, bytes: u64) {
        self.runs = runs;
        if !io::stderr().is_terminal() {
            return;
        }
        self.bar = ProgressBar::new(bytes);
        let style = "{wide_bar:.cyan/dim} {bytes}/{total_bytes} {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style);
        }
    }

    fn round(&self, round: u32) -> String {
        match round {
            0 => "warm-up".to_owned(),
            _ => format!("run {round}/{}", self.runs),
        }
    }
}

/// Begins the journey of this machine through its kernels. Returns only if it comes to nothing.
fn begin(
    workloads: WorkloadArguments,
    kexec: KexecArguments,
    outputs: &Outputs,
) -> Result<ExitCode> {
    let series = workloads.series(kexec.compare);
    let next = NextKernel {
        kernel: kexec.kernel,
        initrd: kexec.initrd,
        command_line: kexec.command_line,
        append: kexec.append,
        note: Some(kexec.note),
    };
    let mut ready = Ready::new(series, &next, outputs)?;
    eprintln!("{}", ready.announcement());
    if !kexec.yes && !consents()? {
        eprintln!("Nothing was done.");
        return Ok(ExitCode::FAILURE);
    }
    give_up_on_interrupt()?;
    match ready.go(&print_notice)? {}
}

fn print_notice(text: &str) {
    eprintln!("{text}");
}

fn consents() -> Result<bool> {
    ensure!(
        io::stdin().is_terminal(),
        "without a terminal, nobody can be asked whether this machine may jump; --yes allows it"
    );
    eprint!("Jump now? [y/N] ");
    io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The end of this process gives its sessions up, so there is nothing else to undo.
fn give_up_on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        match kexec::unload() {
            Ok(()) => eprintln!("luo: interrupted; nothing is loaded, this kernel runs on"),
            Err(error) => eprintln!("luo: interrupted: {error:#}"),
        }
        std::process::exit(1);
    })
    .context("cannot listen for interrupts")
}

/// Continues after a jump: measures, and jumps on or reports. What was measured is also reported if
/// the machine cannot jump on.
fn resume() -> Result<ExitCode> {
    const NOTHING: &str = "There is nothing to continue";
    if !luo_liveupdate::is_available() {
        let device = luo_liveupdate::DEVICE_PATH;
        println!("{NOTHING}: this kernel has no {device}.");
        return Ok(ExitCode::SUCCESS);
    }
    let Some(mut journey) = Underway::arrived()? else {
        println!("{NOTHING}: no bench came from the previous kernel.");
        return Ok(ExitCode::SUCCESS);
    };
    if let Some((step, outcome)) = journey.news() {
        eprintln!("{step}: {}", outcome.summary());
    }
    give_up_on_interrupt()?;
    let end = journey.go_on(&print_notice);
    let report = journey.report();
    let published = publish(&report, journey.outputs());
    print_comparison(&report);
    end?;
    published?;
    Ok(exit_code(report.verified()))
}
