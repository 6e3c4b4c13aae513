// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The program that makes the live updates, and its tasks.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::case::Case;

/// The program that makes the live updates, each in a process of its own. It passes the last
/// argument that it gets to [`hosted::work`](crate::hosted::work), and has the handlers linked in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// The program.
    pub program: PathBuf,
    /// What it gets before the last argument.
    pub arguments: Vec<String>,
    /// Plugins, whose handlers are asked before those that are linked in.
    pub plugins: Vec<PathBuf>,
}

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Be the old side: make the files of a case, prepare, freeze and jump.
    Depart {
        /// What is measured.
        case: Case,
        /// Where an image goes.
        directory: PathBuf,
        /// The program of the new side.
        worker: Worker,
    },
    /// Be the new side: retrieve, finish and compare.
    Arrive {
        /// How long the handover took, in nanoseconds.
        handover_ns: u64,
        /// When the old side ended, in nanoseconds of `CLOCK_MONOTONIC`.
        jumped_at_ns: u64,
        /// The directory with the image; without it, an exec brought everything.
        image: Option<PathBuf>,
        /// As on the old side.
        plugins: Vec<PathBuf>,
    },
    /// Be the new side of an update that the old side gives up afterwards.
    Rehearse {
        /// As on the old side.
        plugins: Vec<PathBuf>,
    },
}

impl Worker {
    /// The running program, which is started with these arguments.
    ///
    /// # Errors
    ///
    /// If the program does not know its own path.
    pub fn this_program(arguments: &[&str]) -> Result<Self> {
        // This one holds even if the file is replaced meanwhile; but a container may have no /proc.
        let link = PathBuf::from("/proc/self/exe");
        let program = match link.exists() {
            true => link,
            false => {
                let file = rustix::param::linux_execfn().to_string_lossy().into_owned();
                std::path::absolute(file).context("looking for this program")?
            }
        };
        Ok(Self {
            program,
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            plugins: Vec::new(),
        })
    }

    /// The command that does a task.
    pub fn command(&self, task: &Task) -> Result<Command> {
        let mut command = self.bare_command();
        command.arg(serde_json::to_string(task)?);
        Ok(command)
    }

    /// The command, without a task.
    pub fn bare_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }
}
