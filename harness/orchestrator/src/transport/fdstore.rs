// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files stay with the service manager: systemd's file descriptor store holds the handover and the
//! files, and passes them to the next start of the service.
//!
//! So they outlive a restart, a crash, `systemctl daemon-reexec` and a soft-reboot, and with
//! systemd 261 or newer memfds outlive a kexec as well. It takes neither root nor a kernel of a
//! certain version: the unit needs
//!
//! ```text
//! [Service]
//! Type=notify
//! FileDescriptorStoreMax=64
//! FileDescriptorStorePreserve=yes    # also while the service is stopped
//! ```
//!
//! with room for one descriptor a preserved file and two more. The program does, in this order:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use luo_orchestrator::{orchestrator::Orchestrator, registry::Registry};
//! use luo_orchestrator::transport::fdstore::FdStore;
//!
//! # let registry = Arc::new(Registry::linked()?);
//! let mut store = FdStore::open("luo")?; // first of all, before other threads run
//! if let Some(arrival) = store.arrive()? {
//!     let update = Orchestrator::arrived(registry.clone(), arrival);
//!     // retrieve the files, and then:
//!     update.finish()?;
//!     store.clear()?; // otherwise a connection that is closed stays open in the store
//! }
//! // Later, when it is asked to end:
//! let update = Orchestrator::new(registry);
//! // preserve the files, and then:
//! update.prepare()?;
//! update.freeze()?;
//! update.handover(|handover| store.store(&handover).map_err(Box::<dyn std::error::Error>::from))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A crash
//!
//! What is in the store stays there until it is removed. A program that stores its files, unfreezes
//! and goes on has them back after a crash, as they are then. One that crashes after it has arrived
//! and before it calls [`FdStore::clear`] finds everything again at its next start. A later
//! [`store`](FdStore::store) replaces an earlier one at once or not at all.
//!
//! # With other transports
//!
//! The manager passes what is in the store to a program that it starts, and to no other. A program
//! that was reached by exec or spawn does not know what is there, and a file that is there already
//! would be ignored under a new name, and so be missing later. So call [`FdStore::clear`] before
//! such an update, and [`store`](FdStore::store) again after it.
//!
//! # What is in the store
//!
//! | name | what |
//! |---|---|
//! | `PREFIX.file.N` | a preserved file |
//! | `PREFIX.update.N` | a memfd with everything else; the one with the highest number counts |
//!
//! The number of a file is its own for as long as it is in the store, also from one update to the
//! next: systemd ignores a file that it has already, whatever its new name is.
//!
//! That memfd ends with a trailer, so that the memory file begins where it expects to:
//!
//! ```text
//! memory file (see memory_file) | devicetree | list of files | trailer
//! list:     32 bytes a file: handle u64 | N u64 | token u64 | 1 if it has a token, u64
//! trailer:  "LUOFDST1" | bytes of each of the three, u64
//!           | crc32c of devicetree, list and trailer, u64
//! ```
//!
//! Numbers are little-endian.
//!
//! # Limits
//!
//! The store answers nothing. That it is full is known beforehand where systemd passes its size in
//! `$FDSTORE` (254 or newer). An older one drops what does not fit without a word, and the update
//! comes last: the next start finds the files without it, which is [`StoreError::Incomplete`]. Each
//! preserved file takes one more descriptor of this process for as long as it is in the store, and
//! one of the manager's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use luo_handler_api::Token;
use memfd::MemfdOptions;
use sd_notify::NotifyState;
use thiserror::Error;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::files::{HeldFile, OpenFiles};
use crate::handover::{Arrival, Handover};
use crate::incoming::Incoming;
use crate::memory_file::BadMemory;
use crate::sys;

/// The longest name that systemd takes, `FDNAME_MAX`.
pub const NAME_MAX: usize = 255;

/// How long the manager may take to work off what was sent to it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most bytes of everything but files.
const UPDATE_MAX: u64 = 1 << 32;

const MAGIC: [u8; 8] = *b"LUOFDST1";

