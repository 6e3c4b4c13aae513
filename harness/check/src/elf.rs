// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A kernel's ELF file: its notes and its data.

use object::elf::{FileHeader64, PT_LOAD, PT_NOTE, SHT_NOTE, SHT_PROGBITS};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, ReadRef};

use crate::error::{ImageError, LIMIT};

type Header = FileHeader64<LittleEndian>;

const WHAT: &str = "the ELF file";
/// More notes than any kernel has, so that they can be copied.
const NOTES_MAX: usize = 1 << 20;

/// What is of interest in it.
#[derive(Debug)]
pub(crate) struct Parts<'data> {
    /// All notes, one after the other.
    pub(crate) notes: Vec<u8>,
    /// Pieces of the kernel's data.
    pub(crate) data_pieces: Vec<&'data [u8]>,
}

/// Finds them.
pub(crate) fn read<'data, R: ReadRef<'data>>(data: R) -> Result<Parts<'data>, ImageError> {
    let damaged = |error: object::read::Error| ImageError::damaged(WHAT, error);
    let header = Header::parse(data).map_err(|_| {
        ImageError::NotAKernel("it is an ELF file, but not a little-endian one of 64 bits")
    })?;
    let endian = header.endian().map_err(|_| {
        ImageError::NotAKernel("it is an ELF file, but not a little-endian one of 64 bits")
    })?;
    let mut room = LIMIT;
    let mut bounded = |offset: u64, size: u64| -> Result<&'data [u8], ImageError> {
        room = room.checked_sub(size).ok_or(ImageError::TooLarge {
            what: "the ELF file's data",
            limit: LIMIT,
        })?;
        data.read_bytes_at(offset, size)
            .map_err(|()| ImageError::Truncated("a section of the ELF file"))
    };
    let mut parts = Parts {
        notes: Vec::new(),
        data_pieces: Vec::new(),
    };
    let sections = header.sections(endian, data).map_err(damaged)?;
    for section in sections.iter() {
        let (offset, size) = (section.sh_offset(endian), section.sh_size(endian));
        match section.sh_type(endian) {
            SHT_NOTE => parts.add_notes(bounded(offset, size)?)?,
            SHT_PROGBITS => {
                let name = sections.section_name(endian, section).map_err(damaged)?;
                // The compatible of the kernel's own handler is in a struct that it writes to.
                if name.starts_with(b".rodata") || name == b".data" {
                    parts.data_pieces.push(bounded(offset, size)?);
                }
            }
            _ => {}
        }
    }
    if parts.notes.is_empty() && parts.data_pieces.is_empty() {
        // Without sections: what is loaded.
        for segment in header.program_headers(endian, data).map_err(damaged)? {
            let (offset, size) = (segment.p_offset(endian), segment.p_filesz(endian));
            match segment.p_type(endian) {
                PT_NOTE => parts.add_notes(bounded(offset, size)?)?,
                PT_LOAD => parts.data_pieces.push(bounded(offset, size)?),
                _ => {}
            }
        }
    }
    Ok(parts)
}

impl Parts<'_> {
    fn add_notes(&mut self, notes: &[u8]) -> Result<(), ImageError> {
        if self.notes.len() + notes.len() > NOTES_MAX {
            return Err(ImageError::TooLarge {
                what: "the notes",
                limit: NOTES_MAX as u64,
            });
        }
        self.notes.extend_from_slice(notes);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        Ok(())
    }
}
