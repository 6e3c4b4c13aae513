// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Whether a test passed.

use crate::event::Event;
use crate::tests::case::{Case, HALVES};
use crate::tests::test::Test;
use crate::vm::qemu::GuestRun;

/// What the kernel prints when one of its own checks fails; a test with one of these on its console
/// has failed.
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
/// Lines that look like a report but are not one.
const HARMLESS: [&str; 4] = [
    "kmemleak: Kernel memory leak detector initialized",
    "kmemleak: Automatic memory scanning thread",
    // The guest looks up itself whose leaks they are.
    "new suspected memory leaks",
    "Attempted to kill init! exitcode=0x00000000",
];

/// Why a case failed, if it did.
pub(crate) fn case_problem(case: &Case, run: &GuestRun) -> Option<String> {
    let mut halves = 0;
    for event in &run.events {
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

/// Whether a test passed, else the first reason why not.
pub(crate) fn verdict(test: &Test, run: &GuestRun) -> Result<(), String> {
    if let Some(reason) = failure(run) {
        return Err(reason.to_owned());
    }
    let console = run.console_text();
    if let Some(report) = kernel_report(&console) {
        return Err(format!("the kernel reports: {report}"));
    }
    let passed = run
        .events
        .iter()
        .filter(|event| matches!(event, Event::Passed { .. }))
        .count();
    if run.timed_out {
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
    match test.prints.iter().find(|words| !console.contains(**words)) {
        Some(words) => Err(format!("the console does not have {words:?}")),
        None => Ok(()),
    }
}

/// Why the guest gave up, as it reports itself.
pub(crate) fn failure(run: &GuestRun) -> Option<&str> {
    run.events.iter().find_map(|event| match event {
        Event::Failed { reason } => Some(reason.as_str()),
        _ => None,
    })
}

/// The first line with which the kernel complains.
pub(crate) fn kernel_report(console: &str) -> Option<&str> {
    let is_report = |line: &&str| KERNEL_REPORTS.iter().any(|report| line.contains(report));
    let is_harmless = |line: &str| HARMLESS.iter().any(|harmless| line.contains(harmless));
    console
        .lines()
        .filter(is_report)
        .find(|line| !is_harmless(line))
}

#[cfg(test)]
mod unit_tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::tests::table;
    use luo_bench::counters::Shares;

    fn run(console: &str, events: Vec<Event>, timed_out: bool) -> (tempfile::TempDir, GuestRun) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        fs::write(&path, console).unwrap();
        (
            directory,
            GuestRun {
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
        let (_directory, run) = run(console, events, timed_out);
        verdict(table::find("luo_kexec_simple").unwrap(), &run)
    }

    #[test]
    fn a_test_passes_only_with_all_stages_its_words_and_a_quiet_kernel() {
        assert_eq!(
            judge("--- SIMPLE KEXEC TEST PASSED ---\r\n", 2, false),
            Ok(())
        );
        assert!(judge("", 2, false).unwrap_err().contains("does not have"));
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
        let (_directory, run) = run(
            "BUG: x",
            vec![Event::Failed {
                reason: "bytes differ".into(),
            }],
            false,
        );
        assert_eq!(
            verdict(table::find("luo_kexec_simple").unwrap(), &run),
            Err("bytes differ".into())
        );
    }
}
