// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The flattened form of a devicetree: version 17 of the Devicetree Specification, chapter 5.
//!
//! The reader returns names as bytes and leaves their rules to its caller: libraries that read
//! devicetrees refuse a whole tree for one bad name.

use std::fmt;

use luo_handler_api::Compatible;
use thiserror::Error;

/// The tree does not fit the 32-bit offsets of a flattened devicetree: some 40 million files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many files: the devicetree would be larger than 4 GiB")]
pub struct TooLarge;

/// Writes a flattened devicetree, version 17: header, an empty reservation block, structure and
/// strings.
pub(super) struct Writer {
    blob: Vec<u8>,
    strings: Vec<u8>,
}

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const HEADER_BYTES: usize = 40;
const RESERVATION_BYTES: usize = 16;
const STRUCTURE: usize = HEADER_BYTES + RESERVATION_BYTES;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// Bytes of an entry with a long token and an ordinary compatible.
const ENTRY_BYTES: usize = 88;

impl Writer {
    pub(super) fn with_room_for(entries: usize) -> Self {
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

    pub(super) fn begin(&mut self, name: &str) {
        self.begin_formatted(format_args!("{name}"));
    }

    pub(super) fn begin_formatted(&mut self, name: fmt::Arguments<'_>) {
        use std::io::Write;
        self.word(BEGIN_NODE);
        // Writing to a Vec cannot fail.
        let _ = self.blob.write_fmt(name);
        self.blob.push(0);
        self.align();
    }

    pub(super) fn end(&mut self) {
        self.word(END_NODE);
    }

    pub(super) fn property(&mut self, name: &str, value: &[&[u8]]) {
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

    pub(super) fn string(&mut self, name: &str, value: &str) {
        self.property(name, &[value.as_bytes(), b"\0"]);
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.property(name, &[&value.to_be_bytes()]);
    }

    pub(super) fn entry(&mut self, name: fmt::Arguments<'_>, compatible: &Compatible, data: u64) {
        self.begin_formatted(name);
        self.string("compatible", compatible.as_str());
        self.number("data", data);
        self.end();
    }

    /// Where `name` is in the strings block; there are three names in all.
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

    pub(super) fn finish(mut self) -> Result<Vec<u8>, TooLarge> {
        self.word(END);
        let strings = self.blob.len();
        self.blob.extend_from_slice(&self.strings);
        let total = u32::try_from(self.blob.len()).map_err(|_| TooLarge)?;
        let header = [
            MAGIC,
            total,
            STRUCTURE as u32,
            strings as u32,
            HEADER_BYTES as u32,
            VERSION,
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

/// Walks the structure block, front to back, once.
///
/// # Invariants
///
/// `structure` and `strings` are the blocks that the header names.
pub(super) struct Reader<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    at: usize,
}

/// Where the blob stops being a devicetree.
#[derive(Debug)]
pub(super) struct Malformed {
    what: &'static str,
    /// Bytes from the beginning of the structure block; None for the header.
    at: Option<usize>,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "{} at byte {at} of its structure", self.what),
            None => f.write_str(self.what),
        }
    }
}

/// A property: its name is empty if the strings block has none there.
pub(super) struct Property<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Looks at the header; the walk begins before the root.
    pub(super) fn new(blob: &'a [u8]) -> Result<Self, Malformed> {
        let header = |what| Malformed { what, at: None };
        let word = |index: usize| {
            let bytes = blob.get(index * 4..index * 4 + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        let mut words = [0; HEADER_BYTES / 4];
        for (index, value) in words.iter_mut().enumerate() {
            *value = word(index).ok_or(header("its header is cut short"))?;
        }
        let [magic, total, structure, strings, _, version, oldest, _, names, nodes] = words;
        if magic != MAGIC {
            return Err(header("it does not begin as one"));
        }
        if oldest > VERSION || version < VERSION {
            return Err(header("it is of another version than 17"));
        }
        if total as usize != blob.len() {
            return Err(header("its length is not what its header says"));
        }
        let block = |start: u32, bytes: u32| {
            let start = start as usize;
            blob.get(start..start.checked_add(bytes as usize)?)
        };
        Ok(Self {
            structure: block(structure, nodes).ok_or(header("its structure lies outside of it"))?,
            strings: block(strings, names).ok_or(header("its strings lie outside of it"))?,
            at: 0,
        })
    }

    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed {
            what,
            at: Some(self.at),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let rest = &self.structure[self.at..];
        let taken = rest.get(..bytes).ok_or(self.malformed("cut short"))?;
        // The padding may be missing at the very end; reading the next word fails then.
        self.at += bytes.next_multiple_of(4).min(rest.len());
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(bytes
            .iter()
            .fold(0, |word, &byte| word << 8 | u32::from(byte)))
    }

    /// The next word that is not `FDT_NOP`.
    fn tag(&mut self) -> Result<u32, Malformed> {
        loop {
            match self.word()? {
                NOP => {}
                tag => return Ok(tag),
            }
        }
    }

    /// Enters the next node in the present one and returns its name, or leaves the present one.
    pub(super) fn enter(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.tag()? {
            BEGIN_NODE => {
                let rest = &self.structure[self.at..];
                let length = rest.iter().position(|&byte| byte == 0);
                let length = length.ok_or(self.malformed("a name without an end"))?;
                Ok(Some(&self.take(length + 1)?[..length]))
            }
            END_NODE => Ok(None),
            _ => Err(self.malformed("neither a node nor the end of one")),
        }
    }

    /// The next property of a node that was just entered; None before its first child or its end.
    pub(super) fn property(&mut self) -> Result<Option<Property<'a>>, Malformed> {
        let before = self.at;
        if self.tag()? != PROPERTY {
            self.at = before;
            return Ok(None);
        }
        let bytes = self.word()? as usize;
        let name = self.word()? as usize;
        let name = self.strings.get(name..).unwrap_or_default();
        Ok(Some(Property {
            name: name.split(|&byte| byte == 0).next().unwrap_or_default(),
            value: self.take(bytes)?,
        }))
    }

    /// Leaves the node that was entered, and all that is in it, however deep.
    pub(super) fn leave(&mut self) -> Result<(), Malformed> {
        let mut depth = 1_usize;
        while depth > 0 {
            while self.property()?.is_some() {}
            depth = match self.enter()? {
                Some(_) => depth + 1,
                None => depth - 1,
            };
        }
        Ok(())
    }

    /// The end of the structure.
    pub(super) fn end(&mut self) -> Result<(), Malformed> {
        match self.tag()? {
            END => Ok(()),
            _ => Err(self.malformed("more than one root")),
        }
    }
}
