// SPDX-License-Identifier: GPL-2.0-only
//! How often each callback of a handler was called, how often it failed, and how long it took.

use kernel::{
    fmt,
    sync::atomic::{Atomic, Relaxed},
};
use luo_handler_api::kernel::Callback;

/// By the numbers of [`Callback`].
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

    /// Counts a call of a callback.
    pub(crate) fn count(&self, callback: Callback, nanoseconds: u64, failed: bool) {
        if let Some(counter) = self.0.get(callback as usize) {
            counter.count.fetch_add(1, Relaxed);
            counter.errors.fetch_add(u64::from(failed), Relaxed);
            counter.nanoseconds.fetch_add(nanoseconds, Relaxed);
        }
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
