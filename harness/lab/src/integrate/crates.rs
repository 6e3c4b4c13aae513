// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The crates that are put in, as they lie in a checkout or anywhere: what a handler brings along.
//!
//! ```text
//! Cargo.toml           the package's name
//! src/                 Rust
//! kmod/Kconfig         its switch, `config LUO_HANDLER_...`, comes first
//! kmod/kernel.config   optional: what it wants of the kernel's configuration, as a fragment
//! kmod/*.c, *.h, *.S   optional
//! ```

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

/// Which handlers to put in.
#[derive(Clone, Debug)]
pub enum Selection {
    /// Every one of the checkout that has a kernel's part, `kmod/`.
    All,
    /// Those of the checkout with these names, and, where there is a `/` in it, the crate at that
    /// path.
    Named(Vec<String>),
}

/// A file to be put in.
#[derive(Debug)]
pub(super) struct Source {
    /// Its name in the directory it goes to.
    pub(super) target: PathBuf,
    pub(super) file: PathBuf,
    pub(super) contents: Vec<u8>,
}

/// A handler's crate.
#[derive(Debug)]
pub(super) struct HandlerCrate {
    /// As rustc knows it.
    pub(super) name: String,
    /// Without `CONFIG_`.
    pub(super) switch: String,
    /// What it wants of the kernel's configuration.
    pub(super) wants: String,
    /// What its switch depends on, as Kconfig has it.
    pub(super) depends: Vec<String>,
    /// Its files, below a directory of its name.
    pub(super) sources: Vec<Source>,
}

const SWITCH_PREFIX: &str = "LUO_HANDLER_";
const KMOD: &str = "kmod";
const KCONFIG: &str = "Kconfig";
const WANTS: &str = "kernel.config";

impl HandlerCrate {
    fn read(directory: &Path) -> Result<Self> {
        let refused = || {
            format!(
                "{} cannot be put into a kernel; `luo new` makes a crate that can",
                directory.display()
            )
        };
        Self::read_crate(directory).with_context(refused)
    }

    fn read_crate(directory: &Path) -> Result<Self> {
        let (name, mut sources) = read_crate(directory)?;
        let kmod = directory.join(KMOD);
        let kconfig = kmod.join(KCONFIG);
        let kconfig = fs::read_to_string(&kconfig).with_context(|| {
            format!(
                "reading {}, which has the handler's switch",
                kconfig.display()
            )
        })?;
        let (switch, depends) = switch(&kconfig).with_context(|| {
            format!(
                "{} has no switch: `config {SWITCH_PREFIX}...`, before all others",
                kmod.join(KCONFIG).display()
            )
        })?;
        for mut source in sources_below(&kmod)? {
            source.target = Path::new(KMOD).join(source.target);
            sources.push(source);
        }
        let wants = kmod.join(WANTS);
        let wants = match wants.exists() {
            true => fs::read_to_string(&wants)
                .with_context(|| format!("reading {}", wants.display()))?,
            false => String::new(),
        };
        Ok(Self {
            name,
            switch,
            wants,
            depends,
            sources,
        })
    }

    /// The objects that its C makes, seen from its directory.
    pub(super) fn objects(&self) -> Vec<String> {
        let is_compiled = |source: &&Source| {
            let extension = source.target.extension();
            source.target.starts_with(KMOD)
                && (extension == Some(OsStr::new("c")) || extension == Some(OsStr::new("S")))
        };
        let compiled = self.sources.iter().filter(is_compiled);
        compiled
            .map(|source| source.target.with_extension("o").display().to_string())
            .collect()
    }

    /// Its Kconfig, seen from its directory.
    pub(super) fn kconfig() -> PathBuf {
        Path::new(KMOD).join(KCONFIG)
    }
}

/// What the module itself wants of the kernel's configuration.
pub(super) fn wants_of_module(checkout: &Path) -> Result<String> {
    let file = checkout.join(KMOD).join(WANTS);
    fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
}

