// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Error numbers, with the kernel's values and meanings.

use core::fmt;

/// An error number of Linux, `1..=4095`.
///
/// The values are those of `include/uapi/asm-generic/errno-base.h` and `errno.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Errno(u16);

/// The largest error number, `MAX_ERRNO` of `include/linux/err.h`.
pub const MAX_ERRNO: i32 = 4095;

macro_rules! errnos {
    ($($name:ident = $value:literal, $meaning:literal;)*) => {
        impl Errno {
            $(#[doc = $meaning] pub const $name: Self = Self($value);)*
        }

        const TABLE: &[(Errno, &str, &str)] = &[$((Errno::$name, stringify!($name), $meaning)),*];
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such token, or no handler takes the file";
    EINTR = 4, "interrupted system call";
    EIO = 5, "input/output error, or a handler that panicked";
    EBADF = 9, "bad file descriptor";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "file is already preserved, or still in use";
    EEXIST = 17, "already exists";
    ENODEV = 19, "no such device";
    EINVAL = 22, "wrong state, or malformed";
    ENFILE = 23, "too many open files in the system";
    EMFILE = 24, "too many open files";
    EFBIG = 27, "file too large";
    ENOSPC = 28, "no space left";
    ESPIPE = 29, "illegal seek";
    ERANGE = 34, "result out of range";
    ENOSYS = 38, "not implemented";
    ENODATA = 61, "no data available";
    EOVERFLOW = 75, "value too large";
    EOPNOTSUPP = 95, "known but not supported";
    ETIMEDOUT = 110, "timed out";
    EBADMSG = 74, "checksum mismatch";
}

impl Errno {
    /// The error number `code`, if it lies in `1..=4095`.
    pub const fn new(code: i32) -> Option<Self> {
        if code >= 1 && code <= MAX_ERRNO {
            Some(Self(code as u16))
        } else {
            None
        }
    }

    /// The number, `1..=4095`.
    pub const fn code(self) -> i32 {
        self.0 as i32
    }

    /// The name, such as `EINVAL`; `None` for a number without a name here.
    pub fn name(self) -> Option<&'static str> {
        TABLE
            .iter()
            .find(|(errno, ..)| *errno == self)
            .map(|(_, name, _)| *name)
    }

    /// What a C function returns for this error: `-code`.
    pub const fn to_status(self) -> i32 {
        -self.code()
    }

    /// Reads what a C function returned: `0` and above is success, `-4095..=-1` an error number,
    /// and anything below is garbage, which is `EIO`.
    pub const fn from_status(status: i32) -> Result<i32, Self> {
        if status >= 0 {
            return Ok(status);
        }
        match Self::new(status.wrapping_neg()) {
            Some(errno) => Err(errno),
            None => Err(Self::EIO),
        }
    }

    /// Reads what a C function returned that yields nothing: a status above 0 is garbage and
    /// becomes `EIO`.
    pub const fn check(status: i32) -> Result<(), Self> {
        match Self::from_status(status) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Self::EIO),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(luo_kernel)]
impl Errno {
    /// Reads what a C function of the kernel returned: a pointer, or an `ERR_PTR()`.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn from_pointer<T>(pointer: *mut T) -> Result<*mut T, Self> {
        let error = i32::try_from(pointer as isize).unwrap_or(0).wrapping_neg();
        Self::new(error).map_or(Ok(pointer), Err)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TABLE.iter().find(|(errno, ..)| errno == self) {
            Some((_, name, meaning)) => write!(f, "{name} ({meaning})"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl core::error::Error for Errno {}

/// The error number of a failed system call.
#[cfg(feature = "std")]
impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::new(errno.raw_os_error()).unwrap_or(Self::EIO)
    }
}

/// The error number of a failed system call; `EIO` for an error that has no number.
#[cfg(feature = "std")]
impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        error
            .raw_os_error()
            .and_then(Self::new)
            .unwrap_or(Self::EIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_a_success_an_errno_or_garbage() {
        assert_eq!(Errno::from_status(0), Ok(0));
        assert_eq!(Errno::from_status(7), Ok(7));
        assert_eq!(Errno::from_status(-22), Err(Errno::EINVAL));
        assert_eq!(Errno::from_status(-4095), Err(Errno(4095)));
        assert_eq!(Errno::from_status(-4096), Err(Errno::EIO));
        assert_eq!(Errno::from_status(i32::MIN), Err(Errno::EIO));
        assert_eq!(Errno::check(0), Ok(()));
        assert_eq!(Errno::check(1), Err(Errno::EIO));
        assert_eq!(Errno::check(-16), Err(Errno::EBUSY));
    }

    #[test]
    fn the_numbers_are_those_of_libc() {
        assert_eq!(Errno::EOPNOTSUPP.code(), libc::EOPNOTSUPP);
        assert_eq!(Errno::EOVERFLOW.code(), libc::EOVERFLOW);
        assert_eq!(Errno::EBADMSG.code(), libc::EBADMSG);
        assert_eq!(Errno::EBUSY.code(), libc::EBUSY);
        assert_eq!(Errno::ETIMEDOUT.code(), libc::ETIMEDOUT);
        assert_eq!(Errno::EFBIG.code(), libc::EFBIG);
    }

    #[test]
    fn an_unnamed_number_still_prints() {
        assert_eq!(Errno(4000).to_string(), "errno 4000");
        assert!(Errno::EBUSY.to_string().starts_with("EBUSY"));
    }
}
