// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Removes the cache, or trees of it, without ever deleting through a mount.

use std::fs;
use std::path::Path;

use anyhow::{bail, Context, Result};

use crate::cache::directory::Cache;
use crate::cache::files::size_below;
use crate::namespace::in_namespace;
use crate::units::human;

impl Cache {
    /// Removes the directory and returns what to report. Refuses while something is mounted in it,
    /// so that it never deletes through a mount.
    ///
    /// # Errors
    ///
    /// Something is mounted there, or cannot be removed.
    pub fn remove(&self) -> Result<String> {
        let directory = self.directory();
        if !directory.exists() {
            return Ok(format!(
                "{} does not exist; nothing to remove",
                directory.display()
            ));
        }
        let _lock = self.lock()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .context("reading the mounted file systems")?;
        if let Some(mount) = mount_below(&mounts, directory) {
            bail!("{mount} is mounted inside the cache; unmount it first: umount {mount}");
        }
        let size = size_below(directory)?;
        // Moved away first: an interrupted removal leaves no half a cache that looks whole.
        let doomed = directory.with_extension("removing");
        fs::rename(directory, &doomed)
            .with_context(|| format!("moving {} away", directory.display()))?;
        remove_tree(&doomed)?;
        Ok(format!("removed {} ({})", directory.display(), human(size)))
    }
}

/// The first mount point below `directory` that a mountinfo file lists.
fn mount_below<'a>(mountinfo: &'a str, directory: &Path) -> Option<&'a str> {
    let mut points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.find(|point| Path::new(point).starts_with(directory))
}

/// Removes a directory and everything below it.
pub(crate) fn remove_tree(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory)
        .or_else(|error| {
            // A build root made in a user namespace holds files of subordinate users, which only
            // that namespace may remove.
            let status = in_namespace("rm").arg("-rf").arg(directory).status()?;
            if status.success() {
                Ok(())
            } else {
                Err(error)
            }
        })
        .with_context(|| format!("removing {}", directory.display()))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn mounts_below_the_cache_are_seen() {
        let mountinfo = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                         40 22 0:5 / /c/luo-lab/tree/dev rw - devtmpfs dev rw\n";
        assert_eq!(
            mount_below(mountinfo, Path::new("/c/luo-lab")),
            Some("/c/luo-lab/tree/dev")
        );
        assert_eq!(mount_below(mountinfo, Path::new("/c/luo-lab-other")), None);
    }
}
