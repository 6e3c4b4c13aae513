// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A shell, or one command of the user.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::guest::ports::{open_port, CONSOLE_PORT, OUTPUT_PORT};
use crate::guest::programs::{exit_code, install_shell_commands, program, BUSYBOX};

/// A shell of its own session, so that it can have the port as its terminal.
pub(crate) fn shell() -> Result<()> {
    install_shell_commands()?;
    println!(
        "The lab's guest: luo is in the path, files in /results stay on the host, `exit` ends it."
    );
    let port = open_port(CONSOLE_PORT)?;
    let mut shell = program(BUSYBOX, &["setsid", "-c", BUSYBOX, "sh", "-l"]);
    shell
        .stdin(port.try_clone()?)
        .stdout(port.try_clone()?)
        .stderr(port);
    shell.status().context("starting the shell")?;
    Ok(())
}

/// Runs the user's command, what it prints on a port of its own.
pub(crate) fn run_command(command: &[String]) -> Result<u8> {
    install_shell_commands()?;
    let (name, arguments) = command.split_first().context("the command is missing")?;
    let port = open_port(OUTPUT_PORT)?;
    let mut child = program(name, arguments);
    child
        .stdin(Stdio::null())
        .stdout(port.try_clone()?)
        .stderr(port.try_clone()?);
    let code = exit_code(&mut child)?;
    rustix::termios::tcdrain(&port).context("passing on what the command printed")?;
    Ok(code)
}
