// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The initramfs: our static binary, a shell, the selftests, and all that the next kernel needs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use crate::archive::{compose, Archive, USERS_PROGRAM};
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

/// The first program on a real machine, whose kernel has no command line of ours with its name.
const STICK_INIT: &str = "#!/bin/busybox sh\nexec /bin/luo lab stick-init\n";

/// The programs of a guest, beside the shell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs<'a> {
    pub(crate) luo: &'a Path,
    pub(crate) selftests: &'a Selftests,
    /// The user's own test program.
    pub(crate) of_user: Option<&'a Path>,
}

/// Writes the initramfs of a kernel unless it is there.
pub(crate) fn assemble(
    part: &Cache,
    toolchain: &Toolchain,
    kernel: &KernelImage,
    programs: &Programs,
    profile: Profile,
) -> Result<PathBuf> {
    let path = part.path(format!("initramfs-{}.cpio", profile.name()));
    let programs_key = Key::of_trees([programs.luo].into_iter().chain(programs.of_user))?;
    let selftests_key = &programs.selftests.key;
    let keys = [&kernel.key, selftests_key, toolchain.key(), &programs_key];
    let key = Key::of(keys.map(Key::as_str).into_iter().chain([STICK_INIT]));
    part.step(
        &format!("initramfs-{}", profile.name()),
        "packing the initramfs",
        &key,
        |_| {
            let base = base_archive(toolchain, programs, profile)?;
            if profile == Profile::Stick {
                // It finds the kernel on the stick.
                return write_atomically(&path, &base);
            }
            write_with_kernel(&base, kernel, &path)
        },
    )?;
    Ok(path)
}

/// Writes an initramfs with the kernel to jump into.
pub(crate) fn write_with_kernel(base: &[u8], kernel: &KernelImage, path: &Path) -> Result<()> {
    let image =
        fs::read(&kernel.image).with_context(|| format!("reading {}", kernel.image.display()))?;
    let mut initramfs = Vec::new();
    compose(base, &image, &mut initramfs)?;
    write_atomically(path, &initramfs)
}

fn base_archive(toolchain: &Toolchain, programs: &Programs, profile: Profile) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in MOUNT_POINTS {
        archive.directory(directory)?;
    }
    archive.file("bin/luo", &read_program(programs.luo)?)?;
    if let Some(program) = programs.of_user {
        archive.file(
            USERS_PROGRAM.trim_start_matches('/'),
            &read_program(program)?,
        )?;
    }
    archive.file("bin/busybox", &read(&toolchain.file("/bin/busybox"))?)?;
    if profile == Profile::Stick {
        archive.file("init", STICK_INIT.as_bytes())?;
        return archive.finish();
    }
    for name in selftests::NAMES {
        let program = programs.selftests.directory.join(name);
        archive.file(&format!("selftests/{name}"), &read(&program)?)?;
    }
    archive.finish()
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}

/// Reads a program that the guest can run: there are no libraries.
fn read_program(file: &Path) -> Result<Vec<u8>> {
    let program = read(file)?;
    if !program.starts_with(b"#!") && needs_interpreter(&program) {
        bail!(
            "{} is not a script, nor a program that is linked statically; in Rust, build it with \
             RUSTFLAGS='-C target-feature=+crt-static', in C with -static",
            file.display()
        );
    }
    Ok(program)
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
