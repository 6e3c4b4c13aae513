// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A kernel source tree: where our parts go, and whether it can take them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;

use super::lines::{Edit, Place};

/// Our directory in a kernel tree.
pub(super) const DIRECTORY: &str = "drivers/luo_handlers";
/// Where changes wait until all of them are written.
pub(super) const STAGING: &str = "drivers/luo_handlers.new";
const DRIVERS: &str = "drivers";
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const BINDINGS: &str = "rust/bindings/bindings_helper.h";
const LINKER_SCRIPT_NEXT: &str = "\tBOUNDED_SECTION_BY(__dyndbg_classes,";
const LINKER_SCRIPT: &str = "include/asm-generic/vmlinux.lds.h";

/// The files of the kernel that get a line, and which.
pub(super) const EDITS: [Edit; 5] = [
    Edit {
        file: "drivers/Kconfig",
        line: "source \"drivers/luo_handlers/Kconfig\"",
        place: Place::BeforeEndmenu,
    },
    Edit {
        file: "drivers/Makefile",
        line: "obj-$(CONFIG_LUO_HANDLERS)\t+= luo_handlers/",
        place: Place::Last,
    },
    // lld puts sections without a line after the kernel's end. Ours go among the tables of pointers
    // in the kernel's data.
    Edit {
        file: LINKER_SCRIPT,
        line: "\tBOUNDED_SECTION_BY(luo_handlers, _luo_handlers)\t\t\t\\",
        place: Place::Before(LINKER_SCRIPT_NEXT),
    },
    Edit {
        file: LINKER_SCRIPT,
        line: "\tBOUNDED_SECTION_BY(luo_subsystems, _luo_subsystems)\t\t\\",
        place: Place::Before(LINKER_SCRIPT_NEXT),
    },
    // What Rust knows of the kernel's C; it is sorted.
    Edit {
        file: BINDINGS,
        line: "#include <linux/liveupdate.h>",
        place: Place::Before("#include <linux/mdio.h>"),
    },
];

/// A tree in which one of these files is missing, or does not have the word, cannot hold the
/// handlers.
pub(super) const NEEDED: [(&str, &str, &str); 6] = [
    ("drivers/Kconfig", "endmenu", NOT_A_TREE),
    ("drivers/Makefile", "", NOT_A_TREE),
    (LINKER_SCRIPT, "", NOT_A_TREE),
    (
        "include/linux/liveupdate.h",
        "liveupdate_file_ops",
        "it has no Live Update Orchestrator with handlers; take 7.2 or 7.3",
    ),
    ("rust/kernel/lib.rs", "", "its kernel has no Rust support"),
    (BINDINGS, "", "its kernel has no Rust support"),
];
const NOT_A_TREE: &str = "it is not a kernel source tree";

/// Refuses a tree that cannot hold the handlers.
pub(super) fn check(kernel: &Path) -> Result<()> {
    for (file, word, reason) in NEEDED {
        let lack = match fs::read_to_string(kernel.join(file)) {
            Ok(text) if text.contains(word) => continue,
            Ok(_) => format!("{file} does not contain {word}"),
            Err(error) => format!("{file}: {error}"),
        };
        bail!(
            "{} cannot take the handlers: {reason} ({lack})",
            kernel.display()
        );
    }
    Ok(())
}

/// Locks other runs of `integrate` out of the tree until the answer is dropped, or the process
/// ends.
pub(super) fn lock(kernel: &Path) -> Result<File> {
    let drivers = kernel.join(DRIVERS);
    let directory = File::open(&drivers).with_context(|| {
        format!(
            "opening {}: {} {NOT_A_TREE}",
            drivers.display(),
            kernel.display()
        )
    })?;
    // A child that another thread is starting has our lock until its exec: wait for that.
    for _ in 0..LOCK_TRIES {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            // Some network file systems cannot lock directories; there it is up to the user.
            _ => return Ok(directory),
        }
    }
    bail!(
        "another `luo integrate` is at work in {}; run this again when it has ended",
        kernel.display()
    )
}

/// What a file holds; `None` if there is no such file.
pub(super) fn contents(file: &Path) -> Result<Option<Vec<u8>>> {
    match fs::symlink_metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        Ok(metadata) if !metadata.is_file() => {
            bail!(
                "{} is not a regular file; move it away first",
                file.display()
            )
        }
        Ok(_) => {
            let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            Ok(Some(bytes))
        }
    }
}

/// The kernel's files with their lines changed: those that are different then, in the order of
/// their lines, each with what it will hold.
pub(super) fn edited(
    kernel: &Path,
    change: impl Fn(&Edit, &str) -> Result<String>,
) -> Result<Vec<(&'static str, String)>> {
    let mut files: Vec<(&'static str, String, String)> = Vec::new();
    for edit in &EDITS {
        if files.last().is_none_or(|(file, ..)| *file != edit.file) {
            let path = kernel.join(edit.file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            files.push((edit.file, text.clone(), text));
        }
        if let Some((_, _, text)) = files.last_mut() {
            *text = change(edit, text)?;
        }
    }
    let different = files
        .into_iter()
        .filter(|(_, before, after)| before != after);
    Ok(different.map(|(file, _, after)| (file, after)).collect())
}
