// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo inspect`: what a handover holds, without taking anything out of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytesize::ByteSize;
use luo_handler_api::{Compatible, Host};
use serde::Serialize;

use crate::devicetree::{self, Decoded};
use crate::incoming::{Incoming, NoFiles};
use crate::registry::Registry;
use crate::transport::image;

/// What a handover holds.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The devicetree that was read.
    pub file: PathBuf,
    /// Its size in bytes.
    pub devicetree_bytes: u64,
    /// Size of the memory file beside it, in bytes.
    pub memory_bytes: Option<u64>,
    /// How many live updates there were.
    pub update_number: u64,
    /// The files.
    pub files: Vec<Entry>,
    /// The subsystems.
    pub subsystems: Vec<Entry>,
    /// Entries that cannot be used.
    pub bad: Vec<Bad>,
}

/// A usable entry.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// The token; none for a subsystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Whose it is.
    pub compatible: String,
    /// What crossed for it.
    pub data: u64,
    /// Whether this program has its handler.
    pub claimed: bool,
    /// What its record says, where this program can read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memfd: Option<Memfd>,
    /// Why the record cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// A memfd's record.
#[derive(Debug, Serialize)]
pub struct Memfd {
    /// `shmem` or `hugetlb`.
    pub kind: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes of data in it.
    pub data_bytes: u64,
    /// Runs of pages.
    pub extents: u64,
    /// The file position.
    pub position: u64,
    /// Its seals, by name.
    pub seals: String,
    /// Bytes of its record.
    pub metadata_bytes: u64,
}

/// An entry that cannot be used.
#[derive(Debug, Serialize)]
pub struct Bad {
    /// Its path in the devicetree.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Reads the devicetree `file`, or the one in the image directory `file`, and what lies beside it.
///
/// # Errors
///
/// If it cannot be read, or is no handover at all.
pub fn inspect(file: &Path, registry: &Registry) -> Result<Inspection> {
    let file = locate(file);
    let blob = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let decoded = devicetree::decode(&blob)
        .with_context(|| format!("{} is no handover of a live update", file.display()))?;
    let memory = file.with_file_name(image::MEMORY);
    let incoming = match fs::read(&memory) {
        Ok(bytes) => Some(
            Incoming::new(bytes, NoFiles)
                .with_context(|| format!("cannot use {}", memory.display()))?,
        ),
        Err(_) => None,
    };
    Ok(describe(
        file,
        blob.len() as u64,
        decoded,
        incoming.as_ref(),
        registry,
    ))
}

/// An image's directory stands for the devicetree of its current image.
fn locate(file: &Path) -> PathBuf {
    match file.is_dir() {
        true => image::current_devicetree(file),
        false => file.to_owned(),
    }
}

fn describe(
    file: PathBuf,
    devicetree_bytes: u64,
    decoded: Decoded,
    incoming: Option<&Incoming>,
    registry: &Registry,
) -> Inspection {
    let files = decoded.tree.files.iter().map(|entry| {
        let summary = incoming
            .filter(|_| is_memfd(&entry.compatible))
            .map(|incoming| luo_handler_memfd::inspect(entry.data, Host::new(incoming)));
        let (memfd, damaged) = match summary {
            None => (None, None),
            Some(Ok(summary)) => (Some(Memfd::from(&summary)), None),
            Some(Err(errno)) => (None, Some(errno.to_string())),
        };
        Entry {
            token: Some(entry.token.to_string()),
            compatible: entry.compatible.to_string(),
            data: entry.data,
            claimed: registry.handler(&entry.compatible).is_some(),
            memfd,
            damaged,
        }
    });
    let subsystems = decoded.tree.subsystems.iter().map(|entry| Entry {
        token: None,
        compatible: entry.compatible.to_string(),
        data: entry.data,
        claimed: registry.subsystem(&entry.compatible).is_some(),
        memfd: None,
        damaged: None,
    });
    let bad = decoded.bad.iter().map(|entry| Bad {
        path: entry.path.clone(),
        reason: entry.reason.to_string(),
    });
    Inspection {
        file,
        devicetree_bytes,
        memory_bytes: incoming.map(Incoming::memory_bytes),
        update_number: decoded.tree.update_number,
        files: files.collect(),
        subsystems: subsystems.collect(),
        bad: bad.collect(),
    }
}

fn is_memfd(compatible: &Compatible) -> bool {
    compatible.as_str() == "memfd-v1"
}

impl From<&luo_handler_memfd::Summary> for Memfd {
    fn from(summary: &luo_handler_memfd::Summary) -> Self {
        Self {
            kind: summary.kind.to_string(),
            size_bytes: summary.size,
            data_bytes: summary.data_bytes,
            extents: summary.extents,
            position: summary.position,
            seals: summary.seal_names().collect::<Vec<_>>().join(" "),
            metadata_bytes: summary.metadata_bytes,
        }
    }
}

impl Inspection {
    /// The same for people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!(
            "{}: live update {}, devicetree {}, memory file {}",
            self.file.display(),
            self.update_number,
            ByteSize(self.devicetree_bytes),
            self.memory_bytes
                .map_or("not beside it".to_owned(), |bytes| ByteSize(bytes)
                    .to_string()),
        )];
        let entries = self.files.iter().chain(&self.subsystems);
        lines.extend(entries.map(Entry::text));
        lines.extend(
            self.bad
                .iter()
                .map(|bad| format!("  bad entry {}: {}", bad.path, bad.reason)),
        );
        if lines.len() == 1 {
            lines.push("  no files".to_owned());
        }
        lines.join("\n")
    }
}

impl Entry {
    fn text(&self) -> String {
        let name = self.token.as_deref().unwrap_or("subsystem");
        let mut line = format!("  {name}: {}, data {:#x}", self.compatible, self.data);
        if let Some(memfd) = &self.memfd {
            line.push_str(&format!(
                ", {} {} with {} of data in {} extents, position {}, seals [{}], record {}",
                memfd.kind,
                ByteSize(memfd.size_bytes),
                ByteSize(memfd.data_bytes),
                memfd.extents,
                memfd.position,
                memfd.seals,
                ByteSize(memfd.metadata_bytes),
            ));
        }
        if let Some(damaged) = &self.damaged {
            line.push_str(&format!(", its record cannot be used: {damaged}"));
        }
        if !self.claimed {
            line.push_str(", unclaimed: no such handler in this program");
        }
        line
    }
}
