// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The initramfs: our static binary, a shell, the selftests, and all that the next kernel needs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use crate::archive::{compose, Archive};
use crate::build::kernel_image::KernelImage;
use crate::build::profile::Profile;
use crate::build::selftests::{self, Selftests};
use crate::build::toolchain::Toolchain;
use crate::cache::directory::Cache;
use crate::cache::files::write_atomically;
use crate::cache::key::Key;

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

/// Writes the initramfs of a kernel unless it is there.
pub(crate) fn assemble(
    part: &Cache,
    toolchain: &Toolchain,
    kernel: &KernelImage,
    selftests: &Selftests,
    luo: &Path,
    profile: Profile,
) -> Result<PathBuf> {
    let path = part.path(format!("initramfs-{}.cpio", profile.name()));
    let luo_key = Key::of_trees([luo])?;
    let key = Key::of([&kernel.key, &selftests.key, toolchain.key(), &luo_key].map(Key::as_str));
    part.step(
        &format!("initramfs-{}", profile.name()),
        "packing the initramfs",
        &key,
        |_| {
            let luo = fs::read(luo).with_context(|| format!("reading {}", luo.display()))?;
            if needs_interpreter(&luo) {
                bail!(
                    "the luo for the guest is linked dynamically; build it with RUSTFLAGS='-C \
                   target-feature=+crt-static'"
                );
            }
            let base = base_archive(toolchain, selftests, luo)?;
            let image = fs::read(&kernel.image)
                .with_context(|| format!("reading {}", kernel.image.display()))?;
            let mut initramfs = Vec::new();
            compose(&base, &image, &mut initramfs)?;
            write_atomically(&path, &initramfs)
        },
    )?;
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
