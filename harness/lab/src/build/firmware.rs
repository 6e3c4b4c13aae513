// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! UEFI for a virtual machine: the host's, or else Debian's package, unpacked into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::apt::{Mirror, SUITE};
use crate::cache::directory::Cache;
use crate::cache::key::Key;

const PACKAGE: &str = "ovmf";
const DIRECTORY: &str = "usr/share/OVMF";
const CODE: &str = "OVMF_CODE_4M.fd";
const VARIABLES: &str = "OVMF_VARS_4M.fd";

/// The files of the firmware.
#[derive(Debug)]
pub(crate) struct Firmware {
    pub(crate) code: PathBuf,
    /// Its state when it is new; each machine has a copy.
    pub(crate) variables: PathBuf,
}

impl Firmware {
    /// Below a root directory.
    fn below(root: &Path) -> Self {
        let directory = root.join(DIRECTORY);
        Self {
            code: directory.join(CODE),
            variables: directory.join(VARIABLES),
        }
    }
}

/// Fetches the firmware unless it is there.
pub(crate) fn prepare(cache: &Cache, mirror: &Mirror) -> Result<Firmware> {
    let installed = Firmware::below(Path::new("/"));
    if installed.code.exists() && installed.variables.exists() {
        return Ok(installed);
    }
    let root = cache.path(PACKAGE);
    let key = Key::of([SUITE, PACKAGE]);
    cache.step("firmware", "UEFI for virtual machines", &key, |progress| {
        let downloads = cache.path("ovmf-download");
        fs::create_dir_all(&downloads)
            .with_context(|| format!("creating {}", downloads.display()))?;
        let mut download = mirror.command("apt-get", progress)?;
        let package = format!("{PACKAGE}/{SUITE}");
        progress.run(
            download
                .args(["download", &package])
                .current_dir(&downloads),
        )?;
        for entry in fs::read_dir(&downloads)? {
            let mut unpack = Command::new("dpkg-deb");
            progress.run(unpack.arg("--extract").arg(entry?.path()).arg(&root))?;
        }
        fs::remove_dir_all(&downloads)
            .with_context(|| format!("removing {}", downloads.display()))?;
        Ok(())
    })?;
    Ok(Firmware::below(&root))
}