/// Why the store could not be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no manager.
    #[error(
        "there is no service manager to store files with: $NOTIFY_SOCKET is not set; \
         the unit needs Type=notify and FileDescriptorStoreMax="
    )]
    NoManager,
    /// A prefix that makes no name.
    #[error("{prefix:?} cannot begin the name of a stored file: {reason}")]
    Name {
        /// The prefix.
        prefix: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The descriptors that the manager passed were taken before.
    #[error("the files that the manager passed were taken before; open the store once")]
    TakenBefore,
    /// The variables that describe them contradict each other.
    #[error("cannot take over what the manager passed: {0}")]
    Passed(String),
    /// There is no room.
    #[error(
        "the store has room for {room} files, and {needed} are needed: \
         raise FileDescriptorStoreMax= of the unit; nothing was stored"
    )]
    Full {
        /// Files that it takes.
        room: usize,
        /// Files that would be in it.
        needed: usize,
    },
    /// The manager cannot be reached.
    #[error("cannot {action} the service manager: {source}")]
    Manager {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The handover could not be written.
    #[error("cannot write the handover: {0}")]
    Write(io::Error),
    /// There are files, but no update that lists them. They stay in the store.
    #[error(
        "the store holds {files} files and no update that lists them: it was full, or the program \
         ended while it stored them; look at the files, or clear the store to begin without them"
    )]
    Incomplete {
        /// How many.
        files: usize,
    },
    /// The update that counts is not usable. What is in the store stays there.
    #[error("{name} in the store is damaged: {what}; clear the store to begin without it")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
}

/// What was found in the store and should not be so. The rest is usable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// A file is missing: retrieving it fails with `ENOENT`.
    #[error(
        "{name}{} is missing from the store: it was removed, or cannot cross a kexec",
        of(.token)
    )]
    Lost {
        /// Its name.
        name: String,
        /// The file of the orchestrator that it was preserved for.
        token: Option<Token>,
    },
    /// Something of an older update, which a crash kept from being removed. It was removed now.
    #[error("{name} was left over by an older update; it is removed")]
    Leftover {
        /// Its name.
        name: String,
    },
    /// Several files have this name, and none of them was taken. They stay in the store.
    #[error(
        "{name} names several files, so none of them is taken; clearing the store removes them"
    )]
    Ambiguous {
        /// The name.
        name: String,
    },
}

fn of(token: &Option<Token>) -> String {
    token.map_or(String::new(), |token| format!(" of file {token}"))
}

/// The manager's store, as far as it is this program's. See the [module](self).
#[derive(Debug)]
pub struct FdStore {
    prefix: String,
    room: Option<usize>,
    /// What is in the store.
    files: BTreeMap<u64, OwnedFd>,
    updates: BTreeMap<u64, OwnedFd>,
    /// Names that stand for several files.
    ambiguous: BTreeSet<Name>,
    others: Vec<(String, OwnedFd)>,
    problems: Vec<Problem>,
    has_arrived: bool,
}

/// A name after the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    File(u64),
    Update(u64),
}

impl Name {
    const fn update(&self) -> Option<u64> {
        match self {
            Self::Update(number) => Some(*number),
            Self::File(_) => None,
        }
    }

    const fn file(&self) -> Option<u64> {
        match self {
            Self::File(number) => Some(*number),
            Self::Update(_) => None,
        }
    }
}

/// The files of a handover that are not in the store yet.
struct Added<'a> {
    store: &'a FdStore,
    files: BTreeMap<u64, OwnedFd>,
    next: u64,
    /// Numbers of the store and of this value, by device and inode.
    numbers: HashMap<(u64, u64), Vec<u64>>,
}

impl<'a> Added<'a> {
    fn new(store: &'a FdStore) -> io::Result<Self> {
        let mut numbers = HashMap::<_, Vec<_>>::new();
        for (&number, file) in &store.files {
            numbers
                .entry(inode(file.as_fd())?)
                .or_default()
                .push(number);
        }
        let last = store.files.last_key_value().map_or(0, |(last, _)| *last);
        Ok(Self {
            store,
            files: BTreeMap::new(),
            next: store.after_ambiguous(last + 1, Name::file),
            numbers,
        })
    }

