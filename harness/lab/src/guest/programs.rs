// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Programs of a guest, and how they end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};

pub(crate) const LUO: &str = "/bin/luo";
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Makes the commands of busybox known to the shell.
pub(crate) fn install_shell_commands() -> Result<()> {
    let status = Command::new(BUSYBOX)
        .args(["--install", "-s", "/bin"])
        .status();
    ensure!(
        status.context("starting busybox")?.success(),
        "busybox could not install its commands"
    );
    Ok(())
}

/// A program with the surroundings that a login would have.
pub(crate) fn program<S: AsRef<OsStr>>(name: impl AsRef<OsStr>, arguments: &[S]) -> Command {
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("PATH", "/bin")
        .env("HOME", "/root")
        .current_dir("/root");
    command
}

/// Runs a program to its end.
pub(crate) fn exit_code(command: &mut Command) -> Result<u8> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", Path::new(command.get_program()).display()))?;
    // Like a shell: a program ended by a signal exits with 128 and the signal's number.
    let code = status.code().unwrap_or_else(|| {
        128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0)
    });
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
