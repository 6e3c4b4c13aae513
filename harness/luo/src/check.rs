// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo check`: before a jump, whether the next kernel can take what is preserved now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use clap::Args;
use comfy_table::Table;

use crate::table::{printable, table};
use luo_check::facts::Origin;
use luo_check::image::Image;
use luo_check::machine::Machine;
use luo_check::verdict::{self, Answer, Boot, File, Report};

/// What `luo check` takes.
#[derive(Args, Debug)]
pub struct CheckOptions {
    /// The next kernel: a bzImage, a vmlinux or a unified kernel image
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The next kernel's initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The next kernel's command line; a unified kernel image brings its own along
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    command_line: Option<String>,
    /// Start from this kernel's image, with files of all of its handlers, instead of from the
    /// running kernel and what is preserved in it
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Files of these formats as well, such as memfd-v2
    #[arg(long, value_delimiter = ',', value_name = "COMPATIBLE,...")]
    needs: Vec<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Runs `luo check`: 0 if the next kernel can take all of it as far as is known, 1 if not.
///
/// # Errors
///
/// An image that cannot be read.
pub fn run(options: &CheckOptions) -> Result<ExitCode> {
    let next = open(&options.kernel)?;
    let mut machine = match &options.from {
        None => Machine::read(),
        Some(file) => {
            let current = open(file)?;
            if current.facts.origin == Origin::Guess {
                bail!("{} has no notes from kmod to start from", file.display());
            }
            Machine::of_kernel(current.facts)
        }
    };
    machine.needs(options.needs.iter().map(String::as_str));
    let boot = Boot {
        command_line: options.command_line.clone(),
        initramfs: match &options.initrd {
            None => 0,
            Some(file) => fs::metadata(file)
                .with_context(|| format!("reading {}", file.display()))?
                .len(),
        },
    };
    let report = verdict::compare(&machine, &next, &boot);
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print(&report, &machine, options.from.is_none()),
    }
    Ok(match report.can_jump {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn open(file: &Path) -> Result<Image> {
    Image::open(file).with_context(|| format!("{}", file.display()))
}

fn print(report: &Report, machine: &Machine, is_running: bool) {
    let next = &report.next;
    println!(
        "next kernel: {}",
        next.banner.as_deref().unwrap_or("its banner was not found")
    );
    if next.facts.origin == Origin::Guess {
        println!("it has no notes from kmod: what it can take is guessed from its data");
    }
    let mut table = table(["what", "fits", "why"]);
    for check in &report.checks {
        table.add_row([check.subject, word(check.answer), &check.text]);
    }
    for format in &report.formats {
        let compatible = printable(&format.compatible);
        let what = match format.count {
            0 => compatible,
            1 => format!("1 file, {compatible}"),
            count => format!("{count} files, {compatible}"),
        };
        table.add_row([&what, word(format.answer), &printable(&format.text)]);
    }
    println!("{table}");
    if !report.files.is_empty() {
        println!("{}", files(&report.files));
    }
    if is_running && !machine.is_preserved_known {
        println!(
            "what is preserved now is not known: this kernel has no handlers of ours, or debugfs \
             is not mounted, or this is not root; --needs names formats, --from another kernel"
        );
    }
    println!(
        "{}",
        match report.can_jump {
            true => "nothing speaks against the jump",
            false => "the jump would lose files",
        }
    );
}

/// What is preserved, file by file.
fn files(files: &[File]) -> Table {
    let mut table = table(["session", "token", "file", "handler", "fits", "why"]);
    for File { file, answer, text } in files {
        table.add_row([
            &printable(&file.session),
            &file.token,
            &printable(file.name.as_deref().unwrap_or_default()),
            &printable(&file.compatible),
            word(*answer),
            &printable(text.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

fn word(answer: Answer) -> &'static str {
    match answer {
        Answer::Yes => "yes",
        Answer::No => "no",
        Answer::Unknown => "unknown",
    }
}
