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
//! it. A blob that is no devicetree, down to a node name with a character that the specification does
//! not have, is one error; beyond that, a bad entry costs only itself.

use std::collections::HashSet;
use std::fmt;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use luo_handler_api::{Compatible, InvalidCompatible, Token};
use thiserror::Error;

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
    /// Whose it is.
    pub compatible: Compatible,
    /// What its handler said.
    pub data: u64,
}

/// One subsystem of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubsystemEntry {
    /// Its name.
    pub compatible: Compatible,
    /// What it said.
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
    /// The node's name is no token.
    #[error("the node's name is no token: 0x and 1 to 16 hexadecimal digits are")]
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
    /// `data` is no `u64`.
    #[error("the property data has {0} bytes instead of 8")]
    DataLength(usize),
    /// `compatible` is none.
    #[error("{0}")]
    Compatible(InvalidCompatible),
    /// A node that belongs nowhere, or the second of its name.
    #[error("the node is not expected here")]
    Unexpected,
}

/// Why a blob cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It is no flattened devicetree.
    #[error("no flattened devicetree, or a truncated one: {0}")]
    Malformed(String),
    /// A node that must be ours is not.
    #[error("{path} has compatible {found:?}, not {expected:?}: written by something else, or by another version")]
    Foreign {
        /// The node.
        path: &'static str,
        /// What it says it is.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// The root's number is missing or has the wrong size.
    #[error("the root's liveupdate-num is missing or not 8 bytes long")]
    UpdateNumber,
}

/// The tree does not fit the 32-bit offsets of a flattened devicetree: some 40 million files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many files: the devicetree would be larger than 4 GiB")]
pub struct TooLarge;

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
    let fdt = Fdt::new(blob).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    let root = fdt.root();
    expect_compatible(&root, "/", ROOT_COMPATIBLE)?;
    let mut decoded = Decoded::default();
    decoded.tree.update_number = root
        .properties()
        .find(|property| property.name() == UPDATE_NUMBER)
        .and_then(|property| property.value().try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or(DecodeError::UpdateNumber)?;
    let (mut files, mut subsystems) = (false, false);
    for node in root.children() {
        match node.name() {
            FILES_NODE if !files => {
                files = true;
                expect_compatible(&node, "/file-descriptors", FILES_COMPATIBLE)?;
                decode_files(&node, &mut decoded);
            }
            SUBSYSTEMS_NODE if !subsystems => {
                subsystems = true;
                expect_compatible(&node, "/subsystems", SUBSYSTEMS_COMPATIBLE)?;
                decode_subsystems(&node, &mut decoded);
            }
            name => decoded.bad.push(BadEntry {
                path: format!("/{name}"),
                reason: BadReason::Unexpected,
            }),
        }
    }
    Ok(decoded)
}

fn expect_compatible(
    node: &FdtNode<'_>,
    path: &'static str,
    expected: &'static str,
) -> Result<(), DecodeError> {
    let property = node
        .properties()
        .find(|property| property.name() == "compatible");
    let found = property.as_ref().map_or(&[][..], Property::value);
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

fn decode_files(parent: &FdtNode<'_>, decoded: &mut Decoded) {
    let mut seen = HashSet::new();
    for node in parent.children() {
        let entry = decode_file(&node, &mut seen);
        match entry {
            Ok(entry) => decoded.tree.files.push(entry),
            Err(reason) => decoded.bad.push(BadEntry {
                path: format!("/{FILES_NODE}/{}", node.name()),
                reason,
            }),
        }
    }
}

fn decode_file(node: &FdtNode<'_>, seen: &mut HashSet<Token>) -> Result<FileEntry, BadReason> {
    let token = node.name().parse().map_err(|_| BadReason::Name)?;
    if !seen.insert(token) {
        return Err(BadReason::Duplicate);
    }
    let (compatible, data) = decode_properties(node)?;
    Ok(FileEntry {
        token,
        compatible,
        data,
    })
}

fn decode_subsystems(parent: &FdtNode<'_>, decoded: &mut Decoded) {
    let mut seen = HashSet::new();
    for node in parent.children() {
        let entry = decode_properties(&node).and_then(|(compatible, data)| {
            if !seen.insert(compatible) {
                return Err(BadReason::Duplicate);
            }
            Ok(SubsystemEntry { compatible, data })
        });
        match entry {
            Ok(entry) => decoded.tree.subsystems.push(entry),
            Err(reason) => decoded.bad.push(BadEntry {
                path: format!("/{SUBSYSTEMS_NODE}/{}", node.name()),
                reason,
            }),
        }
    }
}

fn decode_properties(node: &FdtNode<'_>) -> Result<(Compatible, u64), BadReason> {
    let (mut compatible, mut data) = (None, None);
    for property in node.properties() {
        let value = property.value();
        match property.name() {
            "compatible" => set_once(&mut compatible, "compatible", decode_compatible(value)?)?,
            "data" => set_once(&mut data, "data", decode_data(value)?)?,
            _ => {}
        }
    }
    Ok((
        compatible.ok_or(BadReason::Missing("compatible"))?,
        data.ok_or(BadReason::Missing("data"))?,
    ))
}

fn set_once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), BadReason> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadReason::Twice(name)),
    }
}

