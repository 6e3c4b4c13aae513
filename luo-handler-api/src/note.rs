// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A note in the kernel's image for each handler in it, from which `luo check` learns before a jump
//! what that kernel can take. `kmod/luo_note.c` has the others.

use crate::{Compatible, COMPATIBLE_LENGTH};

const NAME: [u8; 16] = *b"luo-handlers\0\0\0\0";
/// With its zero, without what fills it up to a multiple of four.
const NAME_LENGTH: u32 = 13;
const KIND_HANDLER: u32 = 2;

/// An ELF note that names a handler.
#[doc(hidden)]
#[repr(C, align(4))]
#[derive(Debug)]
pub struct Note {
    name_length: u32,
    description_length: u32,
    kind: u32,
    name: [u8; NAME.len()],
    description: [u8; COMPATIBLE_LENGTH],
}

impl Note {
    /// The note of the handler with this compatible.
    pub const fn of_handler(compatible: &Compatible) -> Self {
        Self {
            name_length: NAME_LENGTH,
            description_length: COMPATIBLE_LENGTH as u32,
            kind: KIND_HANDLER,
            name: NAME,
            description: *compatible.as_bytes(),
        }
    }
}

// A cfg inside a macro is asked in the crate that uses it, so there is one macro for each host.

#[cfg(luo_kernel)]
#[doc(hidden)]
#[macro_export]
macro_rules! __note {
    ($type:ty) => {
        #[used]
        #[link_section = ".note.luo-handlers"]
        static NOTE: $crate::note::Note =
            $crate::note::Note::of_handler(&<$type as $crate::FileHandler>::COMPATIBLE);
    };
}

#[cfg(not(luo_kernel))]
#[doc(hidden)]
#[macro_export]
macro_rules! __note {
    ($type:ty) => {};
}

const _: () = assert!(
    COMPATIBLE_LENGTH % 4 == 0,
    "the next note begins at a multiple of four"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_laid_out_as_elf_has_it() {
        let note = Note::of_handler(&Compatible::new("null-v1"));
        assert_eq!(size_of::<Note>(), 12 + 16 + COMPATIBLE_LENGTH);
        let name_end = note.name.iter().position(|&byte| byte == 0).unwrap();
        assert_eq!(note.name_length as usize, name_end + 1);
        assert_eq!(note.description_length as usize, COMPATIBLE_LENGTH);
        assert_eq!(&note.description[..8], b"null-v1\0");
    }
}
