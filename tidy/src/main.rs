// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Checks the rules of this repository that no compiler checks; `make check` runs it.
//!
//! - [`circles`]: no file imports in a circle
//! - [`lines`]: lines end at 100 columns, source files name their licence, `unsafe` is allowed only
//!   in the edge modules
//!
//! Prints one line a finding and exits with 1 if there are any.

mod circles;
mod lines;
mod modules;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{ensure, Context, Result};

fn main() -> ExitCode {
    let findings = match findings(Path::new(".")) {
        Ok(findings) => findings,
        Err(error) => {
            eprintln!("tidy: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => ExitCode::SUCCESS,
        count => {
            eprintln!("tidy: {count} findings");
            ExitCode::FAILURE
        }
    }
}

/// Everything that is wrong in the checkout at `root`.
fn findings(root: &Path) -> Result<Vec<String>> {
    let files = tracked_files(root)?;
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(lines::check(root, file)?);
    }
    let crates = files
        .iter()
        .filter(|file| file.ends_with("src/lib.rs") || file.ends_with("src/main.rs"));
    for crate_root in crates {
        findings.extend(circles::check(root, crate_root)?);
    }
    Ok(findings)
}

/// What git tracks, and what it would: new files count before they are added.
fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .context("starting git")?;
    ensure!(
        output.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let files = names.split_terminator('\0').map(PathBuf::from);
    // Deleted ones are listed until that is committed.
    Ok(files.filter(|file| root.join(file).is_file()).collect())
}
