// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Ends a measurement early, from another thread.

use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ends a measurement early: the run under way is killed, and what was made is removed.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    is_stopped: bool,
    child: Option<Child>,
}

impl Stop {
    /// Stops what uses it, now and in the future.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.is_stopped = true;
        if let Some(child) = &mut inner.child {
            // It may have ended by itself.
            let _ = child.kill();
        }
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.lock().is_stopped
    }

    /// Hands a process over, to be killed when it is stopped.
    pub fn watch(&self, mut child: Child) {
        let mut inner = self.lock();
        if inner.is_stopped {
            let _ = child.kill();
        }
        inner.child = Some(child);
    }

    /// Takes the process back.
    pub fn unwatch(&self) -> Option<Child> {
        self.lock().child.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
