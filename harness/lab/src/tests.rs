// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The table of kernel tests. To add one, add a line: what each kernel does is a stage, between two stages lies a kexec.

use anyhow::{bail, Result};

use crate::cases::{self, Case};
use crate::checks::{self, Kept};
use crate::commands;
use crate::counters::Share;
use crate::devices;
use crate::forged;
use crate::qemu::Machine;
use crate::quiet;
use crate::reserved;

/// One test.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: &'static str,
    /// What it shows, for the list.
    pub(super) about: &'static str,
    /// What it runs on.
    pub(super) machine: Machine,
    /// What each kernel in turn does.
    pub(super) stages: &'static [Stage],
    /// What has to be on the console besides every stage passing.
    pub(super) says: &'static [&'static str],
    /// How long it may take, emulated, on a busy machine.
    pub(super) seconds: u64,
}

impl Test {
    /// The cases that share its jump.
    pub(super) fn cases(&self) -> &'static [Case] {
        let cases = self.stages.iter().find_map(|stage| match stage.action {
            Action::Depart(cases) => Some(cases),
            _ => None,
        });
        cases.unwrap_or_default()
    }

    /// Whether its name or that of one of its cases contains `part`.
    fn is_called(&self, part: &str) -> bool {
        let names = self.cases().iter().map(|case| case.name);
        names.chain([self.name]).any(|name| name.contains(part))
    }
}

/// What one kernel does.
#[derive(Debug)]
pub(super) struct Stage {
    /// Parameters this kernel boots with, besides those of every guest.
    pub(super) parameters: &'static str,
    pub(super) action: Action,
    /// What our handlers have to have done at its end, at least, by their own counters: the kernel's handler of memfds is
    /// in the same image.
    pub(super) ours: Share,
}

/// What is run in the guest.
#[derive(Debug)]
pub(super) enum Action {
    /// A program; the stage passes if it exits with 0. What it wants to keep over the jump it holds in a child.
    Program(&'static [&'static str]),
    /// A function of ours, in the init process; what it puts into [`Kept`] stays open over the jump.
    Check(fn(&mut Kept) -> Result<()>),
    /// A function of ours that jumps by itself, and returns only if it does not. It is given the kernel's command line.
    Jump(fn(&str) -> Result<()>),
    /// The first halves of many cases, each with a session of its own: one jump for all of them.
    Depart(&'static [Case]),
    /// Their second halves.
    Arrive(&'static [Case]),
}

const fn stage(action: Action, prepared: u64, retrieved: u64) -> Stage {
    Stage {
        parameters: "",
        action,
        ours: Share {
            prepared,
            retrieved,
        },
    }
}

/// The first stage of one of the kernel's tests, which preserves so many files.
const fn preserves(command: &'static [&'static str], files: u64) -> Stage {
    stage(Action::Program(command), files, 0)
}

/// The second stage of one of the kernel's tests, which retrieves so many files.
const fn retrieves(command: &'static [&'static str], files: u64) -> Stage {
    stage(Action::Program(command), 0, files)
}

const fn check(function: fn(&mut Kept) -> Result<()>, prepared: u64, retrieved: u64) -> Stage {
    stage(Action::Check(function), prepared, retrieved)
}

/// A stage in a kernel in which our handler of memfds takes none.
const fn without_memfd(function: fn(&mut Kept) -> Result<()>) -> Stage {
    Stage {
        parameters: "luo_handlers.disable=memfd",
        ..check(function, 0, 0)
    }
}

const SELFTEST_PASSED: &[&str] = &["TEST PASSED"];

