// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where images are written: looked for before the work begins.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::statvfs;
use tempfile::TempDir;

use crate::environment::file_system;

/// File systems whose files are memory.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// A directory of our own, which is removed with all that is in it when it is dropped.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
    /// Bytes that fit into it.
    pub room: u64,
    /// Whether its files take memory.
    pub is_in_memory: bool,
}

impl Place {
    /// A place inside `given`. Without that, the first of the usual places with room for `wanted`
    /// bytes, or else the one with the most room.
    ///
    /// # Errors
    ///
    /// If nothing can be written there.
    pub fn choose(given: Option<&Path>, wanted: u64) -> Result<Self> {
        match given {
            Some(directory) => Self::inside(directory),
            None => Self::among(&usual_places(), wanted),
        }
    }

    fn among(directories: &[PathBuf], wanted: u64) -> Result<Self> {
        let mut best: Option<Self> = None;
        let mut failed = None;
        for directory in directories {
            match Self::inside(directory) {
                Ok(place) if place.room >= wanted => return Ok(place),
                Ok(place) if best.as_ref().is_none_or(|best| best.room < place.room) => {
                    best = Some(place);
                }
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match (best, failed) {
            (Some(place), _) => Ok(place),
            (None, Some(error)) => Err(error),
            (None, None) => anyhow::bail!("no directory for images found; --image-dir names one"),
        }
    }

    fn inside(directory: &Path) -> Result<Self> {
        let made = tempfile::Builder::new()
            .prefix("luo-bench-")
            .tempdir_in(directory)
            .with_context(|| {
                format!(
                    "cannot write to {}; --image-dir names another directory",
                    directory.display()
                )
            })?;
        let kind = file_system(directory);
        let room = statvfs(directory).map(|found| {
            // A tmpfs without a limit reports no blocks at all.
            match found.f_blocks {
                0 => u64::MAX,
                _ => found.f_bavail.saturating_mul(found.f_frsize),
            }
        });
        Ok(Self {
            directory: made,
            room: room?,
            is_in_memory: IN_MEMORY.contains(&kind.as_str()),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory in which it was made.
    pub fn parent(&self) -> &Path {
        self.path().parent().unwrap_or(Path::new("/"))
    }

    /// A directory for one run, which is removed when it is dropped.
    ///
    /// # Errors
    ///
    /// Those of `mkdir(2)`.
    pub fn of_one_run(&self) -> Result<TempDir> {
        let made = tempfile::tempdir_in(self.path());
        made.context("making a directory for a run")
    }
}

/// Memory first, if it is memory; then disks.
fn usual_places() -> Vec<PathBuf> {
    let memory = PathBuf::from("/dev/shm");
    let is_memory = IN_MEMORY.contains(&file_system(&memory).as_str());
    let mut places: Vec<PathBuf> = is_memory.then_some(memory).into_iter().collect();
    places.extend([std::env::temp_dir(), "/var/tmp".into()]);
    places.extend(std::env::current_dir());
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_with_room_is_taken_and_left_clean() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let gone = one.path().join("gone");
        let places = [gone.clone(), one.path().to_owned(), other.path().to_owned()];
        let place = Place::among(&places, 1).unwrap();
        assert_eq!(place.parent(), one.path());
        drop(place.of_one_run().unwrap());
        drop(place);
        assert_eq!(one.path().read_dir().unwrap().count(), 0);

        let most = Place::among(&places, u64::MAX - 1).unwrap();
        assert!(most.room < u64::MAX - 1);
        let error = Place::among(&[gone], 1).unwrap_err().to_string();
        assert!(error.contains("--image-dir"), "{error}");
        let error = Place::choose(Some(Path::new("/nonexistent")), 1).unwrap_err();
        assert!(error.to_string().contains("--image-dir"), "{error}");
    }
}