    /// Under which number an open file is in the store, or is going to be.
    fn number_of(&mut self, file: BorrowedFd<'_>) -> io::Result<u64> {
        let numbers = self.numbers.entry(inode(file)?).or_default();
        let known = numbers.iter().copied().find(|number| {
            let known = self
                .store
                .files
                .get(number)
                .or_else(|| self.files.get(number));
            known.is_some_and(|known| sys::is_same_open_file(known.as_fd(), file))
        });
        if let Some(number) = known {
            return Ok(number);
        }
        let number = self.next;
        self.files.insert(number, file.try_clone_to_owned()?);
        numbers.push(number);
        self.next += 1;
        Ok(number)
    }
}

fn inode(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// A file as the list has it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ListedFile {
    handle: U64,
    number: U64,
    token: U64,
    has_token: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    magic: [u8; 8],
    memory: U64,
    devicetree: U64,
    list: U64,
    crc32c: U64,
}

impl FdStore {
    /// Takes over what the manager passed to this process.
    ///
    /// To be called once, before other threads run and before the program closes descriptors that
    /// it did not open. Names in the store begin with `prefix` and a dot; what has another name is
    /// left to [`others`](Self::others).
    ///
    /// # Errors
    ///
    /// [`StoreError::NoManager`] for a process that is not a service, [`StoreError::Name`],
    /// [`StoreError::TakenBefore`] and [`StoreError::Passed`].
    pub fn open(prefix: &str) -> Result<Self, StoreError> {
        check_prefix(prefix)?;
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Err(StoreError::NoManager);
        }
        let room = std::env::var("FDSTORE").ok();
        let mut store = Self {
            prefix: prefix.into(),
            room: room.and_then(|room| room.parse().ok()),
            files: BTreeMap::new(),
            updates: BTreeMap::new(),
            ambiguous: BTreeSet::new(),
            others: Vec::new(),
            problems: Vec::new(),
            has_arrived: false,
        };
        for (name, file) in passed()? {
            store.add(name, file);
        }
        Ok(store)
    }

    fn add(&mut self, full_name: String, file: OwnedFd) {
        let Some(name) = self.parse(&full_name) else {
            self.others.push((full_name, file));
            return;
        };
        let (files, number) = match name {
            Name::File(number) => (&mut self.files, number),
            Name::Update(number) => (&mut self.updates, number),
        };
        if self.ambiguous.contains(&name) || files.insert(number, file).is_some() {
            files.remove(&number);
            self.ambiguous.insert(name);
        }
    }

    /// What the manager passed under other names, such as the listeners of socket activation; once.
    pub fn others(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.others)
    }

    /// What was wrong with the content of the store, once [`arrive`](Self::arrive) looked at it.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Descriptors of this program in the store.
    pub fn count(&self) -> usize {
        self.files.len() + self.updates.len()
    }

    /// The files that are in the store under names of this program, whatever update they belong to.
    pub fn files(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        let files = self.files.iter();
        files.map(|(number, file)| (self.full_name(Name::File(*number)), file.as_fd()))
    }

    /// The newest update in the store, once; `None` if there is none. It stays in the store until
    /// [`clear`](Self::clear) or a later [`store`](Self::store).
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if it cannot be used as a whole, [`StoreError::Incomplete`] if there
    /// are files without one. A file that is missing is a [`Problem`], and `ENOENT` to its handler.
    pub fn arrive(&mut self) -> Result<Option<Arrival>, StoreError> {
        if std::mem::replace(&mut self.has_arrived, true) {
            return Ok(None);
        }
        for name in &self.ambiguous {
            let name = self.full_name(*name);
            self.problems.push(Problem::Ambiguous { name });
        }
        let newest = self
            .updates
            .last_key_value()
            .map_or(0, |(number, _)| *number);
        if let Some(number) = self.ambiguous.iter().filter_map(Name::update).max() {
            if number > newest {
                return Err(self.damaged(number, "several files have this name".into()));
            }
        }
        let Some((&number, update)) = self.updates.last_key_value() else {
            return match self.files.len() {
                0 => Ok(None),
                files => Err(StoreError::Incomplete { files }),
            };
        };
        let read = Update::read(update).map_err(|what| self.damaged(number, what))?;
        let files = self.duplicates(&read.list)?;
        let incoming = Incoming::new(read.memory, files);
        let incoming = incoming.map_err(|bad: BadMemory| self.damaged(number, bad.to_string()))?;
        self.remove_leftovers(number, &read.list)?;
        Ok(Some(Arrival {
            devicetree: read.devicetree,
            incoming,
        }))
    }

    fn damaged(&self, number: u64, what: String) -> StoreError {
        let name = self.full_name(Name::Update(number));
        StoreError::Damaged { name, what }
    }

    /// The listed files, as far as they are there.
    fn duplicates(&mut self, list: &[ListedFile]) -> Result<OpenFiles, StoreError> {
        let mut files = Vec::new();
        for listed in list {
            let token = (listed.has_token.get() == 1).then(|| Token(listed.token.get()));
            let handle = listed.handle.get();
            let number = listed.number.get();
            match self.files.get(&number) {
                Some(file) => {
                    let duplicate = file.try_clone().map_err(StoreError::Write)?;
                    files.push((HeldFile { handle, token }, duplicate));
                }
                None => {
                    let name = self.full_name(Name::File(number));
                    self.problems.push(Problem::Lost { name, token });
                }
            }
        }
        Ok(files.into_iter().collect())
    }

    /// Removes what does not belong to the update with this number.
    fn remove_leftovers(&mut self, number: u64, list: &[ListedFile]) -> Result<(), StoreError> {
        let listed = list.iter().map(|file| file.number.get()).collect();
        let removed = self.remove_others(number, &listed)?;
        let leftovers = removed.into_iter().map(|name| Problem::Leftover { name });
        self.problems.extend(leftovers);
        Ok(())
    }

    /// Leaves a frozen set of files with the manager, in place of what is there; the program may
    /// end then, or go on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`], [`StoreError::Write`] and [`StoreError::Manager`]. What was in the
    /// store before is what counts then. Only if the manager does not answer at the very end it is
    /// unknown which of the two it is.
    pub fn store(&mut self, handover: &Handover<'_>) -> Result<(), StoreError> {
        let mut list = Vec::new();
        let mut added = Added::new(self).map_err(StoreError::Write)?;
        handover.outgoing.each_file(|held, file| {
            let number = added.number_of(file.as_fd()).map_err(StoreError::Write)?;
            list.push(ListedFile {
                handle: held.handle.into(),
                number: number.into(),
                token: held.token.map_or(0, |Token(token)| token).into(),
                has_token: u64::from(held.token.is_some()).into(),
            });
            Ok::<_, StoreError>(())
        })?;
        let added = added.files;
        let needed = self.count() + added.len() + 1;
        if let Some(room) = self.room.filter(|&room| room < needed) {
            return Err(StoreError::Full { room, needed });
        }
        let update = write_update(handover, &list).map_err(StoreError::Write)?;
        let number = self
            .updates
            .last_key_value()
            .map_or(1, |(last, _)| last + 1);
        let number = self.after_ambiguous(number, Name::update);

        if let Err(error) = self.send_all(&added, number, &update) {
            // What counts is the update that was there before; this one's leftovers go.
            let _ = self.remove(Name::Update(number));
            for number in added.keys() {
                let _ = self.remove(Name::File(*number));
            }
            return Err(error);
        }
        self.files.extend(added);
        self.updates.insert(number, update);
        let listed = list.iter().map(|file| file.number.get()).collect();
        self.remove_others(number, &listed)?;
        Ok(())
    }

    /// A number above those whose names stand for several files.
    fn after_ambiguous(&self, number: u64, which: fn(&Name) -> Option<u64>) -> u64 {
        let ambiguous = self.ambiguous.iter().filter_map(which).max();
        ambiguous.map_or(number, |last| number.max(last + 1))
    }

    fn send_all(
        &self,
        added: &BTreeMap<u64, OwnedFd>,
        number: u64,
        update: &OwnedFd,
    ) -> Result<(), StoreError> {
        for (number, file) in added {
            self.send(Name::File(*number), file.as_fd())?;
        }
        // All files are there before the update that lists them.
        if !added.is_empty() {
            wait_for_manager()?;
        }
        self.send(Name::Update(number), update.as_fd())?;
        wait_for_manager()
    }

    fn send(&self, name: Name, file: BorrowedFd<'_>) -> Result<(), StoreError> {
        let name = self.full_name(name);
        let message = [
            NotifyState::FdStore,
            NotifyState::FdName(&name),
            // A connection whose other end is gone stays: the program is to see that.
            NotifyState::Custom("FDPOLL=0"),
        ];
        let mut sent = sd_notify::notify_with_fds(&message, &[file]);
        if is_too_many_in_flight(&sent) {
            wait_for_manager()?;
            sent = sd_notify::notify_with_fds(&message, &[file]);
        }
        sent.map_err(|source| StoreError::Manager {
            action: "pass a file to",
            source,
        })
    }

    /// Removes all but the update with this number and these files; yields their names.
    fn remove_others(
        &mut self,
        update: u64,
        listed: &BTreeSet<u64>,
    ) -> Result<Vec<String>, StoreError> {
        let updates = self.updates.keys().filter(|&&number| number != update);
        let files = self.files.keys().filter(|number| !listed.contains(number));
        let names = updates
            .map(|number| Name::Update(*number))
            .chain(files.map(|number| Name::File(*number)));
        let names: Vec<Name> = names.collect();
        for name in &names {
            self.remove(*name)?;
            match name {
                Name::Update(number) => self.updates.remove(number),
                Name::File(number) => self.files.remove(number),
            };
        }
        Ok(names.into_iter().map(|name| self.full_name(name)).collect())
    }

    fn remove(&self, name: Name) -> Result<(), StoreError> {
        let name = self.full_name(name);
        let message = [NotifyState::FdStoreRemove, NotifyState::FdName(&name)];
        sd_notify::notify(&message).map_err(|source| StoreError::Manager {
            action: "remove a file from the store of",
            source,
        })
    }

    /// Removes everything of this program from the store: after an update was finished, or to begin
    /// without what is there.
    ///
    /// # Errors
    ///
    /// [`StoreError::Manager`].
    pub fn clear(&mut self) -> Result<(), StoreError> {
        // No update has the number 0.
        self.remove_others(0, &BTreeSet::new())?;
        while let Some(name) = self.ambiguous.pop_first() {
            self.remove(name)?;
        }
        wait_for_manager()
    }

    fn full_name(&self, name: Name) -> String {
        let prefix = &self.prefix;
        match name {
            Name::File(number) => format!("{prefix}.file.{number}"),
            Name::Update(number) => format!("{prefix}.update.{number}"),
        }
    }

    fn parse(&self, full_name: &str) -> Option<Name> {
        let rest = full_name.strip_prefix(&self.prefix)?.strip_prefix('.')?;
        let (kind, digits) = rest.split_once('.')?;
        // The last number is not used, so that there is always a next one.
        let number = digits
            .parse()
            .ok()
            .filter(|&number| number < u64::MAX && number > 0)?;
        let name = match kind {
            "file" => Name::File(number),
            "update" => Name::Update(number),
            _ => return None,
        };
        (self.full_name(name) == full_name).then_some(name)
    }
}

fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    let longest = NAME_MAX - ".update.".len() - u64::MAX.to_string().len();
    let reason = if prefix.is_empty() {
        "it is empty"
    } else if prefix.len() > longest {
        "it is too long: systemd takes names of 255 bytes, of which 227 are left"
    } else if !prefix
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic())
    {
        "systemd takes printable ASCII alone"
    } else if prefix.contains(':') {
        "a colon separates names"
    } else {
        return Ok(());
    };
    let prefix = prefix.into();
    Err(StoreError::Name { prefix, reason })
}

/// The descriptors that the manager passed, with their names. Where the environment of this process
/// is missing, or names another process, no descriptor was passed.
///
/// The environment is the one that the process was started with. What the program has made of it
/// since is not looked at: it could name descriptors that the program opened.
fn passed() -> Result<Vec<(String, OwnedFd)>, StoreError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(StoreError::TakenBefore);
    }
    let unreadable = |error: io::Error| StoreError::Passed(error.to_string());
    let environment = std::fs::read("/proc/self/environ").map_err(unreadable)?;
    let variable = |name: &str| {
        let mut lines = environment.split(|&byte| byte == 0);
        let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    if variable("LISTEN_PID") != Some(std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    let count = variable("LISTEN_FDS").unwrap_or_default();
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        std::env::remove_var(name);
    }
    adopt(&count, &names).map_err(StoreError::Passed)
}

