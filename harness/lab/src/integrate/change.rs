// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Changes of a kernel tree: written beside, all of them, before the first one takes effect by a
//! rename. A disk that is full or a kill leaves each file as it was or as it will be.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What happens to one file.
#[derive(Debug)]
enum Change {
    Write { file: PathBuf, contents: Vec<u8> },
    Remove { file: PathBuf },
}

/// Changes in the order they take effect.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    pub(super) fn write(&mut self, file: PathBuf, contents: Vec<u8>) {
        self.0.push(Change::Write { file, contents });
    }

    pub(super) fn remove(&mut self, file: PathBuf) {
        self.0.push(Change::Remove { file });
    }

    /// Puts others after these.
    pub(super) fn append(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many files are written, and removed.
    pub(super) fn count(&self) -> (usize, usize) {
        let written = self
            .0
            .iter()
            .filter(|change| matches!(change, Change::Write { .. }))
            .count();
        (written, self.0.len() - written)
    }

    /// Carries them out. What an earlier try left in `staging` goes first, and last of all.
    pub(super) fn apply(self, staging: &Path) -> Result<()> {
        remove_directory(staging)?;
        if self.0.is_empty() {
            return Ok(());
        }
        let staged = self.stage(staging);
        if staged.is_err() {
            // What went wrong is the news, not that it cannot be cleaned up.
            let _ = remove_directory(staging);
        }
        staged.context("nothing was changed")?;
        for (index, change) in self.0.iter().enumerate() {
            change
                .take_effect(&staged_name(staging, index))
                .context("only a part was changed; run the same command again")?;
        }
        remove_directory(staging)
    }

    fn stage(&self, staging: &Path) -> Result<()> {
        fs::create_dir(staging).with_context(|| format!("creating {}", staging.display()))?;
        for (index, change) in self.0.iter().enumerate() {
            let Change::Write { file, contents } = change else {
                continue;
            };
            let beside = staged_name(staging, index);
            fs::write(&beside, contents).with_context(|| format!("writing {}", file.display()))?;
            if let Ok(present) = fs::metadata(file) {
                fs::set_permissions(&beside, present.permissions())
                    .with_context(|| format!("writing {}", file.display()))?;
            }
        }
        Ok(())
    }
}

impl Change {
    fn take_effect(&self, staged: &Path) -> Result<()> {
        match self {
            Self::Write { file, .. } => {
                if let Some(parent) = file.parent() {
                    fs::create_dir_all(parent)
                        .with_context(|| format!("creating {}", parent.display()))?;
                }
                fs::rename(staged, file).with_context(|| format!("writing {}", file.display()))
            }
            Self::Remove { file } => match fs::remove_file(file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("removing {}", file.display()))
                }
                _ => Ok(()),
            },
        }
    }
}

fn staged_name(staging: &Path, index: usize) -> PathBuf {
    staging.join(index.to_string())
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the directories at and below `root` that have nothing in them; reports what is left.
pub(super) fn remove_empty_directories(root: &Path) -> Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(left),
        entries => entries.with_context(|| format!("listing {}", root.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            left.extend(remove_empty_directories(&entry.path())?);
        } else {
            left.push(entry.path());
        }
    }
    if left.is_empty() {
        fs::remove_dir(root).with_context(|| format!("removing {}", root.display()))?;
    }
    left.sort();
    Ok(left)
}
