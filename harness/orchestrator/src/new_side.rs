// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The new side's file table: rebuilt once from what crossed, however many threads ask for it.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use luo_handler_api::{Compatible, Errno, Host, Retrieved, Token};

use crate::devicetree::{self, BadEntry, DecodeError, SubsystemEntry};
use crate::error::{Error, Failure, Participant, Phase};
use crate::handover::{Arrival, Complaints, FileStatus};
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use crate::reason::{explained, with_report, Cause};
use crate::registry::Registry;

/// Files and subsystems that crossed, until they are finished.
#[derive(Debug)]
pub(crate) struct NewSide {
    devicetree: Vec<u8>,
    incoming: Incoming,
    table: OnceLock<Result<Table, DecodeError>>,
}

#[derive(Debug)]
struct Table {
    update_number: u64,
    files: Vec<NewMember<Arc<OwnedFd>>>,
    places: HashMap<Token, usize>,
    subsystems: Vec<NewMember<()>>,
    bad: Vec<BadEntry>,
}

/// One participant: the RFC's `struct luo_file` after the jump.
#[derive(Debug)]
struct NewMember<T> {
    participant: Participant,
    compatible: Compatible,
    data: u64,
    /// The outcome of the one attempt to retrieve; the lock makes the calls for it exclusive.
    retrieved: Mutex<Option<Result<T, Cause>>>,
    /// What its handler reported although it retrieved it.
    report: OnceLock<String>,
}

impl NewSide {
    pub(crate) fn new(arrival: Arrival) -> Self {
        Self {
            devicetree: arrival.devicetree,
            incoming: arrival.incoming,
            table: OnceLock::new(),
        }
    }

    fn table(&self) -> Result<&Table, DecodeError> {
        self.table
            .get_or_init(|| Table::read(&self.devicetree))
            .as_ref()
            .map_err(Clone::clone)
    }

    pub(crate) fn update_number(&self) -> Result<u64, DecodeError> {
        Ok(self.table()?.update_number)
    }

    pub(crate) fn retrieve(
        &self,
        registry: &Registry,
        token: Token,
    ) -> Result<Arc<OwnedFd>, Error> {
        let table = self.table()?;
        let unknown = || {
            let participant = Participant::File(token);
            Failure::new(Phase::Retrieve, participant, None, Errno::ENOENT)
        };
        let entry = table.file(token).ok_or_else(unknown)?;
        let handler = registry.handler(&entry.compatible);
        Ok(entry.retrieve(handler, |handler, data| {
            let services = self.incoming.for_file(Some(token));
            let file = handler.retrieve(data, Host::new(&services))?;
            services.retrieved(file.as_fd());
            Ok(Arc::new(file))
        })?)
    }

    pub(crate) fn retrieve_subsystem(
        &self,
        registry: &Registry,
        compatible: Compatible,
    ) -> Result<(), Error> {
        let table = self.table()?;
        let entry = table
            .subsystems
            .iter()
            .find(|entry| entry.compatible == compatible)
            .ok_or_else(|| {
                let participant = Participant::Subsystem(compatible);
                Failure::new(Phase::Retrieve, participant, None, Errno::ENOENT)
            })?;
        let handler = registry.subsystem(&compatible);
        Ok(entry.retrieve(handler, |handler, data| {
            handler.retrieve(data, Host::new(&self.incoming))
        })?)
    }

    pub(crate) fn files(&self, registry: &Registry) -> Result<Vec<FileStatus>, DecodeError> {
        let table = self.table()?;
        Ok(table
            .files_in_order()
            .map(|(token, entry)| FileStatus {
                token,
                compatible: entry.compatible,
                data: entry.data,
                claimed: registry.handler(&entry.compatible).is_some(),
                retrieved: match &*entry.lock() {
                    None => None,
                    Some(Ok(_)) => Some(Ok(())),
                    Some(Err(cause)) => Some(Err(cause.errno)),
                },
                report: entry.report.get().cloned(),
            })
            .collect())
    }

    pub(crate) fn subsystems(&self) -> Result<Vec<SubsystemEntry>, DecodeError> {
        let entries = self.table()?.subsystems.iter();
        Ok(entries
            .map(|entry| SubsystemEntry {
                compatible: entry.compatible,
                data: entry.data,
            })
            .collect())
    }

    pub(crate) fn bad_entries(&self) -> Result<Vec<BadEntry>, DecodeError> {
        Ok(self.table()?.bad.clone())
    }

