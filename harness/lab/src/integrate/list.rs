// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The list of what we put into a kernel tree: `sha256sum --check` reads it, from inside our
//! directory.
//!
//! While files are being replaced it has two lines for one of them, with what it was and what it
//! will be: a file with either is ours, and everything else is somebody's change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{bail, Context, Result};
use sha2::{Digest, Sha256};

use super::tree;

/// The kernel's `.gitignore` has no pattern for it.
pub(super) const NAME: &str = "luo-integrated";
/// An earlier name, which that file has a pattern for; it had no checksums.
pub(super) const FORMER_NAME: &str = ".luo-integrated";

/// Files by their names inside our directory, each with the checksums it may have; no checksums if
/// they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List(BTreeMap<PathBuf, BTreeSet<String>>);

impl List {
    /// The list in our `directory`; `None` if it has no list.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>> {
        let mut list = None;
        for name in [FORMER_NAME, NAME] {
            let file = directory.join(name);
            if let Some(bytes) = tree::contents(&file)? {
                let list: &mut Self = list.get_or_insert_default();
                list.parse(&bytes).with_context(|| {
                    format!(
                        "{} is damaged; restore it, or move {} away",
                        file.display(),
                        directory.display()
                    )
                })?;
            }
        }
        Ok(list)
    }

    fn parse(&mut self, bytes: &[u8]) -> Result<()> {
        for line in std::str::from_utf8(bytes)
            .context("it is not text")?
            .lines()
        {
            let (checksum, name) = match line.split_once("  ") {
                Some((checksum, name)) if is_checksum(checksum) => (Some(checksum), name),
                _ => (None, line),
            };
            let name = Path::new(name);
            let is_plain = |component| matches!(component, Component::Normal(_));
            if name.as_os_str().is_empty() || !name.components().all(is_plain) {
                bail!("{line:?} does not name a file inside the directory");
            }
            self.0
                .entry(name.into())
                .or_default()
                .extend(checksum.map(str::to_owned));
        }
        Ok(())
    }

    /// Adds a file with what it will hold.
    pub(super) fn add(&mut self, name: &Path, contents: &[u8]) {
        self.0
            .entry(name.into())
            .or_default()
            .insert(checksum(contents));
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.keys()
    }

    pub(super) fn has(&self, name: &Path) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a listed file with these contents is as we wrote it.
    pub(super) fn is_unchanged(&self, name: &Path, contents: &[u8]) -> bool {
        self.0
            .get(name)
            .is_some_and(|known| known.is_empty() || known.contains(&checksum(contents)))
    }

    /// Both lists in one.
    pub(super) fn and(mut self, other: &Self) -> Self {
        for (name, checksums) in &other.0 {
            self.0
                .entry(name.clone())
                .or_default()
                .extend(checksums.iter().cloned());
        }
        self
    }

    /// As it is written.
    pub(super) fn text(&self) -> String {
        let lines = self.0.iter().flat_map(|(name, checksums)| {
            checksums
                .iter()
                .map(move |checksum| format!("{checksum}  {}\n", name.display()))
        });
        lines.collect()
    }
}

fn checksum(contents: &[u8]) -> String {
    Sha256::digest(contents)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn is_checksum(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let (mut one, mut other) = (List::default(), List::default());
        one.add(Path::new("a/b.rs"), b"old");
        other.add(Path::new("a/b.rs"), b"new");
        let both = one.clone().and(&other);
        let mut read = List::default();
        read.parse(both.text().as_bytes()).unwrap();
        assert_eq!(read, both);
        for (contents, ours) in [("old", true), ("new", true), ("mine", false)] {
            assert_eq!(
                read.is_unchanged(Path::new("a/b.rs"), contents.as_bytes()),
                ours
            );
        }
        assert!(!read.is_unchanged(Path::new("other"), b"old"));
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../Kconfig", "a/../../b", "/etc/passwd", "", ".", "a/.."] {
            for line in [name.to_owned(), format!("{}  {name}", checksum(b""))] {
                let error = List::default()
                    .parse(format!("{line}\n").as_bytes())
                    .unwrap_err();
                assert!(
                    error.to_string().contains("inside the directory"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn former_lists_have_names_alone() {
        let mut list = List::default();
        list.parse(b"luo_handler_memfd/record.rs\n").unwrap();
        assert!(list.is_unchanged(Path::new("luo_handler_memfd/record.rs"), b"anything"));
    }
}
