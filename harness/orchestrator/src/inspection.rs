// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a handover holds, as data: entries, sizes, bad entries, damaged contents. Nothing is taken
//! out of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use luo_handler_api::{Compatible, Errno, Host, Token};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::devicetree::{self, DecodeError, Decoded};
use crate::files::NoFiles;
use crate::incoming::Incoming;
use crate::memory_file::{self, BadMemory};
use crate::registry::Registry;
use crate::transport::image::{self, ContentsState, Data, Image, ImageError};

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
    pub files: Vec<InspectedEntry>,
    /// The subsystems.
    pub subsystems: Vec<InspectedEntry>,
    /// Entries that cannot be used.
    pub bad: Vec<InspectedBadEntry>,
    /// Contents in the image that cannot be used and belong to no entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged_contents: Vec<DamagedContents>,
}

/// An entry that can be used.
#[derive(Debug, Serialize)]
pub struct InspectedEntry {
    /// The token; a subsystem has none.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "serialize_token"
    )]
    pub token: Option<Token>,
    /// The handler it needs.
    #[serde(serialize_with = "serialize_compatible")]
    pub compatible: Compatible,
    /// What crossed for it.
    pub data: u64,
    /// Whether this program has its handler.
    pub claimed: bool,
    /// What its handler describes it as.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "serialize_pairs"
    )]
    pub record: Vec<(String, String)>,
    /// Why its handler cannot read the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_record: Option<String>,
    /// What the image holds of it besides holes, if all of it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<Data>,
    /// What is wrong with its contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// An entry that cannot be used.
#[derive(Debug, Serialize)]
pub struct InspectedBadEntry {
    /// Its path in the devicetree.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Contents that cannot be used.
#[derive(Debug, Serialize)]
pub struct DamagedContents {
    /// Their handle.
    pub handle: u64,
    /// Why.
    pub reason: String,
}

/// A handover that cannot be inspected at all.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The image as a whole cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a handover of a live update: {source}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why.
        source: DecodeError,
    },
    /// The memory file beside it cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BadMemory,
    },
}

/// Key and value pairs that describe a record, as [`luo_handler_api::Pairs`] has them, and how
/// reading it ended.
type Description = (Vec<(String, String)>, Result<(), Errno>);

/// Reads the devicetree `file`, or the one in the image directory `file`, and what lies beside it.
/// Of an image everything is read and compared with its checksums.
///
/// # Errors
///
/// [`InspectError`] if it cannot be read, is not a handover, or is in an image of which the
/// manifest or the devicetree is damaged. Damaged contents are not an error but part of what is
/// returned.
pub fn inspect(file: &Path, registry: &Registry) -> Result<Inspection, InspectError> {
    let image = image_of(file)?;
    let contents = image.as_ref().map(Image::check).transpose()?;
    let file = match &image {
        Some(image) => image.path().join(image::DEVICETREE),
        None => file.to_owned(),
    };
    let blob = fs::read(&file).map_err(|source| InspectError::Unreadable {
        path: file.clone(),
        source,
    })?;
    let decoded = devicetree::decode(&blob).map_err(|source| InspectError::Foreign {
        path: file.clone(),
        source,
    })?;
    let memory = Memory::beside(&file)?;
    let mut inspection = Inspection::of(&decoded, &memory, registry);
    inspection.file = file;
    inspection.devicetree_bytes = blob.len() as u64;
    inspection.add_contents(contents.unwrap_or_default());
    Ok(inspection)
}

