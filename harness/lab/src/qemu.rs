// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One run of a guest in QEMU, which ends in bounded time and leaves its console in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::accel::Accel;
use crate::job::{parse_events, Event, Job};

const PROGRAM: &str = "qemu-system-x86_64";
/// Where the guest finds the directory it shares with the host.
pub(super) const SHARE_TAG: &str = "results";

/// What a guest's board has on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// What every guest has, and nothing else
    #[default]
    Plain,
    /// Also an IOMMU, and PCI devices that vfio-pci takes
    Vfio,
}

impl Machine {
    /// A device that says its `addr` is there at the same address in every kernel; the buses behind the two ports are 1 and 2.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-machine", "q35"],
            #[rustfmt::skip]
            Self::Vfio => &[
                // Interrupts can be remapped only where KVM does not take them all itself.
                "-machine", "q35,kernel-irqchip=split",
                "-device", "intel-iommu,intremap=on",
                "-device", "edu,addr=10",
                "-device", "pci-testdev,addr=11",
                "-device", "edu,addr=12",
                "-device", "edu,addr=13",
                "-device", "edu,addr=14",
                "-device", "edu,addr=15",
                "-device", "edu,addr=16",
                "-device", "pcie-root-port,addr=18,id=one,chassis=1",
                "-device", "pcie-root-port,addr=19,id=other,chassis=2",
                "-device", "edu,bus=one",
                "-device", "pci-testdev,bus=other",
            ],
        }
    }

    /// What its kernel has to be told.
    fn parameters(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Vfio => "intel_iommu=on vfio-pci.ids=1234:11e8,1b36:0005",
        }
    }
}

/// A guest, described.
#[derive(Clone, Debug)]
pub(super) struct Guest<'a> {
    pub(super) image: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) machine: Machine,
    pub(super) job: Job,
    /// Kernel parameters besides the lab's own.
    pub(super) parameters: String,
    pub(super) memory: &'a str,
    pub(super) accel: Accel,
    /// Where console, events and results go.
    pub(super) directory: PathBuf,
    /// When it is stopped, whatever it does; a person at a shell is given all the time.
    pub(super) timeout: Option<Duration>,
}

/// How a guest ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) events: Vec<Event>,
    pub(super) console: PathBuf,
    pub(super) timed_out: bool,
    pub(super) elapsed: Duration,
}

impl Outcome {
    /// The console, readable whatever bytes are in it.
    pub(super) fn console_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).replace('\r', "")
    }

    /// The end of the console, and where the whole of it is.
    pub(super) fn console_end(&self) -> String {
        let text = self.console_text();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(25)..].join("\n    ");
        format!(
            "the end of the console, the whole of it is in {}:\n    {end}",
            self.console.display()
        )
    }
}

