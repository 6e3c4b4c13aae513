// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The new program starts beside the old one, which ends only once the new one is ready.
//!
//! The new program inherits the same open files as with [`exec`](super::exec), retrieves them, and
//! reports that it is [`ready`](Predecessor::ready). If it does not get that far, the old one goes
//! on with everything it had, and with a report: how the new one ended and its last lines.
//!
//! ```text
//! old   prepare, freeze, spawn ──┬──────────────── waits ────────┬─ go ── ends
//! new                            └─ arrive, retrieve, finish ── ready ─┴─ serves
//! ```
//!
//! On the old side:
//!
//! ```no_run
//! # use std::{error::Error, time::Duration};
//! # use luo_orchestrator::{orchestrator::Orchestrator, transport::{program::Program, spawn}};
//! # fn update(update: Orchestrator, program: &Program) -> Result<(), Box<dyn Error>> {
//! let successor = update.handover(|handover| {
//!     spawn::spawn(&handover, program, Duration::from_secs(10)).map_err(Box::<dyn Error>::from)
//! });
//! match successor {
//!     Ok(successor) => {
//!         successor.tell_systemd()?; // its process is the service's main process now
//!         update.depart();
//!         std::process::exit(0);
//!     }
//!     Err(error) => {
//!         eprintln!("the update failed, serving on: {error}");
//!         update.cancel()?;
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! On the new side, which works for exec as well:
//!
//! ```no_run
//! # use std::{error::Error, sync::Arc};
//! # use luo_handler_api::Token;
//! # use luo_orchestrator::{orchestrator::Orchestrator, registry::Registry};
//! # use luo_orchestrator::transport::spawn::{self, Predecessor};
//! # fn start() -> Result<(), Box<dyn Error>> {
//! let predecessor = Predecessor::find()?;
//! if let Some(arrival) = spawn::arrive()? {
//!     let new = Orchestrator::arrived(Arc::new(Registry::linked()?), arrival);
//!     let file = new.retrieve(Token(1))?; // an error ends this program; the old one goes on
//!     new.finish()?;
//! }
//! if let Some(predecessor) = predecessor {
//!     predecessor.ready()?; // from here on the files are this program's alone
//! }
//! # Ok(()) }
//! ```
//!
//! # Rules
//!
//! Both programs have the same open files. Until it is ready, the new one must not change what they
//! hold; the old one is frozen and does not change it either. What the new one writes to its
//! standard error until then goes through the old one.
//!
//! The process changes: whoever knows the old one by its id needs the new id. A service of systemd
//! has `NotifyAccess=main` at least, and calls [`Successor::tell_systemd`].

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::net::SendFlags;
use thiserror::Error;

use super::inheritance::{Inherited, Packed};
use super::notify;
use super::program::{BadProgram, Program};
use crate::files::above_streams;
use crate::handover::Handover;
use crate::sys;

pub use super::inheritance::{arrive, ArriveError, HANDOVER_VARIABLE};

/// Where the new program finds the way to report that it is ready.
pub const READY_VARIABLE: &str = "LUO_READY";
/// Where the new program finds its standard error.
pub const STDERR_VARIABLE: &str = "LUO_STDERR";

/// What the new program reports; any text is the reason why it gave up.
const READY: &[u8] = b"\0";
/// What the old program answers.
const GO: &[u8] = b"\0";
/// The longest reason, in bytes.
const REASON_MAX: usize = 4096;
/// Lines of the new program's standard error in a report, and their longest.
const LINES_MAX: usize = 20;
const LINE_BYTES_MAX: usize = 1000;

/// The new program, which has taken over.
#[derive(Debug)]
pub struct Successor {
    process: u32,
}

/// Why the new program did not take over. It has ended, and this process has everything it had.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// It cannot run on this machine; no attempt was made.
    #[error(transparent)]
    Refused(#[from] BadProgram),
    /// It could not be started.
    #[error("cannot start {}: {source}", path.display())]
    Start {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("the new program ended before it was ready: {0}")]
    Ended(LastWords),
    /// It reported that it cannot take over.
    #[error("the new program gave up: {reason}; {end}")]
    GaveUp {
        /// In its own words.
        reason: String,
        /// How it ended.
        end: LastWords,
    },
    /// It was not ready in time, and was killed.
    #[error("the new program was not ready after {after:?} and was killed: {end}")]
    Deadline {
        /// How long it had.
        after: Duration,
        /// How it ended.
        end: LastWords,
    },
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct LastWords {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its last lines on standard error, at most 20.
    pub lines: Vec<String>,
}

impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        match self.lines.is_empty() {
            true => Ok(()),
            false => write!(f, ", its last lines: {}", self.lines.join(" | ")),
        }
    }
}

