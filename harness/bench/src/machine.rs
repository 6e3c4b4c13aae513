// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench --transport kexec`: the journey of a real machine, which comes back in the next kernel as
//! `luo bench --continue`.
//!
//! Nothing is done before all that can be known is checked and the user has agreed. A session lives as long as somebody has
//! it open, so luo jumps by itself: an orderly shutdown would end it first.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{bail, ensure, Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::comparison::comparison;
use crate::counters;
use crate::environment::{file_system, Environment};
use crate::journey::Journey;
use crate::options::Outputs;
use crate::report::{self, Report};
use crate::series::{Peer, Series};
use crate::Plan;
use luo_liveupdate::kexec;

/// Where the help has what a kexec may be told.
pub const HEADING: &str = "With --transport kexec";
const NOTE: &str = "/var/lib/luo-bench.json";
const UNIT: &str = include_str!("../systemd/luo-bench.service");
const UNIT_NAME: &str = "luo-bench.service";
/// The program as the unit has it.
const UNIT_PROGRAM: &str = "/usr/local/bin/luo";

/// What a kexec may be told.
#[derive(Args, Clone, Debug, Default)]
pub struct KexecOptions {
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
    pub compare: Option<Peer>,
    /// With --compare, where a note waits on a disk for kernels in which our handler is switched off
    #[arg(long, value_name = "FILE", default_value = NOTE, help_heading = HEADING)]
    note: PathBuf,
    /// Jump without asking
    #[arg(long, help_heading = HEADING)]
    yes: bool,
}

impl KexecOptions {
    /// Whether anything was said that only a kexec understands.
    pub fn are_given(&self) -> bool {
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
        files || parameters || compare.is_some() || note != Path::new(NOTE) || *yes
    }
}

/// What luo takes along for itself.
#[derive(Debug, Serialize, Deserialize)]
struct Luggage {
    kernel: PathBuf,
    initrd: PathBuf,
    outputs: Outputs,
}

impl Luggage {
    fn new(options: &KexecOptions, outputs: &Outputs) -> Result<Self> {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let kernel = match &options.kernel {
            Some(file) => file.clone(),
            None => format!("/boot/vmlinuz-{release}").into(),
        };
        let initrd = match &options.initrd {
            Some(file) => file.clone(),
            None => find_initrd(Path::new("/boot"), &release)?,
        };
        Ok(Self {
            kernel: existing(&kernel, "--kernel")?,
            initrd: existing(&initrd, "--initrd")?,
            outputs: outputs.absolute()?,
        })
    }

    fn load(&self, command_line: &str) -> Result<()> {
        eprintln!("Loading {}, to jump into it.", self.kernel.display());
        Ok(kexec::load(&self.kernel, &self.initrd, command_line)?)
    }
}

/// By the names that distributions give it.
fn find_initrd(boot: &Path, release: &str) -> Result<PathBuf> {
    let names = ["initrd.img-{}", "initramfs-{}.img", "initrd-{}"];
    let mut files = names
        .map(|name| boot.join(name.replace("{}", release)))
        .into_iter();
    files.find(|file| file.exists()).with_context(|| {
        format!(
            "there is no initrd of {release} in {}; name one with --initrd",
            boot.display()
        )
    })
}

/// The file, by a name that also holds elsewhere.
fn existing(file: &Path, option: &str) -> Result<PathBuf> {
    let found = file.canonicalize().and_then(|file| {
        fs::File::open(&file)?;
        Ok(file)
    });
    found.with_context(|| {
        format!(
            "cannot read {}; {option} names another file",
            file.display()
        )
    })
}

/// Where a note outlasts a kernel, by a name that fits on a command line.
fn note_place(options: &KexecOptions) -> Result<PathBuf> {
    let place = std::path::absolute(&options.note)?;
    if options.compare.is_none() {
        return Ok(place);
    }
    let name = place
        .to_str()
        .filter(|name| !name.contains(char::is_whitespace));
    ensure!(
        name.is_some(),
        "--note takes a file with neither spaces nor odd bytes in its name"
    );
    let directory = place.parent().context("--note takes a file")?;
    ensure!(
        directory.is_dir() && !["tmpfs", "ramfs"].contains(&file_system(directory).as_str()),
        "{} is not there in the next kernel; --note names a file on a disk",
        directory.display()
    );
    Ok(place)
}

/// Begins the journey. Returns only if it comes to nothing.
///
/// # Errors
///
/// Whatever keeps this machine from jumping; then it runs on as before.
pub fn begin(plan: Plan, options: &KexecOptions, outputs: &Outputs) -> Result<ExitCode> {
    if let Some(reason) = kexec::obstacle()
        .map(str::to_owned)
        .or_else(counters::obstacle)
    {
        bail!("{reason}; `luo lab bench` measures kexec in a virtual machine");
    }
    let luggage = Luggage::new(options, outputs)?;
    let note = note_place(options)?;
    let command_line = command_line(options)?;
    let series = Series::new(plan, options.compare);
    series.check()?;
    for case in series.cases() {
        if let Some(reason) = case.obstacle() {
            bail!("{case} cannot be measured: {reason}");
        }
    }
    outputs.check()?;
    eprintln!("{}", announcement(&series, &luggage, &command_line));
    if !options.yes && !consents()? {
        eprintln!("Nothing was done.");
        return Ok(ExitCode::FAILURE);
    }
    give_up_on_interrupt()?;
    let journey = Journey::new(series, &command_line, note, luggage);
    journey.go_on(Luggage::load)?;
    bail!("there was nothing to measure")
}

