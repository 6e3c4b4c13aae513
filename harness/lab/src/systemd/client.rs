// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the services have in common: reports to the host and to systemd.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use sd_notify::NotifyState;

use crate::event::Event;
use crate::systemd::found::Found;

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