/// The image that `file` is or in which it is the devicetree; a directory of images stands for the
/// one that counts.
fn image_of(file: &Path) -> Result<Option<Image>, ImageError> {
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

/// The memory file, or an empty one if it is missing.
struct Memory {
    incoming: Incoming,
    is_missing: bool,
}

impl Memory {
    fn beside(devicetree: &Path) -> Result<Self, InspectError> {
        let path = devicetree.with_file_name(image::MEMORY);
        let (bytes, is_missing) = match fs::read(&path) {
            Ok(bytes) => (bytes, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (memory_file::empty(), true),
            Err(source) => return Err(InspectError::Unreadable { path, source }),
        };
        let incoming = Incoming::new(bytes, NoFiles);
        let incoming = incoming.map_err(|source| InspectError::Memory { path, source })?;
        Ok(Self {
            incoming,
            is_missing,
        })
    }

    /// Why a record cannot be read; without a memory file there is nothing to report.
    fn reason(&self, result: Result<(), Errno>) -> Option<String> {
        let errno = result.err().filter(|_| !self.is_missing)?;
        Some(errno.to_string())
    }
}

impl Inspection {
    fn of(decoded: &Decoded, memory: &Memory, registry: &Registry) -> Self {
        let host = Host::new(&memory.incoming);
        let entry = |token, compatible: Compatible, data, described: Option<Description>| {
            let claimed = described.is_some();
            let (record, result) = described.unwrap_or((Vec::new(), Ok(())));
            InspectedEntry {
                token,
                compatible,
                data,
                claimed,
                record,
                bad_record: memory.reason(result),
                contents: None,
                damaged: None,
            }
        };
        let files = decoded.tree.files.iter().map(|file| {
            let handler = registry.handler(&file.compatible);
            let described = handler.map(|handler| handler.describe(file.data, host));
            entry(Some(file.token), file.compatible, file.data, described)
        });
        let subsystems = decoded.tree.subsystems.iter().map(|subsystem| {
            let found = registry.subsystem(&subsystem.compatible);
            let described = found.map(|found| found.describe(subsystem.data, host));
            entry(None, subsystem.compatible, subsystem.data, described)
        });
        let bad = decoded.bad.iter().map(|entry| InspectedBadEntry {
            path: entry.path.clone(),
            reason: entry.reason.to_string(),
        });
        Self {
            file: PathBuf::new(),
            devicetree_bytes: 0,
            memory_bytes: (!memory.is_missing).then(|| memory.incoming.memory_bytes()),
            update_number: decoded.tree.update_number,
            files: files.collect(),
            subsystems: subsystems.collect(),
            bad: bad.collect(),
            damaged_contents: Vec::new(),
        }
    }

    /// Adds the contents that an image has, and what is wrong with them.
    fn add_contents(&mut self, contents: Vec<ContentsState>) {
        for ContentsState { held, result } in contents {
            let of_entry = |entry: &&mut InspectedEntry| held.token == entry.token;
            let entry = self.files.iter_mut().find(of_entry);
            let handle = held.handle;
            let errno = match result {
                Ok(data) => {
                    if let Some(entry) = entry {
                        entry.contents = Some(entry.contents.into_iter().chain([data]).sum());
                    }
                    continue;
                }
                Err(errno) => errno,
            };
            let reason = match errno {
                Errno::EBADMSG => format!("contents-{handle} is missing or not what was written"),
                errno => format!("contents-{handle} cannot be read: {errno}"),
            };
            match entry {
                Some(entry) => entry.damaged = Some(reason),
                None => self
                    .damaged_contents
                    .push(DamagedContents { handle, reason }),
            }
        }
        // Of what is damaged nobody knows how much there is.
        let damaged = self.files.iter_mut().filter(|file| file.damaged.is_some());
        damaged.for_each(|file| file.contents = None);
    }
}

fn serialize_token<S: Serializer>(token: &Option<Token>, to: S) -> Result<S::Ok, S::Error> {
    match token {
        Some(token) => to.collect_str(token),
        None => to.serialize_none(),
    }
}

fn serialize_compatible<S: Serializer>(name: &Compatible, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(name)
}

/// As an object: digits are numbers, and the values of a key that ends in `[]` are a list.
fn serialize_pairs<S: Serializer>(pairs: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
    let number = |value: &str| value.parse::<u64>().ok();
    let json = |value: &String| number(value).map_or_else(|| Value::from(&**value), Value::from);
    let mut object = Map::new();
    for (key, value) in pairs {
        match key.strip_suffix("[]") {
            Some(key) => {
                let list = object
                    .entry(key)
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(json(value));
                }
            }
            None => drop(object.insert(key.clone(), json(value))),
        }
    }
    object.serialize(to)
}
