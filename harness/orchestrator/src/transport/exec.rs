// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Zero copy: the process replaces itself by an `execve(2)`, and the new program inherits the
//! files.
//!
//! What can be known before the exec is checked before it, and an exec that is refused leaves the
//! process as it was. After it there is no way back: if the new program fails to come up, the files
//! are gone. Where that is too much to risk, use [`spawn`](super::spawn).
//!
//! # What the new program inherits
//!
//! The standard streams and what the handover names. Everything else is closed, whether it has
//! `FD_CLOEXEC` or not; the flags of this process's own descriptors do not change for that. The
//! exec is done by a thread of its own with a table of descriptors of its own, so that no program
//! that another thread starts meanwhile inherits any of it. What remains: a child that another
//! thread
//! *forks* has copies of all open files, as ever, until it execs.
//!
//! Its signal mask is that of the thread that jumped, and it ignores what this process ignores, in
//! a Rust program `SIGPIPE`. A signal that is blocked and pending stays pending.

use std::convert::Infallible;
use std::io;

use super::inheritance::Packed;
use super::program::{JumpError, Program};
use crate::handover::Handover;

pub use super::inheritance::{arrive, ArriveError, HANDOVER_VARIABLE};

/// Everything that is to be inherited is ready; one call is left.
#[derive(Debug)]
pub struct Departure<'a> {
    program: &'a mut Program,
    packed: Packed,
}

impl<'a> Departure<'a> {
    /// Packs the handover up for `program`.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub fn new(handover: &Handover<'_>, program: &'a mut Program) -> io::Result<Self> {
        let packed = Packed::new(handover)?;
        program.env(HANDOVER_VARIABLE, packed.variable()?);
        Ok(Self { program, packed })
    }

    /// The program to come, to tell it more.
    pub fn program(&mut self) -> &mut Program {
        self.program
    }

    /// Replaces this process.
    ///
    /// # Errors
    ///
    /// Returns only if it failed. The update can be unfrozen then, and nothing else has changed.
    pub fn jump(self) -> Result<Infallible, JumpError> {
        let files = self.packed.descriptors();
        Err(self.program.replace_process_with(&files))
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.program.env_remove(HANDOVER_VARIABLE);
    }
}
