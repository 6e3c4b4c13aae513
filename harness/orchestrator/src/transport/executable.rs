// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Whether a file can run on this machine, as far as that is known before an exec.
//!
//! An exec that fails late ends the process: once the kernel has accepted the file there is nobody
//! to return to. So the headers are checked first: class, machine, that the file is as long as its
//! segments, and that its interpreter is there.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use luo_handler_api::Errno;
use rustix::fs::{access, Access};
use thiserror::Error;

/// A file that cannot run on this machine.
#[derive(Debug, Error)]
#[error("cannot run {}: {reason}", path.display())]
pub struct BadProgram {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: BadProgramReason,
}

/// Why a file cannot run on this machine.
#[derive(Debug, Error)]
pub enum BadProgramReason {
    /// It is not there, or may not be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is a directory, a device or the like.
    #[error("it is not a regular file")]
    NotAFile,
    /// It may not be executed.
    #[error("it may not be executed; chmod +x makes it a program")]
    NotExecutable,
    /// It is neither a binary nor a script.
    #[error("it is neither an ELF file nor does it begin with #!")]
    NotAProgram,
    /// It was built for another machine.
    #[error("it is {found}, this machine runs {expected}")]
    OtherMachine {
        /// What the file is.
        found: String,
        /// What this program is.
        expected: String,
    },
    /// A part of it is missing.
    #[error("it ends early: its headers name {expected} bytes, it has {found}")]
    Truncated {
        /// Bytes that its headers name.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// Its headers do not make sense.
    #[error("its ELF headers are malformed")]
    Malformed,
    /// The program that is to run it cannot run.
    #[error("its interpreter cannot run: {0}")]
    Interpreter(Box<BadProgram>),
}

impl BadProgram {
    /// The error number that the kernel has for it.
    pub fn errno(&self) -> Errno {
        match &self.reason {
            BadProgramReason::Unreadable(error) => error
                .raw_os_error()
                .and_then(Errno::new)
                .unwrap_or(Errno::EIO),
            BadProgramReason::NotAFile | BadProgramReason::NotExecutable => Errno::EACCES,
            BadProgramReason::Interpreter(interpreter) => interpreter.errno(),
            _ => ENOEXEC,
        }
    }
}

const ENOEXEC: Errno = match Errno::new(libc::ENOEXEC) {
    Some(errno) => errno,
    None => Errno::EIO,
};

/// Interpreters of interpreters; the kernel's limit is five.
const DEPTH_MAX: usize = 5;

/// Checks a program, and the interpreters that it names.
pub(super) fn check_executable(path: &Path) -> Result<(), BadProgram> {
    check_to_depth(path, DEPTH_MAX)
}

fn check_to_depth(path: &Path, depth: usize) -> Result<(), BadProgram> {
    let bad = |reason| BadProgram {
        path: path.to_owned(),
        reason,
    };
    let interpreter = interpreter_of(path).map_err(bad)?;
    match interpreter {
        Some(interpreter) if depth > 0 => check_to_depth(&interpreter, depth - 1)
            .map_err(|error| bad(BadProgramReason::Interpreter(Box::new(error)))),
        _ => Ok(()),
    }
}

/// Checks one file; returns the interpreter that it needs.
fn interpreter_of(path: &Path) -> Result<Option<PathBuf>, BadProgramReason> {
    use BadProgramReason::{NotAFile, NotAProgram, NotExecutable, Unreadable};
    let metadata = std::fs::metadata(path).map_err(Unreadable)?;
    if !metadata.is_file() {
        return Err(NotAFile);
    }
    access(path, Access::EXEC_OK).map_err(|_| NotExecutable)?;
    let file = match File::open(path) {
        // A program that may be executed and not be read is one of which nothing more is known.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        file => file.map_err(Unreadable)?,
    };
    // Of what was opened: a path may lead elsewhere by now, and qemu-user opens the program that it
    // runs as /proc/self/exe, of which stat(2) does not know.
    let bytes = file.metadata().map_err(Unreadable)?.len();
    let mut start = [0; 256];
    let length = read_up_to(&file, &mut start, 0).map_err(Unreadable)?;
    match &start[..length] {
        [0x7f, b'E', b'L', b'F', ..] => elf::interpreter_of(&file, bytes),
        [b'#', b'!', line @ ..] => Ok(Some(interpreter_of_script(line).ok_or(NotAProgram)?)),
        _ => Err(NotAProgram),
    }
}

/// The first word after `#!`.
fn interpreter_of_script(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let mut words = line.split(|&byte| byte == b' ' || byte == b'\t');
    let path = words.find(|word| !word.is_empty())?;
    Some(std::ffi::OsStr::from_bytes(path).into())
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(bytes) => length += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The headers of ELF files, as `man 5 elf` has them.
mod elf {
    use super::*;
    use BadProgramReason::{Malformed, OtherMachine, Truncated, Unreadable};

    const CLASS_64: u8 = 2;
    const CLASS: u8 = if usize::BITS == 64 { CLASS_64 } else { 1 };
    const LITTLE_ENDIAN: u8 = 1;
    const ORDER: u8 = if cfg!(target_endian = "little") {
        LITTLE_ENDIAN
    } else {
        2
    };
    /// `e_machine` of this program, which runs on this machine; `None` where it is not known here.
    const MACHINE: Option<u16> = if cfg!(target_arch = "x86_64") {
        Some(62)
    } else if cfg!(target_arch = "aarch64") {
        Some(183)
    } else if cfg!(any(target_arch = "riscv64", target_arch = "riscv32")) {
        Some(243)
    } else if cfg!(target_arch = "s390x") {
        Some(22)
    } else if cfg!(target_arch = "powerpc64") {
        Some(21)
    } else if cfg!(target_arch = "arm") {
        Some(40)
    } else if cfg!(target_arch = "x86") {
        Some(3)
    } else {
        None
    };

    const SEGMENT_LOAD: u32 = 1;
    const SEGMENT_INTERPRETER: u32 = 3;
    const EXECUTABLE: u16 = 2;
    const SHARED: u16 = 3;
    /// `PATH_MAX` of `include/uapi/linux/limits.h`, the kernel's limit for an interpreter.
    const PATH_MAX: u64 = 4096;
    /// 64 KiB of program headers of 32 bytes at least, which is what the kernel takes.
    const SEGMENTS_MAX: u16 = 2048;

    fn machine_name(class: u8, machine: u16) -> String {
        let bits = if class == CLASS_64 { 64 } else { 32 };
        match machine {
            3 => "for x86".to_owned(),
            21 => "for powerpc64".to_owned(),
            22 => "for s390x".to_owned(),
            40 => "for arm".to_owned(),
            62 => "for x86_64".to_owned(),
            183 => "for aarch64".to_owned(),
            243 => format!("for riscv, {bits} bits"),
            other => format!("for ELF machine {other}, {bits} bits"),
        }
    }

    /// A number of the machine's own order.
    fn number(bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
        let bytes = bytes.get(offset..offset.checked_add(size)?)?;
        let mut word = [0; 8];
        let place = if cfg!(target_endian = "little") {
            0
        } else {
            8 - size
        };
        word.get_mut(place..place + size)?.copy_from_slice(bytes);
        Some(u64::from_ne_bytes(word))
    }

    /// Checks the headers; returns the path of `PT_INTERP`.
    pub(super) fn interpreter_of(
        file: &File,
        found: u64,
    ) -> Result<Option<PathBuf>, BadProgramReason> {
        let wide = CLASS == CLASS_64;
        let header_bytes = if wide { 64 } else { 52 };
        let mut header = [0; 64];
        let length = read_up_to(file, &mut header, 0).map_err(Unreadable)?;
        let truncated = |expected| Truncated { expected, found };
        if length < header_bytes {
            return Err(truncated(header_bytes as u64));
        }
        let field = |offset, size| number(&header, offset, size).ok_or(Malformed);
        let machine = field(18, 2)? as u16;
        let other = MACHINE.is_some_and(|expected| expected != machine);
        if header[4] != CLASS || header[5] != ORDER || other {
            return Err(OtherMachine {
                found: machine_name(header[4], machine),
                expected: MACHINE.map_or("other programs".to_owned(), |machine| {
                    format!("programs {}", machine_name(CLASS, machine))
                }),
            });
        }
        if ![EXECUTABLE, SHARED].contains(&(field(16, 2)? as u16)) {
            return Err(Malformed);
        }
        let (place, size, count) = match wide {
            true => (field(32, 8)?, field(54, 2)?, field(56, 2)? as u16),
            false => (field(28, 4)?, field(42, 2)?, field(44, 2)? as u16),
        };
        let expected_size = if wide { 56 } else { 32 };
        if size != expected_size || !(1..=SEGMENTS_MAX).contains(&count) {
            return Err(Malformed);
        }
        let bytes = size * u64::from(count);
        let end = place.checked_add(bytes).ok_or(Malformed)?;
        if end > found {
            return Err(truncated(end));
        }
        let mut segments = vec![0; bytes as usize];
        read_up_to(file, &mut segments, place).map_err(Unreadable)?;
        let mut interpreter = None;
        for segment in segments.chunks_exact(size as usize) {
            let field = |offset, size| number(segment, offset, size).ok_or(Malformed);
            let kind = field(0, 4)? as u32;
            let (start, length) = match wide {
                true => (field(8, 8)?, field(32, 8)?),
                false => (field(4, 4)?, field(16, 4)?),
            };
            let end = start.checked_add(length).ok_or(Malformed)?;
            if [SEGMENT_LOAD, SEGMENT_INTERPRETER].contains(&kind) && end > found {
                return Err(truncated(end));
            }
            if kind == SEGMENT_INTERPRETER {
                interpreter = Some(read_path(file, start, length)?);
            }
        }
        Ok(interpreter)
    }

    fn read_path(file: &File, start: u64, length: u64) -> Result<PathBuf, BadProgramReason> {
        if !(2..=PATH_MAX).contains(&length) {
            return Err(Malformed);
        }
        let mut path = vec![0; length as usize];
        read_up_to(file, &mut path, start).map_err(Unreadable)?;
        match path.pop() {
            Some(0) => Ok(std::ffi::OsStr::from_bytes(&path).into()),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn program(contents: &[u8]) -> tempfile::TempPath {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, contents).unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&file, executable).unwrap();
        file.into_temp_path()
    }

    fn this_program() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    fn refused(contents: &[u8]) -> String {
        let error = check_executable(&program(contents)).unwrap_err();
        assert!(error.errno() == ENOEXEC || error.errno() == Errno::ENOENT);
        error.to_string()
    }

    #[test]
    fn programs_and_scripts_can_run() {
        check_executable(&std::env::current_exe().unwrap()).unwrap();
        check_executable(Path::new("/proc/self/exe")).unwrap();
        for script in ["#!/bin/sh\nexit 0\n", "#!  /bin/sh -e", "#!/bin/sh"] {
            check_executable(&program(script.as_bytes())).unwrap();
        }
    }

    #[test]
    fn what_cannot_run_is_refused_with_a_reason() {
        assert!(refused(b"#!\n").contains("neither an ELF file"));
        assert!(refused(b"text").contains("neither an ELF file"));
        assert!(refused(b"\x7fELF").contains("ends early"));
        assert!(refused(b"#!/missing/interpreter\n").contains("/missing/interpreter"));
        assert!(refused(b"#!/missing/interpreter\n").contains("No such file"));
        let device = check_executable(Path::new("/dev/null")).unwrap_err();
        assert!(device.to_string().contains("not a regular file"));
    }

    #[test]
    fn a_script_that_is_its_own_interpreter_ends() {
        let path = program(b"");
        std::fs::write(&path, [b"#!", path.as_os_str().as_bytes()].concat()).unwrap();
        check_executable(&path).unwrap();
    }

    #[test]
    fn programs_of_other_machines_are_refused() {
        let mut other = this_program();
        other[18..20].copy_from_slice(&0x1234_u16.to_ne_bytes());
        let reason = refused(&other);
        assert!(reason.contains("ELF machine 4660"), "{reason}");
        let mut narrow = this_program();
        narrow[4] ^= 3;
        assert!(refused(&narrow).contains("this machine runs"));
    }

    #[test]
    fn truncated_programs_are_refused() {
        let whole = this_program();
        for length in [64, 100, 4096, 9000] {
            let reason = refused(&whole[..length]);
            assert!(reason.contains("ends early"), "{length}: {reason}");
        }
    }

    #[test]
    fn headers_with_any_number_in_them_do_not_panic() {
        let whole = this_program();
        for place in 16..64 + 56 * 4 {
            for byte in [0, 0x7f, 0xff] {
                let mut changed = whole[..8192].to_vec();
                changed[place] = byte;
                let _ = check_executable(&program(&changed));
            }
        }
    }
}
