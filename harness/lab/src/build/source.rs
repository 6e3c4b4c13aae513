// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel source, from Debian's `linux-source` packages or a tree of the user's. Each other
//! than the preferred one has a part of the cache of its own, with all that is built from it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};

use crate::build::apt::{Mirror, SOURCE_SUITE};
use crate::build::options::KernelSource;
use crate::cache::directory::Cache;
use crate::cache::files::files_below;
use crate::cache::key::{distinct_name, Key};
use crate::cache::progress::Progress;

/// The series the handlers are developed on; without it, the newest of the same major number is
/// taken.
const PREFERRED_SERIES: &str = "7.3";
const PACKAGES: &str = "linux-source-";
const RECORD: &str = "source.json";

/// A kernel source tree that is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Source {
    /// The version of the Debian package, or a digest of the user's tree.
    pub(crate) version: String,
    /// Where a build sees the source tree; it is there, unless it is the user's.
    pub(crate) tree: PathBuf,
    /// The user's tree.
    #[serde(skip)]
    pub(crate) of_user: Option<PathBuf>,
}

impl Source {
    /// Where what is built from this source goes.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.tree.with_file_name(name)
    }

    /// What has to be shown to a build where it expects something else, as a pair of paths.
    pub(crate) fn views(&self) -> Vec<[&Path; 2]> {
        let of_user = self.of_user.iter();
        of_user.map(|tree| [&**tree, &*self.tree]).collect()
    }
}

/// Fetches and unpacks the source unless it is there. Returns it with its part of the cache.
pub(crate) fn prepare(
    cache: &Cache,
    mirror: &Mirror,
    source: &KernelSource,
) -> Result<(Cache, Source)> {
    let (part, package) = match source {
        KernelSource::Tree(tree) => return of_user(cache, tree),
        KernelSource::Package(name) if *name != preferred() => {
            (cache.part(package_name(name)?), Some(name.as_str()))
        }
        KernelSource::Preferred | KernelSource::Package(_) => (cache.clone(), None),
    };
    let source = of_package(&part, mirror, package)?;
    Ok((part, source))
}

fn preferred() -> String {
    format!("{PACKAGES}{PREFERRED_SERIES}")
}

/// The name, if it is one of the kernel's source and cannot be anything but a name.
fn package_name(name: &str) -> Result<&str> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-+.".contains(&byte);
    let series = name.strip_prefix(PACKAGES).unwrap_or_default();
    ensure!(
        !series.is_empty() && series.bytes().all(is_part),
        "{name:?} is not a package of the kernel's source, such as {}",
        preferred()
    );
    Ok(name)
}

/// A tree as it is now: all that is made from it is made again when a file has another size or
/// time.
fn of_user(cache: &Cache, tree: &Path) -> Result<(Cache, Source)> {
    let tree = tree
        .canonicalize()
        .with_context(|| format!("resolving {}", tree.display()))?;
    ensure!(
        !tree.join(".config").exists(),
        "{} was built in, which keeps a build elsewhere from it: run `make mrproper` there",
        tree.display()
    );
    let part = cache.part(format!("tree-{}", distinct_name(&tree)));
    let source = Source {
        version: digest(&tree)?,
        tree: part.path("source/linux"),
        of_user: Some(tree),
    };
    fs::create_dir_all(&source.tree)
        .with_context(|| format!("creating {}", source.tree.display()))?;
    Ok((part, source))
}

/// Names, sizes and times of all files.
fn digest(tree: &Path) -> Result<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(tree).with_context(|| format!("listing {}", tree.display()))? {
        let path = entry?.path();
        if path.file_name() != Some(OsStr::new(".git")) {
            files.extend(files_below(&path)?);
        }
    }
    files.sort_unstable();
    let mut lines = Vec::new();
    for file in files {
        let metadata = file.symlink_metadata()?;
        let time = metadata.modified()?.duration_since(UNIX_EPOCH)?;
        lines.push(format!("{} {} {time:?}", file.display(), metadata.len()));
    }
    Ok(Key::of(&lines).as_str().to_owned())
}

