// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The init process of a guest: mounts what is needed, does its job, jumps to the next stage or ends the machine.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use rustix::fs::MemfdFlags;
use rustix::mount::{mount, MountFlags};
use rustix::system::{reboot, RebootCommand};

use crate::cases;
use crate::checks::Kept;
use crate::counters::{self, Share, Shares};
use crate::initramfs::{compose, BASE_IN_GUEST, KERNEL_IN_GUEST};
use crate::job::{next_stage, Event, Job};
use crate::kmemleak;
use crate::qemu::SHARE_TAG;
use crate::tests::{self, Action, Stage};
use luo_bench::environment::Environment;
use luo_bench::journey::Journey;
use luo_bench::series::Series;
use luo_liveupdate::kexec;

const CONSOLE_PORT: &str = "/dev/ttyS0";
/// Of their own, so that the kernel's messages do not get between the lines.
const EVENT_PORT: &str = "/dev/ttyS1";
const OUTPUT_PORT: &str = "/dev/ttyS2";
/// On the host: it has to outlast a kernel.
const NOTE: &str = "/results/journey.json";
pub(super) const BUSYBOX: &str = "/bin/busybox";

/// A file system of the guest. One that is not `needed` may be missing from an integrator's kernel.
struct Mount {
    kind: &'static CStr,
    source: &'static str,
    target: &'static str,
    options: Option<&'static CStr>,
    needed: bool,
}

const MOUNTS: [Mount; 8] = [
    Mount {
        kind: c"devtmpfs",
        source: "dev",
        target: "/dev",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"proc",
        source: "proc",
        target: "/proc",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"sysfs",
        source: "sys",
        target: "/sys",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"tmpfs",
        source: "tmp",
        target: "/tmp",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"tmpfs",
        source: "shm",
        target: "/dev/shm",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"devpts",
        source: "pts",
        target: "/dev/pts",
        options: None,
        needed: false,
    },
    Mount {
        kind: c"debugfs",
        source: "debug",
        target: "/sys/kernel/debug",
        options: None,
        needed: false,
    },
    Mount {
        kind: c"9p",
        source: SHARE_TAG,
        target: "/results",
        options: Some(c"trans=virtio,version=9p2000.L"),
        needed: false,
    },
];

/// Runs as init. Never returns from a guest: its end is the machine's.
pub(super) fn run() -> Result<ExitCode> {
    ensure!(
        std::process::id() == 1,
        "this is the init of the lab's guests; on a running system it has no use"
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
    // QEMU is told to end at a reboot, and a reboot needs no ACPI.
    reboot(RebootCommand::Restart).context("ending the guest")?;
    bail!("the guest did not end");
}

fn mount_all() -> Result<()> {
    for Mount {
        kind,
        source,
        target,
        options,
        needed,
    } in MOUNTS
    {
        // Where a target cannot be made, mounting fails as well, and says why.
        let _ = fs::create_dir_all(target);
        let mounted = mount(source, target, kind, MountFlags::empty(), options);
        if needed {
            mounted.with_context(|| format!("mounting {target}"))?;
        }
    }
    Ok(())
}

/// Tells the host what happens.
struct Reporter(File);

impl Reporter {
    fn open() -> Result<Self> {
        open_port(EVENT_PORT).map(Self)
    }

    fn report(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event)? + "\n";
        self.0
            .write_all(line.as_bytes())
            .context("reporting to the host")?;
        // What is still in the port's buffer would be lost at the jump.
        rustix::termios::tcdrain(&self.0).context("reporting to the host")
    }
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
        Job::Bench { series, stage } => measure(reporter, &command_line, series, stage),
    }
}

/// A shell of its own session, so that it can have the port as its terminal.
fn shell() -> Result<()> {
    install_shell_commands()?;
    println!(
        "The lab's guest: luo is in the path, files in /results stay on the host, `exit` ends it."
    );
    let port = open_port(CONSOLE_PORT)?;
    let mut shell = program(BUSYBOX, &["setsid", "-c", BUSYBOX, "sh", "-l"]);
    shell
        .stdin(port.try_clone()?)
        .stdout(port.try_clone()?)
        .stderr(port);
    shell.status().context("starting the shell")?;
    Ok(())
}

/// Runs the user's command, what it prints on a port of its own.
fn run_command(command: &[String]) -> Result<u8> {
    install_shell_commands()?;
    let (name, arguments) = command.split_first().context("there is no command")?;
    let port = open_port(OUTPUT_PORT)?;
    let mut child = program(name, arguments);
    child
        .stdin(Stdio::null())
        .stdout(port.try_clone()?)
        .stderr(port.try_clone()?);
    let code = exit_code(&mut child)?;
    rustix::termios::tcdrain(&port).context("passing on what the command printed")?;
    Ok(code)
}

