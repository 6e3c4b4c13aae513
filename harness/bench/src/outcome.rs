// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What came of one measured live update.

use serde::{Deserialize, Serialize};

use crate::format::duration;
use crate::phase::Phases;

/// What came of one live update.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The compatible of the handler that took the first file, if that is known.
    #[serde(default)]
    pub handler: Option<String>,
    /// How long it took.
    pub phases: Phases,
    /// Bytes of data that crossed; holes do not count.
    pub data_bytes: u64,
    /// Bytes of metadata that crossed.
    pub metadata_bytes: u64,
    /// Bytes of memory that the update took on the old side beyond what the files had: metadata,
    /// and holes that were filled. Contents on their way do not count.
    pub extra_memory_bytes: u64,
    /// Bytes that prepare had to move to other memory; 0 where that is not known.
    #[serde(default)]
    pub moved_bytes: u64,
    /// Bytes that lay in huge pages before the jump; `None` where that is not known.
    #[serde(default)]
    pub huge_page_bytes: Option<u64>,
    /// One thread copying as many bytes of memory to a fresh file beside the image, in nanoseconds.
    pub reference_write_ns: Option<u64>,
    /// What was not as before, if anything.
    pub mismatch: Option<String>,
}

impl Outcome {
    /// In a few words.
    pub fn summary(&self) -> String {
        let downtime = duration(self.phases.downtime());
        match &self.mismatch {
            None => format!("downtime {downtime}, verified"),
            Some(mismatch) => format!("downtime {downtime}, WRONG: {mismatch}"),
        }
    }
}
