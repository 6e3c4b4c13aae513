// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The flattened devicetree that crosses: written by the old side, read without trust by the new.
//!
//! ```text
//! / { compatible = "luo-v1"; liveupdate-num = <u64>;
//!     file-descriptors { compatible = "luo-file-descriptors-v1";
//!         0x<token> { compatible = "<handler>"; data = <u64>; }; ... };
//!     subsystems { compatible = "luo-subsystems-v1";
//!         subsystem-<n> { compatible = "<subsystem>"; data = <u64>; }; ... }; };
//! ```
//!
//! The format is version 17 of the Devicetree Specification, chapter 5, so `dtc` and `fdtdump` read
//! it. A blob that is not a devicetree, or not ours, is one error; beyond that, a bad entry costs
//! only itself, whatever its name consists of.

mod flat;

use std::collections::HashSet;
use std::fmt;

use luo_handler_api::{Compatible, InvalidCompatible, Token};
use thiserror::Error;

use flat::{Malformed, Reader, Writer};

pub use flat::TooLarge;

const ROOT_COMPATIBLE: &str = "luo-v1";
const FILES_COMPATIBLE: &str = "luo-file-descriptors-v1";
const SUBSYSTEMS_COMPATIBLE: &str = "luo-subsystems-v1";
const FILES_NODE: &str = "file-descriptors";
const SUBSYSTEMS_NODE: &str = "subsystems";
const UPDATE_NUMBER: &str = "liveupdate-num";

/// What crosses, as numbers and names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// How many live updates there have been, this one included.
    pub update_number: u64,
    /// The files, in the order they were offered.
    pub files: Vec<FileEntry>,
    /// The subsystems.
    pub subsystems: Vec<SubsystemEntry>,
}

/// One file of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name.
    pub token: Token,
    /// The handler it needs.
    pub compatible: Compatible,
    /// What its handler returned.
    pub data: u64,
}

/// One subsystem of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubsystemEntry {
    /// Its name.
    pub compatible: Compatible,
    /// What it returned.
    pub data: u64,
}

/// What was read: the good entries, and the bad ones with the reason of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// The usable entries.
    pub tree: Tree,
    /// The others.
    pub bad: Vec<BadEntry>,
}

/// An entry that cannot be used; the others can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEntry {
    /// Its path in the tree.
    pub path: String,
    /// What is wrong with it.
    pub reason: BadReason,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadReason {
    /// The node's name is not a token.
    #[error("the node's name is not a token: expected 0x and 1 to 16 hexadecimal digits")]
    Name,
    /// An earlier entry has the same token or is the same subsystem.
    #[error("an earlier entry has the same name")]
    Duplicate,
    /// A property is missing.
    #[error("the property {0} is missing")]
    Missing(&'static str),
    /// A property is there twice.
    #[error("the property {0} is there twice")]
    Twice(&'static str),
    /// `data` is not a `u64`.
    #[error("the property data has {0} bytes instead of 8")]
    DataLength(usize),
    /// `compatible` does not end with NUL.
    #[error("the property compatible does not end with NUL")]
    Unterminated,
    /// `compatible` is not a valid name.
    #[error("{0}")]
    Compatible(InvalidCompatible),
    /// A node that belongs nowhere, or the second of its name.
    #[error("the node is not expected here")]
    Unexpected,
}

/// Why a blob cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It is not a flattened devicetree.
    #[error("this is not a flattened devicetree, or a truncated one: {0}")]
    Malformed(String),
    /// A node that must be ours is not.
    #[error(
        "{path} has compatible {found:?}, expected {expected:?}: written by something else, \
         or by another version"
    )]
    Foreign {
        /// The node.
        path: &'static str,
        /// What it has.
        found: String,
        /// What it should have.
        expected: &'static str,
    },
    /// The root's number is missing or has the wrong size.
    #[error("the root's liveupdate-num is missing or not 8 bytes long")]
    UpdateNumber,
}

