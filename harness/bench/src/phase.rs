// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The phases of a live update, and the time that each of them takes.

use std::ops::{Index, IndexMut};

use rustix::time::{clock_gettime, ClockId};
use serde::{Deserialize, Serialize};

/// A phase of a live update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// All calls of prepare, and the copy of an image; the workload still runs.
    Prepare,
    /// All calls of freeze. With kexec the kernel freezes in the call that jumps, so this is 0.
    Freeze,
    /// The transport's work on the old side: sealing the metadata, completing the image.
    Handover,
    /// From the exec or reboot call to the first moment at which the new side can retrieve.
    Blackout,
    /// All calls of retrieve; with images, reading the contents is a part of it.
    Retrieve,
    /// Finish; the workload runs again.
    Finish,
}

impl Phase {
    /// All, in the order in which they happen.
    pub const ALL: [Self; 6] = [
        Self::Prepare,
        Self::Freeze,
        Self::Handover,
        Self::Blackout,
        Self::Retrieve,
        Self::Finish,
    ];

    /// Those in which the workload does not run.
    pub const DOWNTIME: [Self; 4] = [Self::Freeze, Self::Handover, Self::Blackout, Self::Retrieve];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Handover => "handover",
            Self::Blackout => "blackout",
            Self::Retrieve => "retrieve",
            Self::Finish => "finish",
        }
    }
}

/// A value for each phase, in nanoseconds of `CLOCK_MONOTONIC` or of what goes on through a kexec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerPhase<T> {
    /// [`Phase::Prepare`].
    pub prepare_ns: T,
    /// [`Phase::Freeze`].
    pub freeze_ns: T,
    /// [`Phase::Handover`].
    pub handover_ns: T,
    /// [`Phase::Blackout`].
    pub blackout_ns: T,
    /// [`Phase::Retrieve`].
    pub retrieve_ns: T,
    /// [`Phase::Finish`].
    pub finish_ns: T,
}

impl<T> PerPhase<T> {
    /// Asks for the value of each phase.
    pub fn from_fn(mut value: impl FnMut(Phase) -> T) -> Self {
        Self {
            prepare_ns: value(Phase::Prepare),
            freeze_ns: value(Phase::Freeze),
            handover_ns: value(Phase::Handover),
            blackout_ns: value(Phase::Blackout),
            retrieve_ns: value(Phase::Retrieve),
            finish_ns: value(Phase::Finish),
        }
    }
}

impl<T> Index<Phase> for PerPhase<T> {
    type Output = T;

    fn index(&self, phase: Phase) -> &T {
        match phase {
            Phase::Prepare => &self.prepare_ns,
            Phase::Freeze => &self.freeze_ns,
            Phase::Handover => &self.handover_ns,
            Phase::Blackout => &self.blackout_ns,
            Phase::Retrieve => &self.retrieve_ns,
            Phase::Finish => &self.finish_ns,
        }
    }
}

impl<T> IndexMut<Phase> for PerPhase<T> {
    fn index_mut(&mut self, phase: Phase) -> &mut T {
        match phase {
            Phase::Prepare => &mut self.prepare_ns,
            Phase::Freeze => &mut self.freeze_ns,
            Phase::Handover => &mut self.handover_ns,
            Phase::Blackout => &mut self.blackout_ns,
            Phase::Retrieve => &mut self.retrieve_ns,
            Phase::Finish => &mut self.finish_ns,
        }
    }
}

/// How long each phase took, in nanoseconds.
pub type Phases = PerPhase<u64>;

impl Phases {
    /// Does the work of a phase and notes how long it took.
    pub fn time<R>(&mut self, phase: Phase, work: impl FnOnce() -> R) -> R {
        timed(&mut self[phase], work)
    }

    /// The time in which the workload does not run, in nanoseconds.
    pub fn downtime(&self) -> u64 {
        Phase::DOWNTIME.iter().map(|&phase| self[phase]).sum()
    }
}

/// Does the work and notes how long it took, in nanoseconds.
pub fn timed<R>(nanoseconds: &mut u64, work: impl FnOnce() -> R) -> R {
    let start = monotonic_ns();
    let result = work();
    *nanoseconds = monotonic_ns() - start;
    result
}

/// Now, in nanoseconds of `CLOCK_MONOTONIC`, which all processes of one kernel share.
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downtime_is_what_the_workload_waits_for() {
        let mut phases = Phases::from_fn(|_| 1);
        phases[Phase::Prepare] = 1000;
        phases[Phase::Finish] = 1000;
        assert_eq!(phases.downtime(), 4);
    }

    #[test]
    fn phases_have_names_of_their_own_in_json() {
        let numbered = Phases::from_fn(|phase| phase as u64);
        let json = serde_json::to_value(numbered).unwrap();
        for phase in Phase::ALL {
            assert_eq!(json[format!("{}_ns", phase.name())], phase as u64);
            assert_eq!(numbered[phase], phase as u64);
        }
    }
}
