// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One run of a guest in QEMU, which ends in bounded time and leaves its console in a file.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::event::{parse_events, Event};
use crate::job::Job;
use crate::vm::accel::Accel;
use crate::vm::machine::Machine;
use anyhow::{Context, Result};

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// Where the guest finds the directory it shares with the host.
pub(crate) const SHARE_TAG: &str = "results";

/// A guest, described.
#[derive(Clone, Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) image: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) machine: Machine,
    pub(crate) job: Job,
    /// Kernel parameters besides the lab's own.
    pub(crate) parameters: String,
    pub(crate) memory: u64,
    pub(crate) cpus: u32,
    pub(crate) accel: Accel,
    /// Where console, events and results go.
    pub(crate) directory: PathBuf,
    /// When it is stopped; without it, as for a person at a shell, it runs until it ends.
    pub(crate) timeout: Option<Duration>,
    /// Whether it listens for gdb.
    pub(crate) gdb: bool,
}

/// How a run of a guest ended.
#[derive(Debug)]
pub(crate) struct GuestRun {
    pub(crate) events: Vec<Event>,
    pub(crate) console: PathBuf,
    pub(crate) timed_out: bool,
    pub(crate) elapsed: Duration,
}

impl GuestRun {
    /// The console; bytes that are not text are replaced.
    pub(crate) fn console_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).replace('\r', "")
    }

    /// The end of the console, and where the whole of it is.
    pub(crate) fn console_end(&self) -> String {
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
    pub(crate) fn output(&self) -> PathBuf {
        self.directory.join("output.log")
    }

    /// Runs the guest with its console in a file, until it ends or its time is over.
    pub(crate) fn run(&self) -> Result<GuestRun> {
        self.run_and_watch(&mut |_| ())
    }

    /// Does the same, and calls `watch` for each event soon after it was reported.
    pub(crate) fn run_and_watch(&self, watch: &mut dyn FnMut(&Event)) -> Result<GuestRun> {
        let child = self.start(
            &[
                "-serial".into(),
                format!("file:{}", escape(&self.console())),
            ],
            Stdio::null(),
        )?;
        self.wait(child, watch)
    }

    /// Runs the guest with its console on our terminal.
    pub(crate) fn run_on_terminal(&self) -> Result<GuestRun> {
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
        self.wait(child, &mut |_| ())
    }

    fn start(&self, console: &[String], stdin: Stdio) -> Result<Child> {
        fs::create_dir_all(self.directory.join("results"))
            .with_context(|| format!("creating {}", self.directory.display()))?;
        for stale in [self.console(), self.events(), self.output()] {
            File::create(&stale).with_context(|| format!("creating {}", stale.display()))?;
        }
        // The guest ends with us, also if we are killed: one that hangs would hang for ever.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", PROGRAM])
            .args(BARE)
            .args(self.machine.memory_arguments(self.memory))
            .args(self.machine.arguments())
            .args(self.machine.processor_arguments(self.cpus))
            .args(self.accel.qemu_arguments())
            .args(self.gdb.then_some("-s"))
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
        let words = [
            // An emulated timer may come late on a busy machine; a kernel that notices gives up.
            "console=ttyS0 panic=-1 oops=panic no_timer_check liveupdate=on kho=on",
            &format!("luo.accel={}", self.accel.name()),
            self.machine.parameters(),
            &self.parameters,
            &self.job.parameters(),
            &self.job.init(),
        ]
        .join(" ");
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn wait(&self, mut child: Child, watch: &mut dyn FnMut(&Event)) -> Result<GuestRun> {
        let started = Instant::now();
        let mut events = EventFile::of(self.events());
        let timed_out = loop {
            events.follow(watch)?;
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
        events.follow(watch)?;
        Ok(GuestRun {
            events: events.found,
            console: self.console(),
            timed_out,
            elapsed: started.elapsed(),
        })
    }
}

/// The file that a guest's events go to, read as it grows.
struct EventFile {
    path: PathBuf,
    read: u64,
    found: Vec<Event>,
}

impl EventFile {
    fn of(path: PathBuf) -> Self {
        Self {
            path,
            read: 0,
            found: Vec::new(),
        }
    }

    /// Reads the lines that are new and whole.
    fn follow(&mut self, watch: &mut dyn FnMut(&Event)) -> Result<()> {
        let mut file =
            File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        self.read += whole as u64;
        for event in parse_events(&String::from_utf8_lossy(&bytes[..whole])) {
            watch(&event);
            self.found.push(event);
        }
        Ok(())
    }
}

/// Nothing is on a machine but what we ask for. A reboot ends the run, and with `panic=-1` a crash.
const BARE: [&str; 4] = ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"];

/// QEMU reads a comma in an option's value as its end, unless doubled.
pub(crate) fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_come_and_only_when_they_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let mut events = EventFile::of(path.clone());
        let mut seen = 0;
        for (text, whole) in [
            ("", 0),
            ("{\"event\":\"ready\"}\n{\"event\":", 1),
            (
                "{\"event\":\"ready\"}\n{\"event\":\"exit\",\"code\":0}\n",
                2,
            ),
        ] {
            fs::write(&path, text).unwrap();
            events.follow(&mut |_| seen += 1).unwrap();
            assert_eq!((seen, events.found.len()), (whole, whole));
        }
    }

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
            memory: 4 << 30,
            cpus: 2,
            accel: Accel::Tcg,
            directory: "/d".into(),
            timeout: None,
            gdb: false,
        };
        assert_eq!(
            guest.command_line(),
            "console=ttyS0 panic=-1 oops=panic no_timer_check liveupdate=on kho=on luo.accel=tcg \
             intel_iommu=on vfio-pci.ids=1234:11e8,1b36:0005 mem=1G luo.test=t luo.stage=1 \
             rdinit=/bin/luo -- lab guest-init"
        );
        assert_eq!(escape(Path::new("/a,b")), "/a,,b");
    }
}
