// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Puts the kernel module and the crates it is built from into a kernel tree, and takes them out again.
//!
//! ```text
//! KERNEL/drivers/luo_handlers/          kmod/
//!     luo_handler_api/                  luo-handler-api/src/
//!         luo_handler_api.rs            lib.rs: a crate's root is named after the crate, as Kbuild wants it
//!     luo_handler_memfd/                handlers/memfd/src/
//!     .luo-integrated                   what we put here, so that removing takes nothing else
//! KERNEL/drivers/Kconfig, Makefile      one line each
//! KERNEL/include/asm-generic/vmlinux.lds.h
//!                                       two lines: what no line names lld puts behind the kernel's end
//! KERNEL/rust/bindings/bindings_helper.h
//!                                       one line: mainline's interface, for the ops made from our traits
//! ```
//!
//! Doing it twice changes nothing, not even a file's time, so that a rebuild builds only what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use clap::Args;

use crate::cache::files::write_atomically;

/// Our directory in a kernel tree.
const DIRECTORY: &str = "drivers/luo_handlers";
/// Lists what we put into it.
const MANIFEST: &str = ".luo-integrated";
const KCONFIG: &str = "drivers/Kconfig";
const KCONFIG_LINE: &str = "source \"drivers/luo_handlers/Kconfig\"";
const MAKEFILE: &str = "drivers/Makefile";
const MAKEFILE_LINE: &str = "obj-$(CONFIG_LUO_HANDLERS)\t+= luo_handlers/";
const LINKER_SCRIPT: &str = "include/asm-generic/vmlinux.lds.h";
const LINKER_SCRIPT_LINES: [&str; 2] = [
    "\tBOUNDED_SECTION_BY(luo_handlers, _luo_handlers)\t\t\t\\",
    "\tBOUNDED_SECTION_BY(luo_subsystems, _luo_subsystems)\t\t\\",
];
/// Where our line goes before: among the tables of pointers in the kernel's data.
const LINKER_SCRIPT_NEXT: &str = "\tBOUNDED_SECTION_BY(__dyndbg_classes,";
/// Lists what Rust knows of the kernel's C.
const BINDINGS: &str = "rust/bindings/bindings_helper.h";
const BINDINGS_LINE: &str = "#include <linux/liveupdate.h>";
/// Where our line goes before: it is sorted.
const BINDINGS_NEXT: &str = "#include <linux/mdio.h>";
/// A tree in which one of these files is missing, or does not have the word, cannot hold the handlers.
const NEEDED: [(&str, &str, &str); 6] = [
    (KCONFIG, "endmenu", "it is no kernel source tree"),
    (MAKEFILE, "", "it is no kernel source tree"),
    (LINKER_SCRIPT, "", "it is no kernel source tree"),
    (
        "include/linux/liveupdate.h",
        "retrieve_status",
        "its kernel is older than the interface of the Live Update Orchestrator that kmod/ is written for; take 7.3 or \
         later",
    ),
    ("rust/kernel/lib.rs", "", "its kernel has no Rust support"),
    (BINDINGS, "", "its kernel has no Rust support"),
];

/// What `luo integrate` may be told.
#[derive(Args, Debug)]
pub struct IntegrateOptions {
    /// The kernel source tree
    #[arg(long, value_name = "DIR")]
    kernel: PathBuf,
    /// The handlers to put in; all of the checkout by default
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        conflicts_with = "remove"
    )]
    handlers: Vec<String>,
    /// The checkout of luo-handlers to take them from
    #[arg(long, value_name = "DIR", default_value = ".")]
    checkout: PathBuf,
    /// Take everything out again
    #[arg(long)]
    remove: bool,
}

/// Which of the checkout's handlers to put in.
#[derive(Debug)]
pub enum Selection {
    /// Every one.
    All,
    /// Those of these names.
    Named(Vec<String>),
}

