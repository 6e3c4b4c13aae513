// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a build yields.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::build::profile::Profile;
use crate::cache::directory::Cache;

/// All that is needed to boot a guest.
#[derive(Clone, Debug)]
pub struct Built {
    /// Which kernel it is.
    pub profile: Profile,
    /// Where its files are.
    pub artefacts: Artefacts,
}

/// The paths of one kernel, to boot it or to debug it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Artefacts {
    /// The image, as a boot loader or `kexec_file_load` wants it.
    pub kernel_image: PathBuf,
    /// The source tree, with the handlers in it.
    pub kernel_tree: PathBuf,
    /// Where the objects and the configuration are.
    pub build_tree: PathBuf,
    /// The guest's only file system.
    pub initramfs: PathBuf,
    /// The images of other kernels that tests jump to and from, by name.
    #[serde(default)]
    pub variants: BTreeMap<String, PathBuf>,
}

impl Built {
    /// Remembers it in a checkout's part of the cache.
    pub(crate) fn record(&self, part: &Cache) -> anyhow::Result<()> {
        part.write_json(record_of(self.profile), &self.artefacts)
    }

    /// What was remembered there, if it still exists.
    pub(crate) fn recorded(part: &Cache, profile: Profile) -> Option<Artefacts> {
        let artefacts: Artefacts = part.read_json(record_of(profile))?;
        artefacts.initramfs.exists().then_some(artefacts)
    }
}

fn record_of(profile: Profile) -> String {
    format!("artefacts-{}.json", profile.name())
}
