// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What runs as a service in a guest with systemd, and what all of them have in common.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use luo_orchestrator::registry::Registry;
use sd_notify::NotifyState;

use crate::event::Event;
use crate::systemd::found::Found;
use crate::systemd::{driver, files, store, writer};

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Starts the others, has systemd restart itself and the kernel.
    Driver,
    /// Stores memfds of each kind.
    Files,
    /// Updates itself by the transport fdstore.
    Store,
    /// Writes to a memfd until the jump.
    Writer,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Driver, Self::Files, Self::Store, Self::Writer];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Files => "files",
            Self::Store => "store",
            Self::Writer => "writer",
        }
    }
}

/// Runs as a service of a guest. The program has the handlers of the `registry`.
///
/// # Errors
///
/// The reason, for the log.
pub fn run(service: Service, registry: Registry) -> Result<()> {
    match service {
        Service::Driver => driver::drive(),
        Service::Files => files::serve(),
        Service::Store => store::serve(registry),
        Service::Writer => writer::serve(),
    }
}

/// Reports to the host: systemd opened the port of events for us.
pub(super) fn report(found: Found) -> Result<()> {
    let line = serde_json::to_string(&Event::Found { service: found })? + "\n";
    let mut port = std::io::stdout().lock();
    // In one piece, between the lines of others.
    port.write_all(line.as_bytes())
        .and_then(|()| port.flush())
        .context("reporting to the host")
}

/// Reports to systemd that the service is up. What was stored before is in the store then.
pub(super) fn ready() -> Result<()> {
    sd_notify::notify(&[NotifyState::Ready]).context("reporting to systemd")
}

/// Leaves a file with systemd.
pub(super) fn keep(name: &str, file: &File) -> Result<()> {
    let message = [NotifyState::FdStore, NotifyState::FdName(name)];
    sd_notify::notify_with_fds(&message, &[file.as_fd()]).with_context(|| format!("storing {name}"))
}

/// Runs until it is stopped.
pub(super) fn rest() -> ! {
    loop {
        std::thread::park();
    }
}
