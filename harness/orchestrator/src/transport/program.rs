// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The program that an update starts: its file, arguments and environment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use luo_handler_api::Errno;
use thiserror::Error;

use super::executable::check_executable;
use crate::sys::{self, RawProgram};

pub use super::executable::{BadProgram, BadProgramReason};

/// How systemd passes sockets: they do not cross a jump, so the new program does not get these
/// variables. It would take for a socket what has its number now.
const LISTEN_VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A program to jump to.
///
/// Its path is used as it is, without a search. Its environment is that of this process at the time
/// of the jump, with the changes that are made here, and without `LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES` unless they are set here.
///
/// After this program's own file was replaced, `/proc/self/exe` is the old one still: name the new
/// file by its path.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, Option<OsString>>,
}

/// Why a program was not started; the process is as it was.
#[derive(Debug, Error)]
pub enum JumpError {
    /// It cannot run on this machine; no attempt was made.
    #[error(transparent)]
    Refused(#[from] BadProgram),
    /// The system refuses it.
    #[error("cannot start {}: {source}", path.display())]
    Exec {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl JumpError {
    /// The error number of it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused(bad) => bad.errno(),
            Self::Exec { source, .. } => source
                .raw_os_error()
                .and_then(Errno::new)
                .unwrap_or(Errno::EIO),
        }
    }
}

impl Program {
    /// The program in this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
        }
    }

    /// The program, arguments and changes of the environment of a command.
    ///
    /// What a [`Command`] does not reveal is not taken over: `env_clear`, its streams, user, group
    /// and directory.
    pub fn from_command(command: &Command) -> Self {
        let arguments = command.get_args().map(OsStr::to_owned);
        let environment = command.get_envs();
        Self {
            path: command.get_program().into(),
            arguments: arguments.collect(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.map(OsStr::to_owned)))
                .collect(),
        }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an argument; the name of the program is there already.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        let arguments = arguments.into_iter();
        self.arguments
            .extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        let value = value.as_ref().to_owned();
        self.environment
            .insert(name.as_ref().to_owned(), Some(value));
        self
    }

    /// Leaves an environment variable out.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.environment.insert(name.as_ref().to_owned(), None);
        self
    }

    /// Looks whether its file can run on this machine. Every jump does so, but only once the
    /// workload stands still; to ask before costs nothing.
    ///
    /// # Errors
    ///
    /// [`BadProgram`], with the reason.
    pub fn check(&self) -> Result<(), BadProgram> {
        check_executable(&self.path)
    }

    /// The same as a command that runs beside this process.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        for name in LISTEN_VARIABLES {
            command.env_remove(name);
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Replaces this process, without a handover: the program inherits the standard streams alone.
    ///
    /// # Errors
    ///
    /// Returns only if it failed; nothing has changed then.
    pub fn replace_process(&self) -> JumpError {
        self.replace_process_with(&[])
    }

    /// The same, and the program inherits `files`.
    pub(super) fn replace_process_with(&self, files: &[BorrowedFd<'_>]) -> JumpError {
        if let Err(bad) = self.check() {
            return bad.into();
        }
        let source = match self.raw() {
            Ok(raw) => sys::replace_process(&raw, files),
            Err(error) => error,
        };
        JumpError::Exec {
            path: self.path.clone(),
            source,
        }
    }

    fn raw(&self) -> io::Result<RawProgram> {
        let path = sys::c_string(self.path.as_os_str().as_bytes())?;
        let arguments = self.arguments.iter();
        let arguments = arguments.map(|argument| sys::c_string(argument.as_bytes()));
        Ok(RawProgram {
            arguments: std::iter::once(Ok(path.clone()))
                .chain(arguments)
                .collect::<io::Result<_>>()?,
            environment: self.environment()?,
            path,
        })
    }

    fn environment(&self) -> io::Result<Vec<std::ffi::CString>> {
        let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        for name in LISTEN_VARIABLES {
            variables.remove(OsStr::new(name));
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => variables.insert(name.clone(), value.clone()),
                None => variables.remove(name),
            };
        }
        let lines = variables.iter();
        lines
            .map(|(name, value)| sys::c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect()
    }
}
