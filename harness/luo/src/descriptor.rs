// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The open files of running processes, as they are: with their position and flags, also those
//! without a path.

use std::fmt;
use std::fs;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};
use thiserror::Error;

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// A descriptor of a process: `PID:FD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The process.
    pub pid: Pid,
    /// The number it has there.
    pub fd: RawFd,
}

/// Why a descriptor cannot be had.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("taking descriptor {descriptor}: {cause}{hint}")]
pub struct DescriptorError {
    descriptor: Descriptor,
    cause: Errno,
    hint: &'static str,
}

impl Descriptor {
    /// The one that a path such as `/proc/PID/fd/N` or `/dev/stdin` leads to. Opening that would
    /// make another open file, if it can be opened at all.
    pub fn behind(path: &Path) -> Option<Self> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.canonicalize().ok()?,
                _ => PathBuf::from("."),
            };
            let name = path.file_name()?;
            if let Some(pid) = process_of(&parent) {
                let fd = name.to_str()?.parse().ok()?;
                return Some(Self { pid, fd });
            }
            path = parent.join(fs::read_link(parent.join(name)).ok()?);
        }
        None
    }

    /// The open file, which the process has further on.
    ///
    /// # Errors
    ///
    /// What is in the way, with what to do about it.
    pub fn take(self) -> Result<OwnedFd, DescriptorError> {
        let failed = |cause, hint| DescriptorError {
            descriptor: self,
            cause,
            hint,
        };
        let process = pidfd_open(self.pid, PidfdFlags::empty())
            .map_err(|cause| failed(cause, hint_of_process(cause)))?;
        pidfd_getfd(process, self.fd, PidfdGetfdFlags::empty())
            .map_err(|cause| failed(cause, hint_of_descriptor(cause)))
    }
}

/// The process whose descriptors a directory has.
fn process_of(directory: &Path) -> Option<Pid> {
    let parts: Vec<_> = directory.iter().filter_map(|part| part.to_str()).collect();
    match parts[..] {
        ["/", "proc", pid, "fd"] | ["/", "proc", pid, "task", _, "fd"] => {
            Pid::from_raw(pid.parse().ok()?)
        }
        _ => None,
    }
}

fn hint_of_process(cause: Errno) -> &'static str {
    match cause {
        Errno::SRCH => "; there is no such process",
        Errno::INVAL => "; that is a thread, name its process",
        Errno::NOSYS => "; it takes Linux 5.6",
        _ => "",
    }
}

fn hint_of_descriptor(cause: Errno) -> &'static str {
    match cause {
        Errno::BADF => "; the process has no such descriptor, see /proc/PID/fd",
        Errno::SRCH => "; the process has ended",
        Errno::PERM => {
            "; it takes the right to trace the process: be root, or be its user where \
             /proc/sys/kernel/yama/ptrace_scope is 0"
        }
        Errno::NOSYS => "; it takes Linux 5.6",
        Errno::MFILE => "; this process has too many files open, see ulimit -n",
        _ => "",
    }
}

impl FromStr for Descriptor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pid, fd) = text.split_once(':').ok_or(())?;
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(pid) || !is_number(fd) {
            return Err(());
        }
        let pid = pid.parse().ok().and_then(Pid::from_raw).ok_or(())?;
        let fd = fd.parse().map_err(|_| ())?;
        Ok(Self { pid, fd })
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pid.as_raw_nonzero(), self.fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
    use rustix::process::getpid;
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    fn own(file: &impl AsRawFd) -> Descriptor {
        Descriptor {
            pid: getpid(),
            fd: file.as_raw_fd(),
        }
    }

    #[test]
    fn a_descriptor_has_two_numbers() {
        let descriptor: Descriptor = "4711:5".parse().unwrap();
        assert_eq!(descriptor.to_string(), "4711:5");
        for wrong in [
            "", ":", "1", "1:", ":1", "0:1", "-1:1", "+1:1", "1:-1", "a:1", "1:2:3",
        ] {
            assert_eq!(Descriptor::from_str(wrong), Err(()), "{wrong}");
        }
    }

    #[test]
    fn position_and_flags_are_those_of_the_open_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(7)).unwrap();
        fcntl_setfl(&file, OFlags::APPEND).unwrap();
        let mut taken = File::from(own(&file).take().unwrap());
        assert_eq!(taken.stream_position().unwrap(), 7);
        assert!(fcntl_getfl(&taken).unwrap().contains(OFlags::APPEND));
        taken.seek(SeekFrom::Start(8)).unwrap();
        assert_eq!(file.stream_position().unwrap(), 8);
    }

    #[test]
    fn a_file_without_a_path_is_taken_from_another_process() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let mut taken = File::from(Descriptor { pid, fd: 0 }.take().unwrap());
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in the pipe").unwrap();
        let closed = Descriptor { pid, fd: 1000 }.take().unwrap_err();
        assert_eq!(closed.cause, Errno::BADF);
        assert!(
            closed.to_string().contains("no such descriptor"),
            "{closed}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let ended = Descriptor { pid, fd: 0 }.take().unwrap_err();
        assert!(ended.to_string().contains("no such process"), "{ended}");
        let mut text = String::new();
        taken.read_to_string(&mut text).unwrap();
        assert_eq!(text, "in the pipe");
    }

    #[test]
    fn paths_that_lead_to_a_descriptor_are_found() {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        let pid = getpid().as_raw_nonzero();
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(format!("/dev/fd/{fd}"), &link).unwrap();
        for path in [
            format!("/proc/{pid}/fd/{fd}"),
            format!("/proc/self/fd/{fd}"),
            format!("/proc/thread-self/fd/{fd}"),
            format!("/dev/fd/{fd}"),
            format!("/proc/../proc/{pid}/fd/{fd}"),
            link.display().to_string(),
        ] {
            assert_eq!(
                Descriptor::behind(path.as_ref()),
                Some(own(&file)),
                "{path}"
            );
        }
        for path in [
            "/dev/null",
            "/proc/self/status",
            "Cargo.toml",
            "/",
            "",
            "/nonexistent/1",
        ] {
            assert_eq!(Descriptor::behind(path.as_ref()), None, "{path}");
        }
    }

    #[test]
    fn what_is_forbidden_or_unknown_to_the_kernel_has_a_hint() {
        assert!(hint_of_descriptor(Errno::PERM).contains("ptrace_scope"));
        assert!(hint_of_descriptor(Errno::NOSYS).contains("5.6"));
        assert!(hint_of_process(Errno::NOSYS).contains("5.6"));
    }
}