impl fmt::Display for BadEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// Writes the tree.
///
/// # Errors
///
/// [`TooLarge`] beyond 4 GiB.
pub fn encode(tree: &Tree) -> Result<Vec<u8>, TooLarge> {
    let mut writer = Writer::with_room_for(tree.files.len() + tree.subsystems.len());
    writer.begin("");
    writer.string("compatible", ROOT_COMPATIBLE);
    writer.number(UPDATE_NUMBER, tree.update_number);
    writer.begin(FILES_NODE);
    writer.string("compatible", FILES_COMPATIBLE);
    for entry in &tree.files {
        writer.entry(
            format_args!("{}", entry.token),
            &entry.compatible,
            entry.data,
        );
    }
    writer.end();
    writer.begin(SUBSYSTEMS_NODE);
    writer.string("compatible", SUBSYSTEMS_COMPATIBLE);
    for (index, entry) in tree.subsystems.iter().enumerate() {
        writer.entry(
            format_args!("subsystem-{index}"),
            &entry.compatible,
            entry.data,
        );
    }
    writer.end();
    writer.end();
    writer.finish()
}

/// Reads a tree.
///
/// # Errors
///
/// [`DecodeError`] if the blob as a whole is not ours; an entry that is bad alone is in
/// [`Decoded::bad`].
pub fn decode(blob: &[u8]) -> Result<Decoded, DecodeError> {
    let mut reader = Reader::new(blob)?;
    let mut decoded = Decoded::default();
    let root = reader.enter()?.map(|_| Properties::read(&mut reader));
    let root = root.ok_or(DecodeError::Malformed("it has no root".to_owned()))??;
    root.expect_compatible("/", ROOT_COMPATIBLE)?;
    let update_number = root.update_number.once(UPDATE_NUMBER).ok();
    decoded.tree.update_number = update_number
        .and_then(|value| value.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or(DecodeError::UpdateNumber)?;
    let (mut files, mut subsystems) = (false, false);
    while let Some(name) = reader.enter()? {
        if name == FILES_NODE.as_bytes() && !files {
            files = true;
            Properties::read(&mut reader)?
                .expect_compatible("/file-descriptors", FILES_COMPATIBLE)?;
            decode_files(&mut reader, &mut decoded)?;
        } else if name == SUBSYSTEMS_NODE.as_bytes() && !subsystems {
            subsystems = true;
            Properties::read(&mut reader)?
                .expect_compatible("/subsystems", SUBSYSTEMS_COMPATIBLE)?;
            decode_subsystems(&mut reader, &mut decoded)?;
        } else {
            reader.leave()?;
            decoded.bad.push(BadEntry {
                path: format!("/{}", String::from_utf8_lossy(name)),
                reason: BadReason::Unexpected,
            });
        }
    }
    reader.end()?;
    Ok(decoded)
}

impl From<Malformed> for DecodeError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.to_string())
    }
}

/// The properties of a node that mean something here; others are left alone.
#[derive(Default)]
struct Properties<'a> {
    compatible: Values<'a>,
    data: Values<'a>,
    update_number: Values<'a>,
}

/// The values of one property: there should be one.
#[derive(Default)]
struct Values<'a> {
    first: Option<&'a [u8]>,
    more: bool,
}

impl<'a> Values<'a> {
    fn add(&mut self, value: &'a [u8]) {
        self.more |= self.first.is_some();
        self.first.get_or_insert(value);
    }

    fn once(&self, name: &'static str) -> Result<&'a [u8], BadReason> {
        match self.more {
            false => self.first.ok_or(BadReason::Missing(name)),
            true => Err(BadReason::Twice(name)),
        }
    }
}

impl<'a> Properties<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let mut properties = Self::default();
        while let Some(property) = reader.property()? {
            match property.name {
                b"compatible" => properties.compatible.add(property.value),
                b"data" => properties.data.add(property.value),
                name if name == UPDATE_NUMBER.as_bytes() => {
                    properties.update_number.add(property.value);
                }
                _ => {}
            }
        }
        Ok(properties)
    }

    fn expect_compatible(
        &self,
        path: &'static str,
        expected: &'static str,
    ) -> Result<(), DecodeError> {
        let found = self.compatible.once("compatible").unwrap_or_default();
        match found.split_last() {
            Some((0, name)) if name == expected.as_bytes() => Ok(()),
            _ => Err(DecodeError::Foreign {
                path,
                found: String::from_utf8_lossy(found)
                    .trim_end_matches('\0')
                    .to_owned(),
                expected,
            }),
        }
    }

    /// The two properties of an entry.
    fn entry(&self) -> Result<(Compatible, u64), BadReason> {
        let compatible = self.compatible.once("compatible")?;
        let data = self.data.once("data")?;
        let number = data
            .try_into()
            .map_err(|_| BadReason::DataLength(data.len()))?;
        let Some((0, name)) = compatible.split_last() else {
            return Err(BadReason::Unterminated);
        };
        let compatible = Compatible::parse(name).map_err(BadReason::Compatible)?;
        Ok((compatible, u64::from_be_bytes(number)))
    }
}

