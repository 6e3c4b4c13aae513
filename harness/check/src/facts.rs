// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a kernel can take: from the notes that kmod puts into its image, or guessed.

use std::collections::{BTreeMap, BTreeSet};

use object::elf::FileHeader64;
use object::read::elf::NoteIterator;
use object::LittleEndian;
use serde::Serialize;

use crate::error::ImageError;

/// The name of our notes, and their types, as `kmod/luo_note.c` has them.
const NAME: &[u8] = b"luo-handlers";
const ABI: u32 = 1;
const HANDLER: u32 = 2;
const OWN_HANDLER: u32 = 3;
const READS: u32 = 4;

/// What stood before the vendor was put before our compatibles.
const VENDOR: &str = "luo-handlers,";

/// The longest compatible, as the kernel has it.
const COMPATIBLE_MAX: usize = 47;
/// No kernel has so many handlers, nor so many strings that look like one, and no handler so many
/// words.
const HANDLERS_MAX: usize = 4096;

/// Where facts are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The notes of kmod.
    Notes,
    /// Strings in the kernel's data: a kernel without kmod.
    Guess,
}

/// What a kernel can take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Where this is from.
    pub origin: Origin,
    /// The ABI of the Live Update Orchestrator, such as `luo-v5`; `None` if it is missing.
    pub luo: Option<String>,
    /// The ABI of Kexec Handover, such as `kho-v4`; `None` if it is missing.
    pub kho: Option<String>,
    /// Whether Kexec Handover is on without `kho=on`; `None` if not known.
    pub kho_enabled: Option<bool>,
    /// Whether a file without a handler costs only itself.
    pub stand_ins: bool,
    /// The compatibles of our handlers. In a guess, all text that looks like one.
    pub handlers: BTreeSet<String>,
    /// Those of the kernel's own.
    pub own_handlers: BTreeSet<String>,
    /// What a handler can read beyond its compatible, by compatible: layouts of its record, kinds
    /// of files. Handlers that do not name any are not in it.
    pub reads: BTreeMap<String, BTreeSet<String>>,
}

impl Facts {
    fn new(origin: Origin) -> Self {
        Self {
            origin,
            luo: None,
            kho: None,
            kho_enabled: None,
            stand_ins: false,
            handlers: BTreeSet::new(),
            own_handlers: BTreeSet::new(),
            reads: BTreeMap::new(),
        }
    }

    /// Whether it takes files of this format, also where that is a former name of one of ours.
    pub fn takes(&self, compatible: &str) -> bool {
        let present = || self.handlers.contains(&format!("{VENDOR}{compatible}"));
        self.handlers.contains(compatible)
            || self.own_handlers.contains(compatible)
            || (self.stand_ins && present())
    }

    /// From an image's notes, or those that the running kernel shows; `None` without a note from
    /// kmod.
    ///
    /// # Errors
    ///
    /// [`ImageError::Damaged`] if they are not notes, or ours are not as kmod writes them.
    pub fn from_notes(notes: &[u8]) -> Result<Option<Self>, ImageError> {
        let damaged = |error: object::read::Error| ImageError::damaged("the notes", error);
        let mut iterator = NoteIterator::<FileHeader64<LittleEndian>>::new(LittleEndian, 4, notes)
            .map_err(damaged)?;
        let mut facts = None;
        while let Some(note) = iterator.next().map_err(damaged)? {
            if note.name() != NAME {
                continue;
            }
            let facts = facts.get_or_insert_with(|| Self::new(Origin::Notes));
            let text = text_of(note.desc())?;
            match note.n_type(LittleEndian).0 {
                ABI => facts.add_abi(text),
                HANDLER => add(&mut facts.handlers, text),
                OWN_HANDLER => add(&mut facts.own_handlers, text),
                READS => facts.add_reads(text),
                _ => {} // of a later kmod
            }
        }
        Ok(facts)
    }

