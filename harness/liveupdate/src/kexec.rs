// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Loads the next kernel and jumps into it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::RebootCommand;

use crate::sys;

/// The longest command line an x86 kernel takes, in bytes, without the terminating zero.
pub const COMMAND_LINE_MAX: usize = 2047;

/// Why there is no jump.
#[derive(Debug, thiserror::Error)]
pub enum KexecError {
    /// A file of the next kernel that cannot be opened.
    #[error("opening {}: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A command line that no kernel takes, with its length in bytes.
    #[error("the kernel's command line has {0} bytes; the longest has {COMMAND_LINE_MAX}")]
    CommandLineTooLong(usize),
    /// A command line with a zero byte in it.
    #[error("the kernel's command line contains a zero byte")]
    CommandLineZero,
    /// The kernel did not load it.
    #[error("loading the next kernel: {0}{hint}", hint = load_hint(.0))]
    Load(#[source] io::Error),
    /// The kernel did not give up the one that is loaded.
    #[error("unloading the next kernel: {0}")]
    Unload(#[source] io::Error),
    /// The jump was refused, by the freeze of a handler for example; everything runs on.
    #[error("the jump was refused: {0}; the kernel log may name the handler; this kernel runs on")]
    Refused(#[source] Errno),
}

/// Why this machine cannot jump into another kernel and take its files along; `None` if it can.
pub fn obstacle() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("loading a kernel takes root");
    }
    let disabled = fs::read_to_string("/proc/sys/kernel/kexec_load_disabled");
    if disabled.is_ok_and(|disabled| disabled.trim() == "1") {
        return Some(
            "kexec was switched off until the next boot (kernel.kexec_load_disabled is 1)",
        );
    }
    if !crate::is_available() {
        return Some(
            "this kernel has no /dev/liveupdate: it needs CONFIG_LIVEUPDATE, booted with \
             `liveupdate=on kho=on`",
        );
    }
    None
}

/// Loads the kernel that [`jump`] will start.
///
/// # Errors
///
/// [`KexecError`], with what to do next where that is known.
pub fn load(kernel: &Path, initramfs: &Path, command_line: &str) -> Result<(), KexecError> {
    let open = |path: &Path| {
        File::open(path).map_err(|cause| KexecError::Open {
            path: path.to_owned(),
            cause,
        })
    };
    let (kernel, initramfs) = (open(kernel)?, open(initramfs)?);
    load_files(kernel.as_fd(), initramfs.as_fd(), command_line)
}

/// Like [`load`], from open files.
///
/// # Errors
///
/// Those of [`load`].
pub fn load_files(
    kernel: BorrowedFd<'_>,
    initramfs: BorrowedFd<'_>,
    command_line: &str,
) -> Result<(), KexecError> {
    if command_line.len() > COMMAND_LINE_MAX {
        return Err(KexecError::CommandLineTooLong(command_line.len()));
    }
    let command_line = CString::new(command_line).map_err(|_| KexecError::CommandLineZero)?;
    sys::kexec_file_load(kernel, initramfs, &command_line).map_err(KexecError::Load)
}

/// Gives up the kernel that was loaded, if any: a later `reboot` is an ordinary one again.
///
/// # Errors
///
/// [`KexecError::Unload`].
pub fn unload() -> Result<(), KexecError> {
    sys::kexec_file_unload().map_err(KexecError::Unload)
}

fn load_hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => "; it takes root, and a kernel that is not locked down",
        Some(Errno::NOSYS) => "; this kernel is built without CONFIG_KEXEC_FILE",
        Some(Errno::NOEXEC) => "; the file is not a kernel image for this machine",
        Some(Errno::BUSY) => "; another load or jump is under way",
        Some(Errno::KEYREJECTED | Errno::NOKEY) => "; this kernel asks for a signed image",
        Some(Errno::ADDRNOTAVAIL | Errno::NOMEM) => {
            "; no room: give kexec handover more scratch memory (kho_scratch=)"
        }
        _ => "; see the kernel log",
    }
}

/// Jumps into the loaded kernel. Returns only if that was refused; then everything runs on.
pub fn jump() -> KexecError {
    KexecError::Refused(match rustix::system::reboot(RebootCommand::Kexec) {
        Ok(()) => Errno::INVAL,
        Err(errno) => errno,
    })
}

/// A command line with more parameters: they end where two dashes begin the arguments of init.
pub fn with_parameters(command_line: &str, more: &str) -> String {
    let words: Vec<&str> = command_line.split_whitespace().collect();
    let end = words.iter().position(|&word| word == "--");
    let (parameters, arguments) = words.split_at(end.unwrap_or(words.len()));
    let more: Vec<&str> = more.split_whitespace().collect();
    [parameters, &more, arguments].concat().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_before_the_arguments_of_init() {
        assert_eq!(with_parameters("a  b", " c d"), "a b c d");
        assert_eq!(with_parameters("a -- b", "c"), "a c -- b");
        assert_eq!(with_parameters("", "c"), "c");
    }

    #[test]
    fn a_command_line_that_does_not_fit_is_refused_here() {
        let file = tempfile::tempfile().unwrap();
        let load = |command_line: &str| load_files(file.as_fd(), file.as_fd(), command_line);
        let error = load(&"x".repeat(COMMAND_LINE_MAX + 1)).unwrap_err();
        assert!(error.to_string().contains("2048 bytes"), "{error}");
        let error = load("a\0b").unwrap_err();
        assert!(error.to_string().contains("zero byte"), "{error}");
    }
}
