// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The luo of the guests: built from the checkout so that it needs nothing else there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::programs::cargo;
use crate::cache::directory::Cache;
use crate::cache::key::Key;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What it is built from.
const SOURCES: [&str; 5] = [
    "Cargo.toml",
    "Cargo.lock",
    "luo-handler-api",
    "handlers",
    "harness",
];

/// Builds the luo of a checkout into its `part` of the cache. Cargo's own directory is shared:
/// cargo distinguishes the crates of two checkouts, and all others are the same.
pub(crate) fn build(cache: &Cache, part: &Cache, checkout: &Path) -> Result<PathBuf> {
    let target_directory = cache.path("guest-target");
    let luo = part.path("luo");
    let key = Key::of_trees(SOURCES.map(|source| checkout.join(source)))?;
    part.step(
        "guest-binary",
        "building luo as a static program",
        &key,
        |progress| {
            let mut command = Command::new(cargo().context("cargo is missing")?);
            command
                .args(["build", "--release", "--package", "luo-cli", "--bin", "luo"])
                .args(["--target", TARGET])
                .current_dir(checkout)
                .env("CARGO_TARGET_DIR", &target_directory)
                .env("RUSTFLAGS", "-C target-feature=+crt-static")
                .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
            progress.run(&mut command)?;
            let built = target_directory.join(TARGET).join("release/luo");
            fs::copy(&built, &luo).with_context(|| format!("copying {}", built.display()))?;
            Ok(())
        },
    )?;
    Ok(luo)
}
