// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo inspect`: what a handover holds, without taking anything out of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytesize::ByteSize;
use luo_handler_api::{Compatible, Errno, Host};
use serde::Serialize;

use luo_orchestrator::devicetree::{self, Decoded};
use luo_orchestrator::incoming::{Incoming, NoFiles};
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::image::{self, ContentsState, Image};

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
    /// Contents in the image that cannot be used and that no record names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged_contents: Vec<DamagedContents>,
}

/// Contents that cannot be used.
#[derive(Debug, Serialize)]
pub struct DamagedContents {
    /// Their handle.
    pub handle: u64,
    /// Why.
    pub reason: String,
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
    #[serde(flatten)]
    pub record: Option<Record>,
    /// Why the record cannot be read, or the contents that it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// What a record says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// Of a memfd.
    Memfd(Memfd),
    /// Of a VFIO device.
    Vfio(Device),
    /// Of a port file.
    Ioport(Port),
}

/// A device's record.
#[derive(Debug, Serialize)]
pub struct Device {
    /// Segment and BDF.
    pub address: String,
    /// Vendor and device id, as `lspci -n` has them.
    pub id: String,
    /// The same of the subsystem.
    pub subsystem_id: String,
    /// Class code, 24 bits.
    pub class: String,
    /// Revision.
    pub revision: u8,
    /// `cdev` or `group`.
    pub opened: &'static str,
    /// Whether it can be reset.
    pub can_reset: bool,
    /// Bytes of each region, in the order of their indexes; 0 for one that it does not have.
    pub region_bytes: Vec<u64>,
    /// Interrupts of each index.
    pub interrupts: Vec<u32>,
}

/// A port file's record.
#[derive(Debug, Serialize)]
pub struct Port {
    /// The port that is read or written next.
    pub position: u64,
    /// Access mode and status flags, with the values of `include/uapi/asm-generic/fcntl.h`.
    pub status: u32,
}

/// A memfd's record.
#[derive(Debug, Serialize)]
pub struct Memfd {
    /// `shmem` or `hugetlb`.
    pub kind: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes of data in it, at most its size.
    pub data_bytes: u64,
    /// Runs of pages.
    pub extents: u64,
    /// The file position.
    pub position: u64,
    /// Its seals, by name.
    pub seals: String,
    /// Bytes of its record.
    pub metadata_bytes: u64,
    /// Handle of its contents, where they are in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<u64>,
}

/// An entry that cannot be used.
#[derive(Debug, Serialize)]
pub struct Bad {
    /// Its path in the devicetree.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Reads the devicetree `file`, or the one in the image directory `file`, and what lies beside it. Of an
/// image everything is read, and compared with its checksums.
///
/// # Errors
///
/// If it cannot be read, is no handover at all, or is in an image of which the manifest or the
/// devicetree is damaged. Damaged contents are no error, they are told.
pub fn inspect(file: &Path, registry: &Registry) -> Result<Inspection> {
    let image = image_of(file)?;
    let contents = image.as_ref().map(Image::check).transpose()?;
    let file = match &image {
        Some(image) => image.path().join(image::DEVICETREE),
        None => file.to_owned(),
    };
    let blob = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let decoded = devicetree::decode(&blob)
        .with_context(|| format!("{} is no handover of a live update", file.display()))?;
    let memory = file.with_file_name(image::MEMORY);
    let incoming = match fs::read(&memory) {
        Ok(bytes) => Some(
            Incoming::new(bytes, NoFiles)
                .with_context(|| format!("cannot use {}", memory.display()))?,
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", memory.display()));
        }
    };
    let mut inspection = describe(
        file,
        blob.len() as u64,
        decoded,
        incoming.as_ref(),
        registry,
    );
    if let Some(contents) = contents {
        inspection.add_contents(contents);
    }
    Ok(inspection)
}

/// The image that `file` is or in which it is the devicetree; a directory of images stands for the one
/// that counts.
fn image_of(file: &Path) -> Result<Option<Image>, image::ImageError> {
    if file.is_dir() {
        return match Image::is_at(file) {
            true => Image::at(file),
            false => Image::current(file),
        }
        .map(Some);
    }
    let directory = match file.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(None),
    };
    let is_devicetree = file.file_name() == Some(image::DEVICETREE.as_ref());
    match is_devicetree && Image::is_at(directory) {
        true => Image::at(directory).map(Some),
        false => Ok(None),
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
        let (record, damaged) = match read_record(&entry.compatible, entry.data, incoming) {
            None => (None, None),
            Some(Ok(record)) => (Some(record), None),
            Some(Err(errno)) => (None, Some(errno.to_string())),
        };
        Entry {
            token: Some(entry.token.to_string()),
            compatible: entry.compatible.to_string(),
            data: entry.data,
            claimed: registry.handler(&entry.compatible).is_some(),
            record,
            damaged,
        }
    });
    let subsystems = decoded.tree.subsystems.iter().map(|entry| Entry {
        token: None,
        compatible: entry.compatible.to_string(),
        data: entry.data,
        claimed: registry.subsystem(&entry.compatible).is_some(),
        record: None,
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
        damaged_contents: Vec::new(),
    }
}

