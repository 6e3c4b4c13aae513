// SPDX-License-Identifier: GPL-2.0-only
//! Registers the handlers of the section `luo_handlers` and the subsystems of `luo_subsystems` with
//! the Live Update Orchestrator.
//!
//! Their ops are made by `luo_handler_api::kernel`, so mainline calls them without this module in
//! between. It answers what they ask of their host and counts the calls. Which there are is decided
//! by Kconfig. The boot parameter `luo_handlers.disable` switches some of them off: a handler then
//! takes no new files, and still retrieves what came in; a subsystem is not registered.
//!
//! Files that came in for a handler that nobody has get a stand-in, in `luo_sessions.c`.
//!
//! # Map
//!
//! - `participant`: what this module knows of a handler or a subsystem
//! - `host`: bytes that cross the jump
//! - `counters`: calls, errors and time of each phase, shown in debugfs
//! - `sections`: what was linked in, and what should have been
//! - `sessions`: what all sessions hold, shown in debugfs
//! - `shim`: what C does for us

#![deny(unsafe_code)] // but at the edges: host, participant, sections, sessions

mod counters;
mod host;
mod participant;
mod sections;
mod sessions;
mod shim;

use kernel::{
    debugfs, fmt,
    prelude::*,
    str::CString,
    sync::atomic::{Atomic, Relaxed},
};
use luo_handler_api::{
    kernel::{HandlerEntry, HandlerRegistration, SubsystemEntry, SubsystemRegistration},
    Errno, Host, NeededBy, Pairs,
};

use participant::{Participant, Shown};
use sessions::Sessions;

module! {
    type: LuoHandlers,
    name: "luo_handlers",
    authors: ["The luo-handlers developers"],
    description: "File handlers for live update",
    license: "GPL v2",
}

/// A handler that is registered; it stays so for good.
type RegisteredHandler = HandlerRegistration<Participant>;
/// It, and how it was linked in.
type Registered = (&'static RegisteredHandler, &'static HandlerEntry);
/// A subsystem that is registered; it stays so for good, with its description.
struct RegisteredSubsystem {
    registration: &'static SubsystemRegistration<Participant>,
    entry: &'static SubsystemEntry,
}

type Shows<T> = Pin<KBox<debugfs::File<T>>>;

/// What lives as long as the kernel.
struct LuoHandlers {
    _handlers: KVec<Shows<&'static RegisteredHandler>>,
    _subsystems: KVec<Shows<RegisteredSubsystem>>,
    _sessions: Shows<Sessions>,
    _preserved_bytes: Shows<&'static Atomic<u64>>,
    _directories: [debugfs::Dir; 2],
}

impl kernel::Module for LuoHandlers {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let directory = debugfs::Dir::new(c"luo_handlers");
        let beside = debugfs::Dir::new(c"luo_subsystems");
        sections::check();
        let mut registered = KVec::new();
        for entry in sections::handlers() {
            // One that cannot be registered is logged, and costs the others nothing.
            if let Some(handler) = register_handler(entry) {
                registered.push((handler, *entry), GFP_KERNEL)?;
            }
        }
        let mut handlers = KVec::new();
        for &(handler, _) in &registered {
            let name = name_in_debugfs(handler, &registered)?;
            handlers.push(show_handler(&directory, &name, handler)?, GFP_KERNEL)?;
        }
        let mut subsystems = KVec::new();
        for entry in sections::subsystems() {
            if let Some(subsystem) = register_subsystem(entry, &registered) {
                subsystems.push(show_subsystem(&beside, subsystem)?, GFP_KERNEL)?;
            }
        }
        Ok(Self {
            _handlers: handlers,
            _subsystems: subsystems,
            _sessions: show_sessions(&directory, Sessions(registered))?,
            _preserved_bytes: show_preserved_bytes(&directory)?,
            _directories: [directory, beside],
        })
    }
}

/// Whether an error has this number. The kernel crate of Linux 7.2 has no names for some.
fn is(error: Error, errno: Errno) -> bool {
    error.to_errno() == -errno.code()
}

/// Logs why something is not registered. If live update is off, that is not an error.
fn log_refusal(participant: &str, origin: &str, error: Error) {
    if is(error, Errno::EOPNOTSUPP) {
        pr_info!("{participant} of {origin}: live update is off; boot with liveupdate=on kho=on\n");
    } else {
        pr_err!("{participant} of {origin} is not registered: {error:?}\n");
    }
}