/// The first descriptor that is passed: `SD_LISTEN_FDS_START` of `sd-daemon.h`.
const FIRST: RawFd = 3;

fn adopt(count: &str, names: &str) -> Result<Vec<(String, OwnedFd)>, String> {
    let number = count.parse::<u16>().map(usize::from);
    let number = number.map_err(|_| format!("LISTEN_FDS={count:?} is not a number of files"))?;
    let names: Vec<&str> = match number {
        0 => Vec::new(),
        _ => names.split(':').collect(),
    };
    if names.len() != number {
        return Err(format!(
            "LISTEN_FDS is {number}, LISTEN_FDNAMES has {} names",
            names.len()
        ));
    }
    let named = (FIRST..).zip(names);
    let adopted = named.map(|(fd, name)| {
        let file = sys::adopt_passed(fd);
        let file = file.ok_or_else(|| format!("descriptor {fd}, {name}, is not there"))?;
        Ok((name.to_owned(), file))
    });
    adopted.collect()
}

/// Returns once the manager has worked off what was sent before.
fn wait_for_manager() -> Result<(), StoreError> {
    let failed = |source| StoreError::Manager {
        action: "wait for",
        source,
    };
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let message = [NotifyState::Custom("BARRIER=1")];
    sd_notify::notify_with_fds(&message, &[theirs.as_fd()]).map_err(failed)?;
    drop(theirs);
    // It closes what it got, in its turn.
    match ours.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(failed(io::ErrorKind::InvalidData.into())),
        Err(source) => Err(failed(source)),
    }
}

