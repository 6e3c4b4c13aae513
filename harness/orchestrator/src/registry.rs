// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handlers a host knows: those linked into the program, and those that come later.

use std::os::fd::BorrowedFd;
use std::sync::{PoisonError, RwLock};

use luo_handler_api::hosted::Handler;
use luo_handler_api::registry::{registered_handlers, registered_subsystems};
use luo_handler_api::{Compatible, Errno, HandlerOps, InvalidHandler, InvalidReason};

/// Handlers and subsystems, each sorted by compatible and without duplicates.
#[derive(Debug, Default)]
pub struct Registry {
    handlers: RwLock<Vec<Handler>>,
    subsystems: RwLock<Vec<Handler>>,
}

impl Registry {
    /// An empty registry.
    pub const fn new() -> Self {
        Self {
            handlers: RwLock::new(Vec::new()),
            subsystems: RwLock::new(Vec::new()),
        }
    }

    /// Everything that is linked into this program.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`], which names the first that cannot be used.
    pub fn linked() -> Result<Self, InvalidHandler> {
        let registry = Self::new();
        for ops in registered_handlers() {
            registry.register(ops)?;
        }
        for ops in registered_subsystems() {
            registry.register_subsystem(ops)?;
        }
        Ok(registry)
    }

    /// Adds a handler, at any time: it claims the files that crossed and have its compatible.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`] if it cannot be used or its compatible is taken.
    pub fn register(&self, ops: &'static HandlerOps) -> Result<(), InvalidHandler> {
        insert(&self.handlers, &[ops])
    }

    /// Adds several handlers, all or none.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register), for the first that cannot be added.
    pub fn register_all(&self, ops: &[&'static HandlerOps]) -> Result<(), InvalidHandler> {
        insert(&self.handlers, ops)
    }

    /// Adds a subsystem.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    pub fn register_subsystem(&self, ops: &'static HandlerOps) -> Result<(), InvalidHandler> {
        insert(&self.subsystems, &[ops])
    }

    /// The handlers, by compatible.
    pub fn handlers(&self) -> Vec<Handler> {
        self.handlers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The subsystems, by compatible.
    pub fn subsystems(&self) -> Vec<Handler> {
        self.subsystems
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The handler called `compatible`.
    pub fn handler(&self, compatible: &Compatible) -> Option<Handler> {
        find(&self.handlers, compatible)
    }

    /// The subsystem called `compatible`.
    pub fn subsystem(&self, compatible: &Compatible) -> Option<Handler> {
        find(&self.subsystems, compatible)
    }

    /// The first handler that takes `file`.
    ///
    /// # Errors
    ///
    /// The handler that failed to answer, with its error number; `None` and `ENOENT` if no handler
    /// takes the file.
    pub(crate) fn handler_for(
        &self,
        file: BorrowedFd<'_>,
    ) -> Result<Handler, (Option<Compatible>, Errno)> {
        for handler in self.handlers() {
            match handler.can_preserve(file) {
                Ok(true) => return Ok(handler),
                Ok(false) => {}
                Err(errno) => return Err((Some(*handler.compatible()), errno)),
            }
        }
        Err((None, Errno::ENOENT))
    }
}

fn insert(
    entries: &RwLock<Vec<Handler>>,
    added: &[&'static HandlerOps],
) -> Result<(), InvalidHandler> {
    let mut entries = entries.write().unwrap_or_else(PoisonError::into_inner);
    let mut all = entries.clone();
    for ops in added {
        let handler = Handler::new(ops)?;
        match all.binary_search_by_key(handler.compatible(), |entry| *entry.compatible()) {
            Ok(_) => {
                return Err(InvalidHandler {
                    compatible: Some(*handler.compatible()),
                    reason: InvalidReason::Duplicate,
                });
            }
            Err(place) => all.insert(place, handler),
        }
    }
    *entries = all;
    Ok(())
}

fn find(entries: &RwLock<Vec<Handler>>, compatible: &Compatible) -> Option<Handler> {
    let entries = entries.read().unwrap_or_else(PoisonError::into_inner);
    entries
        .binary_search_by_key(compatible, |entry| *entry.compatible())
        .ok()
        .map(|place| entries[place])
}