pub(super) fn install_shell_commands() -> Result<()> {
    let status = Command::new(BUSYBOX)
        .args(["--install", "-s", "/bin"])
        .status();
    ensure!(
        status.context("starting busybox")?.success(),
        "busybox could not install its commands"
    );
    Ok(())
}

fn open_port(path: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {path}"))
}

pub(super) fn program<S: AsRef<OsStr>>(name: impl AsRef<OsStr>, arguments: &[S]) -> Command {
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("PATH", "/bin")
        .env("HOME", "/root")
        .current_dir("/root");
    command
}

fn exit_code(command: &mut Command) -> Result<u8> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", Path::new(command.get_program()).display()))?;
    // Like a shell: a program ended by a signal exits with 128 and the signal's number.
    let code = status.code().unwrap_or_else(|| {
        128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0)
    });
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Runs one stage of a test, and if there is another, jumps to it.
fn run_stage(reporter: &mut Reporter, command_line: &str, name: &str, number: usize) -> Result<()> {
    let test = tests::find(name).with_context(|| format!("this luo knows no test {name}"))?;
    let stage = number
        .checked_sub(1)
        .and_then(|index| test.stages.get(index));
    let stage = stage.with_context(|| format!("{name} has no stage {number}"))?;
    reporter.report(&Event::Stage { stage: number })?;

    // Loaded first: it takes memory, and between prepare and the jump there should be as little as possible.
    let next = test.stages.get(number);
    if let Some(next) = next {
        load_next(&next_stage(
            command_line,
            number + 1,
            stage.parameters,
            next.parameters,
        ))?;
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
    let mut kept = Kept::default();
    act(stage, &mut kept, reporter).with_context(|| format!("stage {number}"))?;
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

/// Begins a series of live updates, or goes on with it.
fn measure(
    reporter: &mut Reporter,
    command_line: &str,
    series: Series,
    stage: usize,
) -> Result<()> {
    let journey = match stage {
        1 => {
            let environment = Box::new(Environment::of_this_machine(Path::new("/")));
            reporter.report(&Event::Environment { environment })?;
            let next = next_stage(command_line, 2, "", "");
            Journey::new(series, &next, NOTE.into(), ())
        }
        _ => Journey::arrived()?.context("nothing came from the previous kernel")?,
    };
    if let Some((_, outcome)) = journey.news() {
        let outcome = Box::new(outcome.clone());
        reporter.report(&Event::Measured { outcome })?;
    }
    journey.go_on(|(), command_line| load_next(command_line))
}

/// What our handlers did in this kernel, if it is enough: that a file crossed does not say who took it.
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

fn act(stage: &Stage, kept: &mut Kept, reporter: &mut Reporter) -> Result<()> {
    let mut tell = |name: &str, problem: Result<()>| {
        reporter.report(&Event::Case {
            name: name.into(),
            problem: problem.err().map(|error| format!("{error:#}")),
        })
    };
    match stage.action {
        Action::Depart(cases) => cases::depart(cases, kept, &mut tell),
        Action::Arrive(cases) => cases::arrive(cases, &mut tell),
        Action::Check(check) => check(kept),
        Action::Jump(_) => bail!("it did not jump"),
        Action::Program(command) => {
            let (name, arguments) = command.split_first().context("the stage has no command")?;
            match exit_code(&mut program(name, arguments))? {
                0 => Ok(()),
                code => bail!("{} exited with {code}", command.join(" ")),
            }
        }
    }
}

/// Writes the initramfs that this guest was booted with.
pub(super) fn compose_initramfs(out: &mut File) -> Result<()> {
    let read = |path: &str| fs::read(path).with_context(|| format!("reading {path}"));
    compose(&read(BASE_IN_GUEST)?, &read(KERNEL_IN_GUEST)?, out)
}

fn load_next(command_line: &str) -> Result<()> {
    let initramfs = rustix::fs::memfd_create("initramfs", MemfdFlags::CLOEXEC)
        .context("making room for the initramfs")?;
    let mut initramfs = File::from(initramfs);
    compose_initramfs(&mut initramfs)?;
    let kernel =
        File::open(KERNEL_IN_GUEST).with_context(|| format!("opening {KERNEL_IN_GUEST}"))?;
    Ok(kexec::load_files(
        kernel.as_fd(),
        initramfs.as_fd(),
        command_line,
    )?)
}
