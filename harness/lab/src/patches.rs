// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Patches that a handler brings for a kernel tree: put in and taken out with patch(1).

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

/// Whether a file is a patch.
pub(crate) fn is_patch(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("patch"))
}

/// Puts `patch` into the tree `kernel`, if it is not there already.
pub(crate) fn put_in(kernel: &Path, patch: &Path) -> Result<()> {
    if run(kernel, patch, &["--reverse", "--dry-run"])? {
        return Ok(());
    }
    if !run(kernel, patch, &["--dry-run"])? {
        bail!(
            "{} does not fit {}: its kernel is another one than the patch was written for; leave \
             the handler out with --handlers",
            patch.display(),
            kernel.display()
        );
    }
    run(kernel, patch, &[]).map(|_| ())
}

/// Takes `patch` out of the tree `kernel`, if it is there.
pub(crate) fn take_out(kernel: &Path, patch: &Path) -> Result<()> {
    if run(kernel, patch, &["--reverse", "--dry-run"])? {
        run(kernel, patch, &["--reverse"])?;
    }
    Ok(())
}

/// Runs patch(1); returns whether it succeeded.
fn run(kernel: &Path, patch: &Path, options: &[&str]) -> Result<bool> {
    let input = File::open(patch).with_context(|| format!("opening {}", patch.display()))?;
    let status = Command::new("patch")
        .args([
            "--strip=1",
            "--force",
            "--silent",
            "--no-backup-if-mismatch",
        ])
        .args(["--reject-file=-"])
        .args(options)
        .current_dir(kernel)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("starting patch; it is in Debian's package patch")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const BEFORE: &str = "one\ntwo\nthree\n";
    const AFTER: &str = "one\ntwo and a half\nthree\n";
    const PATCH: &str = "\
--- a/file
+++ b/file
@@ -1,3 +1,3 @@
 one
-two
+two and a half
 three
";

    #[test]
    fn a_patch_goes_in_once_and_comes_out_without_a_trace() {
        let tree = tempfile::tempdir().unwrap();
        let (file, patch) = (tree.path().join("file"), tree.path().join("x.patch"));
        fs::write(&file, BEFORE).unwrap();
        fs::write(&patch, PATCH).unwrap();
        assert!(is_patch(&patch) && !is_patch(&file));
        for _ in 0..2 {
            put_in(tree.path(), &patch).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), AFTER);
        }
        for _ in 0..2 {
            take_out(tree.path(), &patch).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), BEFORE);
        }
        fs::write(&file, "something else\n").unwrap();
        let error = put_in(tree.path(), &patch).unwrap_err();
        assert!(error.to_string().contains("does not fit"), "{error}");
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 2);
    }
}
