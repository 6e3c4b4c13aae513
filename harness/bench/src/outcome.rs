// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What came of one measured live update.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::format::duration;
use crate::phase::{timed, Phases};
use crate::profile::Profiles;
use luo_orchestrator::collapse::{collapse, Refused};

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
    /// What came of collapsing single pages before prepare; `None` if nobody asked for that.
    #[serde(default)]
    pub collapse: Option<Collapse>,
    /// One thread copying as many bytes of memory to a fresh file beside the image, in nanoseconds.
    pub reference_write_ns: Option<u64>,
    /// Where the time of some phases went, if that was asked for.
    #[serde(default, skip_serializing_if = "Profiles::is_empty")]
    pub profiles: Profiles,
    /// Why the jump could not be rehearsed before, if that was tried in vain.
    #[serde(default)]
    pub unrehearsed: Option<String>,
    /// What was not as before, if anything.
    pub mismatch: Option<String>,
    /// Why nothing was measured, if the machine or its kernel cannot do it.
    #[serde(default)]
    pub skipped: Option<String>,
}

/// Single pages of all files, put into huge pages while the workload runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collapse {
    /// How long it took.
    pub nanoseconds: u64,
    /// What the kernel was asked for: data in whole blocks.
    pub asked_bytes: u64,
    /// What lay in huge pages then.
    pub collapsed_bytes: u64,
    /// What did not.
    pub refused: Vec<RefusedBlocks>,
}

/// Blocks that stayed single pages, by the kernel's reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedBlocks {
    /// The error number.
    pub errno: i32,
    /// How much.
    pub bytes: u64,
}

impl Collapse {
    /// Collapses a file and adds what came of it.
    ///
    /// # Errors
    ///
    /// Those of [`collapse`].
    pub fn add(&mut self, file: &File) -> io::Result<()> {
        let mut nanoseconds = 0;
        let collapsed = timed(&mut nanoseconds, || collapse(file.as_fd()))?;
        self.nanoseconds += nanoseconds;
        self.asked_bytes += collapsed.asked_bytes;
        self.collapsed_bytes += collapsed.collapsed_bytes;
        for Refused { errno, bytes } in collapsed.refused {
            match self.refused.iter_mut().find(|it| it.errno == errno) {
                Some(refused) => refused.bytes += bytes,
                None => self.refused.push(RefusedBlocks { errno, bytes }),
            }
        }
        Ok(())
    }
}

impl Outcome {
    /// In a few words.
    pub fn summary(&self) -> String {
        let downtime = duration(self.phases.downtime());
        if let Some(reason) = &self.skipped {
            return format!("skipped: {reason}");
        }
        match &self.mismatch {
            None => format!("downtime {downtime}, verified"),
            Some(mismatch) => format!("downtime {downtime}, WRONG: {mismatch}"),
        }
    }
}