/// Starts `program` with the handover, and waits until it has taken over.
///
/// # Errors
///
/// [`SpawnError`] if it has not taken over within `deadline`. The update can be unfrozen or
/// cancelled then, as if nothing had happened.
pub fn spawn(
    handover: &Handover<'_>,
    program: &Program,
    deadline: Duration,
) -> Result<Successor, SpawnError> {
    program.check()?;
    let failed = |source| SpawnError::Start {
        path: program.path().to_owned(),
        source,
    };
    let started = Instant::now();
    let mut new = Started::new(handover, program).map_err(failed)?;
    let mut lines = LastLines::default();
    match new.wait(started, deadline, &mut lines) {
        // It may have ended between its report and this answer.
        Ok(Outcome::Ready) => match send(&new.channel, GO) {
            Ok(()) => Ok(Successor {
                process: new.child.id(),
            }),
            Err(_) => Err(SpawnError::Ended(new.end(lines))),
        },
        Ok(Outcome::GaveUp(reason)) => Err(SpawnError::GaveUp {
            reason,
            end: new.end(lines),
        }),
        Ok(Outcome::Ended) => Err(SpawnError::Ended(new.end(lines))),
        Ok(Outcome::Deadline) => Err(SpawnError::Deadline {
            after: deadline,
            end: new.kill(lines),
        }),
        Err(error) => {
            new.kill(lines);
            Err(failed(error))
        }
    }
}

/// A program that is not ready yet.
struct Started {
    child: Child,
    channel: UnixStream,
    stderr: ChildStderr,
}

enum Outcome {
    Ready,
    GaveUp(String),
    Ended,
    Deadline,
}

impl Started {
    fn new(handover: &Handover<'_>, program: &Program) -> io::Result<Self> {
        let packed = Packed::new(handover)?;
        let (channel, theirs) = UnixStream::pair()?;
        let theirs = above_streams(theirs.as_fd())?;
        let stderr = above_streams(io::stderr().as_fd()).ok();
        let mut command = program.command();
        command.env(HANDOVER_VARIABLE, packed.variable()?);
        command.env(READY_VARIABLE, Inherited::of(theirs.as_fd())?.to_string());
        let mut inherited = packed.descriptors();
        inherited.push(theirs.as_fd());
        match &stderr {
            Some(stderr) => {
                command.env(STDERR_VARIABLE, Inherited::of(stderr.as_fd())?.to_string());
                inherited.push(stderr.as_fd());
            }
            None => drop(command.env_remove(STDERR_VARIABLE)),
        }
        command.stderr(Stdio::piped());
        sys::inherit_in_child(&mut command, &inherited);
        let mut child = command.spawn()?;
        let stderr = child.stderr.take();
        Ok(Self {
            stderr: stderr.ok_or_else(|| io::Error::other("its standard error is missing"))?,
            child,
            channel,
        })
    }

    /// Waits for a report, an end or the deadline, and passes standard error on meanwhile.
    fn wait(
        &mut self,
        started: Instant,
        deadline: Duration,
        lines: &mut LastLines,
    ) -> io::Result<Outcome> {
        let mut report = Vec::new();
        let mut has_stderr = true;
        loop {
            let Some(left) = deadline.checked_sub(started.elapsed()) else {
                return Ok(Outcome::Deadline);
            };
            let mut fds = vec![PollFd::new(&self.channel, PollFlags::IN)];
            if has_stderr {
                fds.push(PollFd::new(&self.stderr, PollFlags::IN));
            }
            let timeout = left.max(Duration::from_millis(1)).try_into().ok();
            match poll(&mut fds, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            let [is_reported, has_lines] =
                [0, 1].map(|place| fds.get(place).is_some_and(|fd| !fd.revents().is_empty()));
            if has_lines {
                has_stderr = lines.read(&mut self.stderr)?;
            }
            if is_reported {
                let mut buffer = [0; 512];
                let bytes = match self.channel.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // It ended with an answer of ours unread.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                    read => read?,
                };
                report.extend_from_slice(&buffer[..bytes]);
                if report.starts_with(READY) {
                    return Ok(Outcome::Ready);
                }
                if bytes == 0 || report.len() > REASON_MAX {
                    return Ok(match report.is_empty() {
                        true => Outcome::Ended,
                        false => Outcome::GaveUp(String::from_utf8_lossy(&report).into()),
                    });
                }
            }
        }
    }

