// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo inspect`: prints what a handover holds.

use std::path::Path;

use anyhow::Result;
use bytesize::ByteSize;
use luo_orchestrator::inspection::{self, InspectedEntry, Inspection};
use luo_orchestrator::registry::Registry;

/// Reads a devicetree, or the directory of an image.
///
/// # Errors
///
/// If it cannot be read or is not a handover.
pub fn inspect(file: &Path, registry: &Registry) -> Result<Inspection> {
    Ok(inspection::inspect(file, registry)?)
}

/// What was found, for people.
pub fn text(inspection: &Inspection) -> String {
    let memory = inspection.memory_bytes.map(ByteSize);
    let mut lines = vec![format!(
        "{}: live update {}, devicetree {}, memory file {}",
        inspection.file.display(),
        inspection.update_number,
        ByteSize(inspection.devicetree_bytes),
        memory.map_or("not beside it".to_owned(), |bytes| bytes.to_string()),
    )];
    let entries = inspection.files.iter().chain(&inspection.subsystems);
    lines.extend(entries.map(entry_text));
    let bad = inspection.bad.iter();
    lines.extend(bad.map(|bad| format!("  bad entry {}: {}", bad.path, bad.reason)));
    let damaged = inspection.damaged_contents.iter();
    lines.extend(damaged.map(|damaged| format!("  damaged: {}", damaged.reason)));
    if lines.len() == 1 {
        lines.push("  no files".to_owned());
    }
    lines.join("\n")
}

fn entry_text(entry: &InspectedEntry) -> String {
    let name = entry.token.map(|token| token.to_string());
    let name = name.as_deref().unwrap_or("subsystem");
    let mut line = format!("  {name}: {}, data {:#x}", entry.compatible, entry.data);
    let mut last = "";
    for (key, value) in &entry.record {
        // The values of a list come one after the other.
        match key.strip_suffix("[]") {
            Some(_) if key == last => line.push_str(&format!(" {value}")),
            Some(name) => line.push_str(&format!(", {name} {value}")),
            None => line.push_str(&format!(", {key} {value}")),
        }
        last = key;
    }
    if let Some(contents) = &entry.contents {
        let (data, extents) = (contents.data_bytes, contents.extents);
        line.push_str(&format!(", data_bytes {data}, extents {extents}"));
    }
    if let Some(reason) = &entry.bad_record {
        line.push_str(&format!(", its record cannot be used: {reason}"));
    }
    if let Some(damaged) = &entry.damaged {
        line.push_str(&format!(", damaged: {damaged}"));
    }
    if !entry.claimed {
        line.push_str(", unclaimed: no such handler in this program");
    }
    line
}
