// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A stick in a virtual machine with UEFI and other disks: pulled out in the middle, booted again,
//! and read.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::build::apt::{Mirror, SOURCE_SUITE, SUITE};
use crate::build::built::Built;
use crate::build::firmware::{self, Firmware};
use crate::cache::directory::Cache;
use crate::cache::runs::Runs;
use crate::run::verdict::kernel_report;
use crate::stick::boot::{QUESTION, WARNED, WRITTEN};
use crate::stick::image::{self, Files, Image};
use crate::stick::make::compose;
use crate::stick::plan::StickPlan;
use crate::stick::REPORTS;
use crate::vm::accel::Accel;
use crate::vm::probe;
use crate::vm::qemu::{escape, PROGRAM};
use luo_bench::case::Implementation;
use luo_bench::report::Report;
use luo_bench::subject::fill::Fill;

const TIMEOUT: Duration = Duration::from_secs(1800);
const INTERVAL: Duration = Duration::from_millis(200);
const MEMORY: &str = "2G";
const SIZE: u64 = 16 << 20;
/// What the kernel's own handler does to holes.
const HOLES_DIFFER: &str = "data and holes differ";
/// Of a disk that nobody may touch.
const SECRET: &str = "untouched/data";

/// Enough for each kind of row.
fn plan() -> StickPlan {
    StickPlan {
        sizes: vec![SIZE],
        fills: vec![Fill::Dense, Fill::sparse(5000)],
        runs: 1,
        ..StickPlan::default()
    }
}

/// Boots a stick in QEMU, and returns what there is to report.
///
/// # Errors
///
/// What went wrong, with the console's file.
pub fn test(
    cache: &Cache,
    built: &Built,
    mirror: Option<&str>,
    timeout: Option<Duration>,
) -> Result<String> {
    let firmware = firmware::prepare(cache, &Mirror::new(cache, mirror, &[SUITE, SOURCE_SUITE]))?;
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let machine = Machine::new(
        runs.of("stick"),
        firmware,
        accel,
        timeout.unwrap_or(TIMEOUT),
    )?;
    fs::write(machine.path("stick.img"), compose(built, &plan())?).context("writing the image")?;
    let disks = ["sata.img", "nvme.img"];
    for disk in disks {
        let mut image = Image::new()?;
        image.add(&Files::from([(SECRET.to_owned(), vec![1; 100_000])]))?;
        fs::write(machine.path(disk), image.into_bytes()).context("writing a disk")?;
    }
    let before = disks.map(|disk| fs::read(machine.path(disk)));

    eprintln!("lab: the stick boots; it is pulled out after its first report");
    let mut first = machine.start("first.log")?;
    first.wait_for(WRITTEN)?;
    first.pull_the_plug()?;
    let interrupted = machine.report(1)?;
    check(&interrupted)?;

    eprintln!("lab: it boots again, and measures to the end");
    let mut second = machine.start("second.log")?;
    second.wait_for(QUESTION)?;
    second.press("p")?;
    second.wait_for_the_end()?;
    let report = machine.report(2)?;
    check(&report)?;
    let cases = plan().pages.len() * plan().fills.len();
    let names = report.results.iter().map(|row| &row.case);
    let names = names.chain(report.skipped.iter().map(|skipped| &skipped.case));
    let of = |wanted| {
        names
            .clone()
            .filter(|name| name.implementation == wanted)
            .count()
    };
    let (ours, theirs) = (of(Implementation::Ours), of(Implementation::MainlineC));
    // What this machine cannot do at all is not tried with the peer.
    ensure!(
        ours == cases && theirs > 0,
        "of {cases} cases {ours} of ours and {theirs} of the peer's were measured or skipped: {:?}",
        report.skipped
    );
    ensure!(
        machine.report(1)?.results.len() == interrupted.results.len(),
        "the first report has changed"
    );
    for (disk, before) in disks.iter().zip(before) {
        let after = fs::read(machine.path(disk))?;
        ensure!(before? == after, "somebody wrote to {disk}");
    }
    let console = second.console()?;
    let warning = console.lines().find(|line| line.contains(WARNED));
    if let Some(report) = kernel_report(&console).or(warning) {
        bail!("the kernel reports: {report}; see {}", second.log.display());
    }
    Ok(format!(
        "stick: pulled out after {} of its live updates, that report is whole; then {} rows \
         measured, {} cases skipped with their reasons; no other disk was written; \
         the console is in {}",
        interrupted.results.len(),
        report.results.len(),
        report.skipped.len(),
        second.log.display()
    ))
}

fn check(report: &Report) -> Result<()> {
    ensure!(!report.results.is_empty(), "a report has no rows");
    for row in &report.results {
        let mismatch = row.mismatch.as_deref().unwrap_or_default();
        let fills_holes =
            row.case.implementation == Implementation::MainlineC && mismatch.contains(HOLES_DIFFER);
        ensure!(row.verified || fills_holes, "{}: {mismatch}", row.case);
        ensure!(row.downtime_ns.min > 0, "{} took no time", row.case);
    }
    Ok(())
}

