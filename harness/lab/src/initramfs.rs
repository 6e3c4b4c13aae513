// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The guest's only file system: our static binary, a shell, the selftests, and all that the next kernel needs.
//!
//! An initramfs is two archives in a row, which the kernel unpacks one over the other:
//!
//! ```text
//! base        /bin/luo /bin/busybox /selftests/...
//! boot        /boot/kernel  /boot/base.cpio: the archive above
//! ```
//!
//! So a guest can put together the same initramfs again, for as many jumps as it likes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use cpio::newc::{trailer, Builder, ModeFileType};

use crate::cache::{write_atomically, Cache, Key};
use crate::host;
use crate::kernel::{Kernel, Profile};
use crate::selftests::{self, Selftests};
use crate::toolchain::Toolchain;

/// Where the guest finds the next kernel.
pub(super) const KERNEL_IN_GUEST: &str = "/boot/kernel";
/// Where the guest finds the first of the two archives.
pub(super) const BASE_IN_GUEST: &str = "/boot/base.cpio";

const TARGET: &str = "x86_64-unknown-linux-gnu";
const MOUNT_POINTS: [&str; 9] = [
    "bin",
    "boot",
    "dev",
    "proc",
    "results",
    "root",
    "selftests",
    "sys",
    "tmp",
];

/// Builds the luo binary of the checkout so that it needs nothing else in the guest.
pub(super) fn build_guest_binary(cache: &Cache, checkout: &Path) -> Result<PathBuf> {
    let target_directory = cache.path("guest-target");
    let sources = [
        "Cargo.toml",
        "Cargo.lock",
        "luo-handler-api",
        "handlers",
        "harness",
    ]
    .map(|part| checkout.join(part));
    let key = Key::of_trees(sources)?;
    cache.step(
        "guest-binary",
        "building luo as a static program",
        &key,
        |progress| {
            let mut command = Command::new(host::cargo().context("there is no cargo")?);
            command.args([
                "build",
                "--release",
                "--package",
                "luo-cli",
                "--bin",
                "luo",
                "--target",
                TARGET,
            ]);
            command
                .current_dir(checkout)
                .env("CARGO_TARGET_DIR", &target_directory);
            command
                .env("RUSTFLAGS", "-C target-feature=+crt-static")
                .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
            progress.run(&mut command)
        },
    )?;
    Ok(target_directory.join(TARGET).join("release/luo"))
}

/// Writes the initramfs of a kernel unless it is there.
pub(super) fn assemble(
    cache: &Cache,
    toolchain: &Toolchain,
    kernel: &Kernel,
    selftests: &Selftests,
    luo: &Path,
    profile: Profile,
) -> Result<PathBuf> {
    let path = cache.path(format!("initramfs-{}.cpio", profile.name()));
    let luo_key = Key::of_trees([luo])?;
    let key = Key::of([&kernel.key, &selftests.key, toolchain.key(), &luo_key].map(Key::as_str));
    cache.step(&format!("initramfs-{}", profile.name()), "packing the initramfs", &key, |_| {
        let luo = fs::read(luo).with_context(|| format!("reading {}", luo.display()))?;
        if needs_interpreter(&luo) {
            bail!("the luo for the guest is linked dynamically; build it with RUSTFLAGS='-C target-feature=+crt-static'");
        }
        let base = base_archive(toolchain, selftests, luo)?;
        let image = fs::read(&kernel.image).with_context(|| format!("reading {}", kernel.image.display()))?;
        let mut initramfs = Vec::new();
        compose(&base, &image, &mut initramfs)?;
        write_atomically(&path, &initramfs)
    })?;
    Ok(path)
}

fn base_archive(toolchain: &Toolchain, selftests: &Selftests, luo: Vec<u8>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in MOUNT_POINTS {
        archive.directory(directory)?;
    }
    archive.file("bin/luo", &luo)?;
    let busybox = toolchain.file("/bin/busybox");
    archive.file(
        "bin/busybox",
        &fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?,
    )?;
    for name in selftests::NAMES {
        let program = selftests.directory.join(name);
        archive.file(
            &format!("selftests/{name}"),
            &fs::read(&program).with_context(|| format!("reading {}", program.display()))?,
        )?;
    }
    archive.finish()
}

/// Writes an initramfs made of the two archives.
pub(super) fn compose(base: &[u8], kernel: &[u8], out: &mut impl Write) -> Result<()> {
    let mut boot = Archive::default();
    boot.file(KERNEL_IN_GUEST.trim_start_matches('/'), kernel)?;
    boot.file(BASE_IN_GUEST.trim_start_matches('/'), base)?;
    let boot = boot.finish()?;
    out.write_all(base)
        .and_then(|()| out.write_all(&boot))
        .context("writing the initramfs")
}

/// A cpio archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, ModeFileType::Directory, &[])
    }

    fn file(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.entry(name, ModeFileType::Regular, contents)
    }

    fn entry(&mut self, name: &str, kind: ModeFileType, contents: &[u8]) -> Result<()> {
        self.entries += 1;
        let builder = Builder::new(name)
            .ino(self.entries)
            .nlink(1)
            .mode(0o755)
            .set_mode_file_type(kind);
        let length = u32::try_from(contents.len())
            .with_context(|| format!("{name} is too large for a cpio archive"))?;
        let mut writer = builder.write(&mut self.bytes, length);
        writer
            .write_all(contents)
            .and_then(|()| writer.finish().map(|_| ()))
            .with_context(|| format!("packing {name}"))
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes).context("ending the archive")?;
        // The next archive begins at a multiple of four.
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        Ok(self.bytes)
    }
}

/// Whether an ELF program asks for a dynamic loader, which the guest does not have.
fn needs_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        )
    };
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2))
    else {
        return true;
    };
    (0..count).any(|index| number((table + index * size) as usize, 4) == Some(u64::from(PT_INTERP)))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn an_initramfs_holds_what_the_next_one_is_made_of() {
        let mut base = Archive::default();
        base.directory("bin").unwrap();
        base.file("bin/luo", b"program").unwrap();
        let base = base.finish().unwrap();
        let mut initramfs = Vec::new();
        compose(&base, b"kernel!", &mut initramfs).unwrap();
        assert_eq!(&initramfs[..base.len()], base);

        let mut found = Vec::new();
        let mut rest = &initramfs[base.len()..];
        while let Ok(mut reader) = cpio::newc::Reader::new(rest) {
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut contents).unwrap();
            found.push((reader.entry().name().to_owned(), contents));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            found,
            [
                ("boot/kernel".into(), b"kernel!".to_vec()),
                ("boot/base.cpio".into(), base)
            ]
        );
    }

    #[test]
    fn a_dynamic_program_and_rubbish_are_told_from_a_static_one() {
        let mut elf = vec![0; 64 + 56];
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        assert!(!needs_interpreter(&elf));
        elf[64] = 3;
        assert!(needs_interpreter(&elf));
        assert!(needs_interpreter(b"#!/bin/sh"));
    }
}
