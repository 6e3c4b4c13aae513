// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Runs guests and says how they ended: a line per test, a summary, and for a failure its reason and the console's end.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::Table;

use crate::accel::{self, Accel};
use crate::cache::{duration, Cache};
use crate::cases::{Case, HALVES};
use crate::counters::{self, Share, Shares};
use crate::job::{Event, Job};
use crate::qemu::{Guest, Machine, Outcome};
use crate::tests::Test;
use crate::{Built, GuestOptions};

/// A command of the user may take this long, unless they say otherwise.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(600);
/// The kernel that checks itself is about this much slower.
const DEBUG_SLOWNESS: u64 = 6;

/// What the kernel prints when one of its own checks fails; a test with one of these on its console has failed.
const KERNEL_REPORTS: [&str; 10] = [
    "BUG: ",
    "WARNING: ",
    "Kernel panic",
    "Oops: ",
    "general protection fault",
    "INFO: possible recursive locking",
    "INFO: task ",
    "kmemleak: ",
    "list_add corruption",
    "nobody cared",
];
/// Lines that look like a report and are none.
const NO_REPORTS: [&str; 4] = [
    "kmemleak: Kernel memory leak detector initialized",
    "kmemleak: Automatic memory scanning thread",
    // Whose they are, the guest looks up itself.
    "new suspected memory leaks",
    "Attempted to kill init! exitcode=0x00000000",
];

