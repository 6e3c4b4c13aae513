// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The service that drives a guest: it starts the others, has systemd restart what there is to
//! restart, the kernel last, and ends the machine.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use luo_bench::clock::Moment;
use luo_bench::counters;
use rustix::system::{reboot, RebootCommand};
use serde::{Deserialize, Serialize};

use crate::archive::KERNEL_IN_GUEST;
use crate::event::Event;
use crate::guest::next_kernel::{compose_initramfs, load_next};
use crate::guest::reporter::Reporter;
use crate::job::{next_stage, Job};
use crate::systemd::image::USER;
use crate::systemd::manager::{output, show, systemctl, wait_until};
use crate::systemd::scenario::{step, Scenario, KEXECS};
use crate::systemd::{files, store, upstream, writer};

/// On the host: it has to outlast a kernel.
const DEPARTURE: &str = "/results/departure.json";
/// What the end of a kernel's log has, with its time.
pub(crate) const KEXEC_BEGINS: &str = "luo-lab: systemctl kexec";
/// What the beginning of the next kernel's log has.
pub(crate) const SERVICES_ARE_UP: &str = "luo-lab: the services are up";

const BENCH_UNIT: &str = "luo-bench.service";
const BENCH_INITRD: &str = "/run/initrd";
/// What `luo bench` measured, on the host.
pub(crate) const BENCH_REPORT: &str = "report.json";

/// When a kernel was left, and how fast its counter ran.
#[derive(Serialize, Deserialize)]
struct Departure {
    moment: Moment,
    rate: f64,
}

/// One kernel of a scenario: its end is the next one's beginning, or the machine's end.
pub(super) fn drive() -> Result<()> {
    let arrival = Moment::now()?;
    let mut reporter = Reporter::open()?;
    let command_line =
        fs::read_to_string("/proc/cmdline").context("reading the kernel's command line")?;
    let result = Job::parse(&command_line).and_then(|job| match job {
        Job::Systemd { scenario, stage } => {
            let mut driver = Driver {
                reporter: &mut reporter,
                command_line: &command_line,
                stage,
                arrival,
            };
            match scenario {
                Scenario::Upstream => driver.upstream(),
                Scenario::Bench => driver.bench(),
                Scenario::Ours | Scenario::MainlineC => driver.update(scenario),
            }
        }
        _ => bail!("this is not a job for a service"),
    });
    match result {
        Ok(End::OfMachine) => end_machine(),
        Ok(End::OfKernel) => Ok(()),
        Err(error) => {
            let reason = format!("{error:#}");
            reporter.report(&Event::Failed { reason })?;
            end_machine()
        }
    }
}

/// What comes after this run of the driver.
enum End {
    /// systemd stops everything, and goes on in this kernel or the next.
    OfKernel,
    OfMachine,
}

struct Driver<'a> {
    reporter: &'a mut Reporter,
    command_line: &'a str,
    /// Which kernel, counted from 1.
    stage: usize,
    arrival: Moment,
}

