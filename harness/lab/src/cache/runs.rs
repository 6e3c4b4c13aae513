// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A directory for each command that runs guests, so that two at once do not write to one file.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{flock, FlockOperation};

use crate::cache::directory::Cache;
use crate::cache::removal::remove_tree;

const DIRECTORY: &str = "runs";
const LOCK: &str = "lock";
/// So many finished ones stay, so that their consoles can be read.
const FINISHED_MAX: usize = 10;

/// The directory of one command's guests. While this lives, nobody removes it.
#[derive(Debug)]
pub(crate) struct Runs {
    directory: PathBuf,
    _lock: File,
}

impl Runs {
    /// Makes the next directory, and removes the oldest finished ones.
    pub(crate) fn begin(cache: &Cache) -> Result<Self> {
        let parent = cache.path(DIRECTORY);
        fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
        let numbers = numbers_in(&parent)?;
        let runs = Self::create(&parent, numbers.last().map_or(1, |last| last + 1))?;
        let finished = numbers.len().saturating_sub(FINISHED_MAX);
        for number in &numbers[..finished] {
            remove_unless_used(&parent.join(number.to_string()));
        }
        Ok(runs)
    }

    /// Where the guest of this name leaves its console, events and results.
    pub(crate) fn of(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn create(parent: &Path, mut number: u64) -> Result<Self> {
        let directory = loop {
            let directory = parent.join(number.to_string());
            match fs::create_dir(&directory) {
                // Another command has just begun with this number.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                made => {
                    made.with_context(|| format!("creating {}", directory.display()))?;
                    break directory;
                }
            }
        };
        let lock = File::create(directory.join(LOCK)).context("creating a lock")?;
        flock(&lock, FlockOperation::LockShared).context("locking a directory of runs")?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }
}

/// The numbers of the directories that are there, ascending.
fn numbers_in(parent: &Path) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(parent).with_context(|| format!("listing {}", parent.display()))? {
        numbers.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u64>().ok()),
        );
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Old consoles only take space: what cannot be removed stays.
fn remove_unless_used(directory: &Path) {
    let Ok(lock) = File::open(directory.join(LOCK)) else {
        return;
    };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
        let _ = remove_tree(directory);
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn two_commands_at_once_have_directories_of_their_own_and_old_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().into());
        let at_work = Runs::begin(&cache).unwrap();
        let other = Runs::begin(&cache).unwrap();
        assert_ne!(at_work.of("test"), other.of("test"));
        drop(other);
        for _ in 0..2 * FINISHED_MAX {
            Runs::begin(&cache).unwrap();
        }
        let numbers = numbers_in(&cache.path(DIRECTORY)).unwrap();
        assert!(numbers.contains(&1), "it is at work: {numbers:?}");
        assert!(!numbers.contains(&2), "it is old and finished: {numbers:?}");
        assert!(numbers.len() <= FINISHED_MAX + 2, "{numbers:?}");
    }
}