fn decode_files(reader: &mut Reader<'_>, decoded: &mut Decoded) -> Result<(), Malformed> {
    let mut seen = HashSet::new();
    while let Some(name) = reader.enter()? {
        let properties = Properties::read(reader)?;
        reader.leave()?;
        match decode_file(name, &properties, &mut seen) {
            Ok(entry) => decoded.tree.files.push(entry),
            Err(reason) => decoded.bad.push(bad(FILES_NODE, name, reason)),
        }
    }
    Ok(())
}

fn decode_file(
    name: &[u8],
    properties: &Properties<'_>,
    seen: &mut HashSet<Token>,
) -> Result<FileEntry, BadReason> {
    let token = std::str::from_utf8(name).map_err(|_| BadReason::Name)?;
    let token = token.parse().map_err(|_| BadReason::Name)?;
    if !seen.insert(token) {
        return Err(BadReason::Duplicate);
    }
    let (compatible, data) = properties.entry()?;
    Ok(FileEntry {
        token,
        compatible,
        data,
    })
}

fn decode_subsystems(reader: &mut Reader<'_>, decoded: &mut Decoded) -> Result<(), Malformed> {
    let mut seen = HashSet::new();
    while let Some(name) = reader.enter()? {
        let properties = Properties::read(reader)?;
        reader.leave()?;
        let entry = properties.entry().and_then(|(compatible, data)| {
            if !seen.insert(compatible) {
                return Err(BadReason::Duplicate);
            }
            Ok(SubsystemEntry { compatible, data })
        });
        match entry {
            Ok(entry) => decoded.tree.subsystems.push(entry),
            Err(reason) => decoded.bad.push(bad(SUBSYSTEMS_NODE, name, reason)),
        }
    }
    Ok(())
}

