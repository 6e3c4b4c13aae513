// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Cases that share a jump: each preserves its files in a session of its own, and compares them
//! after the jump. One that fails costs the others nothing.

use anyhow::Result;
use rustix::io::Errno;

use crate::tests::expect::expect_errno;
use crate::tests::held_open::HeldOpen;
use luo_liveupdate::{Device, Session};

/// On both sides of the jump there is something to do, or to look at.
pub(crate) const HALVES: usize = 2;

/// One case.
#[derive(Debug)]
pub(crate) struct Case {
    /// Also that of its session.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) about: &'static str,
    /// Preserves its files.
    depart: fn(&Session) -> Result<()>,
    arrive: Arrive,
}

/// What there is to do after the jump.
#[derive(Debug)]
enum Arrive {
    /// Take the files back and finish.
    Take(fn(&Session) -> Result<()>),
    /// Nothing: the session is closed before the jump, and does not cross.
    Nothing,
}

impl Case {
    pub(crate) const fn new(
        name: &'static str,
        about: &'static str,
        depart: fn(&Session) -> Result<()>,
        take: fn(&Session) -> Result<()>,
    ) -> Self {
        Self {
            name,
            about,
            depart,
            arrive: Arrive::Take(take),
        }
    }

    /// One whose session does not cross.
    pub(crate) const fn local(
        name: &'static str,
        about: &'static str,
        depart: fn(&Session) -> Result<()>,
    ) -> Self {
        Self {
            name,
            about,
            depart,
            arrive: Arrive::Nothing,
        }
    }

    fn begin(&self, held: &mut HeldOpen) -> Result<()> {
        let session = Device::open()?.create_session(self.name)?;
        (self.depart)(&session)?;
        match self.arrive {
            Arrive::Take(_) => held.hold(&session),
            Arrive::Nothing => Ok(()),
        }
    }

    fn end(&self) -> Result<()> {
        let session = Device::open()?.retrieve_session(self.name);
        match self.arrive {
            Arrive::Take(take) => take(&session?),
            Arrive::Nothing => expect_errno(
                session,
                Errno::NOENT,
                "retrieving a session that was closed",
            ),
        }
    }
}

/// Runs the first halves and reports how each went.
pub(crate) fn depart(
    cases: &[Case],
    held: &mut HeldOpen,
    report: &mut dyn FnMut(&str, Result<()>) -> Result<()>,
) -> Result<()> {
    cases
        .iter()
        .try_for_each(|case| report(case.name, case.begin(held)))
}

/// Runs the second halves and reports how each went.
pub(crate) fn arrive(
    cases: &[Case],
    report: &mut dyn FnMut(&str, Result<()>) -> Result<()>,
) -> Result<()> {
    cases
        .iter()
        .try_for_each(|case| report(case.name, case.end()))
}