    /// Finishes all, unless one does not agree. Returns also whether files are left.
    pub(crate) fn finish(&self, registry: &Registry) -> Result<(Complaints, bool), Error> {
        let table = self.table()?;
        let host = Host::new(&self.incoming);
        for file in &table.files {
            file.can_finish(registry.handler(&file.compatible), |handler, state| {
                handler.can_finish(file.data, retrieved_file(state), host)
            })?;
        }
        for entry in &table.subsystems {
            entry.can_finish(registry.subsystem(&entry.compatible), |subsystem, _| {
                subsystem.can_finish(entry.data, host)
            })?;
        }
        let left: HashSet<Token> = self.left(registry).into_iter().collect();
        let files = table.files.iter().map(|file| {
            let token = file.token();
            let services = match token.is_some_and(|token| left.contains(&token)) {
                // It is to stay, also if its handler would give it up.
                true => Some(self.incoming.without_release(token)),
                false => None,
            };
            let host = services.as_ref().map_or(host, Host::new);
            file.finish(registry.handler(&file.compatible), |handler, state| {
                handler.finish(file.data, retrieved_file(state), host)
            })
        });
        let subsystems = table.subsystems.iter().map(|entry| {
            entry.finish(registry.subsystem(&entry.compatible), |subsystem, state| {
                subsystem.finish(entry.data, matches!(state, Some(Ok(()))), host)
            })
        });
        let complaints = files.chain(subsystems).filter_map(Result::err).collect();
        if !left.is_empty() {
            self.incoming.release_all_but(&left);
        }
        Ok((complaints, !left.is_empty()))
    }

    /// Files of which something is here, and that could not be retrieved.
    pub(crate) fn left(&self, registry: &Registry) -> Vec<Token> {
        let Ok(table) = self.table() else {
            return Vec::new();
        };
        let mut lost = table
            .files_in_order()
            .filter(|(_, file)| file.is_lost(registry))
            .map(|(token, _)| token)
            .peekable();
        if lost.peek().is_none() {
            return Vec::new();
        }
        let here = self.incoming.tokens_left();
        lost.filter(|token| here.contains(token)).collect()
    }

    /// Takes what is left of a file.
    pub(crate) fn take_left(
        &self,
        registry: &Registry,
        token: Token,
    ) -> Result<Vec<OwnedFd>, Failure> {
        let file = self
            .table()
            .ok()
            .and_then(|table| table.file(token))
            .filter(|file| file.is_lost(registry))
            .ok_or_else(|| Self::nothing_left(token))?;
        let files = explained(|| self.incoming.take_left(token));
        let files = files.map_err(|cause| file.failure(Phase::Retrieve, cause))?;
        match files.is_empty() {
            true => Err(Self::nothing_left(token)),
            false => Ok(files),
        }
    }

    /// Nothing is left of that file.
    pub(crate) fn nothing_left(token: Token) -> Failure {
        let participant = Participant::File(token);
        let cause = Cause {
            errno: Errno::ENOENT,
            reason: Some("nothing is left of it: it was retrieved, taken or never crossed".into()),
        };
        Failure::new(Phase::Retrieve, participant, None, cause)
    }

    /// The devicetree as it crossed.
    pub(crate) fn devicetree(&self) -> &[u8] {
        &self.devicetree
    }

    /// Everything that crossed, for another jump.
    pub(crate) fn carry_on(&self) -> Result<Outgoing, Error> {
        let table = self.table()?;
        let retrieved = |token| {
            let retrieved = table.file(token)?.lock();
            let file = retrieved.as_ref()?.as_ref().ok()?;
            file.try_clone().ok()
        };
        let files = explained(|| self.incoming.duplicates(retrieved));
        let files = files.map_err(|cause| Error::Handover {
            errno: cause.errno,
            reason: cause.reason,
        })?;
        Ok(Outgoing::carrying(self.incoming.memory(), files))
    }
}

impl Table {
    fn read(blob: &[u8]) -> Result<Self, DecodeError> {
        let decoded = devicetree::decode(blob)?;
        let files = &decoded.tree.files;
        Ok(Self {
            update_number: decoded.tree.update_number,
            places: files
                .iter()
                .zip(0..)
                .map(|(file, at)| (file.token, at))
                .collect(),
            files: files
                .iter()
                .map(|file| {
                    NewMember::new(Participant::File(file.token), file.compatible, file.data)
                })
                .collect(),
            subsystems: decoded
                .tree
                .subsystems
                .iter()
                .map(|s| NewMember::new(Participant::Subsystem(s.compatible), s.compatible, s.data))
                .collect(),
            bad: decoded.bad,
        })
    }