/// A machine with firmware of its own.
struct Machine {
    directory: PathBuf,
    firmware: Firmware,
    accel: Accel,
    timeout: Duration,
}

impl Machine {
    fn new(
        directory: PathBuf,
        firmware: Firmware,
        accel: Accel,
        timeout: Duration,
    ) -> Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self {
            directory,
            firmware,
            accel,
            timeout,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A report as it lies on the stick, with its page and its text.
    fn report(&self, number: u32) -> Result<Report> {
        let files = image::read(&fs::read(self.path("stick.img"))?)?;
        let file = |kind: &str| {
            let name = format!("{REPORTS}/{number}/report.{kind}");
            let found = files.get(&name);
            found.with_context(|| format!("{name} is missing on the stick"))
        };
        let text = String::from_utf8_lossy(file("txt")?);
        ensure!(text.contains("downtime"), "the text has no table: {text}");
        let page = String::from_utf8_lossy(file("html")?);
        ensure!(page.contains("</html>"), "the page is cut off");
        serde_json::from_slice(file("json")?).context("the report is garbled")
    }

    fn start(&self, log: &str) -> Result<Running<'_>> {
        let log = self.path(log);
        File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let variables = self.path("variables.fd");
        fs::copy(&self.firmware.variables, &variables).context("copying the firmware's state")?;
        let drive = |id: &str, file: &Path| {
            let file = escape(file);
            [
                "-drive".into(),
                format!("if=none,id={id},format=raw,file={file}"),
            ]
        };
        let flash = |unit: u32, file: &Path, more: &str| {
            let file = escape(file);
            [
                "-drive".into(),
                format!("if=pflash,format=raw,unit={unit},file={file}{more}"),
            ]
        };
        let chardev = format!("stdio,id=console,signal=off,logfile={}", escape(&log));
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", PROGRAM])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-machine", "q35", "-smp", "2", "-m", MEMORY])
            .args(self.accel.qemu_arguments())
            .args(flash(0, &self.firmware.code, ",readonly=on"))
            .args(flash(1, &variables, ""))
            .args(drive("stick", &self.path("stick.img")))
            .args(drive("sata", &self.path("sata.img")))
            .args(drive("nvme", &self.path("nvme.img")))
            .args(["-device", "VGA", "-device", "qemu-xhci"])
            .args(["-device", "usb-kbd"])
            .args(["-device", "usb-storage,drive=stick,bootindex=0"])
            .args(["-device", "ide-hd,drive=sata"])
            .args(["-device", "nvme,drive=nvme,serial=1"])
            .args(["-chardev", &chardev, "-serial", "chardev:console"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        Ok(Running {
            child: command
                .spawn()
                .with_context(|| format!("starting {PROGRAM}"))?,
            log,
            started: Instant::now(),
            machine: self,
        })
    }
}

/// A machine that is switched on.
struct Running<'a> {
    child: Child,
    log: PathBuf,
    started: Instant,
    machine: &'a Machine,
}

impl Running<'_> {
    fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).replace('\r', ""))
    }

    /// Waits until the console has these words.
    fn wait_for(&mut self, words: &str) -> Result<()> {
        loop {
            if self.console()?.contains(words) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return self.fail(&format!("the machine ended with {status}"));
            }
            self.keep_waiting(&format!("the machine did not print {words:?}"))?;
        }
    }

    fn wait_for_the_end(&mut self) -> Result<()> {
        while self.child.try_wait()?.is_none() {
            self.keep_waiting("the machine did not switch itself off")?;
        }
        Ok(())
    }

    fn keep_waiting(&mut self, problem: &str) -> Result<()> {
        if self.started.elapsed() > self.machine.timeout {
            self.pull_the_plug()?;
            return self.fail(&format!("{problem} in time"));
        }
        std::thread::sleep(INTERVAL);
        Ok(())
    }

    fn fail(&self, problem: &str) -> Result<()> {
        let console = self.console()?;
        let lines: Vec<&str> = console.lines().collect();
        let end = lines[lines.len().saturating_sub(25)..].join("\n    ");
        bail!(
            "{problem}; the end of the console, the whole of it is in {}:\n    {end}",
            self.log.display()
        )
    }

    fn press(&mut self, key: &str) -> Result<()> {
        let keyboard = self.child.stdin.as_mut().context("it has no keyboard")?;
        keyboard.write_all(key.as_bytes()).context("pressing a key")
    }

    fn pull_the_plug(&mut self) -> Result<()> {
        self.child.kill().context("stopping QEMU")?;
        self.child.wait().context("stopping QEMU")?;
        Ok(())
    }
}