/// Runs the tests one after another.
pub(super) fn run_tests(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    tests: &[&Test],
) -> Result<ExitCode> {
    let accel = accel::choose(cache, built)?;
    let (mut passed, mut failed) = (0, 0);
    let mut crossed = Crossed::default();
    for test in tests {
        let stage = test.stages.first().map_or("", |stage| stage.parameters);
        let mut guest = guest(
            cache,
            built,
            options,
            accel,
            Job::Test {
                name: test.name.into(),
                stage: 1,
            },
            test.name,
        );
        guest.machine = test.machine;
        guest.parameters = format!("{} {stage}", guest.parameters);
        guest.timeout = Some(test_timeout(options, test));
        let outcome = guest.run()?;
        let elapsed = duration(outcome.elapsed.as_secs_f64());
        crossed.add(&outcome);
        for line in lines(test, &outcome, &elapsed) {
            passed += u32::from(line.problem.is_none());
            failed += u32::from(line.problem.is_some());
            line.print();
        }
    }
    println!(
        "lab tests on {} with {}:",
        built.image.display(),
        accel.name()
    );
    println!(
        "what our handlers did in {} kernels, by their own counters; some files are given up or lost on purpose:\n{}",
        crossed.kernels,
        crossed.table()
    );
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is said of one test or one case.
struct Line {
    name: String,
    /// In brackets behind the verdict.
    remark: String,
    problem: Option<String>,
}

impl Line {
    fn print(&self) {
        let Self { name, remark, .. } = self;
        match &self.problem {
            None => println!("test {name:<36} ok ({remark})"),
            Some(problem) => println!("test {name:<36} FAILED ({remark}): {problem}"),
        }
    }
}

/// A line for the test, and one for each case that shared its jump.
fn lines(test: &Test, outcome: &Outcome, elapsed: &str) -> Vec<Line> {
    let whole = Line {
        name: test.name.into(),
        remark: format!("{elapsed}; {}", ours(outcome)),
        problem: verdict(test, outcome)
            .err()
            .map(|reason| format!("{reason}\n  {}", outcome.console_end())),
    };
    let cases = test.cases().iter().map(|case| Line {
        name: format!("{}/{}", test.name, case.name),
        remark: case.about.into(),
        problem: case_problem(case, outcome),
    });
    [whole].into_iter().chain(cases).collect()
}

/// What our handlers did in tests, by their own counters.
#[derive(Debug, Default)]
struct Crossed {
    kernels: u64,
    shares: Shares,
}

impl Crossed {
    fn add(&mut self, outcome: &Outcome) {
        for event in &outcome.events {
            if let Event::Passed { ours, .. } = event {
                self.kernels += 1;
                for (name, share) in ours {
                    *self.shares.entry(name.clone()).or_default() += *share;
                }
            }
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header(["handler", "files prepared", "files retrieved"]);
        for (name, share) in &self.shares {
            let counts = [share.prepared, share.retrieved].map(|count| count.to_string());
            table.add_row([name].into_iter().chain(&counts));
        }
        table
    }
}

/// What our handlers did in one test.
fn ours(outcome: &Outcome) -> String {
    let mut crossed = Crossed::default();
    crossed.add(outcome);
    let Share {
        prepared,
        retrieved,
    } = counters::sum(&crossed.shares);
    format!("our handlers prepared {prepared} and retrieved {retrieved} files")
}

fn case_problem(case: &Case, outcome: &Outcome) -> Option<String> {
    let mut halves = 0;
    for event in &outcome.events {
        match event {
            Event::Case { name, problem } if name == case.name => {
                halves += 1;
                if problem.is_some() {
                    return problem.clone();
                }
            }
            _ => {}
        }
    }
    (halves < HALVES).then(|| format!("the guest ended after {halves} of its halves"))
}

fn test_timeout(options: &GuestOptions, test: &Test) -> Duration {
    let slowness = if options.build.debug_kernel {
        DEBUG_SLOWNESS
    } else {
        1
    };
    Duration::from_secs(options.timeout.unwrap_or(test.seconds * slowness))
}

/// Whether a test passed, else the first reason why not.
fn verdict(test: &Test, outcome: &Outcome) -> Result<(), String> {
    if let Some(reason) = failure(outcome) {
        return Err(reason.to_owned());
    }
    let console = outcome.console_text();
    if let Some(report) = kernel_report(&console) {
        return Err(format!("the kernel reports: {report}"));
    }
    let passed = outcome
        .events
        .iter()
        .filter(|event| matches!(event, Event::Passed { .. }))
        .count();
    if outcome.timed_out {
        return Err(format!(
            "timed out in stage {} of {}",
            passed + 1,
            test.stages.len()
        ));
    }
    if passed < test.stages.len() {
        return Err(format!(
            "the guest ended in stage {} of {}",
            passed + 1,
            test.stages.len()
        ));
    }
    match test.says.iter().find(|words| !console.contains(**words)) {
        Some(words) => Err(format!("the console does not say {words}")),
        None => Ok(()),
    }
}

/// Why the guest itself says it gave up.
pub(super) fn failure(outcome: &Outcome) -> Option<&str> {
    outcome.events.iter().find_map(|event| match event {
        Event::Failed { reason } => Some(reason.as_str()),
        _ => None,
    })
}

/// The first line with which the kernel complains.
fn kernel_report(console: &str) -> Option<&str> {
    let is_report = |line: &&str| KERNEL_REPORTS.iter().any(|report| line.contains(report));
    let is_none = |line: &str| NO_REPORTS.iter().any(|harmless| line.contains(harmless));
    console
        .lines()
        .filter(is_report)
        .find(|line| !is_none(line))
}

/// Runs one command and passes its exit code on.
pub(super) fn run_command(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    machine: Machine,
    command: &[String],
) -> Result<ExitCode> {
    let accel = accel::choose(cache, built)?;
    let mut guest = guest(
        cache,
        built,
        options,
        accel,
        Job::Run(command.to_vec()),
        "command",
    );
    guest.machine = machine;
    guest.timeout = Some(options.timeout.map_or(COMMAND_TIMEOUT, Duration::from_secs));
    let outcome = guest.run()?;
    print!(
        "{}",
        String::from_utf8_lossy(&fs::read(guest.output()).unwrap_or_default()).replace('\r', "")
    );
    let code = outcome.events.iter().find_map(|event| match event {
        Event::Exit { code } => Some(*code),
        _ => None,
    });
    if let (None, Some(reason)) = (code, failure(&outcome)) {
        bail!("the guest gave up: {reason}");
    }
    match code {
        Some(code) => Ok(ExitCode::from(code)),
        None if outcome.timed_out => bail!(
            "the command did not end in {}; give it more with --timeout",
            duration(outcome.elapsed.as_secs_f64())
        ),
        None => bail!(
            "the guest ended before the command did; {}",
            outcome.console_end()
        ),
    }
}

/// Gives the user a shell.
pub(super) fn run_shell(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    machine: Machine,
) -> Result<ExitCode> {
    let accel = accel::choose(cache, built)?;
    let mut guest = guest(cache, built, options, accel, Job::Shell, "shell");
    guest.machine = machine;
    eprintln!(
        "lab: files the guest leaves in /results are in {}",
        guest.directory.join("results").display()
    );
    guest.run_on_terminal()?;
    Ok(ExitCode::SUCCESS)
}

/// A guest that does this job, on the plain machine.
pub(super) fn guest<'a>(
    cache: &Cache,
    built: &'a Built,
    options: &'a GuestOptions,
    accel: Accel,
    job: Job,
    name: &str,
) -> Guest<'a> {
    Guest {
        image: &built.image,
        initramfs: &built.initramfs,
        machine: Machine::Plain,
        job,
        parameters: format!("{} {}", built.profile.parameters(), options.append),
        memory: &options.memory,
        accel,
        directory: cache.path(format!("runs/{name}")),
        timeout: options.timeout.map(Duration::from_secs),
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use crate::tests;

    fn outcome(console: &str, events: Vec<Event>, timed_out: bool) -> (tempfile::TempDir, Outcome) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        fs::write(&path, console).unwrap();
        (
            directory,
            Outcome {
                events,
                console: path,
                timed_out,
                elapsed: Duration::from_secs(1),
            },
        )
    }

    fn judge(console: &str, stages: usize, timed_out: bool) -> Result<(), String> {
        let events = (1..=stages)
            .map(|stage| Event::Passed {
                stage,
                seconds: 0.1,
                ours: Shares::new(),
            })
            .collect();
        let (_directory, outcome) = outcome(console, events, timed_out);
        verdict(tests::find("luo_kexec_simple").unwrap(), &outcome)
    }

    #[test]
    fn a_test_passes_only_with_all_stages_its_words_and_a_quiet_kernel() {
        assert_eq!(
            judge("--- SIMPLE KEXEC TEST PASSED ---\r\n", 2, false),
            Ok(())
        );
        assert!(judge("", 2, false).unwrap_err().contains("does not say"));
        assert!(judge("TEST PASSED", 1, false)
            .unwrap_err()
            .contains("ended in stage 2 of 2"));
        assert!(judge("TEST PASSED", 1, true)
            .unwrap_err()
            .contains("timed out in stage 2"));
        let report = judge(
            "TEST PASSED\n[ 1.0] BUG: KASAN: use-after-free in x\n",
            2,
            false,
        )
        .unwrap_err();
        assert!(report.contains("KASAN"), "{report}");
    }

    #[test]
    fn the_guests_own_reason_comes_first() {
        let (_directory, outcome) = outcome(
            "BUG: x",
            vec![Event::Failed {
                reason: "bytes differ".into(),
            }],
            false,
        );
        assert_eq!(
            verdict(tests::find("luo_kexec_simple").unwrap(), &outcome),
            Err("bytes differ".into())
        );
    }
}