impl Guest<'_> {
    fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    fn events(&self) -> PathBuf {
        self.directory.join("events.jsonl")
    }

    /// What a command prints, without the kernel's messages between its lines.
    pub(super) fn output(&self) -> PathBuf {
        self.directory.join("output.log")
    }

    /// Runs the guest with its console in a file, until it ends or its time is over.
    pub(super) fn run(&self) -> Result<Outcome> {
        let child = self.start(
            &[
                "-serial".into(),
                format!("file:{}", escape(&self.console())),
            ],
            Stdio::null(),
        )?;
        self.watch(child)
    }

    /// Runs the guest with its console on our terminal.
    pub(super) fn run_on_terminal(&self) -> Result<Outcome> {
        let log = format!(
            "stdio,id=console,signal=off,logfile={}",
            escape(&self.console())
        );
        let child = self.start(
            &[
                "-chardev".into(),
                log,
                "-serial".into(),
                "chardev:console".into(),
            ],
            Stdio::inherit(),
        )?;
        self.watch(child)
    }

    fn start(&self, console: &[String], stdin: Stdio) -> Result<Child> {
        fs::create_dir_all(self.directory.join("results"))
            .with_context(|| format!("creating {}", self.directory.display()))?;
        for stale in [self.console(), self.events(), self.output()] {
            File::create(&stale).with_context(|| format!("creating {}", stale.display()))?;
        }
        // Whatever ends us ends the guest: one that hangs would hang for ever.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", PROGRAM])
            .args(BARE)
            .args(self.machine.arguments())
            .args(self.accel.qemu_arguments())
            .args(self.size())
            .args(console);
        command
            .args(self.ports())
            .args(self.share())
            .args(self.boot());
        command.stdin(stdin);
        command
            .spawn()
            .with_context(|| format!("starting {PROGRAM}"))
    }

    fn size(&self) -> [String; 4] {
        ["-m".into(), self.memory.into(), "-smp".into(), "2".into()]
    }

    /// The serial ports after the console, in the guest's order.
    fn ports(&self) -> [String; 4] {
        let file = |path: PathBuf| format!("file:{}", escape(&path));
        [
            "-serial".into(),
            file(self.events()),
            "-serial".into(),
            file(self.output()),
        ]
    }

    fn share(&self) -> [String; 2] {
        let directory = escape(&self.directory.join("results"));
        [
            "-virtfs".into(),
            format!("local,path={directory},mount_tag={SHARE_TAG},security_model=none"),
        ]
    }

    fn boot(&self) -> [String; 6] {
        let path = |path: &Path| path.display().to_string();
        let command_line = self.command_line();
        [
            "-kernel".into(),
            path(self.image),
            "-initrd".into(),
            path(self.initramfs),
            "-append".into(),
            command_line,
        ]
    }

    fn command_line(&self) -> String {
        // What follows the two dashes becomes the arguments of init.
        let words = [
            // An emulated timer may come late on a busy machine; a kernel that notices gives up.
            "console=ttyS0 panic=-1 oops=panic no_timer_check liveupdate=on kho=on",
            &format!("luo.accel={}", self.accel.name()),
            self.machine.parameters(),
            &self.parameters,
            &self.job.parameters(),
            "rdinit=/bin/luo -- lab guest-init",
        ]
        .join(" ");
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn watch(&self, mut child: Child) -> Result<Outcome> {
        let started = Instant::now();
        let timed_out = loop {
            if child.try_wait().context("waiting for QEMU")?.is_some() {
                break false;
            }
            if self
                .timeout
                .is_some_and(|timeout| started.elapsed() > timeout)
            {
                child
                    .kill()
                    .and_then(|()| child.wait())
                    .context("stopping QEMU")?;
                break true;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let events = fs::read(self.events()).unwrap_or_default();
        Ok(Outcome {
            events: parse_events(&String::from_utf8_lossy(&events)),
            console: self.console(),
            timed_out,
            elapsed: started.elapsed(),
        })
    }
}

/// Nothing is on a machine but what we say; a reboot, and with `panic=-1` a crash, ends the run.
const BARE: [&str; 4] = ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"];

/// QEMU reads a comma in an option's value as its end, unless doubled.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_command_line_ends_with_the_arguments_of_init() {
        let guest = Guest {
            image: Path::new("/k"),
            initramfs: Path::new("/i"),
            machine: Machine::Vfio,
            job: Job::Test {
                name: "t".into(),
                stage: 1,
            },
            parameters: "  mem=1G ".into(),
            memory: "4G",
            accel: Accel::Tcg,
            directory: "/d".into(),
            timeout: None,
        };
        assert_eq!(
            guest.command_line(),
            "console=ttyS0 panic=-1 oops=panic no_timer_check liveupdate=on kho=on luo.accel=tcg intel_iommu=on vfio-pci.ids=1234:11e8,1b36:0005 mem=1G luo.test=t luo.stage=1 rdinit=/bin/luo -- lab guest-init"
        );
        assert_eq!(escape(Path::new("/a,b")), "/a,,b");
    }
}
