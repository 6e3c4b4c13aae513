// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Notes in the kernel's image for each handler in it, from which `luo check` learns before a jump
//! what that kernel can take. `kmod/luo_note.c` has the others.

use crate::{Compatible, COMPATIBLE_LENGTH};

const NAME: [u8; 16] = *b"luo-handlers\0\0\0\0";
/// With its zero, without what fills it up to a multiple of four.
const NAME_LENGTH: u32 = 13;
const KIND_HANDLER: u32 = 2;
const KIND_READS: u32 = 4;

/// The longest word of [`FileHandler::READS`](crate::FileHandler::READS), in bytes.
pub const WORD_MAX: usize = 15;

/// A compatible, a line end, a word, and a zero.
const READS_LENGTH: usize = COMPATIBLE_LENGTH + WORD_MAX + 1;

/// An ELF note with a description of `D` bytes.
#[doc(hidden)]
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Note<const D: usize> {
    name_length: u32,
    description_length: u32,
    kind: u32,
    name: [u8; NAME.len()],
    description: [u8; D],
}

/// Names a handler.
#[doc(hidden)]
pub type HandlerNote = Note<COMPATIBLE_LENGTH>;

/// Names something that a handler can read.
#[doc(hidden)]
pub type ReadsNote = Note<READS_LENGTH>;

impl<const D: usize> Note<D> {
    const fn new(kind: u32, description: [u8; D]) -> Self {
        assert!(D % 4 == 0, "the next note begins at a multiple of four");
        Self {
            name_length: NAME_LENGTH,
            description_length: D as u32,
            kind,
            name: NAME,
            description,
        }
    }
}

impl HandlerNote {
    /// The note of the handler with this compatible.
    pub const fn of_handler(compatible: &Compatible) -> Self {
        Self::new(KIND_HANDLER, *compatible.as_bytes())
    }
}

impl ReadsNote {
    /// The notes of what that handler can read, `N` of them.
    pub const fn of_words<const N: usize>(compatible: &Compatible, words: &[&str]) -> [Self; N] {
        let mut notes = [Self::new(KIND_READS, [0; READS_LENGTH]); N];
        let mut n = 0;
        while n < N {
            notes[n].description = reads(compatible.as_bytes(), words[n].as_bytes());
            n += 1;
        }
        notes
    }
}

const fn reads(compatible: &[u8; COMPATIBLE_LENGTH], word: &[u8]) -> [u8; READS_LENGTH] {
    assert!(
        !word.is_empty() && word.len() <= WORD_MAX,
        "a word of 1 to 15 bytes"
    );
    let mut description = [0; READS_LENGTH];
    let mut end = 0;
    while compatible[end] != 0 {
        description[end] = compatible[end];
        end += 1;
    }
    description[end] = b'\n';
    let mut n = 0;
    while n < word.len() {
        description[end + 1 + n] = word[n];
        n += 1;
    }
    description
}

// A cfg inside a macro is asked in the crate that uses it, so there is one macro for each host.

#[cfg(luo_kernel)]
#[doc(hidden)]
#[macro_export]
macro_rules! __note {
    ($type:ty) => {
        #[used]
        #[link_section = ".note.luo-handlers"]
        static NOTE: $crate::note::HandlerNote =
            $crate::note::HandlerNote::of_handler(&<$type as $crate::FileHandler>::COMPATIBLE);

        #[used]
        #[link_section = ".note.luo-handlers"]
        static READS: [$crate::note::ReadsNote; <$type as $crate::FileHandler>::READS.len()] =
            $crate::note::ReadsNote::of_words(
                &<$type as $crate::FileHandler>::COMPATIBLE,
                <$type as $crate::FileHandler>::READS,
            );
    };
}

#[cfg(not(luo_kernel))]
#[doc(hidden)]
#[macro_export]
macro_rules! __note {
    ($type:ty) => {};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_laid_out_as_elf_has_it() {
        let note = HandlerNote::of_handler(&Compatible::new("null-v1"));
        assert_eq!(size_of::<HandlerNote>(), 12 + 16 + COMPATIBLE_LENGTH);
        let name_end = note.name.iter().position(|&byte| byte == 0).unwrap();
        assert_eq!(note.name_length as usize, name_end + 1);
        assert_eq!(note.description_length as usize, COMPATIBLE_LENGTH);
        assert_eq!(&note.description[..8], b"null-v1\0");
    }

    #[test]
    fn each_word_that_a_handler_reads_has_a_note() {
        let words = ["null-r2", &"w".repeat(WORD_MAX)];
        let longest = "x".repeat(COMPATIBLE_LENGTH - 1);
        let notes: [ReadsNote; 2] = ReadsNote::of_words(&Compatible::new(&longest), &words);
        assert_eq!(size_of_val(&notes), 2 * (12 + 16 + READS_LENGTH));
        for (note, word) in notes.iter().zip(words) {
            let text = format!("{longest}\n{word}\0");
            assert!(note.description.starts_with(text.as_bytes()));
        }
    }
}
