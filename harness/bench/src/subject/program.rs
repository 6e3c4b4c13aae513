// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files of any type: a program of the user makes them, and compares them after the jump.
//!
//! ```sh
//! #!/bin/sh
//! case $1 in
//! make)   # opens file number $2 as descriptor 3, prints a line, waits until its input ends
//!     mkfifo "/tmp/pipe$$"; exec 3<>"/tmp/pipe$$"; rm "/tmp/pipe$$"
//!     echo "pipe $2" >&3; echo ready; cat ;;
//! verify) # has what crossed as descriptor 3; exits with 0 if it is as it was made
//!     read -r line <&3; test "$line" = "pipe $2" ;;
//! esac
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{ensure, Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};

/// The number under which a program has the file.
const FILE: RawFd = 3;

/// Has a program make file `number` of a case.
///
/// # Errors
///
/// The program fails, or its descriptor cannot be taken.
pub fn make(program: &Path, number: u64) -> Result<File> {
    let mut child = Command::new(program)
        .args(["make", &number.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let taken = take(&mut child);
    // The end of its input ends the program.
    drop(child.stdin.take());
    let status = child.wait()?;
    ensure!(
        status.success(),
        "{} make {number} ended with {status}",
        program.display()
    );
    taken.with_context(|| format!("{} make {number}", program.display()))
}

/// Once a line is printed, the file is there.
fn take(child: &mut Child) -> Result<File> {
    let output = child.stdout.take().context("it has no output")?;
    let mut output = BufReader::new(output);
    let printed = output.read_line(&mut String::new())?;
    ensure!(printed > 0, "it ended before it printed a line");
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let file = pidfd_getfd(process, FILE, PidfdGetfdFlags::empty())
        .with_context(|| format!("taking its descriptor {FILE}"))?;
    Ok(File::from(file))
}

/// Has the program compare what crossed.
///
/// # Errors
///
/// It ends with another exit code than 0.
pub fn verify(program: &Path, number: u64, file: BorrowedFd<'_>) -> Result<()> {
    let mapping = FdMapping {
        parent_fd: file.try_clone_to_owned()?,
        child_fd: FILE,
    };
    // The standard output is this process's way to report.
    let status = Command::new(program)
        .args(["verify", &number.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .fd_mappings(vec![mapping])?
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    ensure!(
        status.success(),
        "{} verify {number} ended with {status}",
        program.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    fn script(text: &str) -> tempfile::TempPath {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "#!/bin/sh\n{text}").unwrap();
        let path = file.into_temp_path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    #[test]
    fn a_program_makes_a_file_and_compares_it() {
        let program = script(
            "case $1 in\n\
             make) exec 3>\"$0.$2\"; rm \"$0.$2\"; echo; cat ;;\n\
             verify) test \"$2\" = 7 && test -e /dev/fd/3 ;;\n\
             esac",
        );
        let file = make(&program, 7).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        verify(&program, 7, file.as_fd()).unwrap();
        let error = verify(&program, 8, file.as_fd()).unwrap_err().to_string();
        assert!(
            error.contains("verify 8 ended with exit status: 1"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_makes_no_file_is_named() {
        for (text, reason) in [
            ("exit 0", "before it printed a line"),
            ("echo; cat; exit 3", "exit status: 3"),
            ("exec 3<&-; echo; cat", "descriptor 3"),
        ] {
            let program = script(text);
            let error = format!("{:#}", make(&program, 1).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
        assert!(make(Path::new("/nonexistent"), 1).is_err());
    }
}
