// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Loads the next kernel and jumps into it.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{bail, Context, Result};
use rustix::io::Errno;
use rustix::system::RebootCommand;

/// The longest command line an x86 kernel takes, in bytes, without the terminating zero.
pub const COMMAND_LINE_MAX: usize = 2047;

/// Why this machine cannot jump into another kernel and take its files along; none if it can.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("loading a kernel is for root".into());
    }
    if read_trimmed("/proc/sys/kernel/kexec_load_disabled").as_deref() == Some("1") {
        return Some(
            "kexec was switched off until the next boot (kernel.kexec_load_disabled is 1)".into(),
        );
    }
    if !crate::liveupdate::is_available() {
        return Some("this kernel has no /dev/liveupdate: it needs CONFIG_LIVEUPDATE, booted with `liveupdate=on kho=on`".into());
    }
    None
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Loads the kernel that [`jump`] will start.
pub fn load(kernel: &Path, initramfs: &Path, command_line: &str) -> Result<()> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
    load_files(
        open(kernel)?.as_fd(),
        open(initramfs)?.as_fd(),
        command_line,
    )
}

/// Like [`load`], from open files.
pub fn load_files(
    kernel: BorrowedFd<'_>,
    initramfs: BorrowedFd<'_>,
    command_line: &str,
) -> Result<()> {
    if command_line.len() > COMMAND_LINE_MAX {
        bail!(
            "the kernel's command line has {} bytes, and {COMMAND_LINE_MAX} are the most",
            command_line.len()
        );
    }
    let command_line =
        CString::new(command_line).context("the kernel's command line holds a zero byte")?;
    sys::kexec_file_load(kernel, initramfs, &command_line)
        .map_err(|errno| anyhow::anyhow!("loading the next kernel: {errno}{}", load_hint(errno)))
}

/// Gives up the kernel that was loaded, if any: a later `reboot` is an ordinary one again.
pub fn unload() -> Result<()> {
    sys::kexec_file_unload().context("unloading the next kernel")
}

fn load_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "; it takes root, and a kernel not locked down",
        Errno::NOSYS => "; this kernel is built without CONFIG_KEXEC_FILE",
        Errno::NOEXEC => "; the file is no kernel image for this machine",
        Errno::BUSY => "; another load or jump is under way",
        Errno::KEYREJECTED | Errno::NOKEY => "; this kernel asks for a signed image",
        Errno::ADDRNOTAVAIL | Errno::NOMEM => {
            "; no room: give kexec handover more scratch memory (kho_scratch=)"
        }
        _ => "; see the kernel log",
    }
}

/// Jumps into the loaded kernel. Returns only if that was refused, by a handler's freeze for one; then everything runs on.
pub fn jump() -> Errno {
    match rustix::system::reboot(RebootCommand::Kexec) {
        Ok(()) => Errno::INVAL,
        Err(errno) => errno,
    }
}

/// Jumps, and says why that was refused.
pub fn jump_refused() -> anyhow::Error {
    let errno = jump();
    anyhow::anyhow!(
        "the jump was refused: {errno}; the kernel log may say who did, and this kernel runs on"
    )
}

/// A command line with more parameters: they end where two dashes begin the arguments of init.
pub fn with_parameters(command_line: &str, more: &str) -> String {
    let words: Vec<&str> = command_line.split_whitespace().collect();
    let end = words.iter().position(|&word| word == "--");
    let (parameters, arguments) = words.split_at(end.unwrap_or(words.len()));
    let more: Vec<&str> = more.split_whitespace().collect();
    [parameters, &more, arguments].concat().join(" ")
}

/// The system call that nobody wraps.
mod sys {
    use super::{BorrowedFd, CString, Errno};
    use std::os::fd::AsRawFd;

    pub(super) fn kexec_file_load(
        kernel: BorrowedFd<'_>,
        initramfs: BorrowedFd<'_>,
        command_line: &CString,
    ) -> Result<(), Errno> {
        // SAFETY: both descriptors are open, and the command line is readable for its length, which counts its final zero.
        let result = unsafe {
            libc::syscall(
                libc::SYS_kexec_file_load,
                kernel.as_raw_fd(),
                initramfs.as_raw_fd(),
                command_line.as_bytes_with_nul().len(),
                command_line.as_ptr(),
                0usize,
            )
        };
        outcome(result)
    }

    /// `KEXEC_FILE_UNLOAD`
    const UNLOAD: usize = 1;

    pub(super) fn kexec_file_unload() -> Result<(), Errno> {
        // SAFETY: with this flag the kernel looks at none of the other arguments.
        let result =
            unsafe { libc::syscall(libc::SYS_kexec_file_load, -1, -1, 0usize, 0usize, UNLOAD) };
        outcome(result)
    }

    fn outcome(result: libc::c_long) -> Result<(), Errno> {
        if result == 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
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
        let error = load_files(
            file.as_fd(),
            file.as_fd(),
            &"x".repeat(COMMAND_LINE_MAX + 1),
        )
        .unwrap_err();
        assert!(error.to_string().contains("2048 bytes"), "{error}");
    }
}