/// Runs `luo integrate`.
pub fn run(options: &IntegrateOptions) -> Result<ExitCode> {
    let kernel = &options.kernel;
    if options.remove {
        let removed = remove(kernel)?;
        println!(
            "{}",
            if removed {
                "the handlers are out of the tree again"
            } else {
                "there was nothing of ours in the tree"
            }
        );
        return Ok(ExitCode::SUCCESS);
    }
    let selection = if options.handlers.is_empty() {
        Selection::All
    } else {
        Selection::Named(options.handlers.clone())
    };
    let directory = put(&options.checkout, kernel, &selection)?;
    println!(
        "{} is in place; next: make menuconfig, Device Drivers, LUO_HANDLERS",
        directory.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Puts kmod/ and the crates of the `selection` into a kernel tree; answers where.
pub fn put(checkout: &Path, kernel: &Path, selection: &Selection) -> Result<PathBuf> {
    check_tree(kernel)?;
    let files = plan(checkout, selection)?;
    let directory = kernel.join(DIRECTORY);
    let before = read_manifest(&directory)?;
    if before.is_none() && directory.join("Kconfig").exists() {
        bail!(
            "{} exists but is not from us; move it away first",
            directory.display()
        );
    }
    for (target, source) in &files {
        copy_if_different(source, &directory.join(target))?;
    }
    let names: BTreeSet<PathBuf> = files.into_keys().collect();
    for stale in before.unwrap_or_default().difference(&names) {
        remove_file(&directory, stale)?;
    }
    write_if_different(&directory.join(MANIFEST), manifest(&names).as_bytes())?;
    edit(&kernel.join(KCONFIG), |text| {
        with_line_before_endmenu(text, KCONFIG_LINE)
    })?;
    edit(&kernel.join(MAKEFILE), |text| {
        Ok(with_last_line(text, MAKEFILE_LINE))
    })?;
    edit(&kernel.join(LINKER_SCRIPT), |text| {
        let with = |text: String, line| with_line_before(&text, line, LINKER_SCRIPT_NEXT);
        LINKER_SCRIPT_LINES
            .into_iter()
            .try_fold(text.to_owned(), with)
    })?;
    edit(&kernel.join(BINDINGS), |text| {
        with_line_before(text, BINDINGS_LINE, BINDINGS_NEXT)
    })?;
    Ok(directory)
}

/// Takes out of a kernel tree what [`put`] put in, and answers whether there was anything.
pub fn remove(kernel: &Path) -> Result<bool> {
    let directory = kernel.join(DIRECTORY);
    for (file, line) in [
        (KCONFIG, KCONFIG_LINE),
        (MAKEFILE, MAKEFILE_LINE),
        (LINKER_SCRIPT, LINKER_SCRIPT_LINES[0]),
        (LINKER_SCRIPT, LINKER_SCRIPT_LINES[1]),
        (BINDINGS, BINDINGS_LINE),
    ] {
        edit(&kernel.join(file), |text| Ok(without_line(text, line)))?;
    }
    let Some(names) = read_manifest(&directory)? else {
        return Ok(false);
    };
    for name in &names {
        remove_file(&directory, name)?;
    }
    remove_file(&directory, Path::new(MANIFEST))?;
    Ok(true)
}

fn check_tree(kernel: &Path) -> Result<()> {
    for (file, word, reason) in NEEDED {
        let text = fs::read_to_string(kernel.join(file));
        let lack = match text {
            Ok(text) if text.contains(word) => continue,
            Ok(_) => format!("{file} does not say {word}"),
            Err(error) => format!("{file}: {error}"),
        };
        bail!(
            "{} cannot take the handlers: {reason} ({lack})",
            kernel.display()
        );
    }
    Ok(())
}

/// What goes where: target inside our directory, and its source.
fn plan(checkout: &Path, selection: &Selection) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let kmod = checkout.join("kmod");
    if !kmod.is_dir() {
        bail!(
            "{} has no kmod/; name a checkout of luo-handlers with --checkout",
            checkout.display()
        );
    }
    let mut files = BTreeMap::new();
    for (relative, source) in files_of(&kmod)? {
        files.insert(relative, source);
    }
    add_crate(&mut files, &checkout.join("luo-handler-api"))?;
    for handler in select(&checkout.join("handlers"), selection)? {
        add_crate(&mut files, &handler)?;
    }
    Ok(files)
}

fn select(handlers: &Path, selection: &Selection) -> Result<Vec<PathBuf>> {
    let available = directories_in(handlers)?;
    let Selection::Named(names) = selection else {
        return Ok(available);
    };
    let find = |name: &String| {
        let found = available
            .iter()
            .find(|directory| directory.file_name() == Some(OsStr::new(name)));
        found
            .cloned()
            .with_context(|| format!("there is no handler {name} in {}", handlers.display()))
    };
    names.iter().map(find).collect()
}

/// The directories with a crate in them, sorted.
fn directories_in(parent: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).with_context(|| format!("listing {}", parent.display()))? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() && path.join("src/lib.rs").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Adds the source of one crate, its root under the crate's name.
fn add_crate(files: &mut BTreeMap<PathBuf, PathBuf>, directory: &Path) -> Result<()> {
    let name = crate_name(&directory.join("Cargo.toml"))?;
    for (relative, source) in files_of(&directory.join("src"))? {
        let target = if relative == Path::new("lib.rs") {
            PathBuf::from(format!("{name}.rs"))
        } else {
            relative
        };
        files.insert(Path::new(&name).join(target), source);
    }
    Ok(())
}

/// The name rustc knows a package's library by.
fn crate_name(manifest: &Path) -> Result<String> {
    let text =
        fs::read_to_string(manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("name")?.trim_start().strip_prefix('='));
    let name = names
        .map(|value| value.trim().trim_matches('"').replace('-', "_"))
        .next();
    name.with_context(|| format!("{} names no package", manifest.display()))
}

/// Every regular file below `root`: its relative path and its path.
fn files_of(root: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else {
                files.push((path.strip_prefix(root)?.to_path_buf(), path));
            }
        }
    }
    Ok(files)
}