    fn file(&self, token: Token) -> Option<&NewMember<Arc<OwnedFd>>> {
        self.places.get(&token).map(|&place| &self.files[place])
    }

    fn files_in_order(&self) -> impl Iterator<Item = (Token, &NewMember<Arc<OwnedFd>>)> {
        self.files
            .iter()
            .filter_map(|file| Some((file.token()?, file)))
    }
}

fn retrieved_file(file: &Option<Result<Arc<OwnedFd>, Cause>>) -> Retrieved<'_> {
    match file {
        None => Retrieved::NotAsked,
        Some(Err(cause)) => Retrieved::Failed(cause.errno),
        Some(Ok(file)) => Retrieved::File(file.as_fd().into()),
    }
}

impl<T: Clone> NewMember<T> {
    fn new(participant: Participant, compatible: Compatible, data: u64) -> Self {
        Self {
            participant,
            compatible,
            data,
            retrieved: Mutex::new(None),
            report: OnceLock::new(),
        }
    }

    fn token(&self) -> Option<Token> {
        match self.participant {
            Participant::File(token) => Some(token),
            Participant::Subsystem(_) => None,
        }
    }

    /// Whether it was tried in vain, or could not be tried.
    fn is_lost(&self, registry: &Registry) -> bool {
        match &*self.lock() {
            Some(retrieved) => retrieved.is_err(),
            None => registry.handler(&self.compatible).is_none(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<T, Cause>>> {
        self.retrieved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, phase: Phase, cause: impl Into<Cause>) -> Failure {
        Failure::new(phase, self.participant, Some(self.compatible), cause)
    }

    /// No handler is registered for it.
    fn no_handler(&self, phase: Phase) -> Failure {
        let cause = Cause {
            errno: Errno::ENOENT,
            reason: Some(format!("no handler for {} is registered", self.compatible)),
        };
        Failure::new(phase, self.participant, None, cause)
    }

    /// Retrieves once. That the handler was missing is not remembered.
    fn retrieve<H>(
        &self,
        handler: Option<H>,
        rebuild: impl FnOnce(H, u64) -> Result<T, Errno>,
    ) -> Result<T, Failure> {
        let mut retrieved = self.lock();
        let result = match &*retrieved {
            Some(result) => result.clone(),
            None => {
                let handler = handler.ok_or_else(|| self.no_handler(Phase::Retrieve))?;
                let result = with_report(|| rebuild(handler, self.data));
                let result = result.map(|(value, report)| {
                    if let Some(report) = report {
                        // It is retrieved once, under the lock.
                        let _ = self.report.set(report);
                    }
                    value
                });
                *retrieved = Some(result.clone());
                result
            }
        };
        result.map_err(|cause| self.failure(Phase::Retrieve, cause))
    }

    /// `EBUSY` if the handler does not agree; without a handler nobody objects.
    fn can_finish<H>(
        &self,
        handler: Option<H>,
        ask: impl FnOnce(H, &Option<Result<T, Cause>>) -> Result<bool, Errno>,
    ) -> Result<(), Failure> {
        let Some(handler) = handler else {
            return Ok(());
        };
        let retrieved = self.lock();
        explained(|| match ask(handler, &retrieved)? {
            true => Ok(()),
            false => Err(Errno::EBUSY),
        })
        .map_err(|cause| self.failure(Phase::Finish, cause))
    }

    /// `ENOENT` if its handler is missing: its bytes go with the rest of what crossed.
    fn finish<H>(
        &self,
        handler: Option<H>,
        end: impl FnOnce(H, &Option<Result<T, Cause>>) -> Result<(), Errno>,
    ) -> Result<(), Failure> {
        let Some(handler) = handler else {
            // One that is registered after this comes too late.
            let missing = self.no_handler(Phase::Finish);
            let cause = Cause::from(missing.errno);
            self.lock().get_or_insert(Err(cause));
            return Err(missing);
        };
        let retrieved = self.lock();
        explained(|| end(handler, &retrieved)).map_err(|cause| self.failure(Phase::Finish, cause))
    }
}
