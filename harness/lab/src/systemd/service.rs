// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What runs as a service in a guest with systemd.

use anyhow::Result;
use luo_orchestrator::registry::Registry;

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