    fn add_abi(&mut self, text: &str) {
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "luo" => self.luo = Some(value.to_owned()),
                "kho" => self.kho = Some(value.to_owned()),
                "stand_ins" => self.stand_ins = value == "1",
                "kho_enabled" => self.kho_enabled = Some(value == "1"),
                _ => {}
            }
        }
    }

    fn add_reads(&mut self, text: &str) {
        if let Some((compatible, word)) = text.split_once('\n') {
            if self.reads.len() < HANDLERS_MAX || self.reads.contains_key(compatible) {
                add(self.reads.entry(compatible.to_owned()).or_default(), word);
            }
        }
    }

    /// From a kernel's data.
    pub fn guess(data: &[u8]) -> Self {
        let mut facts = Self::new(Origin::Guess);
        for bytes in data.split(|&byte| byte == 0) {
            let Some(text) = compatible(bytes) else {
                continue;
            };
            match name_and_version(text) {
                Some(("luo", _)) => facts.luo = Some(text.to_owned()),
                Some(("kho", _)) => facts.kho = Some(text.to_owned()),
                Some(_) => add(&mut facts.handlers, text),
                None => {}
            }
        }
        if facts.luo.is_none() {
            // What looks like a handler belongs to something else.
            facts.handlers.clear();
        }
        facts
    }
}

fn add(names: &mut BTreeSet<String>, name: &str) {
    if names.len() < HANDLERS_MAX {
        names.insert(name.to_owned());
    }
}

/// The text of a description, up to the zeros at its end.
fn text_of(description: &[u8]) -> Result<&str, ImageError> {
    let length = description
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(description.len());
    let is_text = |byte: &u8| byte.is_ascii_graphic() || *byte == b'\n';
    let text = &description[..length];
    match std::str::from_utf8(text) {
        Ok(text) if length <= 4096 && text.bytes().all(|byte| is_text(&byte)) => Ok(text),
        _ => Err(ImageError::damaged("the notes", "one of kmod is not text")),
    }
}

/// A string that can be a compatible. Strings follow each other, so what is before it may stick to
/// it.
fn compatible(bytes: &[u8]) -> Option<&str> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_,.+".contains(byte);
    let begins = bytes
        .iter()
        .rposition(|byte| !is_part(byte))
        .map_or(0, |place| place + 1);
    let bytes = bytes
        .get(begins..)
        .filter(|bytes| (4..=COMPATIBLE_MAX).contains(&bytes.len()))?;
    std::str::from_utf8(bytes).ok()
}

/// `memfd` and `1` of `memfd-v1`.
fn name_and_version(compatible: &str) -> Option<(&str, &str)> {
    let (name, version) = compatible.rsplit_once("-v")?;
    let is_version = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    (is_version && !name.is_empty()).then_some((name, version))
}

