// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The init process of a stick: measures from kernel to kernel, and writes a report after each live
//! update.
//!
//! The stick appears seconds after the kernel has started, which must not count as blackout. So
//! what crossed is retrieved first, and then the stick is waited for; only a kernel that cannot
//! take anything over finds a note there.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use bytesize::ByteSize;
use rustix::system::{reboot, RebootCommand};
use serde::{Deserialize, Serialize};

use crate::guest::mounts::mount_system;
use crate::stick::partition::{settle, Partition, MOUNT_POINT};
use crate::stick::plan::StickPlan;
use crate::stick::screen::Screen;
use crate::stick::{warnings, INITRD, KERNEL, PLAN, REPORTS};
use luo_bench::environment::Environment;
use luo_bench::journey::{awaited_note, Journey};
use luo_bench::memory::expect_meminfo;
use luo_bench::outputs::Outputs;
use luo_bench::report::{Report, Skipped};
use luo_bench::text;
use luo_liveupdate::kexec;

const NOTE: &str = "luo/journey.json";
const REPEAT: u8 = b'r';
const POWER_OFF: u8 = b'p';
/// The test waits for these words, and for those not.
pub(crate) const QUESTION: &str = "Press r to measure again, p to power off.";
pub(crate) const WARNED: &str = "The kernel warned:";
pub(crate) const WRITTEN: &str = "The report so far is on the stick";

/// What the kernels of one pass have to know beside the series.
#[derive(Debug, Serialize, Deserialize)]
struct Pass {
    /// Counts what was begun since the stick was written, from 1.
    number: u32,
    skipped: Vec<Skipped>,
}

fn on_stick(path: &str) -> PathBuf {
    Path::new(MOUNT_POINT).join(path)
}

impl Pass {
    fn directory(&self) -> PathBuf {
        on_stick(REPORTS).join(self.number.to_string())
    }

    fn outputs(&self) -> Outputs {
        let file = |name: &str| Some(self.directory().join(name));
        Outputs {
            json: file("report.json"),
            html: file("report.html"),
            markdown: None,
            text: file("report.txt"),
        }
    }
}

/// Runs as init of a machine that was booted from a stick. Never returns there.
///
/// # Errors
///
/// This is not init, or the machine cannot be ended.
pub fn run() -> Result<ExitCode> {
    ensure!(
        std::process::id() == 1,
        "this is the init of a stick; it does nothing on a running system"
    );
    let mounted = mount_system();
    let screen = Screen::open();
    if let Err(error) = mounted {
        screen.print(&format!("luo: {error:#}"));
    }
    loop {
        let mut stick = None;
        if let Err(error) = measure(&screen, &mut stick) {
            screen.print(&format!("luo: it cannot go on: {error:#}"));
        }
        let unmounted = stick.map_or(Ok(()), Partition::unmount);
        if let Err(error) = unmounted {
            screen.print(&format!("luo: {error:#}"));
        }
        screen.print(&format!("\n{QUESTION}"));
        // Without a console nobody can ask for more.
        if screen.ask(&[REPEAT, POWER_OFF]).unwrap_or(POWER_OFF) == POWER_OFF {
            break;
        }
    }
    reboot(RebootCommand::PowerOff)
        .or_else(|_| reboot(RebootCommand::Restart))
        .context("ending the machine")?;
    bail!("the machine did not end");
}

