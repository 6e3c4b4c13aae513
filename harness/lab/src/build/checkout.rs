// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which checkout of luo-handlers goes into the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use crate::integrate::Selection;

/// The checkout that holds the handlers: the given one, else the one around the current directory,
/// else the one that this program was built from.
///
/// # Errors
///
/// If no checkout is found, or the given directory is not one.
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
        "not inside a checkout of luo-handlers; change into one, or name it with --checkout",
    )
}

/// All handlers of a checkout that have a kernel's part, and the crates at `paths`.
pub(crate) fn select_handlers(checkout: &Path, paths: &[PathBuf]) -> Result<Selection> {
    if paths.is_empty() {
        return Ok(Selection::All);
    }
    let handlers = checkout.join("handlers");
    let mut selected = Vec::new();
    for entry in
        fs::read_dir(&handlers).with_context(|| format!("listing {}", handlers.display()))?
    {
        let entry = entry?;
        if entry.path().join("kmod").is_dir() {
            selected.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    for path in paths {
        // Absolute, so that it cannot be taken for a name.
        let path = path.canonicalize().with_context(|| {
            format!(
                "{} is not the directory of a handler's crate",
                path.display()
            )
        })?;
        selected.push(path.to_string_lossy().into_owned());
    }
    selected.sort();
    Ok(Selection::Named(selected))
}

fn is_checkout(directory: &Path) -> bool {
    directory.join("luo-handler-api").is_dir() && directory.join("handlers").is_dir()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_crate_anywhere_comes_beside_those_of_the_checkout() {
        let directory = tempfile::tempdir().unwrap();
        let checkout = directory.path().join("checkout");
        let own = directory.path().join("own");
        for place in [&checkout.join("handlers/memfd"), &own] {
            fs::create_dir_all(place.join("kmod")).unwrap();
        }
        fs::create_dir_all(checkout.join("handlers/hosted-alone")).unwrap();
        let select = |paths: &[PathBuf]| select_handlers(&checkout, paths);
        assert!(matches!(select(&[]).unwrap(), Selection::All));
        let Selection::Named(names) = select(std::slice::from_ref(&own)).unwrap() else {
            panic!("all were selected");
        };
        let own = own.canonicalize().unwrap().to_string_lossy().into_owned();
        assert_eq!(names, [own, "memfd".into()]);
        assert!(select(&["/nonexistent".into()]).is_err());
    }
}
