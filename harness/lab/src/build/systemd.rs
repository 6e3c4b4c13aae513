// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A guest's root file system with systemd as init: an initramfs, made of Debian's packages.
//!
//! They are unpacked, not installed: no script of theirs runs, and what they would set up is in
//! [`image`].

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};

use crate::archive::Archive;
use crate::build::apt::{Mirror, SYSTEMD_SUITE};
use crate::build::initramfs::write_with_kernel;
use crate::build::kernel_image::KernelImage;
use crate::build::profile::Profile;
use crate::cache::directory::Cache;
use crate::cache::key::Key;
use crate::cache::progress::Progress;
use crate::systemd::image;

/// With what they depend on; systemd's mount units run mount(8).
const PACKAGES: [&str; 2] = ["systemd", "mount"];
/// The package with systemd's own tests, and the one that is of use here.
const TESTS: &str = "systemd-tests";
const TEST: &str = "usr/lib/systemd/tests/unit-tests/manual/test-luo";
/// The first that takes the file descriptor stores over a kexec.
const OLDEST: u32 = 261;
/// What no guest needs, from the root: two thirds of it.
const LEFT_OUT: [&str; 8] = [
    // They have a minute and a half together, too little for an emulated machine that is busy.
    "usr/lib/systemd/system-generators",
    "usr/lib/systemd/tests",
    "usr/share",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/systemd/catalog",
    "usr/lib/systemd/system/sysinit.target.wants/ldconfig.service",
    "usr/lib/systemd/system/multi-user.target.wants",
    "etc/systemd/system.conf",
];
/// Where the file system has only links since Debian merged it.
const MERGED: [(&str, &str); 4] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
];
const MOUNT_POINTS: [&str; 8] = [
    "boot", "dev", "proc", "results", "root", "run", "sys", "tmp",
];
const PART: &str = "systemd";
const RECORD: &str = "version.json";
const ROOT: &str = "root";

/// The unpacked packages.
struct Unpacked {
    root: PathBuf,
    key: Key,
}

#[derive(Serialize, Deserialize)]
struct Version {
    systemd: String,
}

/// The version of the systemd that is unpacked.
pub(crate) fn version(cache: &Cache) -> Option<String> {
    let version: Version = cache.part(PART).read_json(RECORD)?;
    Some(version.systemd)
}

/// Writes the initramfs of a kernel unless it is there.
pub(crate) fn assemble(
    cache: &Cache,
    mirror: Option<&str>,
    part: &Cache,
    kernel: &KernelImage,
    luo: &Path,
    profile: Profile,
) -> Result<PathBuf> {
    let unpacked = unpack(&cache.part(PART), mirror)?;
    let path = part.path(format!("initramfs-systemd-{}.cpio", profile.name()));
    let luo_key = Key::of_trees([luo])?;
    let ours = Key::of(
        image::UNITS
            .iter()
            .chain(&image::FILES)
            .flat_map(|(name, text)| [*name, *text])
            .chain(LEFT_OUT),
    );
    let key = Key::of([&unpacked.key, &kernel.key, &luo_key, &ours].map(Key::as_str));
    part.step(
        &format!("initramfs-systemd-{}", profile.name()),
        "packing an initramfs with systemd",
        &key,
        |_| {
            let base = base_archive(&unpacked.root, luo)?;
            write_with_kernel(&base, kernel, &path)
        },
    )?;
    Ok(path)
}