fn copy_if_different(source: &Path, target: &Path) -> Result<()> {
    let contents = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    write_if_different(target, &contents)
}

/// Leaves the file's time alone if nothing changes: make goes by it. Otherwise there is a new file, so
/// that a tree of hard links does not change the tree that it was linked from.
fn write_if_different(target: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(target).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    write_atomically(target, contents)
}

fn edit(file: &Path, change: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let changed = change(&text).with_context(|| format!("changing {}", file.display()))?;
    write_if_different(file, changed.as_bytes())
}

fn has_line(text: &str, line: &str) -> bool {
    text.lines().any(|present| present == line)
}

fn with_line_before_endmenu(text: &str, line: &str) -> Result<String> {
    if has_line(text, line) {
        return Ok(text.to_owned());
    }
    let end = text
        .rfind("endmenu")
        .context("it has no `endmenu` to put a line before")?;
    Ok(format!("{}{line}\n\n{}", &text[..end], &text[end..]))
}

fn with_line_before(text: &str, line: &str, next: &str) -> Result<String> {
    if has_line(text, line) {
        return Ok(text.to_owned());
    }
    let place = text
        .find(next)
        .with_context(|| format!("it has no `{}` to put a line before", next.trim()))?;
    Ok(format!("{}{line}\n{}", &text[..place], &text[place..]))
}

fn with_last_line(text: &str, line: &str) -> String {
    if has_line(text, line) {
        return text.to_owned();
    }
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{newline}{line}\n")
}

/// Undoes each way of adding a line, to the byte.
fn without_line(text: &str, line: &str) -> String {
    let with_blank = format!("\n{line}\n\nendmenu");
    if text.contains(&with_blank) {
        return text.replacen(&with_blank, "\nendmenu", 1);
    }
    text.split_inclusive('\n')
        .filter(|present| present.trim_end_matches('\n') != line)
        .collect()
}

fn manifest(names: &BTreeSet<PathBuf>) -> String {
    names
        .iter()
        .map(|name| format!("{}\n", name.display()))
        .collect()
}

fn read_manifest(directory: &Path) -> Result<Option<BTreeSet<PathBuf>>> {
    match fs::read_to_string(directory.join(MANIFEST)) {
        Ok(text) => Ok(Some(text.lines().map(PathBuf::from).collect())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("reading {}", directory.join(MANIFEST).display()))
        }
    }
}

