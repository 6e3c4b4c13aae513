// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a service found when it started.

use serde::{Deserialize, Serialize};

/// What a service found when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The service, as its unit is called.
    pub unit: String,
    /// Whether there was anything: not at the first start.
    pub has_arrived: bool,
    /// Each file that should be there.
    pub files: Vec<FoundFile>,
    /// What else there is to know.
    pub remarks: Vec<String>,
}

/// A file, compared with what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundFile {
    /// Its name in the store.
    pub name: String,
    /// What is not as it was; nothing if all is.
    pub differences: Vec<String>,
}

impl FoundFile {
    pub(crate) fn new(name: &str, differences: Vec<String>) -> Self {
        Self {
            name: name.into(),
            differences,
        }
    }
}
