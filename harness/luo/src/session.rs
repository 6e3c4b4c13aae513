// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo session`: sessions of the kernel's Live Update Orchestrator, from the shell.
//!
//! A session lives as long as a process has it open, so what creates one stays and holds it: until
//! it is ended, which gives the session up, or until the kernel jumps, which takes the session
//! along.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use rustix::fs::{fcntl_get_seals, fstat};
use serde::Serialize;

use luo_bench::memory::allocated_bytes;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};

/// The name of a session among a process's open files.
const LINK_PREFIX: &str = "anon_inode:[luo_session]";

/// What `luo session` can do.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Create an empty session and hold it until standard input ends, to see that this kernel can
    Create {
        /// Up to 63 bytes
        name: String,
    },
    /// Create a session, preserve files in it, and hold it until standard input ends or the kernel
    /// jumps
    Preserve {
        /// Up to 63 bytes
        name: String,
        /// A number of your choice and the file; a memfd of a running process is /proc/PID/fd/N
        #[arg(required = true, value_name = "TOKEN=FILE", value_parser = parse_session_file)]
        files: Vec<SessionFile>,
    },
    /// Take a session over after the jump, copy its files' contents, and finish it
    Retrieve {
        /// As it was created
        name: String,
        /// The number it was preserved under, and where the contents go
        #[arg(required = true, value_name = "TOKEN=FILE", value_parser = parse_session_file)]
        files: Vec<SessionFile>,
    },
    /// Finish a session after the jump: what was not retrieved is released
    Finish {
        /// As it was created
        name: String,
    },
    /// List the sessions that processes hold open
    List {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
}

/// A file of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFile {
    token: Token,
    file: PathBuf,
}

fn parse_session_file(text: &str) -> Result<SessionFile, String> {
    let usage = || format!("{text:?} is not TOKEN=FILE, such as 0x10=/proc/4711/fd/5");
    let (token, file) = text.split_once('=').ok_or_else(usage)?;
    let number = match token.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => token.parse(),
    };
    match (number, file) {
        (Err(_), _) | (_, "") => Err(usage()),
        (Ok(token), file) => Ok(SessionFile {
            token: Token(token),
            file: file.into(),
        }),
    }
}

/// Runs one command.
///
/// # Errors
///
/// Those of the kernel, with what to do about them where that is known.
pub fn run(command: SessionCommand) -> Result<ExitCode> {
    match command {
        SessionCommand::Create { name } => {
            let session = Device::open()?.create_session(&name)?;
            hold(&session)?;
        }
        SessionCommand::Preserve { name, files } => preserve(&name, &files)?,
        SessionCommand::Retrieve { name, files } => retrieve(&name, &files)?,
        SessionCommand::Finish { name } => Device::open()?.retrieve_session(&name)?.finish()?,
        SessionCommand::List { json } => list(json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn preserve(name: &str, files: &[SessionFile]) -> Result<()> {
    let session = Device::open()?.create_session(name)?;
    for SessionFile { token, file } in files {
        let opened = File::options().read(true).write(true).open(file);
        let opened = opened.with_context(|| format!("opening {}", file.display()))?;
        session
            .preserve(*token, opened.as_fd())
            .with_context(|| format!("preserving {}", file.display()))?;
        eprintln!("{token}: {}: preserved", file.display());
    }
    hold(&session)
}

/// The session is given up when the caller drops it.
fn hold(session: &Session) -> Result<()> {
    eprintln!(
        "holding session {}; it is given up when standard input ends (Ctrl-D)",
        session.name()?
    );
    io::copy(&mut io::stdin().lock(), &mut io::sink()).context("waiting on standard input")?;
    Ok(())
}

fn retrieve(name: &str, files: &[SessionFile]) -> Result<()> {
    let session = Device::open()?.retrieve_session(name)?;
    for SessionFile { token, file } in files {
        let retrieved = File::from(session.retrieve(*token)?);
        let stat = fstat(&retrieved).context("looking at what was retrieved")?;
        copy(&retrieved, file, stat.st_size as u64)
            .with_context(|| format!("copying token {token} to {}", file.display()))?;
        println!(
            "{token}: {} bytes, {} of memory, seals {:?}, copied to {}",
            stat.st_size,
            allocated_bytes(&retrieved)?,
            fcntl_get_seals(&retrieved).unwrap_or(rustix::fs::SealFlags::empty()),
            file.display()
        );
    }
    Ok(session.finish()?)
}

/// From its beginning, not from its position.
fn copy(from: &File, to: &PathBuf, size: u64) -> io::Result<()> {
    let from = luo_orchestrator::holes::reopen(from.as_fd())?;
    io::copy(&mut from.take(size), &mut File::create(to)?)?;
    Ok(())
}

/// A session that a process holds.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct HeldSession {
    name: String,
    pid: u32,
    program: String,
}

fn list(json: bool) -> Result<()> {
    let sessions = held_sessions()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&sessions)?);
        return Ok(());
    }
    if sessions.is_empty() {
        println!(
            "no process holds a session; what came from the previous kernel is known by name only"
        );
    }
    for HeldSession { name, pid, program } in &sessions {
        println!("{name}  held by {program} ({pid})");
    }
    Ok(())
}

/// The kernel has no list, but each session is an open file of somebody.
fn held_sessions() -> Result<Vec<HeldSession>> {
    let mut sessions = Vec::new();
    for process in fs::read_dir("/proc").context("listing processes")? {
        let process = process.context("listing processes")?;
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process may end meanwhile, or be somebody else's.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for file in files.flatten() {
            let Ok(link) = fs::read_link(file.path()) else {
                continue;
            };
            if let Some(name) = session_name(&link.to_string_lossy()) {
                let program = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                sessions.push(HeldSession {
                    name: name.to_owned(),
                    pid,
                    program: program.trim().to_owned(),
                });
            }
        }
    }
    sessions.sort_by(|one, other| (&one.name, one.pid).cmp(&(&other.name, other.pid)));
    Ok(sessions)
}

fn session_name(link: &str) -> Option<&str> {
    link.strip_prefix(LINK_PREFIX).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_a_token_and_a_file() {
        let entry = |token, file: &str| SessionFile {
            token: Token(token),
            file: file.into(),
        };
        assert_eq!(parse_session_file("0x10=/a=b"), Ok(entry(16, "/a=b")));
        assert_eq!(parse_session_file("7=x"), Ok(entry(7, "x")));
        for wrong in ["", "7", "=x", "x=7", "7=", "-1=x", "0xg=x"] {
            assert!(parse_session_file(wrong).is_err(), "{wrong}");
        }
    }
}