/// Removes one of our files, and the directories that are empty then, ours included.
fn remove_file(directory: &Path, name: &Path) -> Result<()> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    for parent in path
        .ancestors()
        .skip(1)
        .take_while(|parent| parent.starts_with(directory))
    {
        // Not empty: it holds another file, ours or, after an in-tree build, an object.
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KCONFIG_TEXT: &str =
        "menu \"Device Drivers\"\n\nsource \"drivers/amba/Kconfig\"\n\nendmenu\n";
    const MAKEFILE_TEXT: &str = "obj-y\t+= amba/\n";
    const LINKER_SCRIPT_TEXT: &str =
        "\t. = ALIGN(8);\t\\\n\tBOUNDED_SECTION_BY(__dyndbg_classes, ___dyndbg_classes)\t\\\n";

    const BINDINGS_TEXT: &str = "#include <linux/kref.h>\n#include <linux/mdio.h>\n";

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn trees() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let (checkout, kernel) = (
            directory.path().join("checkout"),
            directory.path().join("linux"),
        );
        write(checkout.join("kmod/Kconfig"), "config LUO_HANDLERS\n");
        write(checkout.join("kmod/dispatch.rs"), "// dispatch\n");
        for (path, name) in [
            ("luo-handler-api", "luo-handler-api"),
            ("handlers/memfd", "luo-handler-memfd"),
            ("handlers/vfio", "luo-handler-vfio"),
        ] {
            write(
                checkout.join(path).join("Cargo.toml"),
                &format!("[package]\nname = \"{name}\"\n"),
            );
            write(checkout.join(path).join("src/lib.rs"), "// root\n");
            write(checkout.join(path).join("src/record.rs"), "// record\n");
        }
        for (file, word, _) in NEEDED {
            write(kernel.join(file), word);
        }
        write(kernel.join(KCONFIG), KCONFIG_TEXT);
        write(kernel.join(MAKEFILE), MAKEFILE_TEXT);
        write(kernel.join(LINKER_SCRIPT), LINKER_SCRIPT_TEXT);
        write(kernel.join(BINDINGS), BINDINGS_TEXT);
        (directory, checkout, kernel)
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn putting_in_twice_changes_nothing_and_removing_restores_the_tree() {
        let (_directory, checkout, kernel) = trees();
        let place = put(&checkout, &kernel, &Selection::All).unwrap();
        assert!(place
            .join("luo_handler_memfd/luo_handler_memfd.rs")
            .is_file());
        assert!(place.join("luo_handler_memfd/record.rs").is_file());
        assert!(place.join("dispatch.rs").is_file());
        let (kconfig, makefile) = (read(kernel.join(KCONFIG)), read(kernel.join(MAKEFILE)));
        let time = fs::metadata(place.join("Kconfig"))
            .unwrap()
            .modified()
            .unwrap();
        put(&checkout, &kernel, &Selection::All).unwrap();
        assert_eq!(
            (kconfig, makefile),
            (read(kernel.join(KCONFIG)), read(kernel.join(MAKEFILE)))
        );
        assert_eq!(
            time,
            fs::metadata(place.join("Kconfig"))
                .unwrap()
                .modified()
                .unwrap()
        );
        assert!(remove(&kernel).unwrap());
        assert_eq!(read(kernel.join(KCONFIG)), KCONFIG_TEXT);
        assert_eq!(read(kernel.join(MAKEFILE)), MAKEFILE_TEXT);
        assert_eq!(read(kernel.join(LINKER_SCRIPT)), LINKER_SCRIPT_TEXT);
        assert_eq!(read(kernel.join(BINDINGS)), BINDINGS_TEXT);
        assert!(!place.exists());
        assert!(!remove(&kernel).unwrap());
    }

    #[test]
    fn a_tree_of_hard_links_does_not_change_what_it_was_linked_from() {
        let (directory, checkout, kernel) = trees();
        let linked = directory.path().join("linked");
        let status = std::process::Command::new("cp")
            .args(["--archive", "--link"])
            .args([&kernel, &linked])
            .status();
        assert!(status.unwrap().success());
        put(&checkout, &linked, &Selection::All).unwrap();
        assert_ne!(read(linked.join(KCONFIG)), KCONFIG_TEXT);
        assert_eq!(read(kernel.join(KCONFIG)), KCONFIG_TEXT);
        assert_eq!(read(kernel.join(MAKEFILE)), MAKEFILE_TEXT);
    }

    #[test]
    fn a_handler_left_out_later_is_taken_out() {
        let (_directory, checkout, kernel) = trees();
        let place = put(&checkout, &kernel, &Selection::All).unwrap();
        put(&checkout, &kernel, &Selection::Named(vec!["memfd".into()])).unwrap();
        assert!(place.join("luo_handler_memfd").exists());
        assert!(!place.join("luo_handler_vfio").exists());
        let error = put(
            &checkout,
            &kernel,
            &Selection::Named(vec!["nonesuch".into()]),
        )
        .unwrap_err();
        assert!(error.to_string().contains("no handler nonesuch"), "{error}");
    }

    #[test]
    fn what_is_not_ours_stays() {
        let (_directory, checkout, kernel) = trees();
        let place = put(&checkout, &kernel, &Selection::All).unwrap();
        fs::write(place.join("dispatch.o"), "object").unwrap();
        remove(&kernel).unwrap();
        assert!(place.join("dispatch.o").exists());
        put(&checkout, &kernel, &Selection::All).unwrap();
        remove(&kernel).unwrap();
        write(place.join("Kconfig"), "somebody else's");
        let error = put(&checkout, &kernel, &Selection::All).unwrap_err();
        assert!(error.to_string().contains("not from us"), "{error}");
    }

    #[test]
    fn an_unsuitable_tree_is_refused_with_the_reason() {
        let (_directory, checkout, kernel) = trees();
        let header = kernel.join("include/linux/liveupdate.h");
        let refused = || {
            let error = put(&checkout, &kernel, &Selection::All).unwrap_err();
            assert!(error.to_string().contains("take 7.3"), "{error}");
        };
        write(header.clone(), "struct liveupdate_file_ops;");
        refused();
        fs::remove_file(header).unwrap();
        refused();
        assert_eq!(read(kernel.join(KCONFIG)), KCONFIG_TEXT);
    }
}