    /// Waits for the end of a program that closed the channel; one that does not end is killed.
    fn end(mut self, lines: LastLines) -> LastWords {
        let grace = Instant::now() + Duration::from_secs(1);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < grace {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.kill(lines)
    }

    /// Ends the program.
    fn kill(mut self, mut lines: LastLines) -> LastWords {
        // One that has ended cannot be killed, which is fine.
        let _ = self.child.kill();
        let status = self.child.wait().unwrap_or_default();
        lines.read_what_is_there(&mut self.stderr);
        LastWords {
            status,
            lines: lines.finish(),
        }
    }
}

/// Passes standard error on, and remembers its last lines.
#[derive(Default)]
struct LastLines {
    lines: VecDeque<String>,
    unfinished: Vec<u8>,
}

impl LastLines {
    /// Returns whether there may be more.
    fn read(&mut self, stderr: &mut ChildStderr) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let bytes = match stderr.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            read => read?,
        };
        // What cannot be passed on is still in the report.
        let _ = io::stderr().write_all(&buffer[..bytes]);
        for &byte in &buffer[..bytes] {
            match byte {
                b'\n' => self.end_line(),
                _ if self.unfinished.len() < LINE_BYTES_MAX => self.unfinished.push(byte),
                _ => {}
            }
        }
        Ok(bytes > 0)
    }

    /// A grandchild may have the pipe as well: its end is not waited for.
    fn read_what_is_there(&mut self, stderr: &mut ChildStderr) {
        let now = Some(rustix::event::Timespec::default());
        loop {
            let mut fds = [PollFd::new(stderr, PollFlags::IN)];
            let is_there = poll(&mut fds, now.as_ref()).is_ok_and(|ready| ready > 0);
            if !is_there || !self.read(stderr).unwrap_or(false) {
                return;
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.unfinished).into_owned();
        self.unfinished.clear();
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.unfinished.is_empty() {
            self.end_line();
        }
        self.lines.into()
    }
}

impl Successor {
    /// Its process.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Tells systemd that this is the service's main process now. `false` if this process is not a
    /// service that systemd listens to. To be called before this process ends.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn tell_systemd(&self) -> io::Result<bool> {
        notify::send(&format!("MAINPID={}\n", self.process))
    }
}

/// The old program, as the new one sees it: it waits.
#[derive(Debug)]
pub struct Predecessor {
    channel: UnixStream,
    stderr: Option<OwnedFd>,
}

impl Predecessor {
    /// The program that spawned this one for a live update; `None` if this one was started
    /// otherwise. To be called once, before other threads are started. If it is dropped, the update
    /// is given up.
    ///
    /// # Errors
    ///
    /// If the variable does not name a descriptor that was inherited.
    pub fn find() -> io::Result<Option<Self>> {
        let Some(channel) = take_variable(READY_VARIABLE)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            channel: channel.into(),
            stderr: take_variable(STDERR_VARIABLE)?,
        }))
    }

    /// Reports that this program can take over, and waits until the old one has stopped for good.
    ///
    /// # Errors
    ///
    /// Those of the channel. An old program that was killed meanwhile is not an error: this one
    /// takes over.
    pub fn ready(self) -> io::Result<()> {
        match send(&self.channel, READY) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
        let mut answer = Vec::new();
        match (&self.channel)
            .take(GO.len() as u64)
            .read_to_end(&mut answer)
        {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            read => drop(read?),
        }
        let stderr = match self.stderr {
            Some(stderr) => stderr,
            // The old one had none either.
            None => File::options().write(true).open("/dev/null")?.into(),
        };
        Ok(rustix::stdio::dup2_stderr(stderr)?)
    }

    /// Reports why this program cannot take over: the old one goes on. This one is to end now.
    ///
    /// # Errors
    ///
    /// Those of the channel.
    pub fn give_up(self, reason: &str) -> io::Result<()> {
        match reason.trim_matches('\0') {
            "" => send(&self.channel, b"without a reason"),
            reason => send(&self.channel, reason.as_bytes()),
        }
    }
}

/// Writes to the channel; an end of the other side is an error and not a signal.
fn send(channel: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(channel, bytes, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => bytes = &bytes[sent?..],
        }
    }
    Ok(())
}

/// Takes over the descriptor that an environment variable names.
fn take_variable(name: &str) -> io::Result<Option<OwnedFd>> {
    let Some(value) = std::env::var_os(name) else {
        return Ok(None);
    };
    std::env::remove_var(name);
    let inherited = value.to_str().and_then(|value| value.parse().ok());
    let file = inherited.and_then(Inherited::adopt);
    let wrong = || {
        let message = format!(
            "{name}={value:?} does not name an inherited descriptor; only the transport \
             spawn sets it"
        );
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    file.map(Some).ok_or_else(wrong)
}
