// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The serial ports of a guest.

use std::fs::{File, OpenOptions};

use anyhow::{Context, Result};

pub(crate) const CONSOLE_PORT: &str = "/dev/ttyS0";
/// Events have a port of their own, so that the kernel's messages do not get between the lines.
pub(crate) const EVENT_PORT: &str = "/dev/ttyS1";
/// So does what a command prints.
pub(crate) const OUTPUT_PORT: &str = "/dev/ttyS2";

pub(crate) fn open_port(path: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {path}"))
}
