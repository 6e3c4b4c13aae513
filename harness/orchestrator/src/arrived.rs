// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The new side's file table: rebuilt once from what crossed, however many threads ask for it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use luo_handler_api::{Compatible, Errno, Host, Retrieved, Token};

use crate::devicetree::{self, BadEntry, DecodeError, SubsystemEntry};
use crate::error::{Error, Failure, Participant, Phase};
use crate::incoming::Incoming;
use crate::orchestrator::{Arrival, Complaints, FileStatus};
use crate::reason::{heard, Cause};
use crate::registry::Registry;

/// Files and subsystems that crossed, until they are finished.
#[derive(Debug)]
pub(crate) struct Arrived {
    devicetree: Vec<u8>,
    incoming: Incoming,
    table: OnceLock<Result<Table, DecodeError>>,
}

#[derive(Debug)]
struct Table {
    update_number: u64,
    entries: Vec<Entry<Arc<OwnedFd>>>,
    places: HashMap<Token, usize>,
    subsystems: Vec<Entry<()>>,
    bad: Vec<BadEntry>,
}

/// One participant: the RFC's `struct luo_file` after the jump.
#[derive(Debug)]
struct Entry<T> {
    participant: Participant,
    compatible: Compatible,
    data: u64,
    /// What came of the one attempt to retrieve; the lock makes the calls for it exclusive.
    retrieved: Mutex<Option<Result<T, Cause>>>,
}

impl Arrived {
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
        let entry = table.places.get(&token).map(|&place| &table.entries[place]);
        let unknown = || {
            let participant = Participant::File(token);
            Failure::new(Phase::Retrieve, participant, None, Errno::ENOENT)
        };
        let entry = entry.ok_or_else(unknown)?;
        let handler = registry.handler(&entry.compatible);
        Ok(entry.retrieve(handler, |handler, data| {
            handler
                .retrieve(data, Host::new(&self.incoming))
                .map(Arc::new)
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
            .places_in_order()
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

    /// Finishes all, unless one does not agree.
    pub(crate) fn finish(&self, registry: &Registry) -> Result<Complaints, Error> {
        let table = self.table()?;
        let host = Host::new(&self.incoming);
        for entry in &table.entries {
            let handler = registry.handler(&entry.compatible);
            entry.can_finish(handler, |handler, file| {
                handler.can_finish(entry.data, retrieved_file(file), host)
            })?;
        }
        for entry in &table.subsystems {
            let subsystem = registry.subsystem(&entry.compatible);
            entry.can_finish(subsystem, |subsystem, _| {
                subsystem.can_finish(entry.data, host)
            })?;
        }
        let files = table.entries.iter().map(|entry| {
            let handler = registry.handler(&entry.compatible);
            entry.finish(handler, |handler, file| {
                handler.finish(entry.data, retrieved_file(file), host)
            })
        });
        let subsystems = table.subsystems.iter().map(|entry| {
            let subsystem = registry.subsystem(&entry.compatible);
            entry.finish(subsystem, |subsystem, state| {
                subsystem.finish(entry.data, matches!(state, Some(Ok(()))), host)
            })
        });
        Ok(files.chain(subsystems).filter_map(Result::err).collect())
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
            entries: files
                .iter()
                .map(|file| Entry::new(Participant::File(file.token), file.compatible, file.data))
                .collect(),
            subsystems: decoded
                .tree
                .subsystems
                .iter()
                .map(|s| Entry::new(Participant::Subsystem(s.compatible), s.compatible, s.data))
                .collect(),
            bad: decoded.bad,
        })
    }

    fn places_in_order(&self) -> impl Iterator<Item = (Token, &Entry<Arc<OwnedFd>>)> {
        self.entries
            .iter()
            .filter_map(|entry| match entry.participant {
                Participant::File(token) => Some((token, entry)),
                Participant::Subsystem(_) => None,
            })
    }
}

fn retrieved_file(file: &Option<Result<Arc<OwnedFd>, Cause>>) -> Retrieved<'_> {
    match file {
        None => Retrieved::NotAsked,
        Some(Err(cause)) => Retrieved::Failed(cause.errno),
        Some(Ok(file)) => Retrieved::File(file.as_fd().into()),
    }
}

impl<T: Clone> Entry<T> {
    fn new(participant: Participant, compatible: Compatible, data: u64) -> Self {
        Self {
            participant,
            compatible,
            data,
            retrieved: Mutex::new(None),
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

    /// Retrieves once. That nobody was there to do it is not kept.
    fn retrieve<H>(
        &self,
        handler: Option<H>,
        rebuild: impl FnOnce(H, u64) -> Result<T, Errno>,
    ) -> Result<T, Failure> {
        let mut retrieved = self.lock();
        let result = match &*retrieved {
            Some(result) => result.clone(),
            None => {
                let handler =
                    handler.ok_or_else(|| self.failure(Phase::Retrieve, Errno::ENOENT))?;
                let result = heard(|| rebuild(handler, self.data));
                *retrieved = Some(result.clone());
                result
            }
        };
        result.map_err(|cause| self.failure(Phase::Retrieve, cause))
    }

    /// `EBUSY` if the handler does not agree; one without a handler has nobody to object.
    fn can_finish<H>(
        &self,
        handler: Option<H>,
        ask: impl FnOnce(H, &Option<Result<T, Cause>>) -> Result<bool, Errno>,
    ) -> Result<(), Failure> {
        let Some(handler) = handler else {
            return Ok(());
        };
        let retrieved = self.lock();
        heard(|| match ask(handler, &retrieved)? {
            true => Ok(()),
            false => Err(Errno::EBUSY),
        })
        .map_err(|cause| self.failure(Phase::Finish, cause))
    }

    /// `ENOENT` if nobody claimed it: what crossed for it goes with the rest of what crossed.
    fn finish<H>(
        &self,
        handler: Option<H>,
        end: impl FnOnce(H, &Option<Result<T, Cause>>) -> Result<(), Errno>,
    ) -> Result<(), Failure> {
        let handler = handler.ok_or_else(|| self.failure(Phase::Finish, Errno::ENOENT))?;
        let retrieved = self.lock();
        heard(|| end(handler, &retrieved)).map_err(|cause| self.failure(Phase::Finish, cause))
    }
}
