// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo session` as it is used from a shell, across a jump.

use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::guest::programs::{install_shell_commands, program, BUSYBOX};
use crate::tests::held_open::HeldOpen;

/// Holds sessions with a file that has no name any more; what holds them outlives the shell.
const HOLD: &str = r"
set -e
mkfifo /tmp/never
exec 4<>/tmp/never
for name in held unclaimed; do
    exec 3<>/tmp/file
    echo $name >&3
    rm /tmp/file
    luo session preserve $name 0x1=/proc/$$/fd/3 </tmp/never 2>/tmp/log &
    until grep 'holding session' /tmp/log; do sleep 1; done
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
    run_script(HOLD)
}

pub(crate) fn take_sessions(_held: &mut HeldOpen) -> Result<()> {
    run_script(TAKE)
}

fn run_script(script: &str) -> Result<()> {
    if !Path::new("/bin/grep").exists() {
        install_shell_commands()?;
    }
    let status = program(BUSYBOX, &["sh", "-xc", script]).status();
    let status = status.context("starting the shell")?;
    ensure!(
        status.success(),
        "the script ended with {status}; what it did is on the console"
    );
    Ok(())
}
