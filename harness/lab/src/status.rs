// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What is cached, and how much space it takes.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::build::built::{Artefacts, Built};
use crate::build::profile::Profile;
use crate::build::trees::part_of;
use crate::cache::directory::Cache;
use crate::cache::files::size_below;
use crate::units::human;

/// What is cached. Its text is for people.
#[derive(Debug, Serialize)]
pub struct Status {
    cache: PathBuf,
    /// The kernels of one checkout, by the name of their profile.
    kernels: BTreeMap<String, Artefacts>,
    /// Everything in the directory, and its size.
    parts: BTreeMap<String, u64>,
    total_bytes: u64,
}

impl Status {
    /// Looks at the whole cache, and at the kernels that were built for a checkout.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn of(cache: &Cache, checkout: Option<&Path>) -> Result<Self> {
        let mut parts = BTreeMap::new();
        if cache.directory().exists() {
            for entry in fs::read_dir(cache.directory()).context("listing the cache")? {
                let entry = entry?;
                parts.insert(
                    entry.file_name().to_string_lossy().into_owned(),
                    size_below(&entry.path())?,
                );
            }
        }
        let part = checkout.map(|checkout| part_of(cache, checkout));
        let kernels = Profile::ALL.iter().filter_map(|&profile| {
            let artefacts = Built::recorded(part.as_ref()?, profile)?;
            Some((profile.name().to_owned(), artefacts))
        });
        Ok(Self {
            cache: cache.directory().into(),
            kernels: kernels.collect(),
            total_bytes: parts.values().sum(),
            parts,
        })
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cache         {}  {}",
            self.cache.display(),
            human(self.total_bytes)
        )?;
        for (part, bytes) in &self.parts {
            write!(f, "\n  {part:<36} {:>10}", human(*bytes))?;
        }
        if self.kernels.is_empty() {
            write!(
                f,
                "\nno kernel built yet for this checkout; run `luo lab build`"
            )?;
        }
        for (profile, artefacts) in &self.kernels {
            write!(f, "\n{profile} kernel")?;
            for (what, path) in [
                ("kernel image", &artefacts.kernel_image),
                ("kernel tree", &artefacts.kernel_tree),
                ("build tree", &artefacts.build_tree),
                ("initramfs", &artefacts.initramfs),
            ] {
                write!(f, "\n  {what:<13} {}", path.display())?;
            }
        }
        Ok(())
    }
}
