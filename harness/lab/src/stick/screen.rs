// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The consoles of a machine: its screen and keyboard, and its first serial port. Each may be
//! missing.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{ensure, Context, Result};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::termios::{
    tcflush, tcgetattr, tcgetwinsize, tcsetattr, ControlModes, LocalModes, OptionalActions,
    QueueSelector,
};

const CONSOLES: [&str; 2] = ["/dev/tty1", "/dev/ttyS0"];
/// Of a console that does not know its own.
const WIDTH: usize = 80;

/// The consoles that this machine has.
pub(crate) struct Screen(Vec<File>);

impl Screen {
    pub(crate) fn open() -> Self {
        Self(CONSOLES.iter().filter_map(|path| open(path).ok()).collect())
    }

    /// Columns of the screen.
    pub(crate) fn width(&self) -> usize {
        let widths = self.0.iter().map(tcgetwinsize);
        let widths = widths.flatten().map(|size| usize::from(size.ws_col));
        widths.filter(|&width| width > 0).min().unwrap_or(WIDTH)
    }

    /// Prints a line, or several.
    pub(crate) fn print(&self, text: &str) {
        for mut console in &self.0 {
            // A port without anything behind it refuses.
            let _ = console.write_all(format!("{text}\n").as_bytes());
        }
    }

    /// Waits until somebody presses one of these keys.
    pub(crate) fn ask(&self, keys: &[u8]) -> Result<u8> {
        let mut consoles: Vec<&File> = self.0.iter().collect();
        for console in &consoles {
            // What was typed before the question is no answer.
            let _ = tcflush(console, QueueSelector::IFlush);
        }
        loop {
            ensure!(!consoles.is_empty(), "this machine has no console");
            let mut polled: Vec<PollFd<'_>> = consoles
                .iter()
                .map(|&console| PollFd::new(console, PollFlags::IN))
                .collect();
            poll(&mut polled, None).context("waiting for a key")?;
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut still_there = Vec::new();
            for (mut console, is_ready) in consoles.into_iter().zip(ready) {
                let mut key = [0];
                match is_ready.then(|| console.read(&mut key)) {
                    Some(Ok(1)) if keys.contains(&key[0].to_ascii_lowercase()) => {
                        return Ok(key[0].to_ascii_lowercase())
                    }
                    Some(Ok(0) | Err(_)) => {}
                    _ => still_there.push(console),
                }
            }
            consoles = still_there;
        }
    }
}

/// Opens a console that gives keys one by one and waits for nobody: a serial port may have no
/// carrier.
fn open(path: &str) -> Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    let mut modes = tcgetattr(&console)?;
    modes.control_modes |= ControlModes::CLOCAL;
    modes.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO);
    tcsetattr(&console, OptionalActions::Now, &modes)?;
    let flags = fcntl_getfl(&console)? - OFlags::NONBLOCK;
    fcntl_setfl(&console, flags)?;
    Ok(console)
}