fn of_package(cache: &Cache, mirror: &Mirror, package: Option<&str>) -> Result<Source> {
    let what = match package {
        Some(package) => format!("the kernel source {package}"),
        None => format!("the kernel source, {} if there is one", preferred()),
    };
    let key = Key::of([SOURCE_SUITE, package.unwrap_or(PREFERRED_SERIES)]);
    cache.step("source", &what, &key, |progress| {
        let package = choose_package(mirror, package, progress)?;
        let source = fetch(cache, mirror, &package, progress)?;
        progress.note(&format!(
            "{package} {} in {}",
            source.version,
            source.tree.display()
        ));
        cache.write_json(RECORD, &source)
    })?;
    cache.read_json(RECORD).context(
        "the cache's record of the kernel source is unreadable; run `luo lab clean`, then build \
         again",
    )
}

fn choose_package(mirror: &Mirror, wanted: Option<&str>, progress: &Progress) -> Result<String> {
    let mut search = mirror.command("apt-cache", progress)?;
    let output = search
        .args(["search", "--names-only", "^linux-source-[0-9.]+$"])
        .stdin(Stdio::null())
        .output();
    let listing = String::from_utf8_lossy(&output.context("searching the kernel source")?.stdout)
        .into_owned();
    if let Some(wanted) = wanted {
        let mut names = listing.lines().filter_map(|line| line.split(' ').next());
        ensure!(
            names.any(|name| name == wanted),
            "{SOURCE_SUITE} has no {wanted}; it lists:\n{listing}"
        );
        return Ok(wanted.to_owned());
    }
    let Some(package) = newest_package(&listing) else {
        bail!(
            "{SOURCE_SUITE} has no linux-source of series {PREFERRED_SERIES} or its like; it \
               lists:\n{listing}"
        );
    };
    if package != preferred() {
        progress.note(&format!("{} is missing; taking {package}", preferred()));
    }
    Ok(package)
}

/// The preferred series if it is listed, else the newest with the same major number.
fn newest_package(listing: &str) -> Option<String> {
    let names = listing
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let series: Vec<&str> = names
        .filter_map(|name| name.strip_prefix(PACKAGES))
        .collect();
    if series.contains(&PREFERRED_SERIES) {
        return Some(preferred());
    }
    let (major, _) = PREFERRED_SERIES.split_once('.')?;
    let same_major = series
        .iter()
        .filter_map(|series| Some((series.strip_prefix(major)?.strip_prefix('.')?, series)));
    let (_, newest) = same_major
        .filter_map(|(minor, series)| Some((minor.parse::<u32>().ok()?, series)))
        .max()?;
    Some(format!("{PACKAGES}{newest}"))
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
    Ok(Source {
        version,
        tree,
        of_user: None,
    })
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
    fn a_package_has_a_part_of_the_cache_and_cannot_lead_out_of_it() {
        assert!(package_name("linux-source-7.2").is_ok());
        for odd in [
            "linux-image-7.2",
            "linux-source-",
            "linux-source-../7.2",
            "-o",
        ] {
            assert!(package_name(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_tree_of_the_user_is_another_one_after_each_change() {
        let directory = tempfile::tempdir().unwrap();
        let (cache, tree) = (
            Cache::at(directory.path().join("cache")),
            directory.path().join("linux"),
        );
        fs::create_dir_all(tree.join(".git")).unwrap();
        fs::write(tree.join("Makefile"), "all:").unwrap();
        let version = || of_user(&cache, &tree).unwrap().1.version;
        let first = version();
        fs::write(tree.join(".git/index"), "x").unwrap();
        assert_eq!(version(), first);
        fs::write(tree.join("Makefile"), "all: x").unwrap();
        assert_ne!(version(), first);
        let (_, source) = of_user(&cache, &tree).unwrap();
        assert!(source.tree.starts_with(cache.directory()) && source.views().len() == 1);
        fs::write(tree.join(".config"), "").unwrap();
        let error = of_user(&cache, &tree).unwrap_err().to_string();
        assert!(error.contains("make mrproper"), "{error}");
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