/// The first switch of a Kconfig, and what it depends on.
fn switch(kconfig: &str) -> Option<(String, Vec<String>)> {
    let mut lines = kconfig.lines().map(str::trim);
    let name = lines.find_map(|line| {
        line.strip_prefix("config ")
            .or_else(|| line.strip_prefix("menuconfig "))
    })?;
    let is_plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    let own = name.trim().strip_prefix(SWITCH_PREFIX)?;
    if own.is_empty() || !own.bytes().all(is_plain) {
        return None;
    }
    let attributes = lines.take_while(|line| {
        !["config ", "menuconfig ", "help", "endif"]
            .iter()
            .any(|end| line.starts_with(end))
    });
    let depends = attributes.filter_map(|line| line.strip_prefix("depends on "));
    Some((name.trim().to_owned(), depends.map(str::to_owned).collect()))
}

/// Reads the handlers of a selection.
pub(super) fn select(checkout: &Path, selection: &Selection) -> Result<Vec<HandlerCrate>> {
    let parent = checkout.join("handlers");
    let directories = match selection {
        Selection::All => {
            // One without a kernel's part is for processes alone.
            let mut all = crates_in(&parent)?;
            all.retain(|directory| directory.join("kmod").is_dir());
            all
        }
        Selection::Named(names) => names
            .iter()
            .map(|name| find(&parent, name))
            .collect::<Result<_>>()?,
    };
    let handlers = directories
        .iter()
        .map(|directory| HandlerCrate::read(directory))
        .collect::<Result<Vec<_>>>()?;
    let mut seen = BTreeSet::from(["luo_handler_api", "luo_handlers"]);
    for handler in &handlers {
        if !seen.insert(&handler.name) {
            bail!(
                "there are two crates {}; give one of them another name",
                handler.name
            );
        }
        if !seen.insert(&handler.switch) {
            bail!(
                "two handlers have the switch {}; give one of them another",
                handler.switch
            );
        }
    }
    Ok(handlers)
}

fn find(parent: &Path, name: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return Ok(name.into());
    }
    let available = crates_in(parent)?;
    let found = available
        .iter()
        .find(|path| path.file_name() == Some(OsStr::new(name)));
    found.cloned().with_context(|| {
        let names = available
            .iter()
            .filter_map(|path| path.file_name()?.to_str());
        format!(
            "there is no handler {name} in {}, which has {}; name a crate elsewhere by its path, \
             such as ./{name}",
            parent.display(),
            names.collect::<Vec<_>>().join(", ")
        )
    })
}

/// The directories with a crate in them, sorted.
fn crates_in(parent: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).with_context(|| format!("listing {}", parent.display()))? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The name and the Rust files of a crate; its root is named after the crate, as Kbuild wants it.
pub(super) fn read_crate(directory: &Path) -> Result<(String, Vec<Source>)> {
    let name = crate_name(&directory.join("Cargo.toml"))?;
    let mut sources = sources_below(&directory.join("src"))?;
    sources.retain(|source| source.target.extension() == Some(OsStr::new("rs")));
    let root = sources
        .iter_mut()
        .find(|source| source.target == Path::new("lib.rs"));
    root.with_context(|| format!("{} has no src/lib.rs", directory.display()))?
        .target = format!("{name}.rs").into();
    Ok((name, sources))
}

/// The name rustc knows a package's library by.
fn crate_name(manifest: &Path) -> Result<String> {
    let text =
        fs::read_to_string(manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let package = text
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[package]")
        .skip(1);
    let mut names = package
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.strip_prefix("name")?.trim_start().strip_prefix('='));
    let name = names
        .next()
        .map(|value| value.trim().trim_matches('"').replace('-', "_"));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.filter(|name| !name.is_empty() && name.bytes().all(is_plain))
        .with_context(|| format!("{} names no package", manifest.display()))
}