/// Registers one handler.
fn register_handler(entry: &'static HandlerEntry) -> Option<&'static RegisteredHandler> {
    let (compatible, origin) = (entry.compatible.as_str(), entry.origin);
    let participant = Participant::new(&entry.compatible);
    if let Err(errno) = (entry.init)(Host::new(&host::Explains(participant.name()))) {
        pr_err!(
            "{compatible} of {origin} cannot work here: {}\n",
            Shown(&errno)
        );
        return None;
    }
    let taking = if participant.is_disabled() {
        ", takes no new files (luo_handlers.disable)"
    } else {
        ""
    };
    HandlerRegistration::new(entry, participant)
        .inspect(|_| pr_info!("{compatible} of {origin} is registered{taking}\n"))
        .inspect_err(|error| log_refusal(compatible, origin, *error))
        .ok()
}

/// Registers one subsystem with the handlers whose files need it, and retrieves what came in for
/// it.
fn register_subsystem(
    entry: &'static SubsystemEntry,
    handlers: &[Registered],
) -> Option<RegisteredSubsystem> {
    let (compatible, origin) = (entry.compatible.as_str(), entry.origin);
    let participant = Participant::new(&entry.compatible);
    if participant.is_disabled() {
        pr_info!("{compatible} of {origin} is not registered (luo_handlers.disable)\n");
        return None;
    }
    if let Err(errno) = (entry.init)(Host::new(&host::Explains(participant.name()))) {
        pr_err!(
            "{compatible} of {origin} cannot work here: {}\n",
            Shown(&errno)
        );
        return None;
    }
    let name_of = |handler: &RegisteredHandler| *handler.state.compatible();
    if let NeededBy::Handlers(names) = entry.needed_by {
        for name in names {
            if !handlers
                .iter()
                .any(|(handler, _)| name_of(handler) == *name)
            {
                pr_warn!(
                    "{compatible} of {origin} is for files of {}, which is not registered\n",
                    name.as_str()
                );
            }
        }
    }
    let mut needing = handlers
        .iter()
        .map(|(handler, _)| *handler)
        .filter(|handler| entry.needed_by.includes(&name_of(handler)));
    let Some(first) = needing.next() else {
        pr_err!(
            "{compatible} of {origin} is not registered: no handler that needs it is registered\n"
        );
        return None;
    };
    let registration = SubsystemRegistration::new(entry, participant, first)
        .inspect_err(|error| log_refusal(compatible, origin, *error))
        .ok()?;
    for handler in needing {
        if let Err(error) = registration.also_with(handler) {
            let handler = handler.state.compatible().as_str();
            pr_err!(
                "{compatible} of {origin} does not cross with the files of {handler}: {error:?}\n"
            );
        }
    }
    pr_info!("subsystem {compatible} of {origin} is registered\n");
    match registration.retrieve() {
        Ok(()) => pr_info!("subsystem {compatible} came in\n"),
        Err(error) if is(error, Errno::ENODATA) || is(error, Errno::ENOENT) => {}
        Err(error) => pr_err!("subsystem {compatible}: what came in is lost: {error:?}\n"),
    }
    Some(RegisteredSubsystem {
        registration,
        entry,
    })
}

/// Shows in debugfs how many bytes are preserved for the next kernel beside the files' contents.
fn show_preserved_bytes(directory: &debugfs::Dir) -> Result<Shows<&'static Atomic<u64>>> {
    let file =
        directory.read_callback_file(c"preserved_bytes", &host::PRESERVED_BYTES, &|bytes, f| {
            writeln!(f, "{}", bytes.load(Relaxed))
        });
    KBox::pin_init(file, GFP_KERNEL)
}

/// Shows in debugfs what sessions hold.
fn show_sessions(directory: &debugfs::Dir, sessions: Sessions) -> Result<Shows<Sessions>> {
    let file = directory.read_callback_file(c"sessions", sessions, &|sessions, f| sessions.fmt(f));
    KBox::pin_init(file, GFP_KERNEL)
}

/// The name of a handler's file: with the version, where another handler has the same name.
fn name_in_debugfs(handler: &RegisteredHandler, all: &[Registered]) -> Result<CString> {
    let name = handler.state.name();
    let is_first = |(other, _): &Registered| core::ptr::eq(*other, handler);
    let first = all.iter().find(|(other, _)| other.state.name() == name);
    match first.is_some_and(is_first) {
        true => CString::try_from_fmt(fmt!("{name}")),
        false => CString::try_from_fmt(fmt!("{}", handler.state.compatible().as_str())),
    }
}

/// Shows the counters of a handler in debugfs.
fn show_handler(
    directory: &debugfs::Dir,
    name: &CString,
    handler: &'static RegisteredHandler,
) -> Result<Shows<&'static RegisteredHandler>> {
    let file =
        directory.read_callback_file(name, handler, &|handler, f| handler.state.counters().fmt(f));
    KBox::pin_init(file, GFP_KERNEL)
}

/// Shows the counters of a subsystem in debugfs, and what came in for it until that is finished.
fn show_subsystem(
    directory: &debugfs::Dir,
    subsystem: RegisteredSubsystem,
) -> Result<Shows<RegisteredSubsystem>> {
    let name = CString::try_from_fmt(fmt!("{}", subsystem.registration.state.name()))?;
    let file = directory.read_callback_file(&name, subsystem, &|subsystem, f| {
        subsystem.registration.state.counters().fmt(f)?;
        describe_incoming(subsystem, f)
    });
    KBox::pin_init(file, GFP_KERNEL)
}

fn describe_incoming(subsystem: &RegisteredSubsystem, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let RegisteredSubsystem {
        registration,
        entry,
    } = subsystem;
    let mut written = Ok(());
    let mut sink = |key: &str, value: &str| {
        written = written.and_then(|()| writeln!(f, "{key} {value}"));
    };
    let mut pairs = Pairs::new(&mut sink);
    // Nothing came in, or it is finished.
    let _ = registration.with_incoming(|data| {
        use luo_handler_api::kernel::Around;
        (entry.describe)(data, registration.state.incoming(), &mut pairs)
    });
    written
}