fn decode_data(value: &[u8]) -> Result<u64, BadReason> {
    let number = value
        .try_into()
        .map_err(|_| BadReason::DataLength(value.len()))?;
    Ok(u64::from_be_bytes(number))
}

fn decode_compatible(value: &[u8]) -> Result<Compatible, BadReason> {
    match value.split_last() {
        Some((0, name)) => Compatible::parse(name),
        _ => Err(InvalidCompatible::TooLong),
    }
    .map_err(BadReason::Compatible)
}

/// Writes a flattened devicetree, version 17: header, an empty reservation block, structure, strings.
struct Writer {
    blob: Vec<u8>,
    strings: Vec<u8>,
}

const HEADER_BYTES: usize = 40;
const RESERVATION_BYTES: usize = 16;
const STRUCTURE: usize = HEADER_BYTES + RESERVATION_BYTES;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;
/// Bytes of an entry with a long token and an ordinary compatible.
const ENTRY_BYTES: usize = 88;

impl Writer {
    fn with_room_for(entries: usize) -> Self {
        let mut blob = Vec::with_capacity(STRUCTURE + 256 + entries * ENTRY_BYTES);
        blob.resize(STRUCTURE, 0);
        Self {
            blob,
            strings: Vec::new(),
        }
    }

    fn word(&mut self, value: u32) {
        self.blob.extend_from_slice(&value.to_be_bytes());
    }

    fn align(&mut self) {
        self.blob.resize(self.blob.len().next_multiple_of(4), 0);
    }

    fn begin(&mut self, name: &str) {
        self.begin_formatted(format_args!("{name}"));
    }

    fn begin_formatted(&mut self, name: fmt::Arguments<'_>) {
        use std::io::Write;
        self.word(BEGIN_NODE);
        // Writing to a Vec cannot fail.
        let _ = self.blob.write_fmt(name);
        self.blob.push(0);
        self.align();
    }

    fn end(&mut self) {
        self.word(END_NODE);
    }

    fn property(&mut self, name: &str, value: &[&[u8]]) {
        let name = self.name_offset(name);
        let length: usize = value.iter().map(|part| part.len()).sum();
        self.word(PROPERTY);
        self.word(length as u32);
        self.word(name);
        for part in value {
            self.blob.extend_from_slice(part);
        }
        self.align();
    }

    fn string(&mut self, name: &str, value: &str) {
        self.property(name, &[value.as_bytes(), b"\0"]);
    }

    fn number(&mut self, name: &str, value: u64) {
        self.property(name, &[&value.to_be_bytes()]);
    }

    fn entry(&mut self, name: fmt::Arguments<'_>, compatible: &Compatible, data: u64) {
        self.begin_formatted(name);
        self.string("compatible", compatible.as_str());
        self.number("data", data);
        self.end();
    }

    /// Where `name` stands in the strings block; there are three names in all.
    fn name_offset(&mut self, name: &str) -> u32 {
        let mut offset = 0;
        for known in self.strings.split_inclusive(|&byte| byte == 0) {
            if &known[..known.len() - 1] == name.as_bytes() {
                return offset as u32;
            }
            offset += known.len();
        }
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        offset as u32
    }

    fn finish(mut self) -> Result<Vec<u8>, TooLarge> {
        self.word(END);
        let strings = self.blob.len();
        self.blob.extend_from_slice(&self.strings);
        let total = u32::try_from(self.blob.len()).map_err(|_| TooLarge)?;
        let header = [
            0xd00d_feed,
            total,
            STRUCTURE as u32,
            strings as u32,
            HEADER_BYTES as u32,
            17,
            16,
            0,
            self.strings.len() as u32,
            (strings - STRUCTURE) as u32,
        ];
        for (place, word) in self.blob.chunks_exact_mut(4).zip(header) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        Ok(self.blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        // The oracle finds the names of properties by a map, so its strings may be in another order;
        // the structure block is compared through a reader, sizes byte for byte.
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
        assert_bad(
            &unterminated,
            BadReason::Compatible(InvalidCompatible::TooLong),
        );
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
            let decoded = decode(&encode(&tree).unwrap()).unwrap();
            prop_assert_eq!(decoded, Decoded { tree, bad: vec![] });
        }
    }
}
