// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Reports events to the host.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};

use crate::event::Event;
use crate::guest::ports::{open_port, EVENT_PORT};

/// Reports to the host what happens.
pub(crate) struct Reporter(File);

impl Reporter {
    pub(crate) fn open() -> Result<Self> {
        open_port(EVENT_PORT).map(Self)
    }

    pub(crate) fn report(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event)? + "\n";
        self.0
            .write_all(line.as_bytes())
            .context("reporting to the host")?;
        // What is still in the port's buffer would be lost at the jump.
        rustix::termios::tcdrain(&self.0).context("reporting to the host")
    }
}
