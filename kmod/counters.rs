// SPDX-License-Identifier: GPL-2.0-only
//! How often each phase of a handler was called, how often it failed, and how long it took.

use kernel::{
    fmt,
    sync::atomic::{Atomic, Relaxed},
    time::{Instant, Monotonic},
};
use luo_handler_api::Errno;

/// A phase of a handler, in the order they come.
#[derive(Clone, Copy)]
pub(crate) enum Phase {
    Prepare,
    Freeze,
    Unfreeze,
    Cancel,
    Retrieve,
    CanFinish,
    Finish,
}

const NAMES: [&str; 7] = [
    "prepare",
    "freeze",
    "unfreeze",
    "cancel",
    "retrieve",
    "can_finish",
    "finish",
];

struct Counter {
    count: Atomic<u64>,
    errors: Atomic<u64>,
    nanoseconds: Atomic<u64>,
}

/// The counters of a handler.
pub(crate) struct Counters([Counter; NAMES.len()]);

impl Counters {
    pub(crate) fn new() -> Self {
        Self(core::array::from_fn(|_| Counter {
            count: Atomic::new(0),
            errors: Atomic::new(0),
            nanoseconds: Atomic::new(0),
        }))
    }

    /// Makes a call of a phase and counts it.
    pub(crate) fn count<T>(
        &self,
        phase: Phase,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let begun = Instant::<Monotonic>::now();
        let result = call();
        let took = begun.elapsed().as_nanos();
        if let Some(counter) = self.0.get(phase as usize) {
            counter.count.fetch_add(1, Relaxed);
            counter
                .errors
                .fetch_add(u64::from(result.is_err()), Relaxed);
            counter.nanoseconds.fetch_add(took.max(0) as u64, Relaxed);
        }
        result
    }

    /// Writes a table: a line that names the columns, and one line a phase.
    pub(crate) fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "phase count errors nanoseconds")?;
        for (name, counter) in NAMES.iter().zip(&self.0) {
            writeln!(
                f,
                "{} {} {} {}",
                name,
                counter.count.load(Relaxed),
                counter.errors.load(Relaxed),
                counter.nanoseconds.load(Relaxed)
            )?;
        }
        Ok(())
    }
}