fn command_line(options: &KexecOptions) -> Result<String> {
    let base = match &options.command_line {
        Some(command_line) => command_line.clone(),
        None => fs::read_to_string("/proc/cmdline").context("reading the command line")?,
    };
    let more = options.append.as_deref().unwrap_or_default();
    Ok(kexec::with_parameters(&base, more))
}

fn announcement(series: &Series, luggage: &Luggage, command_line: &str) -> String {
    let updates = series.steps().len();
    // Between two updates, one jump leads to a fresh kernel.
    let jumps = 2 * updates - 1;
    let mut text = format!(
        "Live updates to measure: {updates}. Jumps of this machine: {jumps}, into\n  kernel        {}\n  initrd        {}\n  \
         command line  {command_line}\n\
         Each jump ends all programs at once, as a loss of power would: services are not stopped. File systems are \
         synced before.\n",
        luggage.kernel.display(),
        luggage.initrd.display(),
    );
    text += match continues_by_itself() {
        true => "The systemd unit luo-bench.service continues behind each jump; its log and the report are in the journal.",
        false => {
            "Beware: nothing continues by itself behind a jump. To have systemd do it:\n  \
             luo bench --print-unit > /etc/systemd/system/luo-bench.service && systemctl enable luo-bench.service\n\
             or run `luo bench --continue` as root behind each jump."
        }
    };
    text
}

fn continues_by_itself() -> bool {
    let mut command = Command::new("systemctl");
    command.args(["is-enabled", "--quiet", UNIT_NAME]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn consents() -> Result<bool> {
    ensure!(
        io::stdin().is_terminal(),
        "there is no terminal to ask on whether this machine may jump; --yes says that it may"
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

/// Continues behind a jump: measures, and jumps on or reports.
///
/// # Errors
///
/// Whatever keeps the machine from jumping on; what was measured until then is reported before.
pub fn resume() -> Result<ExitCode> {
    const NOTHING: &str = "There is nothing to continue";
    if !luo_liveupdate::is_available() {
        println!(
            "{NOTHING}: this kernel has no {}.",
            luo_liveupdate::DEVICE_PATH
        );
        return Ok(ExitCode::SUCCESS);
    }
    let Some(journey) = Journey::<Luggage>::arrived()? else {
        println!("{NOTHING}: no bench came from the previous kernel.");
        return Ok(ExitCode::SUCCESS);
    };
    if let Some((step, outcome)) = journey.news() {
        eprintln!("{step}: {}", outcome.summary());
    }
    give_up_on_interrupt()?;
    let end = journey.go_on(Luggage::load);
    let verified = publish(&journey);
    end?;
    Ok(match verified? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Reports what was measured; tells whether all of ours was right.
fn publish(journey: &Journey<Luggage>) -> Result<bool> {
    let report = Report {
        schema: report::SCHEMA,
        environment: Environment::of_this_machine(Path::new("/")),
        results: journey.rows(),
        skipped: Vec::new(),
    };
    journey.luggage.outputs.publish(&report)?;
    for line in comparison(&report) {
        println!("{line}");
    }
    Ok(report.verified())
}

/// The systemd unit that continues the journey with the program that runs now.
///
/// # Errors
///
/// A program that does not know its own path.
pub fn unit() -> Result<String> {
    let program = std::env::current_exe().context("looking for this program")?;
    Ok(UNIT.replace(UNIT_PROGRAM, &program.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initrd_is_found_by_any_name_distributions_use() {
        let boot = tempfile::tempdir().unwrap();
        let error = find_initrd(boot.path(), "7.3").unwrap_err();
        assert!(error.to_string().contains("--initrd"), "{error}");
        for name in ["initrd-7.3", "initramfs-7.3.img", "initrd.img-7.3"] {
            fs::write(boot.path().join(name), "").unwrap();
            assert_eq!(
                find_initrd(boot.path(), "7.3").unwrap(),
                boot.path().join(name)
            );
        }
    }

    #[test]
    fn the_unit_continues_with_this_program() {
        let unit = unit().unwrap();
        let program = std::env::current_exe().unwrap();
        assert!(unit.contains(&format!(
            "ExecStart={} bench --continue\n",
            program.display()
        )));
    }

    #[test]
    fn the_command_line_is_given_whole_or_in_addition() {
        let options = KexecOptions {
            command_line: Some("a -- b".into()),
            append: Some("c".into()),
            note: NOTE.into(),
            ..KexecOptions::default()
        };
        assert_eq!(command_line(&options).unwrap(), "a c -- b");
        assert!(options.are_given());
    }
}
