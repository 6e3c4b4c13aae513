// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handlers a host knows: those linked into the program, and those that come later.

use std::os::fd::BorrowedFd;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use luo_handler_api::hosted::{Handler, SubsystemRef};
use luo_handler_api::registry::{registered_handlers, registered_subsystems};
use luo_handler_api::{Compatible, Errno, HandlerOps, InvalidHandler, InvalidReason, SubsystemOps};

/// Handlers and subsystems, each sorted by compatible and without duplicates.
#[derive(Debug, Default)]
pub struct Registry {
    handlers: RwLock<Vec<Handler>>,
    subsystems: RwLock<Vec<SubsystemRef>>,
    /// Those of them that are asked before the others.
    first: Vec<Compatible>,
}

impl Registry {
    /// An empty registry.
    pub const fn new() -> Self {
        Self {
            handlers: RwLock::new(Vec::new()),
            subsystems: RwLock::new(Vec::new()),
            first: Vec::new(),
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

    /// What `others` has, such as the handlers of plugins, and everything that is linked into this
    /// program, except what `others` has under the same compatible. The handlers of `others` are
    /// asked first whether they take a file.
    ///
    /// # Errors
    ///
    /// As [`linked`](Self::linked).
    pub fn linked_after(others: &Self) -> Result<Self, InvalidHandler> {
        let registry = Self {
            first: others.handlers().iter().map(Named::name).collect(),
            ..Self::new()
        };
        registry.register_all(&others.handlers(), &others.subsystems())?;
        let linked = Self::linked()?;
        let handlers = unnamed_in(&others.handlers(), linked.handlers());
        let subsystems = unnamed_in(&others.subsystems(), linked.subsystems());
        registry.register_all(&handlers, &subsystems)?;
        Ok(registry)
    }

    /// Adds a handler, at any time: it claims the files that crossed and have its compatible.
    ///
    /// # Errors
    ///
    /// [`InvalidHandler`] if it cannot be used or its compatible is taken.
    pub fn register(&self, ops: &'static HandlerOps) -> Result<(), InvalidHandler> {
        insert(&mut write(&self.handlers), &[Handler::new(ops)?])
    }

    /// Adds a subsystem.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    pub fn register_subsystem(&self, ops: &'static SubsystemOps) -> Result<(), InvalidHandler> {
        insert(&mut write(&self.subsystems), &[SubsystemRef::new(ops)?])
    }

    /// Adds handlers and subsystems, all or none.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register), for the first that cannot be added.
    pub fn register_all(
        &self,
        handlers: &[Handler],
        subsystems: &[SubsystemRef],
    ) -> Result<(), InvalidHandler> {
        let mut known = write(&self.subsystems);
        let mut all = known.clone();
        insert(&mut all, subsystems)?;
        insert(&mut write(&self.handlers), handlers)?;
        *known = all;
        Ok(())
    }

    /// The handlers, by compatible.
    pub fn handlers(&self) -> Vec<Handler> {
        read(&self.handlers).clone()
    }

    /// The subsystems, by compatible.
    pub fn subsystems(&self) -> Vec<SubsystemRef> {
        read(&self.subsystems).clone()
    }

    /// The handler called `compatible`, also by a former name of one of ours.
    pub fn handler(&self, compatible: &Compatible) -> Option<Handler> {
        find(&read(&self.handlers), compatible)
    }

    /// The subsystem called `compatible`, likewise.
    pub fn subsystem(&self, compatible: &Compatible) -> Option<SubsystemRef> {
        find(&read(&self.subsystems), compatible)
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
        let is_first = |handler: &Handler| self.first.contains(handler.compatible());
        let (first, others): (Vec<_>, Vec<_>) = self.handlers().into_iter().partition(is_first);
        for handler in first.into_iter().chain(others) {
            match handler.can_preserve(file) {
                Ok(true) => return Ok(handler),
                Ok(false) => {}
                Err(errno) => return Err((Some(*handler.compatible()), errno)),
            }
        }
        Err((None, Errno::ENOENT))
    }
}

/// What is found by its compatible.
trait Named: Copy {
    fn name(&self) -> Compatible;
}

impl Named for Handler {
    fn name(&self) -> Compatible {
        *self.compatible()
    }
}

impl Named for SubsystemRef {
    fn name(&self) -> Compatible {
        *self.compatible()
    }
}

fn read<T>(entries: &RwLock<Vec<T>>) -> RwLockReadGuard<'_, Vec<T>> {
    entries.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(entries: &RwLock<Vec<T>>) -> RwLockWriteGuard<'_, Vec<T>> {
    entries.write().unwrap_or_else(PoisonError::into_inner)
}

/// Adds all or none to a sorted list.
fn insert<T: Named>(entries: &mut Vec<T>, added: &[T]) -> Result<(), InvalidHandler> {
    let mut all = entries.clone();
    for &entry in added {
        match all.binary_search_by_key(&entry.name(), Named::name) {
            Ok(_) => {
                return Err(InvalidHandler {
                    compatible: Some(entry.name()),
                    reason: InvalidReason::Duplicate,
                });
            }
            Err(place) => all.insert(place, entry),
        }
    }
    *entries = all;
    Ok(())
}

/// Those of `all` that have no namesake among `others`.
fn unnamed_in<T: Named>(others: &[T], mut all: Vec<T>) -> Vec<T> {
    all.retain(|entry| others.iter().all(|other| other.name() != entry.name()));
    all
}

fn find<T: Named>(entries: &[T], compatible: &Compatible) -> Option<T> {
    let called = |name: &Compatible| {
        let place = entries.binary_search_by_key(name, Named::name).ok()?;
        entries.get(place).copied()
    };
    called(compatible).or_else(|| called(&compatible.with_vendor()?))
}