/// Fetches and unpacks the packages unless they are there.
fn unpack(part: &Cache, mirror: Option<&str>) -> Result<Unpacked> {
    let key = Key::of([SYSTEMD_SUITE, TESTS].iter().chain(&PACKAGES));
    let root = part.path(ROOT);
    let what = format!("systemd of Debian {SYSTEMD_SUITE}");
    part.step("packages", &what, &key, |progress| {
        let mirror = Mirror::new(part, mirror, &[SYSTEMD_SUITE]);
        // Packages of another version would be unpacked as well.
        progress.run(mirror.command("apt-get", progress)?.arg("clean"))?;
        progress.run(
            mirror
                .command("apt-get", progress)?
                .args(["install", "--download-only", "--yes"])
                .arg("--no-install-recommends")
                .args(PACKAGES),
        )?;
        // Without what it depends on: one program of it is of use.
        let archives = part.path("apt/cache/archives");
        let mut tests = mirror.command("apt-get", progress)?;
        progress.run(tests.args(["download", TESTS]).current_dir(&archives))?;
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
        }
        let version = unpack_all(&archives, &root, progress)?;
        progress.note(&format!("systemd {}", version.systemd));
        part.write_json(RECORD, &version)
    })?;
    Ok(Unpacked { root, key })
}

/// Unpacks all packages of a directory; yields the version of the one that counts.
fn unpack_all(archives: &Path, root: &Path, progress: &Progress) -> Result<Version> {
    let mut systemd = None;
    for archive in sorted(archives)? {
        let name = file_name(&archive);
        let Some(name) = name.strip_suffix(".deb") else {
            continue;
        };
        progress.run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&archive)
                .arg(root),
        )?;
        if let Some(version) = name.strip_prefix("systemd_") {
            systemd = version.split('_').next().map(str::to_owned);
        }
    }
    let systemd = systemd.context("apt-get reports no error, but did not download systemd")?;
    let digits = systemd.split(|character: char| !character.is_ascii_digit());
    let number = digits
        .into_iter()
        .next()
        .and_then(|first| first.parse().ok());
    ensure!(
        number.is_some_and(|number: u32| number >= OLDEST),
        "systemd {OLDEST} or newer is needed, Debian {SYSTEMD_SUITE} has {systemd}"
    );
    Ok(Version { systemd })
}

fn base_archive(root: &Path, luo: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in MOUNT_POINTS {
        archive.directory(directory)?;
    }
    for (name, target) in MERGED {
        archive.symlink(name, target)?;
    }
    pack_tree(&mut archive, root, Path::new(""))?;
    for (name, text) in image::UNITS {
        let name = format!("etc/systemd/system/{name}");
        archive.file_with_mode(&name, 0o644, text.as_bytes())?;
    }
    archive.symlink("etc/systemd/system/default.target", image::TARGET)?;
    for (name, text) in image::FILES {
        archive.file_with_mode(name, 0o644, text.as_bytes())?;
    }
    let program = fs::read(luo).with_context(|| format!("reading {}", luo.display()))?;
    archive.file("usr/bin/luo", &program)?;
    let test = fs::read(root.join(TEST)).with_context(|| format!("reading {TEST}"))?;
    archive.file("usr/bin/test-luo", &test)?;
    archive.finish()
}

/// Packs what is below a directory of the root, with its modes. Everything becomes root's.
fn pack_tree(archive: &mut Archive, root: &Path, directory: &Path) -> Result<()> {
    for path in sorted(&root.join(directory))? {
        let relative = path.strip_prefix(root).context("it is below the root")?;
        let name = relative.to_string_lossy();
        let is_ours = image::FILES.iter().any(|(ours, _)| *ours == name);
        if is_ours || LEFT_OUT.contains(&name.as_ref()) {
            continue;
        }
        let metadata = fs::symlink_metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            archive.directory(&name)?;
            pack_tree(archive, root, relative)?;
        } else if kind.is_symlink() {
            let target =
                fs::read_link(&path).with_context(|| format!("reading {}", path.display()))?;
            archive.symlink(&name, &target.to_string_lossy())?;
        } else if kind.is_file() {
            let contents =
                fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            archive.file_with_mode(&name, metadata.permissions().mode() & 0o777, &contents)?;
        }
    }
    Ok(())
}

/// What a directory holds.
fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut paths = listed.with_context(|| format!("listing {}", directory.display()))?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