/// What the module calls a handler in debugfs and in parameters: its compatible without the vendor
/// and the version.
pub fn short_name(compatible: &str) -> &str {
    let name = name_and_version(compatible).map_or(compatible, |(name, _)| name);
    name.rsplit_once(',').map_or(name, |(_, name)| name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A note as an assembler lays it out.
    pub(crate) fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((name.len() as u32 + 1).to_le_bytes());
        bytes.extend((description.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(name);
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(description);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// Notes of a kernel with these handlers.
    pub(crate) fn notes(luo: &str, handlers: &[&str]) -> Vec<u8> {
        let abi = format!("luo={luo}\nkho=kho-v4\nkho_enabled=0\n\0");
        let mut notes = note(b"GNU", 3, &[7; 20]);
        notes.extend(note(NAME, ABI, abi.as_bytes()));
        notes.extend(note(NAME, OWN_HANDLER, b"memfd-v2\0"));
        for handler in handlers {
            let mut padded = handler.as_bytes().to_vec();
            padded.resize(48, 0);
            notes.extend(note(NAME, HANDLER, &padded));
        }
        notes
    }

    #[test]
    fn notes_are_read() {
        let facts = Facts::from_notes(&notes("luo-v5", &["a-v1", "x,b-v2"]))
            .unwrap()
            .unwrap();
        assert_eq!(facts.luo.as_deref(), Some("luo-v5"));
        assert_eq!(facts.kho.as_deref(), Some("kho-v4"));
        assert_eq!(facts.kho_enabled, Some(false));
        for taken in ["a-v1", "x,b-v2", "memfd-v2"] {
            assert!(facts.takes(taken));
        }
        assert!(!facts.takes("a-v2"));
        assert!(!facts.stand_ins && !facts.takes("c-v1"));
        assert_eq!(Facts::from_notes(&note(b"GNU", 3, &[7; 20])).unwrap(), None);
        assert_eq!(Facts::from_notes(&[]).unwrap(), None);
    }

    #[test]
    fn what_a_handler_reads_is_listed() {
        let mut notes = notes("luo-v5", &["a-v1"]);
        for text in ["a-v1\nr2", "a-v1\nr1", "b-v1\nr1", "junk"] {
            notes.extend(note(NAME, READS, text.as_bytes()));
        }
        let facts = Facts::from_notes(&notes).unwrap().unwrap();
        let reads = |compatible: &str| facts.reads[compatible].iter().collect::<Vec<_>>();
        assert_eq!(reads("a-v1"), ["r1", "r2"]);
        assert_eq!(
            (reads("b-v1"), facts.reads.len()),
            (vec![&"r1".to_owned()], 2)
        );
    }

    #[test]
    fn former_names_are_without_the_vendor() {
        let mut notes = notes("luo-v5", &["luo-handlers,c-v1"]);
        let facts = Facts::from_notes(&notes).unwrap().unwrap();
        assert!(!facts.takes("c-v1"), "an older kmod does not know them");
        notes.extend(note(NAME, ABI, b"stand_ins=1\n"));
        let facts = Facts::from_notes(&notes).unwrap().unwrap();
        assert!(facts.takes("c-v1") && !facts.takes("c-v2"));
    }

    #[test]
    fn wild_lengths_in_notes_are_an_error() {
        for field in 0..2 {
            let mut notes = notes("luo-v5", &["a-v1"]);
            notes[4 * field..4 * field + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let error = Facts::from_notes(&notes).unwrap_err();
            assert!(error.to_string().contains("damaged: the notes"), "{error}");
        }
        let long = note(NAME, HANDLER, &[b'a'; 5000]);
        assert!(Facts::from_notes(&long).is_err());
    }

    #[test]
    fn strings_are_guessed_from() {
        let facts = Facts::guess(b"\0\x016luo-v5\0junk\0\xffmemfd-v2\0kho-v4\0");
        // A log level sticks to the first, as it does in a kernel.
        assert_eq!(facts.luo, None);
        let facts = Facts::guess(b"\0luo-v5\0junk\0\xffmemfd-v2\0kho-v4\0");
        assert_eq!(
            (facts.luo.as_deref(), facts.kho.as_deref()),
            (Some("luo-v5"), Some("kho-v4"))
        );
        assert!(facts.takes("memfd-v2") && facts.origin == Origin::Guess);
        assert!(!Facts::guess(b"memfd-v2\0").takes("memfd-v2"));
    }

    #[test]
    fn short_names_are_without_vendor_and_version() {
        for (compatible, name) in [
            ("memfd-v1", "memfd"),
            ("luo-handlers,memfd-v12", "memfd"),
            ("odd", "odd"),
            ("-v1", "-v1"),
        ] {
            assert_eq!(short_name(compatible), name);
        }
    }

    proptest! {
        #[test]
        fn nothing_in_notes_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Facts::from_notes(&bytes);
            let _ = Facts::guess(&bytes);
        }

        #[test]
        fn a_changed_byte_in_notes_is_no_panic(place in 0usize..250, byte in any::<u8>()) {
            let mut notes = notes("luo-v5", &["a-v1"]);
            let place = place % notes.len();
            notes[place] = byte;
            let _ = Facts::from_notes(&notes);
        }
    }
}