/// The kernel limits the descriptors that are sent and not received yet.
fn is_too_many_in_flight(sent: &io::Result<()>) -> bool {
    let error = sent.as_ref().err().and_then(io::Error::raw_os_error);
    error == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error())
}

fn write_update(handover: &Handover<'_>, list: &[ListedFile]) -> io::Result<OwnedFd> {
    let memfd = MemfdOptions::default()
        .create("luo-update")
        .map_err(io::Error::other)?;
    let file = memfd.as_file();
    handover.outgoing.write_memory(file)?;
    let memory = file.metadata()?.len();
    let mut rest = handover.devicetree.clone();
    rest.extend_from_slice(list.as_bytes());
    let mut trailer = Trailer {
        magic: MAGIC,
        memory: memory.into(),
        devicetree: (handover.devicetree.len() as u64).into(),
        list: (list.as_bytes().len() as u64).into(),
        crc32c: U64::ZERO,
    };
    trailer.crc32c = trailer.checksum(&rest).into();
    rest.extend_from_slice(trailer.as_bytes());
    file.write_all_at(&rest, memory)?;
    Ok(memfd.into_file().into())
}

impl Trailer {
    /// Over the devicetree, the list, and the trailer with this field as zero.
    fn checksum(&self, rest: &[u8]) -> u64 {
        let fields = &self.as_bytes()[..size_of::<Self>() - size_of::<U64>()];
        u64::from(crc32c::crc32c_append(crc32c::crc32c(rest), fields))
    }
}

/// What an update's memfd holds.
struct Update {
    memory: Vec<u8>,
    devicetree: Vec<u8>,
    list: Vec<ListedFile>,
}