/// The record of a format that is known here, if what it lies in is there.
fn read_record(
    compatible: &Compatible,
    data: u64,
    incoming: Option<&Incoming>,
) -> Option<Result<Record, Errno>> {
    let host = || incoming.map(Host::new);
    match compatible.as_str() {
        "memfd-v1" => {
            let summary = luo_handler_memfd::inspect(data, host()?);
            Some(summary.map(|summary| Record::Memfd(summary.into())))
        }
        "vfio-v1" => {
            let record = luo_handler_vfio::DeviceRecord::read(host()?, data);
            Some(record.map(|record| Record::Vfio((&record.description).into())))
        }
        "ioport-v1" => {
            let record = luo_handler_ioport::Record::from_u64(data);
            Some(record.map(|record| Record::Ioport(record.into())))
        }
        _ => None,
    }
}

impl From<luo_handler_ioport::Record> for Port {
    fn from(record: luo_handler_ioport::Record) -> Self {
        let luo_handler_ioport::Record { position, status } = record;
        Self { position, status }
    }
}

impl From<&luo_handler_vfio::Description> for Device {
    fn from(device: &luo_handler_vfio::Description) -> Self {
        use luo_handler_vfio::description::{Opened, FLAGS_RESET};
        let id = |vendor: u16, device: u16| format!("{vendor:04x}:{device:04x}");
        Self {
            address: device.address.to_string(),
            id: id(device.vendor(), device.device()),
            subsystem_id: id(device.subsystem_vendor(), device.subsystem()),
            class: format!("{:06x}", device.class()),
            revision: device.revision(),
            opened: match device.opened {
                Opened::Cdev => "cdev",
                Opened::Group => "group",
            },
            can_reset: device.flags & FLAGS_RESET != 0,
            region_bytes: device.regions.iter().map(|region| region.size).collect(),
            interrupts: device.irqs.iter().map(|irq| irq.count).collect(),
        }
    }
}

impl From<luo_handler_memfd::Summary> for Memfd {
    fn from(summary: luo_handler_memfd::Summary) -> Self {
        Self {
            kind: summary.kind.to_string(),
            size_bytes: summary.size,
            data_bytes: summary.data_bytes.min(summary.size),
            extents: summary.extents,
            position: summary.position,
            seals: summary.seal_names().collect::<Vec<_>>().join(" "),
            metadata_bytes: summary.metadata_bytes,
            contents: summary.contents,
        }
    }
}

impl Inspection {
    /// Adds what was found of the contents that an image has.
    fn add_contents(&mut self, contents: Vec<ContentsState>) {
        let mut named = Vec::new();
        for entry in &mut self.files {
            let Some(Record::Memfd(Memfd {
                contents: Some(handle),
                ..
            })) = entry.record
            else {
                continue;
            };
            named.push(handle);
            entry.damaged = match contents.iter().find(|(found, _)| *found == handle) {
                None => Some(format!("the image has no contents with handle {handle}")),
                Some((_, state)) => state.err().map(|errno| reason(handle, errno)),
            };
        }
        let damaged = contents
            .into_iter()
            .filter(|(handle, _)| !named.contains(handle))
            .filter_map(|(handle, state)| state.err().map(|errno| (handle, errno)));
        self.damaged_contents = damaged
            .map(|(handle, errno)| DamagedContents {
                handle,
                reason: reason(handle, errno),
            })
            .collect();
    }

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
        lines.extend(
            self.damaged_contents
                .iter()
                .map(|damaged| format!("  damaged: {}", damaged.reason)),
        );
        if lines.len() == 1 {
            lines.push("  no files".to_owned());
        }
        lines.join("\n")
    }
}

fn reason(handle: u64, errno: Errno) -> String {
    match errno {
        Errno::EBADMSG => format!("contents-{handle} is missing or not what was written"),
        errno => format!("contents-{handle} cannot be read: {errno}"),
    }
}

impl Record {
    fn text(&self) -> String {
        match self {
            Self::Memfd(memfd) => format!(
                "{} {} with {} of data in {} extents, position {}, seals [{}], record {}",
                memfd.kind,
                ByteSize(memfd.size_bytes),
                ByteSize(memfd.data_bytes),
                memfd.extents,
                memfd.position,
                memfd.seals,
                ByteSize(memfd.metadata_bytes),
            ),
            Self::Vfio(device) => format!(
                "device {} [{}] class {} at {}, opened from its {}, {} regions with {}",
                device.id,
                device.subsystem_id,
                device.class,
                device.address,
                device.opened,
                device
                    .region_bytes
                    .iter()
                    .filter(|&&bytes| bytes > 0)
                    .count(),
                ByteSize(device.region_bytes.iter().sum()),
            ),
            Self::Ioport(port) => format!("port {:#x}, status {:#o}", port.position, port.status),
        }
    }
}

impl Entry {
    fn text(&self) -> String {
        let name = self.token.as_deref().unwrap_or("subsystem");
        let mut line = format!("  {name}: {}, data {:#x}", self.compatible, self.data);
        if let Some(record) = &self.record {
            line.push_str(&format!(", {}", record.text()));
        }
        if let Some(damaged) = &self.damaged {
            match self.record {
                Some(_) => line.push_str(&format!(", damaged: {damaged}")),
                None => line.push_str(&format!(", its record cannot be used: {damaged}")),
            }
        }
        if !self.claimed {
            line.push_str(", unclaimed: no such handler in this program");
        }
        line
    }
}
