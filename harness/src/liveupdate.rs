// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A typed client of `/dev/liveupdate`, the kernel's Live Update Orchestrator.
//!
//! Mirrors [`include/uapi/linux/liveupdate.h`](https://docs.kernel.org/userspace-api/liveupdate.html).
//!
//! ```no_run
//! # fn example(memfd: std::os::fd::BorrowedFd) -> Result<(), luo_harness::liveupdate::Error> {
//! use luo_harness::liveupdate::Device;
//!
//! let session = Device::open()?.create_session("my-workload")?;
//! session.preserve(0x1, memfd)?;
//! // The session lives as long as its descriptor: keep it open over the jump. Afterwards, in the next kernel:
//! let session = Device::open()?.retrieve_session("my-workload")?;
//! let memfd = session.retrieve(0x1)?;
//! session.finish()?;
//! # Ok(()) }
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

/// Where the kernel offers the orchestrator.
pub const DEVICE_PATH: &str = "/dev/liveupdate";
/// The longest name of a session, in bytes.
pub const SESSION_NAME_MAX: usize = NAME_LENGTH - 1;

/// `LIVEUPDATE_SESSION_NAME_LENGTH`: with the terminating zero.
const NAME_LENGTH: usize = 64;

/// Why the orchestrator refused, with what it was asked and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}{hint}")]
pub struct Error {
    action: String,
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

    /// The kernel's errno; none if the request never reached it.
    pub fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.cause)
    }
}