impl Driver<'_> {
    /// Services with memfds, over everything that systemd can do, and over kexecs.
    fn update(&mut self, scenario: Scenario) -> Result<End> {
        let soft_reboots = show(None, "SoftRebootsCount")?;
        if self.stage == 1 && soft_reboots == "0" {
            self.step(step::START)?;
        }
        self.reporter.report(&Event::Stage { stage: self.stage })?;
        start(&self.services(scenario))?;
        log(SERVICES_ARE_UP)?;
        if self.stage > 1 {
            self.report_jump()?;
        }
        if scenario == Scenario::Ours && self.stage == 1 && soft_reboots == "0" {
            self.restart_service()?;
            self.step(step::SOFT_REBOOT)?;
            systemctl(&["soft-reboot"])?;
            return Ok(End::OfKernel);
        }
        self.passed()?;
        match self.stage > KEXECS {
            true => Ok(End::OfMachine),
            false => self.kexec(),
        }
    }

    fn services(&self, scenario: Scenario) -> Vec<String> {
        let mut units = vec![
            format!("{}root.service", files::UNIT),
            format!("{}{USER}.service", files::UNIT),
            format!("{}.service", writer::UNIT),
        ];
        if scenario == Scenario::Ours {
            units.push(format!("{}.service", store::UNIT));
        }
        units
    }

    fn passed(&mut self) -> Result<()> {
        self.reporter.report(&Event::Passed {
            stage: self.stage,
            seconds: 0.0,
            ours: counters::shares()?,
        })
    }

    fn step(&mut self, name: &str) -> Result<()> {
        self.reporter.report(&Event::Step { name: name.into() })
    }

    /// All that leaves the kernel and the other services alone.
    fn restart_service(&mut self) -> Result<()> {
        let unit = format!("{}.service", store::UNIT);
        self.step(step::RESTART)?;
        systemctl(&["restart", &unit])?;

        self.step(step::CRASH)?;
        systemctl(&["kill", "--signal=KILL", &unit])?;
        wait_until("systemd has restarted the service that crashed", || {
            let restarts = show(Some(&unit), "NRestarts")?;
            Ok(restarts == "1" && show(Some(&unit), "ActiveState")? == "active")
        })?;

        self.step(step::REEXEC)?;
        systemctl(&["daemon-reexec"])?;
        systemctl(&["restart", &unit])
    }

    fn kexec(&mut self) -> Result<End> {
        load_next(&next_stage(self.command_line, self.stage + 1, "", ""))?;
        self.step(&step::kexec(self.stage))?;
        let moment = Moment::now()?;
        let rate = self.arrival.rate_until(&moment)?;
        let departure = serde_json::to_vec(&Departure { moment, rate })?;
        fs::write(DEPARTURE, departure).with_context(|| format!("writing {DEPARTURE}"))?;
        log(KEXEC_BEGINS)?;
        systemctl(&["kexec"])?;
        Ok(End::OfKernel)
    }

    fn report_jump(&mut self) -> Result<()> {
        let departure = fs::read(DEPARTURE).with_context(|| format!("reading {DEPARTURE}"))?;
        let Departure { moment, rate } = serde_json::from_slice(&departure)?;
        let nanoseconds = moment.nanoseconds_until(&Moment::now()?, rate)?;
        self.reporter.report(&Event::Jumped {
            seconds: nanoseconds as f64 / 1e9,
        })
    }

    /// systemd's own test.
    fn upstream(&mut self) -> Result<End> {
        self.reporter.report(&Event::Stage { stage: self.stage })?;
        match self.stage {
            1 => upstream::store()?,
            _ => upstream::check()?,
        }
        self.passed()?;
        match self.stage {
            1 => self.kexec(),
            _ => Ok(End::OfMachine),
        }
    }

    /// `luo bench` jumps by itself, and the unit that it prints continues.
    fn bench(&mut self) -> Result<End> {
        self.reporter.report(&Event::Stage { stage: self.stage })?;
        let report = format!("/results/{BENCH_REPORT}");
        // Closed at once: a file that is open for writing is not loaded.
        compose_initramfs(&mut File::create(BENCH_INITRD)?)?;
        let unit = format!("/etc/systemd/system/{BENCH_UNIT}");
        let printed = output(Command::new("luo").args(["bench", "--print-unit"]))?;
        fs::write(&unit, printed).with_context(|| format!("writing {unit}"))?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", BENCH_UNIT])?;
        if self.stage == 1 {
            let next = next_stage(self.command_line, 2, "", "");
            // Nobody comes back, unless it fails.
            let printed = output(
                Command::new("luo")
                    .args([
                        "bench",
                        "--transport",
                        "kexec",
                        "--size",
                        "16M",
                        "--fill",
                        "dense",
                    ])
                    .args(["--runs", "1", "--json", &report, "--yes"])
                    .args(["--kernel", KERNEL_IN_GUEST, "--initrd", BENCH_INITRD])
                    .args(["--command-line", &next]),
            )?;
            bail!("luo bench did not jump; it printed: {printed}");
        }
        // As the boot would: it is enabled, so this target wants it.
        systemctl(&["start", "multi-user.target"])?;
        let result = show(Some(BENCH_UNIT), "Result")?;
        ensure!(result == "success", "{BENCH_UNIT} ended with {result}");
        ensure!(
            Path::new(&report).exists(),
            "{BENCH_UNIT} has left no report"
        );
        self.passed()?;
        Ok(End::OfMachine)
    }
}

/// QEMU ends at a reboot.
fn end_machine() -> Result<()> {
    reboot(RebootCommand::Restart).context("ending the guest")
}

/// A line in the kernel's log, where it gets the kernel's time.
fn log(line: &str) -> Result<()> {
    fs::write("/dev/kmsg", format!("<5>{line}\n")).context("writing to the kernel's log")
}

fn start(units: &[String]) -> Result<()> {
    let mut arguments = vec!["start"];
    arguments.extend(units.iter().map(String::as_str));
    systemctl(&arguments)
}