/// All tests, in the order they run.
pub(super) static TESTS: &[Test] = &[
    Test {
        name: "luo_kexec_simple",
        about: "the kernel's own: one session, one file",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_kexec_simple", "-s", "1"], 2),
            retrieves(&["/selftests/luo_kexec_simple", "-s", "2"], 2),
        ],
        says: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "luo_multi_session",
        about: "the kernel's own: several sessions, one of them empty",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_multi_session", "-s", "1"], 4),
            retrieves(&["/selftests/luo_multi_session", "-s", "2"], 4),
        ],
        says: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "luo_stress_files",
        about: "the kernel's own: 500 files in one session",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_stress_files", "-s", "1"], 501),
            retrieves(&["/selftests/luo_stress_files", "-s", "2"], 501),
        ],
        says: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "luo_stress_sessions",
        about: "the kernel's own: very many sessions",
        machine: Machine::Plain,
        stages: &[
            preserves(&["/selftests/luo_stress_sessions", "-s", "1"], 1),
            retrieves(&["/selftests/luo_stress_sessions", "-s", "2"], 1),
        ],
        says: SELFTEST_PASSED,
        seconds: 90,
    },
    Test {
        name: "memfd_files",
        about: "memfds of every shape, each in a session of its own",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Depart(cases::MEMFDS), 1000, 0),
            stage(Action::Arrive(cases::MEMFDS), 0, 1000),
        ],
        says: &[],
        seconds: 240,
    },
    Test {
        name: "memfd_twice",
        about: "contents, holes, size and position cross two jumps in a row",
        machine: Machine::Plain,
        stages: &[
            check(checks::preserve_memfds, 2, 0),
            check(checks::pass_memfds_on, 2, 2),
            check(checks::take_memfds_back, 0, 2),
        ],
        says: &[],
        seconds: 120,
    },
    Test {
        name: "failing_freeze",
        about: "memory that goes bad after prepare: the jump is refused, all runs on, the next jump succeeds",
        machine: Machine::Plain,
        stages: &[
            check(checks::survive_a_failing_freeze, 2, 0),
            check(checks::take_sound, 0, 1),
        ],
        says: &[],
        seconds: 90,
    },
    Test {
        name: "switched_off",
        about: "what arrives for a handler that is switched off fails alone; the kernel's own handler takes new files",
        machine: Machine::Plain,
        stages: &[
            without_memfd(checks::preserve_with_the_kernels),
            check(checks::swap_handlers, 2, 0),
            without_memfd(checks::fail_to_retrieve),
        ],
        says: &[],
        seconds: 120,
    },
    Test {
        name: "device_files",
        about: "devices and ports, each case in a session of its own",
        machine: Machine::Vfio,
        stages: &[
            stage(Action::Depart(devices::DEVICES), 20, 0),
            stage(Action::Arrive(devices::DEVICES), 0, 12),
        ],
        says: &[
            "vfio: 0000:00:13.0: there is no such device",
            "vfio: 0000:00:14.0: it is not bound to vfio-pci; bind devices before they are retrieved",
            "vfio: 0000:01:00.0 is not the device that was preserved: vendor id was 0x1234, is 0x1b36",
        ],
        seconds: 120,
    },
    Test {
        name: "busy_interrupts",
        about: "a device whose interrupts are enabled: the jump is refused, all runs on, the next jump succeeds",
        machine: Machine::Vfio,
        stages: &[
            check(devices::survive_enabled_interrupts, 4, 0),
            check(devices::take_quiet, 0, 4),
        ],
        says: &["vfio: 0000:00:13.0 has interrupts enabled"],
        seconds: 90,
    },
    Test {
        name: "devices_quiet",
        about: "users that never rest find frozen devices closed, and go on after a refused jump",
        machine: Machine::Vfio,
        stages: &[
            check(quiet::never_rest, 3, 0),
            check(quiet::find_quiet, 0, 3),
        ],
        says: &[],
        seconds: 120,
    },
    Test {
        name: "devices_intx",
        about: "a device that raises INTx during the jump disturbs nobody who shares the line",
        machine: Machine::Vfio,
        stages: &[
            check(quiet::raise_intx, 2, 0),
            check(quiet::share_intx, 0, 2),
        ],
        says: &[],
        seconds: 180,
    },
    Test {
        name: "devices_low_power",
        about: "a device in low power is refused, sleeps on, and its owner gets the wake event",
        machine: Machine::Vfio,
        stages: &[
            check(quiet::sleep_on, 1, 0),
            check(quiet::wake_up, 0, 1),
        ],
        says: &["vfio: 0000:00:10.0 is in low power"],
        seconds: 120,
    },
    Test {
        name: "devices_given_up",
        about: "sessions that end without their devices release them, and everything else",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_give_up, 8, 0),
            check(reserved::give_up, 0, 1),
        ],
        says: &[],
        seconds: 120,
    },
    Test {
        name: "devices_reserved",
        about: "nobody else opens a device before its session is finished; where somebody has it, retrieve names them",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_reserve, 4, 0),
            check(reserved::hold_reserved, 0, 2),
        ],
        says: &[
            "vfio: 0000:00:13.0: it is in use by luo (pid 1)",
            "vfio: 0000:00:14.0: it is in use by luo (pid 1)",
        ],
        seconds: 120,
    },
    Test {
        name: "devices_bound_late",
        about: "a device that is bound late is reserved then; one that is not bound is named at boot, and lost",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_bind_late, 2, 0),
            Stage {
                parameters: "vfio-pci.ids=1b36:0005",
                ..check(reserved::bind_late, 0, 1)
            },
        ],
        says: &[
            "vfio: 0000:00:12.0 must be bound to vfio-pci before it is retrieved",
            "vfio: 0000:00:12.0: it is not bound to vfio-pci",
        ],
        seconds: 120,
    },
    Test {
        name: "devices_reset",
        about: "a device that is being reset is waited for",
        machine: Machine::Vfio,
        stages: &[
            check(reserved::preserve_to_reset, 1, 0),
            check(reserved::retrieve_while_reset, 0, 1),
        ],
        says: &[],
        seconds: 120,
    },
    Test {
        name: "vfio_switched_off",
        about: "a device that arrives for a handler that is switched off fails alone",
        machine: Machine::Vfio,
        stages: &[
            check(devices::preserve_device, 2, 0),
            Stage {
                parameters: "luo_handlers.disable=vfio",
                ..check(devices::lose_device, 0, 1)
            },
        ],
        says: &["vfio: it is switched off by luo_handlers.disable"],
        seconds: 90,
    },
    Test {
        name: "forged_records",
        about: "what a hostile previous kernel left fails alone, with a reason",
        machine: Machine::Vfio,
        stages: &[
            check(forged::preserve_all, 15, 0),
            check(forged::refuse_forged, 0, 3),
        ],
        says: &[
            "ioport: 0x81",
            "vfio: dead:00:15.0: there is no such device",
            "vfio: 0000:00:00.0: it is not bound to vfio-pci",
            "vfio: 0000:01:00.0 is not the device that was preserved: vendor id was 0x12cb, is 0x1234",
        ],
        seconds: 120,
    },
    Test {
        name: "bench_devices",
        about: "luo bench hands devices, port files and memfds to another process",
        machine: Machine::Vfio,
        stages: &[check(commands::bench_devices, 0, 0)],
        says: &[],
        seconds: 90,
    },
    Test {
        name: "bench_kexec",
        about: "luo bench jumps from kernel to kernel by itself and reports in the last one",
        machine: Machine::Plain,
        stages: &[
            stage(Action::Jump(commands::begin_bench), 0, 0),
            check(commands::continue_bench, 0, 2),
        ],
        says: &[],
        seconds: 400,
    },
    Test {
        name: "bench_kexec_devices",
        about: "luo bench takes devices and port files from kernel to kernel",
        machine: Machine::Vfio,
        stages: &[
            stage(Action::Jump(commands::begin_device_bench), 0, 0),
            check(commands::continue_device_bench, 0, 4),
        ],
        says: &[],
        seconds: 200,
    },
    Test {
        name: "session_shell",
        about: "luo session from a shell: a file crosses, another is given up",
        machine: Machine::Plain,
        stages: &[
            check(commands::hold_sessions, 2, 0),
            check(commands::take_sessions, 0, 1),
        ],
        says: &[],
        seconds: 90,
    },
];

