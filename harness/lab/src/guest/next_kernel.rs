// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel to jump into: the lab's own, or another one, with the initramfs that this guest was
//! booted with.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;

use crate::archive::{compose, BASE_IN_GUEST, KERNEL_IN_GUEST};
use crate::build::variant::Variant;
use luo_liveupdate::kexec;

/// Writes the initramfs that this guest was booted with.
pub(crate) fn compose_initramfs(out: &mut File) -> Result<()> {
    let read = |path: &str| fs::read(path).with_context(|| format!("reading {path}"));
    compose(&read(BASE_IN_GUEST)?, &read(KERNEL_IN_GUEST)?, out)
}

/// Loads it, to be jumped into with this command line.
pub(crate) fn load_next(command_line: &str) -> Result<()> {
    load(KERNEL_IN_GUEST.as_ref(), command_line)
}

/// Loads another kernel.
pub(crate) fn load_variant(kernel: Variant, command_line: &str) -> Result<()> {
    load(&image_of(kernel), command_line)
}

/// Where the image of another kernel is.
pub(crate) fn image_of(kernel: Variant) -> PathBuf {
    Path::new("/results").join(kernel.file_in_results())
}

fn load(kernel: &Path, command_line: &str) -> Result<()> {
    let initramfs = rustix::fs::memfd_create("initramfs", MemfdFlags::CLOEXEC)
        .context("making room for the initramfs")?;
    let mut initramfs = File::from(initramfs);
    compose_initramfs(&mut initramfs)?;
    let kernel = File::open(kernel).with_context(|| format!("opening {}", kernel.display()))?;
    Ok(kexec::load_files(
        kernel.as_fd(),
        initramfs.as_fd(),
        command_line,
    )?)
}
