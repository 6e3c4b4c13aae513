// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo integrate`: the kernel module and handlers into a kernel tree, and out of it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use luo_lab::integrate::{self, LocalEdits, Missing, Selection};

/// What `luo integrate` takes.
#[derive(Args, Debug)]
pub struct IntegrateOptions {
    /// The kernel source tree
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    kernel: Option<PathBuf>,
    /// The handlers to put in: names of the checkout's, or paths of crates elsewhere, which have a
    /// `/` in them; all of the checkout's by default
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME|PATH,...",
        conflicts_with = "remove"
    )]
    handlers: Vec<String>,
    /// The checkout of luo-handlers to take them from
    #[arg(long, value_name = "DIR", default_value = ".")]
    checkout: PathBuf,
    /// Check that a kernel configuration has what the handlers want; exits 1 if not. With --kernel,
    /// after the tree got them
    #[arg(long, value_name = "FILE", conflicts_with = "remove")]
    config: Option<PathBuf>,
    /// Write what the configuration lacks to this file, for scripts/kconfig/merge_config.sh,
    /// instead of printing it
    #[arg(long, value_name = "FILE", requires = "config")]
    fragment: Option<PathBuf>,
    /// Lose what was changed in the tree in files that are from us
    #[arg(long)]
    force: bool,
    /// Take everything out again
    #[arg(long, requires = "kernel")]
    remove: bool,
}

/// Runs `luo integrate`.
///
/// # Errors
///
/// What is wrong with the tree, the checkout or a handler, with what to do next.
pub fn run(options: &IntegrateOptions) -> Result<ExitCode> {
    let edits = match options.force {
        true => LocalEdits::Overwrite,
        false => LocalEdits::Refuse,
    };
    let selection = match options.handlers.is_empty() {
        true => Selection::All,
        false => Selection::Named(options.handlers.clone()),
    };
    if let Some(kernel) = &options.kernel {
        if options.remove {
            remove(kernel, edits)?;
            return Ok(ExitCode::SUCCESS);
        }
        put(
            &options.checkout,
            kernel,
            &selection,
            edits,
            options.config.is_none(),
        )?;
    }
    match &options.config {
        None => Ok(ExitCode::SUCCESS),
        Some(config) => {
            let missing = integrate::check_config(&options.checkout, &selection, config)?;
            report(&missing, config, options.fragment.as_deref())
        }
    }
}

fn put(
    checkout: &Path,
    kernel: &Path,
    selection: &Selection,
    edits: LocalEdits,
    with_next: bool,
) -> Result<()> {
    let integrated = integrate::put(checkout, kernel, selection, edits)?;
    let (written, removed) = integrated.changed;
    eprintln!(
        "{} holds {}: {written} files written, {removed} removed",
        integrated.directory.display(),
        integrated.handlers.join(", ")
    );
    if with_next {
        eprintln!(
            "next: luo integrate --config .config shows what the kernel's configuration lacks; \
             boot both kernels with liveupdate=on kho=on"
        );
    }
    Ok(())
}

fn remove(kernel: &Path, edits: LocalEdits) -> Result<()> {
    let removed = integrate::remove(kernel, edits)?;
    for file in &removed.lines {
        println!("took what is ours out of {}", file.display());
    }
    if removed.files > 0 {
        println!("removed {} files", removed.files);
    }
    if removed.lines.is_empty() && removed.files == 0 {
        println!("there was nothing of ours in {}", kernel.display());
    }
    for file in &removed.left {
        println!("left alone, it is not from us: {}", file.display());
    }
    Ok(())
}

fn report(missing: &Missing, config: &Path, fragment: Option<&Path>) -> Result<ExitCode> {
    if missing.fragment.is_empty() {
        eprintln!("{} has what the handlers want", config.display());
        return Ok(ExitCode::SUCCESS);
    }
    for (option, wanted, found) in &missing.options {
        eprintln!("{option} is {found}; the handlers want {wanted}");
    }
    for reason in &missing.dropped {
        eprintln!("{reason}");
    }
    match fragment {
        None => print!("{}", missing.fragment),
        Some(file) => {
            fs::write(file, &missing.fragment)
                .with_context(|| format!("writing {}", file.display()))?;
            eprintln!(
                "{0} has the missing lines; next, in the kernel tree: \
                 scripts/kconfig/merge_config.sh {1} {0}, then check again",
                file.display(),
                config.display()
            );
        }
    }
    Ok(ExitCode::FAILURE)
}