/// The open device. Only one process may have it open at a time.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Opens [`DEVICE_PATH`].
    pub fn open() -> Result<Self, Error> {
        let open = OpenOptions::new().read(true).write(true).open(DEVICE_PATH);
        open.map(Self).map_err(|cause| {
            let hint = open_hint(&cause);
            Error::new(format!("opening {DEVICE_PATH}"), cause, hint)
        })
    }

    /// Begins a session. Closing it before the jump gives its files up.
    pub fn create_session(&self, name: &str) -> Result<Session, Error> {
        let action = || format!("creating session {name}");
        let mut argument = session_argument(name, action)?;
        let result = sys::create_session(self.0.as_fd(), &mut argument);
        result.map(Session).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::EXIST) => "; choose another name, or close the session of this one",
                _ => "",
            };
            Error::new(action(), cause, hint)
        })
    }

    /// Takes over a session that crossed the jump.
    pub fn retrieve_session(&self, name: &str) -> Result<Session, Error> {
        let action = || format!("retrieving session {name}");
        let mut argument = session_argument(name, action)?;
        let result = sys::retrieve_session(self.0.as_fd(), &mut argument);
        result.map(Session).map_err(|cause| {
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

fn session_argument(
    name: &str,
    action: impl Fn() -> String,
) -> Result<sys::SessionArgument, Error> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > SESSION_NAME_MAX || bytes.contains(&0) {
        let cause = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(Error::new(
            action(),
            cause,
            "; a session's name has 1 to 63 bytes, none of them zero",
        ));
    }
    let mut argument = sys::SessionArgument::default();
    argument.name[..bytes.len()].copy_from_slice(bytes);
    Ok(argument)
}

/// A session: a set of files that crosses the jump together.
#[derive(Debug)]
pub struct Session(OwnedFd);

impl Session {
    /// Offers a file for preservation under a token.
    pub fn preserve(&self, token: u64, file: BorrowedFd<'_>) -> Result<(), Error> {
        sys::preserve_fd(self.0.as_fd(), file.as_raw_fd(), token).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::NOENT) => "; no registered handler takes this kind of file",
                Some(Errno::BUSY) => "; the file is preserved already",
                Some(Errno::EXIST) => "; the token is used already",
                _ => "",
            };
            Error::new(format!("preserving token {token:#x}"), cause, hint)
        })
    }

    /// Rebuilds the file of a token. Doing it again yields the same file.
    pub fn retrieve(&self, token: u64) -> Result<OwnedFd, Error> {
        sys::retrieve_fd(self.0.as_fd(), token).map_err(|cause| {
            let hint = match Errno::from_io_error(&cause) {
                Some(Errno::NOENT) => "; the session has no such token",
                _ => "",
            };
            Error::new(format!("retrieving token {token:#x}"), cause, hint)
        })
    }

    /// Releases what is left of the session after the jump.
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
    pub fn name(&self) -> Result<String, Error> {
        let name = sys::name(self.0.as_fd());
        let name =
            name.map_err(|cause| Error::new("asking for the session's name".into(), cause, ""))?;
        let end = name
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(NAME_LENGTH);
        Ok(String::from_utf8_lossy(&name[..end]).into_owned())
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Session {
    /// A session whose descriptor came some other way, inherited for one.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

/// Whether this kernel offers live updates.
pub fn is_available() -> bool {
    Path::new(DEVICE_PATH).exists()
}

/// The ioctls, as the header has them.
mod sys {
    use super::{io, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, NAME_LENGTH};

    /// `_IO(0xBA, number)`: no direction and no size in the number, the struct says its size itself.
    const fn request(number: u64) -> u64 {
        0xBA << 8 | number
    }

    const CREATE_SESSION: u64 = request(0x00);
    const RETRIEVE_SESSION: u64 = request(0x01);
    const PRESERVE_FD: u64 = request(0x40);
    const RETRIEVE_FD: u64 = request(0x41);
    const FINISH: u64 = request(0x42);
    const GET_NAME: u64 = request(0x43);

    /// `struct liveupdate_ioctl_create_session`, which `struct liveupdate_ioctl_retrieve_session` equals.
    #[repr(C)]
    pub(super) struct SessionArgument {
        size: u32,
        descriptor: i32,
        pub(super) name: [u8; NAME_LENGTH],
    }

    impl Default for SessionArgument {
        fn default() -> Self {
            Self {
                size: size_of::<Self>() as u32,
                descriptor: -1,
                name: [0; NAME_LENGTH],
            }
        }
    }

    /// `struct liveupdate_session_preserve_fd`, which `struct liveupdate_session_retrieve_fd` equals.
    #[repr(C)]
    pub(super) struct FileArgument {
        size: u32,
        descriptor: i32,
        token: u64,
    }

    /// `struct liveupdate_session_finish`.
    #[repr(C)]
    struct FinishArgument {
        size: u32,
        reserved: u32,
    }

    /// `struct liveupdate_session_get_name`.
    #[repr(C)]
    struct NameArgument {
        size: u32,
        reserved: u32,
        name: [u8; NAME_LENGTH],
    }

    pub(super) fn create_session(
        device: BorrowedFd<'_>,
        argument: &mut SessionArgument,
    ) -> io::Result<OwnedFd> {
        // SAFETY: the argument is the one this request takes, and says its size.
        unsafe { ioctl(device, CREATE_SESSION, argument) }?;
        // SAFETY: the kernel made this descriptor for us just now; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(argument.descriptor) })
    }

    pub(super) fn retrieve_session(
        device: BorrowedFd<'_>,
        argument: &mut SessionArgument,
    ) -> io::Result<OwnedFd> {
        // SAFETY: the argument is the one this request takes, and says its size.
        unsafe { ioctl(device, RETRIEVE_SESSION, argument) }?;
        // SAFETY: the kernel made this descriptor for us just now; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(argument.descriptor) })
    }

    pub(super) fn preserve_fd(
        session: BorrowedFd<'_>,
        descriptor: i32,
        token: u64,
    ) -> io::Result<()> {
        let mut argument = FileArgument {
            size: size_of::<FileArgument>() as u32,
            descriptor,
            token,
        };
        // SAFETY: the argument is the one this request takes, and says its size.
        unsafe { ioctl(session, PRESERVE_FD, &mut argument) }
    }

    pub(super) fn retrieve_fd(session: BorrowedFd<'_>, token: u64) -> io::Result<OwnedFd> {
        let mut argument = FileArgument {
            size: size_of::<FileArgument>() as u32,
            descriptor: -1,
            token,
        };
        // SAFETY: the argument is the one this request takes, and says its size.
        unsafe { ioctl(session, RETRIEVE_FD, &mut argument) }?;
        // SAFETY: the kernel made this descriptor for us just now; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(argument.descriptor) })
    }

    pub(super) fn finish(session: BorrowedFd<'_>) -> io::Result<()> {
        let mut argument = FinishArgument {
            size: size_of::<FinishArgument>() as u32,
            reserved: 0,
        };
        // SAFETY: the argument is the one this request takes, and says its size.
        unsafe { ioctl(session, FINISH, &mut argument) }
    }

    pub(super) fn name(session: BorrowedFd<'_>) -> io::Result<[u8; NAME_LENGTH]> {
        let mut argument = NameArgument {
            size: size_of::<NameArgument>() as u32,
            reserved: 0,
            name: [0; NAME_LENGTH],
        };
        // SAFETY: the argument is the one this request takes, and says its size.
        unsafe { ioctl(session, GET_NAME, &mut argument) }?;
        Ok(argument.name)
    }

    /// One request.
    ///
    /// # Safety
    ///
    /// `T` is the struct that `request` takes, and its first field holds its size: the kernel reads and writes that much.
    unsafe fn ioctl<T>(
        descriptor: BorrowedFd<'_>,
        request: u64,
        argument: &mut T,
    ) -> io::Result<()> {
        // SAFETY: the descriptor is open, the argument valid for reads and writes of the size it names (caller's promise).
        let result = unsafe {
            libc::ioctl(
                descriptor.as_raw_fd(),
                request as _,
                std::ptr::from_mut(argument),
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn layouts_are_those_of_the_header() {
            assert_eq!(size_of::<SessionArgument>(), 72);
            assert_eq!(size_of::<FileArgument>(), 16);
            assert_eq!(size_of::<FinishArgument>(), 8);
            assert_eq!(size_of::<NameArgument>(), 72);
            assert_eq!(
                (CREATE_SESSION, PRESERVE_FD, GET_NAME),
                (0xBA00, 0xBA40, 0xBA43)
            );
        }
    }
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
        let error = Error::new(
            "opening".into(),
            io::Error::from_raw_os_error(libc::ENOENT),
            open_hint(&Errno::NOENT.into()),
        );
        assert_eq!(error.errno(), Some(Errno::NOENT));
        assert!(error.to_string().contains("liveupdate=on"), "{error}");
    }
}
