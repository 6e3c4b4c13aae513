// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a kernel test is: what each kernel does is a stage, between two stages lies a kexec.

use anyhow::Result;

use crate::build::variant::Variant;
use crate::tests::case::Case;
use crate::tests::held_open::HeldOpen;
use crate::vm::machine::Machine;
use luo_bench::counters::Share;

/// One test.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// What it shows, for the list.
    pub(crate) about: &'static str,
    /// What it runs on.
    pub(crate) machine: Machine,
    /// What each kernel in turn does.
    pub(crate) stages: &'static [Stage],
    /// What has to be on the console besides every stage passing.
    pub(crate) prints: &'static [&'static str],
    /// How long it may take, emulated, on a busy machine.
    pub(crate) seconds: u64,
}

impl Test {
    /// The cases that share its jump.
    pub(crate) fn cases(&self) -> &'static [Case] {
        let cases = self.stages.iter().find_map(|stage| match stage.action {
            Action::Depart(cases) => Some(cases),
            _ => None,
        });
        cases.unwrap_or_default()
    }

    /// Whether its name or that of one of its cases contains `part`.
    pub(crate) fn is_called(&self, part: &str) -> bool {
        let names = self.cases().iter().map(|case| case.name);
        names.chain([self.name]).any(|name| name.contains(part))
    }
}

/// What one kernel does.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Parameters this kernel boots with, besides those of every guest.
    pub(crate) parameters: &'static str,
    /// The kernel that it runs in, if that is not the lab's own.
    pub(crate) kernel: Option<Variant>,
    pub(crate) action: Action,
    /// What our handlers have to have done at its end, at least, by their own counters: the
    /// kernel's handler of memfds is in the same image.
    pub(crate) ours: Share,
}

/// What is run in the guest.
#[derive(Debug)]
pub(crate) enum Action {
    /// A program, with busybox and luo in its path; the stage passes if it exits with 0. What has
    /// to stay open until the jump it holds in a child.
    Program(&'static [&'static str]),
    /// A function of ours, in the init process; what it puts into [`HeldOpen`] stays open over the
    /// jump.
    Check(fn(&mut HeldOpen) -> Result<()>),
    /// A function of ours that jumps by itself, and returns only if it does not. It is given the
    /// kernel's command line.
    Jump(fn(&str) -> Result<()>),
    /// The first halves of many cases, each with a session of its own: one jump for all of them.
    Depart(&'static [Case]),
    /// Their second halves.
    Arrive(&'static [Case]),
}

pub(crate) const fn stage(action: Action, prepared: u64, retrieved: u64) -> Stage {
    Stage {
        parameters: "",
        kernel: None,
        action,
        ours: Share {
            prepared,
            retrieved,
        },
    }
}

/// The first stage of one of the kernel's tests, which preserves so many files.
pub(crate) const fn preserves(command: &'static [&'static str], files: u64) -> Stage {
    stage(Action::Program(command), files, 0)
}

/// The second stage of one of the kernel's tests, which retrieves so many files.
pub(crate) const fn retrieves(command: &'static [&'static str], files: u64) -> Stage {
    stage(Action::Program(command), 0, files)
}

pub(crate) const fn check(
    function: fn(&mut HeldOpen) -> Result<()>,
    prepared: u64,
    retrieved: u64,
) -> Stage {
    stage(Action::Check(function), prepared, retrieved)
}

/// A stage in another kernel.
pub(crate) const fn in_kernel(kernel: Variant, stage: Stage) -> Stage {
    Stage {
        kernel: Some(kernel),
        ..stage
    }
}

/// A stage in a kernel in which our handler of memfds is switched off.
pub(crate) const fn without_memfd(
    function: fn(&mut HeldOpen) -> Result<()>,
    retrieved: u64,
) -> Stage {
    Stage {
        parameters: "luo_handlers.disable=memfd",
        ..check(function, 0, retrieved)
    }
}