impl Update {
    /// Read as it is now: a memfd that came through a kexec need not be sealed.
    fn read(file: &OwnedFd) -> Result<Self, String> {
        let file = file.try_clone().map(File::from);
        let file = file.map_err(|error| error.to_string())?;
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        if length > UPDATE_MAX {
            return Err(format!("it has {length} bytes, more than {UPDATE_MAX}"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| error.to_string())?;
        Self::parse(bytes)
    }

    fn parse(mut memory: Vec<u8>) -> Result<Self, String> {
        let (_, trailer) = Trailer::ref_from_suffix(&memory).map_err(|_| "it is too short")?;
        if trailer.magic != MAGIC {
            return Err("it does not end as a handover does".into());
        }
        let lengths = [&trailer.memory, &trailer.devicetree, &trailer.list];
        let [memory_length, devicetree, list] = lengths.map(|length| length.get());
        let rest = devicetree.checked_add(list);
        let sum = rest.and_then(|rest| rest.checked_add(memory_length));
        let sum = sum.and_then(|sum| sum.checked_add(size_of::<Trailer>() as u64));
        if sum != Some(memory.len() as u64) {
            return Err("its parts are not as long as it is".into());
        }
        let rest = &memory[memory_length as usize..memory.len() - size_of::<Trailer>()];
        if trailer.crc32c.get() != trailer.checksum(rest) {
            return Err("its checksum is wrong".into());
        }
        let (devicetree, list) = rest.split_at(devicetree as usize);
        let list = <[ListedFile]>::ref_from_bytes(list).map_err(|_| "its list ends early")?;
        let (devicetree, list) = (devicetree.to_vec(), list.to_vec());
        memory.truncate(memory_length as usize);
        Ok(Self {
            memory,
            devicetree,
            list,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outgoing::Outgoing;
    use luo_handler_api::HostServices;
    use proptest::prelude::*;

    fn store(prefix: &str) -> FdStore {
        FdStore {
            prefix: prefix.into(),
            room: None,
            files: BTreeMap::new(),
            updates: BTreeMap::new(),
            ambiguous: BTreeSet::new(),
            others: Vec::new(),
            problems: Vec::new(),
            has_arrived: false,
        }
    }

    fn sample() -> (Outgoing, Vec<ListedFile>) {
        let outgoing = Outgoing::default();
        outgoing.preserve_bytes(b"bytes").unwrap();
        let listed = ListedFile {
            handle: 1.into(),
            number: 2.into(),
            token: 3.into(),
            has_token: 1.into(),
        };
        (outgoing, vec![listed, listed])
    }

    fn written() -> Vec<u8> {
        let (outgoing, list) = sample();
        let devicetree = b"a devicetree".to_vec();
        let handover = Handover {
            devicetree,
            outgoing: &outgoing,
        };
        let file = File::from(write_update(&handover, &list).unwrap());
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn an_update_reads_back_and_a_damaged_one_does_not() {
        let bytes = written();
        let update = Update::parse(bytes.clone()).unwrap();
        assert_eq!(update.devicetree, b"a devicetree");
        assert_eq!(update.list.as_bytes(), sample().1.as_bytes());
        assert_eq!(update.memory.len() as u64, 64 + 32);
        for length in 0..bytes.len() {
            assert!(Update::parse(bytes[..length].to_vec()).is_err(), "{length}");
        }
        for place in update.memory.len()..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(Update::parse(changed).is_err(), "{place}");
        }
    }

    #[test]
    fn names_read_back_and_others_are_not_ours() {
        let store = store("my.program");
        for name in [Name::File(1), Name::Update(7), Name::File(u64::MAX - 1)] {
            assert_eq!(store.parse(&store.full_name(name)), Some(name));
        }
        for other in [
            "",
            "unknown",
            "my.program",
            "my.program.file.",
            "my.program.file.0",
            "my.program.file.01",
            "my.program.file.+1",
            "my.program.file.-1",
            "my.program.file.18446744073709551615",
            "my.program.socket.1",
            "my.program2.file.1",
            "my.file.1",
        ] {
            assert_eq!(store.parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_prefix_that_systemd_would_not_take_is_refused() {
        let long = "a".repeat(228);
        for (prefix, part) in [
            ("", "empty"),
            ("a:b", "colon"),
            ("a\n", "ASCII"),
            ("ä", "ASCII"),
            (&long, "too long"),
        ] {
            let message = check_prefix(prefix).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let longest = store(&long[1..]).full_name(Name::Update(u64::MAX));
        assert!(check_prefix(&long[1..]).is_ok() && longest.len() == NAME_MAX);
    }

    #[test]
    fn what_the_manager_passed_has_to_make_sense() {
        for (count, names, part) in [
            ("", "", "is not a number"),
            ("-1", "a", "is not a number"),
            ("70000", "a", "is not a number"),
            ("1", "a:b", "has 2 names"),
            ("2", "a", "has 1 names"),
        ] {
            let message = adopt(count, names).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(adopt("0", "").unwrap().len(), 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, lengths: [u64; 3]) {
            let rest = bytes.clone();
            let mut trailer = Trailer {
                magic: MAGIC,
                memory: lengths[0].into(),
                devicetree: lengths[1].into(),
                list: lengths[2].into(),
                crc32c: U64::ZERO,
            };
            trailer.crc32c = trailer.checksum(&rest).into();
            let _ = Update::parse([&bytes, trailer.as_bytes()].concat());
            let _ = Update::parse(bytes);
        }
    }
}
