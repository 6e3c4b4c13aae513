// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo session` as it is used from a shell, across a jump.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use rustix::fs::{memfd_create, MemfdFlags};

use crate::guest::programs::{install_shell_commands, program, BUSYBOX};
use crate::tests::held_open::HeldOpen;

/// The sessions, each with a memfd that contains its name.
const NAMES: [&str; 2] = ["held", "unclaimed"];

/// Holds the sessions with the memfds that the shell inherited; what holds them outlives the shell.
/// `$1` and `$2` are their descriptors.
const HOLD: &str = r"
set -e
mkfifo /tmp/never
exec 9<>/tmp/never
for name in held unclaimed; do
    luo session preserve $name 0x1=$$:$1 </tmp/never 2>/tmp/log &
    shift
    until grep 'holding session' /tmp/log; do sleep 1; kill -0 $! || { cat /tmp/log; exit 1; }; done
    luo session list | grep $name'  held by luo'
done
";

const TAKE: &str = r#"
set -e
luo session list | grep 'no process holds a session'
luo session retrieve held 0x1=/tmp/copy
test "$(cat /tmp/copy)" = held
luo session finish unclaimed
for name in held unclaimed; do
    if luo session finish $name; then exit 1; fi
done
"#;

pub(crate) fn hold_sessions(_held: &mut HeldOpen) -> Result<()> {
    let mut memfds = Vec::new();
    for name in NAMES {
        // Without FD_CLOEXEC: the shell inherits it.
        let mut memfd = File::from(memfd_create(name, MemfdFlags::empty())?);
        writeln!(memfd, "{name}")?;
        memfds.push(memfd);
    }
    let numbers: Vec<String> = memfds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    run_script(HOLD, &numbers)
}

pub(crate) fn take_sessions(_held: &mut HeldOpen) -> Result<()> {
    run_script(TAKE, &[])
}

fn run_script(script: &str, arguments: &[String]) -> Result<()> {
    if !Path::new("/bin/grep").exists() {
        install_shell_commands()?;
    }
    let mut shell = program(BUSYBOX, &["sh", "-xc", script, "sh"]);
    let status = shell.args(arguments).status();
    let status = status.context("starting the shell")?;
    ensure!(
        status.success(),
        "the script ended with {status}; what it did is on the console"
    );
    Ok(())
}
