// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The key of a step: a digest of everything that it is made from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::files::files_below;

/// A digest of everything a step is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key(String);

impl Key {
    /// The key of a list of inputs; where one ends and the next begins matters.
    pub(crate) fn of<I: AsRef<[u8]>>(inputs: impl IntoIterator<Item = I>) -> Self {
        let mut digest = Sha256::new();
        for input in inputs {
            digest.update((input.as_ref().len() as u64).to_le_bytes());
            digest.update(input.as_ref());
        }
        Self(hex(&digest.finalize()))
    }

    /// The key of files and everything below directories: their contents, and their names below
    /// the root that they were found at. Where that root is does not matter.
    pub(crate) fn of_trees<P: AsRef<Path>>(roots: impl IntoIterator<Item = P>) -> Result<Self> {
        let mut inputs: Vec<Vec<u8>> = Vec::new();
        for root in roots {
            let root = root.as_ref();
            for file in files_below(root)? {
                let name = file.strip_prefix(root).unwrap_or(&file);
                inputs.push(name.to_string_lossy().into_owned().into_bytes());
                inputs
                    .push(fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
            }
        }
        Ok(Self::of(inputs))
    }

    /// As text, to be part of another key or of a file name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a directory that is made for a path: that of its last part, and something by which
/// it differs from that of any other path.
pub(crate) fn distinct_name(path: &Path) -> String {
    const DIGITS: usize = 12;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let key = Key::of([path.as_os_str().as_encoded_bytes()]);
    format!("{name}-{}", &key.as_str()[..DIGITS])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_key_knows_where_an_input_ends() {
        assert_ne!(Key::of(["ab", "c"]), Key::of(["a", "bc"]));
        assert_eq!(Key::of(["ab", "c"]), Key::of(["ab", "c"]));
    }

    #[test]
    fn a_tree_has_the_same_key_wherever_it_is() {
        let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for root in [&one, &other] {
            fs::create_dir(root.path().join("src")).unwrap();
            fs::write(root.path().join("src/lib.rs"), "same").unwrap();
        }
        let key = |root: &tempfile::TempDir| Key::of_trees([root.path()]).unwrap();
        assert_eq!(key(&one), key(&other));
        fs::write(other.path().join("src/lib.rs"), "different").unwrap();
        assert_ne!(key(&one), key(&other));
    }
}