/// Every file below `root` that the kernel is built from, sorted. Objects, backups and what editors
/// leave have other names.
pub(super) fn sources_below(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else if is_source(&name) {
                sources.push(Source {
                    target: path.strip_prefix(root)?.into(),
                    contents: fs::read(&path)
                        .with_context(|| format!("reading {}", path.display()))?,
                    file: path,
                });
            }
        }
    }
    sources.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(sources)
}

fn is_source(name: &OsStr) -> bool {
    // Nothing else is the name of a Rust or C file, and the list has a line for each name.
    let Some(name) = name
        .to_str()
        .filter(|name| !name.contains(['\n', '#', '~', ' ']))
    else {
        return false;
    };
    let has_ending = [".rs", ".c", ".h", ".S", ".patch"]
        .iter()
        .any(|ending| name.ends_with(ending));
    let is_generated = name.ends_with(".mod.c");
    [KCONFIG, "Makefile"].contains(&name) || (has_ending && !is_generated && !name.starts_with('.'))
}

/// Whether a file inside our directory is made by a build or left by an editor, a merge or a patch.
pub(super) fn is_product(name: &OsStr) -> bool {
    const ENDINGS: [&str; 22] = [
        ".o", ".a", ".rmeta", ".mod", ".mod.c", ".ko", ".i", ".s", ".ll", ".lst", ".rsi", ".su",
        ".gcno", ".gcda", ".dwo", ".orig", ".rej", ".bak", ".swp", ".swo", "~", "#",
    ];
    let name = name.to_string_lossy();
    let is_hidden = [".cmd", ".d"].iter().any(|ending| name.ends_with(ending));
    name == "modules.order"
        || name.starts_with(".#")
        || (name.starts_with('.') && is_hidden)
        || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_from_what_lies_beside_them() {
        for name in [
            "lib.rs",
            "luo_shim.c",
            "luo_shim.h",
            "entry.S",
            "Kconfig",
            "Makefile",
        ] {
            assert!(
                is_source(OsStr::new(name)) && !is_product(OsStr::new(name)),
                "{name}"
            );
        }
        for name in [
            "lib.rs~",
            "lib.rs.orig",
            "lib.rs.rej",
            ".lib.rs.swp",
            "#lib.rs#",
            ".#lib.rs",
            "shim.o",
            ".shim.o.cmd",
            ".shim.o.d",
            "libluo.rmeta",
            "modules.order",
            "built-in.a",
            "luo.mod.c",
        ] {
            assert!(
                !is_source(OsStr::new(name)) && is_product(OsStr::new(name)),
                "{name}"
            );
        }
        assert!(!is_product(OsStr::new("notes.txt")) && !is_source(OsStr::new("notes.txt")));
    }

    #[test]
    fn the_switch_comes_first_with_what_it_depends_on() {
        let kconfig = "# c\nconfig LUO_HANDLER_A\n\tbool \"a\"\n\tdepends on B=y && C\n\tdepends \
                       on D\n\thelp\n\t  depends on nothing\nconfig E\n\tdepends on F\n";
        let (name, depends) = switch(kconfig).unwrap();
        assert_eq!(name, "LUO_HANDLER_A");
        assert_eq!(depends, ["B=y && C", "D"]);
        for without in [
            "",
            "config OTHER\nconfig LUO_HANDLER_A\n",
            "config LUO_HANDLER_\n",
        ] {
            assert_eq!(switch(without), None, "{without}");
        }
    }

    #[test]
    fn the_name_is_the_packages() {
        let directory = tempfile::tempdir().unwrap();
        let manifest = directory.path().join("Cargo.toml");
        let name = |text: &str| {
            fs::write(&manifest, text).unwrap();
            crate_name(&manifest).ok()
        };
        let text = "[[bin]]\nname = \"b\"\n[package]\nname = \"luo-handler-x\"\n";
        assert_eq!(name(text).as_deref(), Some("luo_handler_x"));
        assert_eq!(name("[package]\n[[bin]]\nname = \"b\"\n"), None);
        assert_eq!(name("[package]\nname = \"../x\"\n"), None);
    }
}
