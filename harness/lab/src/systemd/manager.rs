// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a guest asks of systemd.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

const PATIENCE: Duration = Duration::from_secs(300);

/// Runs `systemctl`, which waits until it is done.
pub(super) fn systemctl(arguments: &[&str]) -> Result<()> {
    output(Command::new("systemctl").args(arguments)).map(|_| ())
}

/// A property of a unit, or without one of systemd itself.
pub(super) fn show(unit: Option<&str>, property: &str) -> Result<String> {
    let mut command = Command::new("systemctl");
    command.args(["show", "--value", "--property", property]);
    command.args(unit);
    Ok(output(&mut command)?.trim().to_owned())
}

/// What a command prints; its error is ours.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().display();
    let first = command.get_args().next().unwrap_or_default().display();
    let name = format!("{program} {first}");
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {name}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name} ended with {}: {stderr}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        sleep(Duration::from_millis(200));
    }
    Ok(())
}
