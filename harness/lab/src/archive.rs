// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The guest's only file system, as bytes: two archives in a row, which the kernel unpacks one over
//! the other.
//!
//! ```text
//! base        /bin/luo /bin/busybox /selftests/...
//! boot        /boot/kernel  /boot/base.cpio: the archive above
//! ```
//!
//! So a guest can put together the same initramfs again, for as many jumps as it likes.

use std::io::Write;

use anyhow::{Context, Result};
use cpio::newc::{trailer, Builder, ModeFileType};

/// Where the guest finds the user's own test program, if there is one.
pub(crate) const USERS_PROGRAM: &str = "/bin/users-test";
/// Where the guest finds the next kernel.
pub(crate) const KERNEL_IN_GUEST: &str = "/boot/kernel";
/// Where the guest finds the first of the two archives.
pub(crate) const BASE_IN_GUEST: &str = "/boot/base.cpio";

/// Writes an initramfs made of the two archives.
pub(crate) fn compose(base: &[u8], kernel: &[u8], out: &mut impl Write) -> Result<()> {
    let mut boot = Archive::default();
    boot.file(KERNEL_IN_GUEST.trim_start_matches('/'), kernel)?;
    boot.file(BASE_IN_GUEST.trim_start_matches('/'), base)?;
    let boot = boot.finish()?;
    out.write_all(base)
        .and_then(|()| out.write_all(&boot))
        .context("writing the initramfs")
}

/// The mode of what has none of its own.
const PLAIN: u32 = 0o755;

/// A cpio archive in the making.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(crate) fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, ModeFileType::Directory, PLAIN, &[])
    }

    pub(crate) fn file(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.file_with_mode(name, PLAIN, contents)
    }

    pub(crate) fn file_with_mode(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.entry(name, ModeFileType::Regular, mode, contents)
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, ModeFileType::Symlink, 0o777, target.as_bytes())
    }

    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32, contents: &[u8]) -> Result<()> {
        self.entries += 1;
        let builder = Builder::new(name)
            .ino(self.entries)
            .nlink(1)
            .mode(mode)
            .set_mode_file_type(kind);
        let length = u32::try_from(contents.len())
            .with_context(|| format!("{name} is too large for a cpio archive"))?;
        let mut writer = builder.write(&mut self.bytes, length);
        writer
            .write_all(contents)
            .and_then(|()| writer.finish().map(|_| ()))
            .with_context(|| format!("packing {name}"))
    }

    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes).context("ending the archive")?;
        // The next archive begins at a multiple of four.
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        Ok(self.bytes)
    }
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
}
