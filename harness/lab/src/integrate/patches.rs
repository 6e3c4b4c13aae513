// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Patches that a handler brings for files of the kernel tree, applied and reversed in memory.
//!
//! Each patch lies in our directory beside the handler that needs it, from before it is applied
//! until after it was reversed: if `integrate` is interrupted, what has to be reversed is known.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{bail, Context, Result};
use diffy::patch_set::{FileOperation, ParseOptions, PatchSet};
use diffy::Patch;

/// Whether a file is a patch.
pub(super) fn is_patch(name: &Path) -> bool {
    name.extension() == Some(OsStr::new("patch"))
}

/// The kernel's files that patches change: what they hold, and what they are to hold.
#[derive(Debug)]
pub(super) struct Patched {
    files: BTreeMap<PathBuf, Texts>,
}

#[derive(Debug)]
struct Texts {
    present: String,
    /// Without any of our patches.
    pristine: String,
    wanted: String,
}

impl Patched {
    /// Reads the files that `present` and `wanted` patches change. Every one of them may be applied
    /// already, to all of its files or to some.
    ///
    /// # Errors
    ///
    /// A patch that does not fit, or that changes a file outside of the tree.
    pub(super) fn read(
        kernel: &Path,
        present: &[(PathBuf, String)],
        wanted: &[(PathBuf, String)],
    ) -> Result<Self> {
        let mut files = BTreeMap::new();
        for (name, patch) in present.iter().chain(wanted) {
            for (file, patch) in parse(name, patch)? {
                if !files.contains_key(&file) {
                    files.insert(file.clone(), Texts::read(&kernel.join(&file))?);
                }
                let Some(texts) = files.get_mut(&file) else {
                    continue;
                };
                if let Ok(reversed) = diffy::apply(&texts.pristine, &patch.reverse()) {
                    texts.pristine = reversed;
                }
            }
        }
        for texts in files.values_mut() {
            texts.wanted.clone_from(&texts.pristine);
        }
        for (name, patch) in wanted {
            for (file, patch) in parse(name, patch)? {
                let Some(texts) = files.get_mut(&file) else {
                    continue;
                };
                texts.wanted = diffy::apply(&texts.wanted, &patch).with_context(|| {
                    let is_of_module = name.parent() == Some(Path::new(""));
                    format!(
                        "{} does not fit {} in {}: the patch was written for another kernel{}",
                        name.display(),
                        file.display(),
                        kernel.display(),
                        match is_of_module {
                            true => "",
                            false => "; leave its handler out with --handlers",
                        }
                    )
                })?;
            }
        }
        Ok(Self { files })
    }

    /// Files from which a patch goes that is not wanted as it is, each with its text without any.
    pub(super) fn reversed(&self) -> impl Iterator<Item = (&Path, &str)> {
        let files = self
            .files
            .iter()
            .filter(|(_, texts)| texts.present != texts.wanted && texts.present != texts.pristine);
        files.map(|(file, texts)| (file.as_path(), texts.pristine.as_str()))
    }

    /// Files that change, each with its text with the wanted patches.
    pub(super) fn applied(&self) -> impl Iterator<Item = (&Path, &str)> {
        let files = self
            .files
            .iter()
            .filter(|(_, texts)| texts.present != texts.wanted && texts.pristine != texts.wanted);
        files.map(|(file, texts)| (file.as_path(), texts.wanted.as_str()))
    }
}

impl Texts {
    fn read(file: &Path) -> Result<Self> {
        let present =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Ok(Self {
            pristine: present.clone(),
            wanted: present.clone(),
            present,
        })
    }
}

/// The changes of a patch, by file.
fn parse<'p>(name: &Path, patch: &'p str) -> Result<Vec<(PathBuf, Patch<'p, str>)>> {
    let mut changes = Vec::new();
    for change in PatchSet::parse(patch, ParseOptions::unidiff()) {
        let change = change.with_context(|| format!("reading {}", name.display()))?;
        let file = match change.operation().strip_prefix(1) {
            FileOperation::Modify { modified, .. } => PathBuf::from(modified.as_ref()),
            _ => bail!(
                "{}: a patch may change files, but not add or remove them",
                name.display()
            ),
        };
        let is_inside = file
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !is_inside {
            bail!(
                "{} changes {}, outside of the kernel tree",
                name.display(),
                file.display()
            );
        }
        let text = change.into_patch();
        let Some(text) = text.as_text() else {
            bail!("{} is not a patch of text", name.display());
        };
        changes.push((file, text.clone()));
    }
    if changes.is_empty() {
        bail!("{} changes no file", name.display());
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "one\ntwo\nthree\n";

    /// Puts a word after the first line of both files.
    fn patch(word: &str) -> (PathBuf, String) {
        let change = |file: &str| {
            format!("--- a/{file}\n+++ b/{file}\n@@ -1,3 +1,4 @@\n one\n+{word}\n two\n three\n")
        };
        let text = format!("Why.\n\n{}{}", change("mm/first.c"), change("mm/second.c"));
        ("held.patch".into(), text)
    }

    fn tree(texts: [&str; 2]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("mm")).unwrap();
        for (name, text) in ["first.c", "second.c"].iter().zip(texts) {
            fs::write(tree.path().join("mm").join(name), text).unwrap();
        }
        tree
    }

    fn list<'t>(changes: impl Iterator<Item = (&'t Path, &'t str)>) -> Vec<(String, String)> {
        changes
            .map(|(file, text)| (file.display().to_string(), text.to_owned()))
            .collect()
    }

    #[test]
    fn a_patch_is_applied_once_and_reversed_without_a_trace() {
        let fresh = tree([TEXT; 2]);
        let patched = Patched::read(fresh.path(), &[], &[patch("held")]).unwrap();
        assert!(list(patched.reversed()).is_empty());
        let with = "one\nheld\ntwo\nthree\n";
        assert_eq!(list(patched.applied()).len(), 2);
        assert_eq!(list(patched.applied())[0].1, with);

        let half = tree([with, TEXT]);
        let patched = Patched::read(half.path(), &[], &[patch("held")]).unwrap();
        assert_eq!(
            list(patched.applied()),
            [("mm/second.c".into(), with.into())]
        );
        let patched = Patched::read(half.path(), &[patch("held")], &[]).unwrap();
        assert_eq!(
            list(patched.reversed()),
            [("mm/first.c".into(), TEXT.into())]
        );
        assert!(list(patched.applied()).is_empty());

        let whole = tree([with; 2]);
        let patched = Patched::read(whole.path(), &[patch("held")], &[patch("more")]).unwrap();
        assert_eq!(list(patched.reversed())[1].1, TEXT);
        assert_eq!(list(patched.applied())[1].1, "one\nmore\ntwo\nthree\n");
    }

    #[test]
    fn a_patch_for_another_kernel_is_refused() {
        let other = tree(["something\nelse\n"; 2]);
        let error = Patched::read(other.path(), &[], &[patch("held")]).unwrap_err();
        assert!(
            error.to_string().contains("does not fit mm/first.c"),
            "{error}"
        );
    }

    #[test]
    fn a_patch_cannot_lead_out_of_the_tree() {
        let (name, text) = patch("held");
        for place in ["../mm", "/mm"] {
            let text = text.replace("a/mm", &format!("a/{place}"));
            let text = text.replace("b/mm", &format!("b/{place}"));
            assert!(parse(&name, &text).is_err());
        }
        assert!(parse(&name, "nothing").is_err());
    }
}
