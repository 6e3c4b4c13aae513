// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The files that a report goes to.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use rustix::fs::{access, Access};
use serde::{Deserialize, Serialize};

use crate::html;
use crate::markdown;
use crate::report::Report;
use crate::text;

/// Where a report goes, beside the terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// The figures as JSON; `-` is the standard output of the command.
    pub json: Option<PathBuf>,
    /// A page with plots.
    pub html: Option<PathBuf>,
    /// A table for documentation.
    #[serde(default)]
    pub markdown: Option<PathBuf>,
    /// What a terminal shows.
    pub text: Option<PathBuf>,
}

/// Columns of the text.
const TEXT_WIDTH: usize = 120;

impl Outputs {
    /// Whether the standard output is for the JSON.
    pub fn json_is_printed(&self) -> bool {
        self.json.as_deref() == Some(Path::new("-"))
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let files = [&self.json, &self.html, &self.markdown, &self.text]
            .into_iter()
            .flatten();
        files.filter(|file| *file != Path::new("-"))
    }

    /// Checks that the files can be written, before the work and not after it.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn check(&self) -> Result<()> {
        for file in self.files() {
            writable(file).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// The same files, by names that hold for another process as well.
    ///
    /// # Errors
    ///
    /// If one of them is the standard output, which belongs to this process.
    pub fn absolute(&self) -> Result<Self> {
        ensure!(
            !self.json_is_printed(),
            "the standard output ends with this kernel; name a file"
        );
        let absolute = |file: &Option<PathBuf>| file.as_ref().map(std::path::absolute).transpose();
        Ok(Self {
            json: absolute(&self.json)?,
            html: absolute(&self.html)?,
            markdown: absolute(&self.markdown)?,
            text: absolute(&self.text)?,
        })
    }

    /// Writes the files. An interruption leaves the old one or the new one.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn write(&self, report: &Report) -> Result<()> {
        if let Some(file) = &self.html {
            write(file, html::page(report)?.as_bytes())?;
        }
        if let Some(file) = &self.markdown {
            write(file, markdown::page(report).as_bytes())?;
        }
        if let Some(file) = &self.text {
            write(file, text::page(report, TEXT_WIDTH).as_bytes())?;
        }
        if let Some(file) = self.json.as_ref().filter(|_| !self.json_is_printed()) {
            write(file, &serde_json::to_vec_pretty(report)?)?;
        }
        Ok(())
    }
}

/// Neither makes the file nor changes it: an interruption leaves what was there before.
fn writable(file: &Path) -> std::io::Result<()> {
    if file.exists() {
        return File::options().append(true).open(file).map(drop);
    }
    let needed = Access::WRITE_OK | Access::EXEC_OK;
    Ok(access(directory_of(file), needed)?)
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn write(file: &Path, contents: &[u8]) -> Result<()> {
    let written = match fs::symlink_metadata(file) {
        // A pipe, a terminal or a link is not to be replaced.
        Ok(found) if !found.is_file() => fs::write(file, contents),
        _ => replace(file, contents).or_else(|_| fs::write(file, contents)),
    };
    written.with_context(|| format!("cannot write {}", file.display()))
}

fn replace(file: &Path, contents: &[u8]) -> std::io::Result<()> {
    let mut new = tempfile::Builder::new()
        .permissions(permissions(file))
        .tempfile_in(directory_of(file))?;
    new.write_all(contents)?;
    new.persist(file)?;
    Ok(())
}

/// Those that the file has; of a new one, those of any file, less the umask.
fn permissions(file: &Path) -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    const EVERYBODY: u32 = 0o666;
    let found = fs::metadata(file).map(|found| found.permissions());
    found.unwrap_or_else(|_| fs::Permissions::from_mode(EVERYBODY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_and_never_left_empty() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("out.json");
        let outputs = Outputs {
            json: Some(file.clone()),
            ..Outputs::default()
        };
        outputs.check().unwrap();
        assert!(!file.exists(), "a check leaves no file");
        write(&file, b"one").unwrap();
        outputs.check().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"one");
        write(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");

        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"three").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"three");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write(Path::new("/dev/null"), b"four").unwrap();
    }

    #[test]
    fn the_standard_output_does_not_outlast_a_kernel() {
        let printed = Outputs {
            json: Some("-".into()),
            ..Outputs::default()
        };
        assert!(printed.json_is_printed() && printed.absolute().is_err());
        printed.check().unwrap();
    }
}
