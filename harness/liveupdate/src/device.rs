// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The device `/dev/liveupdate`, and the sessions that it creates and returns.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use luo_handler_api::Token;
use rustix::io::Errno;

use crate::sys::{self, SessionArgument, NAME_LENGTH};

/// Where the kernel offers the orchestrator.
pub const DEVICE_PATH: &str = "/dev/liveupdate";
/// The longest name of a session, in bytes.
pub const SESSION_NAME_MAX: usize = NAME_LENGTH - 1;

/// Why the orchestrator refused a request, with the request and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}{hint}")]
pub struct Error {
    action: String,
    #[source]
    cause: io::Error,
    hint: &'static str,
}

impl Error {
    fn new(action: String, cause: io::Error, hint: &'static str) -> Self {
        Self {
            action,
            cause,
            hint,
        }
    }

    /// The kernel's errno; `None` if the request never reached it.
    pub fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.cause)
    }
}

/// The open device. Only one process may have it open at a time.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Opens [`DEVICE_PATH`].
    ///
    /// # Errors
    ///
    /// `ENOENT` if the kernel has no orchestrator, `EBUSY` if another process has the device open,
    /// `EIO` if the kernel could not read what the previous one left.
    pub fn open() -> Result<Self, Error> {
        let open = OpenOptions::new().read(true).write(true).open(DEVICE_PATH);
        open.map(Self).map_err(|cause| {
            let hint = open_hint(&cause);
            Error::new(format!("opening {DEVICE_PATH}"), cause, hint)
        })
    }

    /// Creates a session. Closing it before the jump gives its files up.
    ///
    /// # Errors
    ///
    /// `EEXIST` if a session has this name.
    pub fn create_session(&self, name: &str) -> Result<Session, Error> {
        let action = || format!("creating session {name}");
        let argument = session_argument(name, action)?;
        let created = sys::create_session(self.0.as_fd(), argument);
        created.map(Session).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::EXIST) => "; choose another name, or close the session of this one",
                _ => "",
            };
            Error::new(action(), cause, hint)
        })
    }

    /// Takes over a session that crossed the jump.
    ///
    /// # Errors
    ///
    /// `ENOENT` if no such session crossed, `EINVAL` if it was taken over before.
    pub fn retrieve_session(&self, name: &str) -> Result<Session, Error> {
        let action = || format!("retrieving session {name}");
        let argument = session_argument(name, action)?;
        let retrieved = sys::retrieve_session(self.0.as_fd(), argument);
        retrieved.map(Session).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::NOENT) => "; no session of this name came from the previous kernel",
                Some(Errno::INVAL) => "; it was retrieved before",
                _ => "",
            };
            Error::new(action(), cause, hint)
        })
    }
}

fn open_hint(cause: &io::Error) -> &'static str {
    match Errno::from_io_error(cause) {
        Some(Errno::NOENT) => "; boot a kernel with CONFIG_LIVEUPDATE and `liveupdate=on kho=on`",
        Some(Errno::BUSY) => "; another process has it open, and only one may",
        Some(Errno::ACCESS | Errno::PERM) => "; it is for root",
        Some(Errno::IO) => "; the kernel could not read what the previous one left, see its log",
        _ => "",
    }
}

fn session_argument(name: &str, action: impl Fn() -> String) -> Result<SessionArgument, Error> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > SESSION_NAME_MAX || bytes.contains(&0) {
        return Err(Error::new(
            action(),
            io::ErrorKind::InvalidInput.into(),
            "; a session's name has 1 to 63 bytes, without zeros",
        ));
    }
    let mut padded = [0; NAME_LENGTH];
    padded[..bytes.len()].copy_from_slice(bytes);
    Ok(SessionArgument::new(padded))
}

/// A session: a set of files that crosses the jump together.
#[derive(Debug)]
pub struct Session(OwnedFd);

impl Session {
    /// Offers a file for preservation under a token.
    ///
    /// # Errors
    ///
    /// `ENOENT` if no handler takes the file, `EBUSY` if it is preserved already, `EEXIST` if the
    /// token is used already; those of the handler.
    pub fn preserve(&self, token: Token, file: BorrowedFd<'_>) -> Result<(), Error> {
        sys::preserve_fd(self.0.as_fd(), file, token).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::NOENT) => "; no registered handler takes this type of file",
                Some(Errno::BUSY) => "; the file is preserved already",
                Some(Errno::EXIST) => "; the token is used already",
                _ => "",
            };
            Error::new(format!("preserving token {token}"), cause, hint)
        })
    }

    /// Rebuilds the file of a token. Doing it again yields the same file.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the session has no such token; those of the handler, which the kernel remembers
    /// and returns again.
    pub fn retrieve(&self, token: Token) -> Result<OwnedFd, Error> {
        sys::retrieve_fd(self.0.as_fd(), token).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::NOENT) => "; the session has no such token",
                _ => "",
            };
            Error::new(format!("retrieving token {token}"), cause, hint)
        })
    }

    /// Releases what is left of the session after the jump.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a handler is not done with one of its files.
    pub fn finish(&self) -> Result<(), Error> {
        sys::finish(self.0.as_fd()).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::BUSY) => "; a handler is not done with one of its files",
                _ => "",
            };
            Error::new("finishing the session".into(), cause, hint)
        })
    }

    /// The session's full name.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if the descriptor is not a session.
    pub fn name(&self) -> Result<String, Error> {
        let name = sys::session_name(self.0.as_fd())
            .map_err(|cause| Error::new("asking for the session's name".into(), cause, ""))?;
        let end = name.iter().position(|&byte| byte == 0);
        Ok(String::from_utf8_lossy(&name[..end.unwrap_or(NAME_LENGTH)]).into_owned())
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Session> for OwnedFd {
    /// To pass the session on.
    fn from(session: Session) -> Self {
        session.0
    }
}

impl From<OwnedFd> for Session {
    /// A session whose descriptor was inherited, or received over a socket.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

/// Whether this kernel offers live updates.
pub fn is_available() -> bool {
    Path::new(DEVICE_PATH).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_name_that_does_not_fit_never_reaches_the_kernel() {
        for name in ["", "a\0b", &"x".repeat(64)] {
            let error = session_argument(name, || "creating".into())
                .map(|_| ())
                .unwrap_err();
            assert!(error.errno().is_none());
            assert!(error.to_string().contains("1 to 63 bytes"), "{error}");
        }
        assert!(session_argument(&"x".repeat(63), String::new).is_ok());
    }

    #[test]
    fn a_missing_device_says_how_to_get_one() {
        let cause = io::Error::from(Errno::NOENT);
        let error = Error::new("opening".into(), cause, open_hint(&Errno::NOENT.into()));
        assert_eq!(error.errno(), Some(Errno::NOENT));
        assert!(error.to_string().contains("liveupdate=on"), "{error}");
    }
}
