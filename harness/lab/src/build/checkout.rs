// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which checkout of luo-handlers goes into the kernel.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

/// The checkout that holds the handlers: the given one, else the one around the current directory,
/// else the one that this program was built from.
///
/// # Errors
///
/// There is none, or the given directory is not one.
pub fn find_checkout(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(directory) = given {
        if !is_checkout(directory) {
            bail!(
                "{} is not a checkout of luo-handlers: it has no luo-handler-api/",
                directory.display()
            );
        }
        return directory
            .canonicalize()
            .with_context(|| format!("resolving {}", directory.display()));
    }
    let current = std::env::current_dir().context("reading the current directory")?;
    let current = current.canonicalize().unwrap_or(current);
    // harness/lab, two levels below it
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("/"));
    let found = current
        .ancestors()
        .chain([built_from])
        .find(|directory| is_checkout(directory));
    found.map(Path::to_path_buf).context(
        "there is no checkout of luo-handlers here; change into one, or name it with --checkout",
    )
}

fn is_checkout(directory: &Path) -> bool {
    directory.join("luo-handler-api").is_dir() && directory.join("handlers").is_dir()
}
