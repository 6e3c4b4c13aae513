// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files and trees, as the cache lists, writes, measures and removes them.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All regular files at or below `root`, sorted; empty if it does not exist.
pub(crate) fn files_below(root: &Path) -> Result<Vec<PathBuf>> {
    if root.is_file() {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut files = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("listing {}", directory.display()))
            }
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if entry.file_type()?.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The disk space that a file or a tree takes, as far as it may be read.
pub(crate) fn size_below(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata =
        fs::symlink_metadata(path).with_context(|| format!("reading {}", path.display()))?;
    let mut size = metadata.blocks() * 512;
    if metadata.is_dir() {
        let Ok(entries) = fs::read_dir(path) else {
            return Ok(size);
        };
        for entry in entries {
            // A build at work makes and removes files meanwhile.
            size += size_below(&entry?.path()).unwrap_or(0);
        }
    }
    Ok(size)
}

/// Writes a file by way of a temporary one beside it; one that is replaced passes its mode on.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let mode = fs::metadata(path).map_or(0o666, |present| present.permissions().mode());
    let mut temporary = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(parent)
        .with_context(|| format!("writing to {}", parent.display()))?;
    temporary
        .write_all(contents)
        .with_context(|| format!("writing {}", path.display()))?;
    temporary
        .persist(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}