/// The tests whose names contain one of `names`; all if there are none.
pub(super) fn select(names: &[String]) -> Result<Vec<&'static Test>> {
    for name in names {
        if !TESTS.iter().any(|test| test.is_called(name)) {
            bail!("no test is called {name}; `luo lab test --list` shows them all");
        }
    }
    let wanted = |test: &&Test| names.is_empty() || names.iter().any(|name| test.is_called(name));
    Ok(TESTS.iter().filter(wanted).collect())
}

/// The test of exactly this name.
pub(super) fn find(name: &str) -> Option<&'static Test> {
    TESTS.iter().find(|test| test.name == name)
}

/// Prints the table.
pub(super) fn print_list() {
    for test in TESTS {
        println!("{:<24} {}", test.name, test.about);
        for case in test.cases() {
            println!("  {:<22} {}", case.name, case.about);
        }
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use luo_liveupdate::SESSION_NAME_MAX;

    #[test]
    fn names_are_single_words_and_unique() {
        let cases = TESTS.iter().flat_map(|test| test.cases());
        let mut names: Vec<&str> = TESTS.iter().map(|test| test.name).collect();
        names.extend(cases.map(|case| case.name));
        let all = names.len();
        assert!(names.iter().all(|name| name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(names.iter().all(|name| name.len() <= SESSION_NAME_MAX));
        assert!(TESTS.iter().all(|test| !test.stages.is_empty()));
    }

    #[test]
    fn tests_are_selected_by_a_part_of_their_name() {
        let selected = select(&["stress".into()]).unwrap();
        assert_eq!(
            selected.iter().map(|test| test.name).collect::<Vec<_>>(),
            ["luo_stress_files", "luo_stress_sessions"]
        );
        assert_eq!(select(&[]).unwrap().len(), TESTS.len());
        assert!(select(&["nonesuch".into()]).is_err());
    }

    #[test]
    fn every_selftest_that_is_built_is_run() {
        assert!(super::super::selftests::NAMES
            .iter()
            .all(|name| find(name).is_some()));
    }
}