/// Goes on with what came from the previous kernel, or begins. Returns at the end of all.
fn measure(screen: &Screen, slot: &mut Option<Partition>) -> Result<()> {
    if awaited_note()?.is_some() {
        *slot = Some(Partition::mount()?);
    }
    let arrived = Journey::<Pass>::arrived()?;
    let stick = match slot.take() {
        Some(stick) => stick,
        None => Partition::mount()?,
    };
    let stick = slot.insert(stick);
    let mut journey = match arrived {
        Some(journey) => journey,
        None => begin(screen, stick)?,
    };
    journey.settle_with(settle);
    if let Some((step, outcome)) = journey.news() {
        screen.print(&format!("{step}: {}", outcome.summary()));
        publish(screen, &journey)?;
    }
    if let Some(warning) = warnings::first()? {
        screen.print(&format!("{WARNED} {warning}"));
    }
    let (done, all) = journey.progress();
    if done < all {
        screen.print(&format!("Live update {} of {all} is next.", done + 1));
    }
    loop {
        let (step, reason) = match journey.go_on(|_, command_line| load(command_line)) {
            Ok(None) => break,
            Ok(Some((step, outcome))) => (step, outcome.summary()),
            Err(error) => {
                let reason = format!("{error:#}");
                let Some(step) = journey.give_up_step(&reason) else {
                    break;
                };
                (step, reason)
            }
        };
        stick.make_writable()?;
        screen.print(&format!("{step} was not measured: {reason}"));
        publish(screen, &journey)?;
    }
    let report = report(&journey);
    let text = text::summary(&report, screen.width());
    screen.print(&format!("\n{text}\n\n{}", table(screen, &report)));
    screen.print(&format!(
        "\nAll is measured. The report is on the stick: {REPORTS}/{}/report.txt, .html and .json.",
        journey.extra.number
    ));
    Ok(())
}

/// A new pass: looks at the plan and the machine.
fn begin(screen: &Screen, stick: &Partition) -> Result<Journey<Pass>> {
    let plan = fs::read(on_stick(PLAN)).with_context(|| format!("reading {PLAN}"))?;
    let plan: StickPlan =
        serde_json::from_slice(&plan).with_context(|| format!("{PLAN} is not a plan"))?;
    let memory = expect_meminfo("MemTotal:")?;
    let (series, skipped) = plan.on_machine(memory)?;
    let pass = Pass {
        number: next_number()?,
        skipped,
    };
    let directory = pass.directory();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let environment = Environment::of_this_machine(Path::new("/"));
    screen.print(&format!(
        "\nluo measures live updates of this machine: {} cpus, {}, {} of memory.\nOf all disks it \
         has opened one partition, that of the stick: {}.\nLive updates to measure: {}, each with \
         two kexecs. Cases that are skipped: {}; the report has the reasons.\n\
         Reports go to {REPORTS}/{} on the stick, after each live update. Switch off whenever you \
         like.",
        environment.cpus,
        environment.cpu,
        ByteSize(memory),
        stick.device.display(),
        series.steps().len(),
        pass.skipped.len(),
        pass.number,
    ));
    // The command line of each kernel is built into it.
    Ok(Journey::new(series, "", on_stick(NOTE), pass))
}

/// Reports of earlier passes are not touched.
fn next_number() -> Result<u32> {
    let reports = on_stick(REPORTS);
    fs::create_dir_all(&reports).with_context(|| format!("making {}", reports.display()))?;
    let mut last = 0;
    for entry in fs::read_dir(&reports)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        last = last.max(number.unwrap_or(0));
    }
    Ok(last + 1)
}

fn load(command_line: &str) -> Result<()> {
    let open = |path: &str| {
        File::open(on_stick(path)).with_context(|| format!("opening {path} of the stick"))
    };
    let (kernel, initrd) = (open(KERNEL)?, open(INITRD)?);
    Ok(kexec::load_files(
        kernel.as_fd(),
        initrd.as_fd(),
        command_line,
    )?)
}

fn report(journey: &Journey<Pass>) -> Report {
    let environment = Environment::of_this_machine(Path::new("/"));
    let (rows, mut skipped) = journey.results();
    skipped.extend(journey.extra.skipped.iter().cloned());
    Report::new(environment, rows, skipped)
}

fn table(screen: &Screen, report: &Report) -> String {
    text::table(report, screen.width())
}

/// Shows the table so far, and writes the report: the old one is there until the new one is.
fn publish(screen: &Screen, journey: &Journey<Pass>) -> Result<()> {
    let report = report(journey);
    let (done, all) = journey.progress();
    journey.extra.outputs().write(&report)?;
    screen.print(&format!(
        "{}\n{WRITTEN}: {done} of {all} live updates.",
        table(screen, &report)
    ));
    Ok(())
}