fn bad(parent: &str, name: &[u8], reason: BadReason) -> BadEntry {
    BadEntry {
        path: format!("/{parent}/{}", String::from_utf8_lossy(name)),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use proptest::prelude::*;

    fn tree() -> Tree {
        Tree {
            update_number: 7,
            files: vec![
                FileEntry {
                    token: Token(1),
                    compatible: Compatible::new("memfd-v1"),
                    data: 0x1234,
                },
                FileEntry {
                    token: Token(u64::MAX),
                    compatible: Compatible::new("a-rather-long-compatible.with_all+the,chars-v12"),
                    data: u64::MAX,
                },
            ],
            subsystems: vec![SubsystemEntry {
                compatible: Compatible::new("clock-v1"),
                data: 9,
            }],
        }
    }

    /// A tree written by hand: `(path, name, value)` properties below nodes given in order.
    fn blob(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::with_room_for(0);
        writer.begin("");
        writer.string("compatible", ROOT_COMPATIBLE);
        writer.number(UPDATE_NUMBER, 1);
        write(&mut writer);
        writer.end();
        writer.finish().unwrap()
    }

    fn files_blob(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        blob(|writer| {
            writer.begin(FILES_NODE);
            writer.string("compatible", FILES_COMPATIBLE);
            writer.entry(format_args!("0x1"), &Compatible::new("good-v1"), 1);
            write(writer);
            writer.entry(format_args!("0x2"), &Compatible::new("good-v1"), 2);
            writer.end();
        })
    }

    /// Exactly one entry is bad, for this reason, and the two good ones beside it are there.
    fn assert_bad(blob: &[u8], reason: BadReason) {
        let decoded = decode(blob).unwrap();
        let tokens: Vec<_> = decoded.tree.files.iter().map(|f| f.token.0).collect();
        assert_eq!(tokens, [1, 2]);
        assert_eq!(decoded.bad.len(), 1, "{:?}", decoded.bad);
        assert_eq!(decoded.bad[0].reason, reason);
    }

    #[test]
    fn what_was_written_reads_back() {
        let decoded = decode(&encode(&tree()).unwrap()).unwrap();
        assert_eq!(decoded.tree, tree());
        assert_eq!(decoded.bad, []);
    }

    #[test]
    fn vm_fdt_writes_the_same_bytes() {
        let mut oracle = vm_fdt::FdtWriter::new().unwrap();
        let root = oracle.begin_node("").unwrap();
        oracle
            .property_string("compatible", ROOT_COMPATIBLE)
            .unwrap();
        oracle.property_u64(UPDATE_NUMBER, 1).unwrap();
        let files = oracle.begin_node("files").unwrap();
        oracle.property_string("compatible", "odd").unwrap();
        oracle.property_u64("data", 0x0102_0304_0506_0708).unwrap();
        oracle.end_node(files).unwrap();
        oracle.end_node(root).unwrap();
        let ours = blob(|writer| {
            writer.entry(
                format_args!("files"),
                &Compatible::new("odd"),
                0x0102_0304_0506_0708,
            );
        });
        // The oracle finds the names of properties by a map, so its strings may be in another
        // order; the structure block is compared through a reader, sizes byte for byte.
        let theirs = oracle.finish().unwrap();
        assert_eq!(ours.len(), theirs.len());
        assert_eq!(
            Fdt::new(&ours).unwrap().to_string(),
            Fdt::new(&theirs).unwrap().to_string()
        );
    }

    #[test]
    fn a_missing_node_means_no_files() {
        let decoded = decode(&blob(|_| ())).unwrap();
        assert_eq!(decoded.tree.files, []);
        assert_eq!(decoded.bad, []);
    }

    #[test]
    fn a_root_that_is_not_ours_is_one_error() {
        let mut writer = Writer::with_room_for(0);
        writer.begin("");
        writer.string("compatible", "qemu,pc");
        writer.end();
        let error = decode(&writer.finish().unwrap()).unwrap_err();
        assert!(error.to_string().contains("qemu,pc"), "{error}");
    }

    #[test]
    fn a_files_node_of_another_version_is_one_error() {
        let error = decode(&blob(|writer| {
            writer.begin(FILES_NODE);
            writer.string("compatible", "luo-file-descriptors-v9");
            writer.end();
        }));
        assert!(matches!(error, Err(DecodeError::Foreign { .. })));
    }

    #[test]
    fn the_update_number_has_eight_bytes() {
        let mut writer = Writer::with_room_for(0);
        writer.begin("");
        writer.string("compatible", ROOT_COMPATIBLE);
        writer.property(UPDATE_NUMBER, &[&[0; 4]]);
        writer.end();
        assert_eq!(
            decode(&writer.finish().unwrap()),
            Err(DecodeError::UpdateNumber)
        );
    }

    #[test]
    fn truncated_at_every_byte_is_one_error() {
        let blob = encode(&tree()).unwrap();
        for length in 0..blob.len() {
            assert!(decode(&blob[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn every_kind_of_bad_entry_costs_only_itself() {
        let good = Compatible::new("good-v1");
        let bad_name = files_blob(|w| w.entry(format_args!("seven"), &good, 7));
        assert_bad(&bad_name, BadReason::Name);
        let duplicate = files_blob(|w| w.entry(format_args!("0x01"), &good, 7));
        assert_bad(&duplicate, BadReason::Duplicate);
        for length in [0, 4, 7, 9, 16] {
            let wrong_length = files_blob(|w| {
                w.begin("0x7");
                w.string("compatible", "good-v1");
                w.property("data", &[&vec![0; length]]);
                w.end();
            });
            assert_bad(&wrong_length, BadReason::DataLength(length));
        }
        let no_data = files_blob(|w| {
            w.begin("0x7");
            w.string("compatible", "good-v1");
            w.end();
        });
        assert_bad(&no_data, BadReason::Missing("data"));
        let no_compatible = files_blob(|w| {
            w.begin("0x7");
            w.number("data", 1);
            w.end();
        });
        assert_bad(&no_compatible, BadReason::Missing("compatible"));
        let twice = files_blob(|w| {
            w.begin("0x7");
            w.string("compatible", "good-v1");
            w.number("data", 1);
            w.number("data", 2);
            w.end();
        });
        assert_bad(&twice, BadReason::Twice("data"));
        let long = files_blob(|w| {
            w.begin("0x7");
            w.string("compatible", &"x".repeat(48));
            w.number("data", 1);
            w.end();
        });
        assert_bad(&long, BadReason::Compatible(InvalidCompatible::TooLong));
        let unterminated = files_blob(|w| {
            w.begin("0x7");
            w.property("compatible", &[b"good-v1"]);
            w.number("data", 1);
            w.end();
        });
        assert_bad(&unterminated, BadReason::Unterminated);
        let list = files_blob(|w| {
            w.begin("0x7");
            w.property("compatible", &[b"good-v1\0also-v1\0"]);
            w.number("data", 1);
            w.end();
        });
        assert!(matches!(
            decode(&list).unwrap().bad[0].reason,
            BadReason::Compatible(InvalidCompatible::BadByte { .. })
        ));
    }

    #[test]
    fn names_that_no_devicetree_may_have_cost_only_their_entries() {
        let good = Compatible::new("good-v1");
        for byte in [b' ', b'#', b'/', b'@', 0xe2, 0xff, b'\n'] {
            let mut blob = files_blob(|w| w.entry(format_args!("0xab?2"), &good, 7));
            let place = blob.iter().position(|&found| found == b'?').unwrap();
            blob[place] = byte;
            assert_bad(&blob, BadReason::Name);
        }
        // A property whose name lies after the strings is ignored.
        let mut blob = files_blob(|w| w.entry(format_args!("0x7"), &good, 0x1234_5678));
        let value = 0x1234_5678_u64.to_be_bytes();
        let place = blob.windows(8).position(|found| found == value).unwrap();
        blob[place - 4..place].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_bad(&blob, BadReason::Missing("data"));
    }

    #[test]
    fn nodes_may_be_nested_a_million_deep() {
        let deep = files_blob(|w| {
            w.begin("0x7");
            (0..1_000_000).for_each(|_| w.begin("x"));
            (0..1_000_000).for_each(|_| w.end());
            w.end();
        });
        assert_bad(&deep, BadReason::Missing("compatible"));
    }

    #[test]
    fn a_bad_subsystem_costs_only_itself() {
        let decoded = decode(&blob(|w| {
            w.begin(SUBSYSTEMS_NODE);
            w.string("compatible", SUBSYSTEMS_COMPATIBLE);
            w.entry(format_args!("subsystem-0"), &Compatible::new("a"), 1);
            w.entry(format_args!("subsystem-1"), &Compatible::new("a"), 2);
            w.entry(format_args!("subsystem-2"), &Compatible::new("b"), 3);
            w.end();
        }))
        .unwrap();
        assert_eq!(decoded.tree.subsystems.len(), 2);
        assert_eq!(decoded.bad[0].reason, BadReason::Duplicate);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn mutated_trees_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
        ) {
            let mut blob = encode(&tree()).unwrap();
            for (index, byte) in changes {
                let place = index.index(blob.len());
                blob[place] = byte;
            }
            let _ = decode(&blob);
        }

        #[test]
        fn every_tree_reads_back(
            update_number: u64,
            tokens in prop::collection::hash_set(any::<u64>(), 0..50),
            compatible in "[a-z][a-z0-9,._+-]{0,46}",
            data: u64,
        ) {
            let compatible = Compatible::parse(compatible.as_bytes()).unwrap();
            let files = tokens.into_iter().map(Token);
            let tree = Tree {
                update_number,
                files: files.map(|token| FileEntry { token, compatible, data }).collect(),
                subsystems: vec![SubsystemEntry { compatible, data }],
            };
            let blob = encode(&tree).unwrap();
            prop_assert!(Fdt::new(&blob).is_ok());
            prop_assert_eq!(decode(&blob).unwrap(), Decoded { tree, bad: vec![] });
        }
    }
}
