// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The lab's directory: where it is, its lock, the small files in it. Nothing outside of it is
//! written.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use rustix::fs::{flock, FlockOperation};
use serde::{Deserialize, Serialize};

use crate::cache::files::write_atomically;

/// The lab's directory, or one checkout's part of it.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The lab's directory below `$XDG_CACHE_HOME`, else below `~/.cache`. It need not exist yet.
    ///
    /// # Errors
    ///
    /// Neither variable is set.
    pub fn open() -> Result<Self> {
        let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
            (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
            (_, Some(home)) => Path::new(&home).join(".cache"),
            _ => bail!(
                "neither XDG_CACHE_HOME nor HOME is set; set one, the lab stores its files there"
            ),
        };
        Ok(Self::at(base.join("luo-lab")))
    }

    /// A directory that is used as the lab's.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// A part of it, which has stamps, logs and small files of its own.
    pub(crate) fn part(&self, relative: impl AsRef<Path>) -> Self {
        Self::at(self.path(relative))
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path inside the directory.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join(relative)
    }

    /// Makes the directory and locks other builds out of it until the answer is dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("creating {}", self.directory.display()))?;
        let path = self.path("lock");
        let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!(
                "lab: another build is at work in {}; waiting for it",
                self.directory.display()
            );
            flock(&lock, FlockOperation::LockExclusive).context("locking the cache")?;
        }
        Ok(lock)
    }

    /// What a file of the cache holds; `None` if it is missing or from another version of the lab.
    pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(
        &self,
        relative: impl AsRef<Path>,
    ) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(relative)).ok()?).ok()
    }

    /// Writes a file of the cache, whole or not at all.
    pub(crate) fn write_json(
        &self,
        relative: impl AsRef<Path>,
        value: &impl Serialize,
    ) -> Result<()> {
        write_atomically(&self.path(relative), &serde_json::to_vec_pretty(value)?)
    }
}
