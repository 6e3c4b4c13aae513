// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo new`: the crate of a new handler, which works before a line of it is changed.
//!
//! It is made from the files in `new/template`, a handler of `/dev/full` called `sample`.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use clap::Args;
use tempfile::NamedTempFile;

use luo_lab::build::checkout::find_checkout;

/// What `luo new` takes.
#[derive(Args, Debug)]
pub struct NewOptions {
    /// The type of file, in a word: small letters, digits and _
    #[arg(value_parser = parse_name)]
    name: String,
    /// The directory to make, anywhere; by default handlers/NAME of the checkout
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// The checkout of luo-handlers that has the api; by default the one around the current
    /// directory, else the one that luo was built from
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
}

/// So that the compatible has its 47 bytes also with another vendor.
const NAME_MAX: usize = 24;
/// luo-handler-NAME of these would be a crate of the framework.
const TAKEN: [&str; 1] = ["api"];
/// What the workspace's lines of handlers begin with.
const MEMBER: &str = "\"handlers/";

/// The files of every crate.
const FILES: [(&str, &str); 16] = [
    ("src/lib.rs", include_str!("new/template/src/lib.rs")),
    ("src/record.rs", include_str!("new/template/src/record.rs")),
    (
        "src/backend.rs",
        include_str!("new/template/src/backend.rs"),
    ),
    (
        "src/handler.rs",
        include_str!("new/template/src/handler.rs"),
    ),
    ("src/user.rs", include_str!("new/template/src/user.rs")),
    ("src/kernel.rs", include_str!("new/template/src/kernel.rs")),
    ("src/plugin.rs", include_str!("new/template/src/plugin.rs")),
    ("kmod/Kconfig", include_str!("new/template/kmod/Kconfig")),
    (
        "kmod/kernel.config",
        include_str!("new/template/kmod/kernel.config"),
    ),
    (
        "kmod/luo_shim_sample.c",
        include_str!("new/template/kmod/luo_shim_sample.c"),
    ),
    (
        "kmod/luo_shim_sample.h",
        include_str!("new/template/kmod/luo_shim_sample.h"),
    ),
    (
        "tests/hosted.rs",
        include_str!("new/template/tests/hosted.rs"),
    ),
    (
        "tests/kexec.sh",
        include_str!("new/template/tests/kexec.sh"),
    ),
    (
        "fuzz/Cargo.toml",
        include_str!("new/template/fuzz/Cargo.toml"),
    ),
    (
        "fuzz/fuzz_targets/record.rs",
        include_str!("new/template/fuzz/fuzz_targets/record.rs"),
    ),
    (".gitignore", "target/\n"),
];
const MANIFEST: &str = "Cargo.toml";
const LOCK: &str = "Cargo.lock";
const OUTSIDE: &str = include_str!("new/template/outside.toml");
const INSIDE: &str = include_str!("new/template/inside.toml");

/// Makes the crate and returns what to print.
///
/// # Errors
///
/// What is in the way; then nothing is left.
pub fn run(options: &NewOptions) -> Result<String> {
    let checkout = find_checkout(options.checkout.as_deref())?;
    let name = &options.name;
    let directory = match &options.path {
        None => checkout.join("handlers").join(name),
        Some(path) => std::path::absolute(path).context("reading the current directory")?,
    };
    ensure!(
        fs::symlink_metadata(&directory).is_err(),
        "{} exists already; choose another name, or another directory with --path",
        directory.display()
    );
    ensure!(
        !checkout.join("handlers").join(name).exists(),
        "luo-handlers has a handler {name}; choose another name, since one kernel may get both"
    );
    let new = NewCrate {
        name,
        checkout: &checkout,
        is_inside: options.path.is_none(),
    };
    let workspace = checkout.join(MANIFEST);
    let members = match new.is_inside {
        true => Some(with_member(&workspace, name)?),
        false => None,
    };
    new.write(&directory)?;
    if let Some(text) = members {
        if let Err(error) = replace(&workspace, &text) {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("removing {}", directory.display()))?;
            return Err(error);
        }
    }
    new.next_commands(&directory)
}

