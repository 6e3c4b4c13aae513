// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A step at work: a line on the terminal, and a log of what its commands print.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::units::duration;

/// So many lines of a failed command's output are part of the error.
const LINES_SHOWN: usize = 25;

/// Shows that a step is at work, and logs what its commands print.
#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    bar: ProgressBar,
    log: PathBuf,
    log_file: RefCell<File>,
}

impl Progress {
    pub(crate) fn start(
        name: &str,
        what: &str,
        last_time: Option<f64>,
        log: PathBuf,
    ) -> Result<Self> {
        let last_time = last_time.map_or(String::new(), |seconds| {
            format!(" (took {} last time)", duration(seconds))
        });
        eprintln!("lab: {name}: {what}{last_time}");
        let parent = log.parent().context("a log has a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let log_file = RefCell::new(
            File::create(&log).with_context(|| format!("creating {}", log.display()))?,
        );
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(ProgressStyle::with_template(
            "{spinner} {elapsed} {wide_msg}",
        )?);
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Self {
            name: name.into(),
            bar,
            log,
            log_file,
        })
    }

    pub(crate) fn done(&self, seconds: f64) {
        self.bar.finish_and_clear();
        eprintln!("lab: {}: done in {}", self.name, duration(seconds));
    }

    /// Prints something that stays on the screen.
    pub(crate) fn note(&self, message: &str) {
        self.bar
            .suspend(|| eprintln!("lab: {}: {message}", self.name));
    }

    /// Runs a command; what it prints goes to the log, its latest line to the screen. If it fails,
    /// the error shows the end of the log.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (reader, writer) = std::io::pipe().context("making a pipe")?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        // Our copies of the pipe's write end live in the command; they have to go before the reader
        // sees its end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut last = Vec::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            writeln!(self.log_file.borrow_mut(), "{line}")?;
            self.bar.set_message(line.clone());
            if last.len() == LINES_SHOWN {
                last.remove(0);
            }
            last.push(line);
        }
        if !child.wait()?.success() {
            self.bar.finish_and_clear();
            bail!(
                "the step {} failed; the whole of its output is in {}, its end:\n{}",
                self.name,
                self.log.display(),
                last.join("\n")
            );
        }
        Ok(())
    }
}
