// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel source, from Debian's `linux-source` packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};

use crate::build::apt::{Mirror, SOURCE_SUITE};
use crate::cache::directory::Cache;
use crate::cache::key::Key;
use crate::cache::progress::Progress;

/// The series the handlers are developed on; without it, the newest of the same major number is
/// taken.
const PREFERRED_SERIES: &str = "7.3";
const RECORD: &str = "source.json";

/// A kernel source tree that is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Source {
    /// The version of the Debian package.
    pub(crate) version: String,
    /// The source tree.
    pub(crate) tree: PathBuf,
}

impl Source {
    /// Where what is built from this source goes.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.tree.with_file_name(name)
    }
}

/// Fetches and unpacks the source unless it is there.
pub(crate) fn prepare(cache: &Cache, mirror: &Mirror) -> Result<Source> {
    let key = Key::of([SOURCE_SUITE, PREFERRED_SERIES]);
    cache.step(
        "source",
        &format!("the kernel source, linux-source-{PREFERRED_SERIES} if there is one"),
        &key,
        |progress| {
            let package = choose_package(mirror, progress)?;
            let source = fetch(cache, mirror, &package, progress)?;
            progress.note(&format!(
                "{package} {} in {}",
                source.version,
                source.tree.display()
            ));
            cache.write_json(RECORD, &source)
        },
    )?;
    cache.read_json(RECORD).context(
        "the cache's record of the kernel source is unreadable; run `luo lab clean`, then build \
         again",
    )
}

fn choose_package(mirror: &Mirror, progress: &Progress) -> Result<String> {
    let mut search = mirror.command("apt-cache", progress)?;
    let output = search
        .args(["search", "--names-only", "^linux-source-[0-9.]+$"])
        .stdin(Stdio::null())
        .output();
    let listing = String::from_utf8_lossy(&output.context("searching the kernel source")?.stdout)
        .into_owned();
    let Some(package) = newest_package(&listing) else {
        bail!(
            "{SOURCE_SUITE} has no linux-source of series {PREFERRED_SERIES} or its like; it \
               lists:\n{listing}"
        );
    };
    if package != format!("linux-source-{PREFERRED_SERIES}") {
        progress.note(&format!(
            "linux-source-{PREFERRED_SERIES} is missing; taking {package}"
        ));
    }
    Ok(package)
}

/// The preferred series if it is listed, else the newest with the same major number.
fn newest_package(listing: &str) -> Option<String> {
    let names = listing
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let series: Vec<&str> = names
        .filter_map(|name| name.strip_prefix("linux-source-"))
        .collect();
    if series.contains(&PREFERRED_SERIES) {
        return Some(format!("linux-source-{PREFERRED_SERIES}"));
    }
    let (major, _) = PREFERRED_SERIES.split_once('.')?;
    let same_major = series
        .iter()
        .filter_map(|series| Some((series.strip_prefix(major)?.strip_prefix('.')?, series)));
    let (_, newest) = same_major
        .filter_map(|(minor, series)| Some((minor.parse::<u32>().ok()?, series)))
        .max()?;
    Some(format!("linux-source-{newest}"))
}

fn fetch(cache: &Cache, mirror: &Mirror, package: &str, progress: &Progress) -> Result<Source> {
    let downloads = cache.path("downloads");
    fs::create_dir_all(&downloads).with_context(|| format!("creating {}", downloads.display()))?;
    progress.run(
        mirror
            .command("apt-get", progress)?
            .args(["download", package])
            .current_dir(&downloads),
    )?;
    let archive = newest_file(&downloads, &format!("{package}_"))?;
    let version = field(&archive, "Version")?;
    let directory = cache.path(format!("source-{version}"));
    let tree = directory.join("linux");
    unpack(package, &archive, &directory, progress)?;
    fs::remove_dir_all(&downloads).with_context(|| format!("removing {}", downloads.display()))?;
    Ok(Source { version, tree })
}

/// Unpacks beside the final place and moves the tree there whole.
fn unpack(package: &str, archive: &Path, directory: &Path, progress: &Progress) -> Result<()> {
    let staging = directory.join("unpacking");
    let tree = directory.join("linux");
    for stale in [&staging, &tree] {
        if stale.exists() {
            fs::remove_dir_all(stale).with_context(|| format!("removing {}", stale.display()))?;
        }
    }
    fs::create_dir_all(&staging).with_context(|| format!("creating {}", staging.display()))?;
    progress.run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(archive)
            .arg(&staging),
    )?;
    let tarball = staging.join(format!("usr/src/{package}.tar.xz"));
    progress.run(
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(tarball)
            .arg("--directory")
            .arg(&staging),
    )?;
    fs::rename(staging.join(package), &tree)
        .with_context(|| format!("moving the source to {}", tree.display()))?;
    fs::remove_dir_all(&staging).with_context(|| format!("removing {}", staging.display()))
}

fn newest_file(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    let newest = found
        .into_iter()
        .max()
        .context("apt-get reports no error, but did not download the kernel source")?;
    Ok(newest.1)
}

fn field(archive: &Path, name: &str) -> Result<String> {
    let output = Command::new("dpkg-deb")
        .arg("--field")
        .arg(archive)
        .arg(name)
        .output()
        .context("starting dpkg-deb")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_preferred_series_wins() {
        let listing = "linux-source-6.12 - x\nlinux-source-7.3 - x\nlinux-source-7.10 - x\n";
        assert_eq!(newest_package(listing).as_deref(), Some("linux-source-7.3"));
    }

    #[test]
    fn else_the_newest_of_the_same_major_number() {
        let listing = "linux-source-6.12 - x\nlinux-source-7.2 - x\nlinux-source-7.10 - \
                       x\nlinux-source-7 - x\n";
        assert_eq!(
            newest_package(listing).as_deref(),
            Some("linux-source-7.10")
        );
        assert_eq!(newest_package("linux-source-6.12 - x\n"), None);
    }
}