/// What to make.
struct NewCrate<'a> {
    name: &'a str,
    checkout: &'a Path,
    /// Whether it is a member of the checkout's workspace.
    is_inside: bool,
}

impl NewCrate<'_> {
    /// Writes all of it under another name, then renames it: it is there as a whole or not at all.
    fn write(&self, directory: &Path) -> Result<()> {
        let parent = directory.parent().unwrap_or(Path::new("/"));
        let unfinished = tempfile::Builder::new()
            .prefix(".luo-new-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let manifest = match self.is_inside {
            true => INSIDE,
            false => OUTSIDE,
        };
        for (file, template) in [(MANIFEST, manifest)].into_iter().chain(FILES) {
            let file = unfinished.path().join(self.filled_in(file)?);
            put(&file, &self.filled_in(template)?)?;
        }
        let script = unfinished.path().join("tests/kexec.sh");
        fs::set_permissions(&script, Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", script.display()))?;
        // The versions that the checkout was built with are on this machine.
        let mut locks = vec![("fuzz", "fuzz/Cargo.lock")];
        if !self.is_inside {
            locks.push(("", LOCK));
        }
        for (place, lock) in locks {
            let lock = self.checkout.join(lock);
            fs::copy(&lock, unfinished.path().join(place).join(LOCK))
                .with_context(|| format!("copying {}", lock.display()))?;
        }
        fs::rename(unfinished.path(), directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        // It has another name now, under which it stays.
        let _ = unfinished.keep();
        Ok(())
    }

    /// A template with the names of this crate in it.
    fn filled_in(&self, template: &str) -> Result<String> {
        let (vendor, checkout) = match self.is_inside {
            true => ("luo-handlers", "../../.."),
            false => {
                let path = self.checkout.to_str();
                ("vendor", path.context("the checkout's path is not UTF-8")?)
            }
        };
        let mut magic: String = self.name.chars().take(6).collect();
        while magic.len() < 6 {
            magic.push('-');
        }
        let names = template
            .replace("SAMPLE", &self.name.to_ascii_uppercase())
            .replace("Sample", &camel_case(self.name))
            .replace("sample", self.name);
        Ok(names
            .replace("MAGIC-V1", &format!("{magic}-1"))
            .replace("vendor,", &format!("{vendor},"))
            .replace("CHECKOUT", &checkout.escape_default().to_string()))
    }

    fn next_commands(&self, directory: &Path) -> Result<String> {
        let luo = PathBuf::from(std::env::args_os().next().unwrap_or_default());
        let luo = match luo.components().count() {
            // As the shell found it.
            1 => quoted(&luo),
            _ => quoted(&std::path::absolute(&luo).context("reading the current directory")?),
        };
        let (place, name) = (quoted(directory), self.name);
        let manifest = quoted(&directory.join(MANIFEST));
        let program = quoted(&directory.join("tests/kexec.sh"));
        let (handler, origin) = match self.is_inside {
            true => (String::new(), "It is a member of the workspace.".to_owned()),
            false => (
                format!(" --handler {place}"),
                format!(
                    "It finds luo-handler-api by its path, {}; nothing is downloaded. Put your own \
                     vendor into its compatible, vendor,{name}-v1.",
                    self.checkout.display()
                ),
            ),
        };
        Ok(format!(
            "{place} has luo-handler-{name}, a handler of /dev/full to be changed: begin with \
             src/lib.rs.\n{origin}\nNext:\n  \
             cargo test --manifest-path {manifest}\n  \
             {luo} lab test{handler} --program {program}\n  \
             cargo rustc --manifest-path {manifest} --lib --crate-type cdylib --features plugin"
        ))
    }
}

fn put(file: &Path, text: &str) -> Result<()> {
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// The workspace's manifest with one member more.
fn with_member(workspace: &Path, name: &str) -> Result<String> {
    let text = fs::read_to_string(workspace)
        .with_context(|| format!("reading {}", workspace.display()))?;
    let mut lines: Vec<&str> = text.lines().collect();
    let is_member = |line: &&str| line.trim_start().starts_with(MEMBER);
    let last = lines.iter().rposition(is_member).with_context(|| {
        format!(
            "{} has no line of members that begins with {MEMBER}",
            workspace.display()
        )
    })?;
    let added = format!("    {MEMBER}{name}\",");
    lines.insert(last + 1, &added);
    Ok(lines.join("\n") + "\n")
}

/// Replaces a file as a whole.
fn replace(file: &Path, text: &str) -> Result<()> {
    let parent = file.parent().unwrap_or(Path::new("/"));
    let write = || -> io::Result<()> {
        let mut new = NamedTempFile::new_in(parent)?;
        new.write_all(text.as_bytes())?;
        fs::set_permissions(new.path(), fs::metadata(file)?.permissions())?;
        new.persist(file)?;
        Ok(())
    };
    write().with_context(|| format!("cannot change {}", file.display()))
}

fn parse_name(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins_well || !name.chars().all(is_plain) || name.ends_with('_') || name.contains("__") {
        return Err(format!(
            "{name:?} is not a name: it has small letters, digits and single _, and begins with a \
             letter, as in eventfd or my_device"
        ));
    }
    if name.len() > NAME_MAX {
        return Err(format!(
            "it has {} letters, at most {NAME_MAX} fit",
            name.len()
        ));
    }
    if TAKEN.contains(&name) {
        return Err(format!("luo-handler-{name} is a crate of the framework"));
    }
    Ok(name.to_owned())
}

/// `my_device` as `MyDevice`.
fn camel_case(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    };
    name.split('_').map(word).collect()
}

/// A path as the shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_words() {
        for name in ["pipe", "my_device", "a2", "sample"] {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        for name in [
            "",
            "_a",
            "2a",
            "Pipe",
            "my-device",
            "a__b",
            "a_",
            "ä",
            "../a",
            "a b",
            "api",
            "more_than_twenty_four_letters",
        ] {
            assert!(parse_name(name).is_err(), "{name}");
        }
        assert_eq!(camel_case("my_2_device"), "My2Device");
    }

    #[test]
    fn a_name_is_in_all_its_places_and_the_templates_own_in_none() {
        for name in ["p", "my_device_of_many_letters", "sample_2"] {
            let new = NewCrate {
                name,
                checkout: Path::new("/a \"sample\" checkout"),
                is_inside: false,
            };
            let upper = name.to_ascii_uppercase();
            for (file, template) in FILES.into_iter().chain([(MANIFEST, OUTSIDE)]) {
                let text = new.filled_in(template).unwrap();
                for left in ["MAGIC-V1", "CHECKOUT", "luo-handlers,"] {
                    assert!(!text.contains(left), "{file}: {left}");
                }
                if !name.starts_with("sample") && !text.contains("checkout/") {
                    assert!(!text.to_ascii_lowercase().contains("sample"), "{file}");
                }
            }
            let record = new.filled_in(FILES[1].1).unwrap();
            let magic = record
                .split("b\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            assert_eq!(magic.map(str::len), Some(8), "{name}");
            let kconfig = new.filled_in(FILES[7].1).unwrap();
            assert!(kconfig.contains(&format!("config LUO_HANDLER_{upper}\n")));
        }
    }

    #[test]
    fn a_member_is_one_line_of_the_workspace() {
        let directory = tempfile::tempdir().unwrap();
        let manifest = directory.path().join(MANIFEST);
        let text = "[workspace]\nmembers = [\n    \"a\",\n    \"handlers/b\", \"handlers/c\",\n    \
                    \"d\",\n]\n";
        fs::write(&manifest, text).unwrap();
        let with = with_member(&manifest, "new").unwrap();
        let added: Vec<&str> = with.lines().filter(|line| !text.contains(line)).collect();
        assert_eq!(added, ["    \"handlers/new\","]);
        assert_eq!(with.lines().nth(4), Some(added[0]));
        replace(&manifest, &with).unwrap();
        assert_eq!(fs::read_to_string(&manifest).unwrap(), with);
        fs::write(&manifest, "[package]\n").unwrap();
        assert!(with_member(&manifest, "new").is_err());
    }
}
