// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A kernel's image: what kind of file it is, and what it holds.
//!
//! ```text
//! unified kernel image   PE, with a bzImage in its section .linux and a command line in .cmdline
//! bzImage                a setup header (Documentation/arch/x86/boot.rst), then a compressed
//! vmlinux vmlinux                ELF
//! ```

use std::fs::File;
use std::path::Path;

use object::read::pe::PeFile64;
use object::read::{Object, ObjectSection, ReadCache};
use object::ReadRef;
use serde::Serialize;

pub use crate::decoder::Compression;
use crate::elf;
pub use crate::error::{ImageError, LIMIT};
use crate::facts::Facts;

/// What kind of file an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// What `make bzImage` makes.
    BzImage,
    /// An ELF file, perhaps compressed as a whole.
    Vmlinux,
    /// A unified kernel image.
    Uki,
}

/// A kernel's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Image {
    /// What kind of file.
    pub format: Format,
    /// How the kernel in it is compressed.
    pub compression: Option<Compression>,
    /// As the kernel prints it first: `Linux version ...`.
    pub banner: Option<String>,
    /// The memory that it takes until it has unpacked itself, in bytes.
    pub memory: Option<u64>,
    /// The command line that a unified kernel image brings along.
    pub command_line: Option<String>,
    /// What it can take.
    pub facts: Facts,
}

impl Image {
    /// Reads the image in a file.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn open(file: &Path) -> Result<Self, ImageError> {
        let file = File::open(file)?;
        if !file.metadata()?.is_file() {
            return Err(ImageError::NotAKernel("it is not a regular file"));
        }
        let cache = ReadCache::new(file);
        Self::read(&cache)
    }

    /// Reads the image in `data`.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn read<'data, R: ReadRef<'data>>(data: R) -> Result<Self, ImageError> {
        let length = data.len().map_err(|()| ImageError::Truncated("the file"))?;
        let beginning = data
            .read_bytes_at(0, length.min(SETUP_LENGTH))
            .map_err(|()| ImageError::Truncated("the file's beginning"))?;
        if beginning.starts_with(b"\x7fELF") {
            return Self::from_elf(data, Format::Vmlinux, None);
        }
        if is_setup(beginning) {
            return Self::from_bz_image(data, 0, length);
        }
        if beginning.starts_with(b"MZ") {
            return Self::from_uki(data);
        }
        if let Some(compression) = Compression::of(beginning) {
            let compressed = bounded(data, 0, length, "the file")?;
            let kernel = compression.decode(compressed, LIMIT as usize)?;
            return Self::from_elf(kernel.as_slice(), Format::Vmlinux, Some(compression));
        }
        Err(ImageError::NotAKernel("it does not begin like one"))
    }

    fn from_uki<'data, R: ReadRef<'data>>(data: R) -> Result<Self, ImageError> {
        let file =
            PeFile64::parse(data).map_err(|error| ImageError::damaged("the PE file", error))?;
        let section = |name| Some(file.section_by_name(name)?.file_range().unwrap_or_default());
        let (offset, size) = section(".linux").ok_or(ImageError::NotAKernel(
            "it is a PE file without a section .linux, so not a unified kernel image",
        ))?;
        let mut image = Self::from_bz_image(data, offset, size)?;
        image.format = Format::Uki;
        if let Some((offset, size)) = section(".cmdline") {
            let text = bounded(
                data,
                offset,
                size.min(COMMAND_LINE_MAX),
                "the section .cmdline",
            )?;
            let text = String::from_utf8_lossy(text);
            image.command_line = Some(text.trim_end_matches('\0').trim().to_owned());
        }
        Ok(image)
    }

    /// The bzImage at `start`, which is `length` bytes long.
    fn from_bz_image<'data, R: ReadRef<'data>>(
        data: R,
        start: u64,
        length: u64,
    ) -> Result<Self, ImageError> {
        let setup = bounded(data, start, length.min(SETUP_LENGTH), "the setup header")?;
        if !is_setup(setup) {
            return Err(ImageError::NotAKernel(
                "its section .linux has no setup header",
            ));
        }
        let header = Setup(setup);
        if header.u16(0x206)? < 0x208 {
            return Err(ImageError::NotAKernel(
                "it uses a boot protocol older than 2.08, of 2007",
            ));
        }
        let sectors = match header.byte(0x1f1)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let offset = (sectors + 1) * 512 + u64::from(header.u32(0x248)?);
        let size = u64::from(header.u32(0x24c)?);
        if offset + size > length {
            return Err(ImageError::Truncated("the compressed kernel"));
        }
        let payload = bounded(data, start + offset, size, "the compressed kernel")?;
        let memory = u64::from(header.u32(0x260)?);
        let mut image = match Compression::of(payload) {
            Some(compression) => {
                let kernel = compression.decode(payload, LIMIT as usize)?;
                Self::from_elf(kernel.as_slice(), Format::BzImage, Some(compression))?
            }
            None if payload.starts_with(b"\x7fELF") => {
                Self::from_elf(payload, Format::BzImage, None)?
            }
            None => {
                return Err(ImageError::damaged(
                    "the compressed kernel",
                    "an unknown compression",
                ))
            }
        };
        image.memory = Some(memory);
        Ok(image)
    }

    fn from_elf<'data, R: ReadRef<'data>>(
        data: R,
        format: Format,
        compression: Option<Compression>,
    ) -> Result<Self, ImageError> {
        let parts = elf::read(data)?;
        let banner = parts.data_pieces.iter().find_map(|data| banner(data));
        let facts = match Facts::from_notes(&parts.notes)? {
            Some(facts) => facts,
            None if banner.is_none() => {
                return Err(ImageError::NotAKernel("its data have no `Linux version`"))
            }
            None => Facts::guess(&parts.data_pieces.join(&0)),
        };
        Ok(Self {
            format,
            compression,
            banner,
            memory: None,
            command_line: None,
            facts,
        })
    }
}

/// The setup header and what is before it.
const SETUP_LENGTH: u64 = 0x268;
/// The longest command line that an x86 kernel takes is shorter.
const COMMAND_LINE_MAX: u64 = 4096;

fn is_setup(beginning: &[u8]) -> bool {
    beginning.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
        && beginning.get(0x202..0x206) == Some(b"HdrS")
}

/// The setup header, whose numbers are little-endian.
struct Setup<'data>(&'data [u8]);

impl Setup<'_> {
    fn field<const N: usize>(&self, offset: usize) -> Result<[u8; N], ImageError> {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes
            .copied()
            .ok_or(ImageError::Truncated("the setup header"))
    }

    fn byte(&self, offset: usize) -> Result<u8, ImageError> {
        self.field::<1>(offset).map(|[byte]| byte)
    }

    fn u16(&self, offset: usize) -> Result<u16, ImageError> {
        self.field(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: usize) -> Result<u32, ImageError> {
        self.field(offset).map(u32::from_le_bytes)
    }
}

fn bounded<'data, R: ReadRef<'data>>(
    data: R,
    offset: u64,
    size: u64,
    what: &'static str,
) -> Result<&'data [u8], ImageError> {
    if size > LIMIT {
        return Err(ImageError::TooLarge { what, limit: LIMIT });
    }
    data.read_bytes_at(offset, size)
        .map_err(|()| ImageError::Truncated(what))
}

/// The first line that a kernel prints.
fn banner(data: &[u8]) -> Option<String> {
    const BEGINNING: &[u8] = b"Linux version ";
    const MAX: usize = 512;
    let mut rest = data;
    loop {
        let place = rest
            .windows(BEGINNING.len())
            .position(|window| window == BEGINNING)?;
        let line = &rest[place..rest.len().min(place + MAX)];
        let length = line
            .iter()
            .position(|byte| !byte.is_ascii_graphic() && *byte != b' ');
        let line = &line[..length.unwrap_or(line.len())];
        // Not the text that it is made from.
        if line.get(BEGINNING.len()).is_some_and(u8::is_ascii_digit) {
            return Some(String::from_utf8_lossy(line).into_owned());
        }
        rest = &rest[place + BEGINNING.len()..];
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::decoder::tests::{encode, READABLE};
    use crate::facts::tests::notes;
    use crate::facts::Origin;
    use object::write;
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};
    use proptest::prelude::*;

    const RODATA: &[u8] =
        b"junk\0Linux version %s\0Linux version 7.3.4 (a@b) #1 SMP\n\0kho-v4\0luo-v5\0memfd-v2\0";

    /// An ELF file with these notes.
    pub(crate) fn vmlinux(notes: &[u8], rodata: &[u8]) -> Vec<u8> {
        let mut file =
            write::Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        for (name, kind, data) in [
            (".rodata", SectionKind::ReadOnlyData, rodata),
            (".notes", SectionKind::Note, notes),
        ] {
            let section = file.add_section(Vec::new(), name.into(), kind);
            file.append_section_data(section, data, 4);
        }
        file.write().unwrap()
    }

    /// A bzImage around a compressed kernel.
    pub(crate) fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 64];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image[0x260..0x264].copy_from_slice(&(48u32 << 20).to_le_bytes());
        image.extend(payload);
        image
    }

    /// A unified kernel image around a bzImage.
    fn uki(linux: &[u8], command_line: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        let mut writer = write::pe::Writer::new(true, 4096, 512, &mut buffer);
        writer.reserve_dos_header_and_stub();
        writer.reserve_nt_headers(16);
        writer.reserve_section_headers(2);
        let ranges = [(*b".linux\0\0", linux), (*b".cmdline", command_line)].map(|(name, data)| {
            let flags = object::pe::IMAGE_SCN_CNT_INITIALIZED_DATA;
            let range = writer.reserve_section(name, flags, data.len() as u32, data.len() as u32);
            (range, data)
        });
        writer.write_dos_header_and_stub().unwrap();
        writer.write_nt_headers(write::pe::NtHeaders {
            machine: object::pe::IMAGE_FILE_MACHINE_AMD64,
            time_date_stamp: 0,
            characteristics: object::pe::FileFlags(0),
            major_linker_version: 0,
            minor_linker_version: 0,
            address_of_entry_point: 0,
            image_base: 0,
            major_operating_system_version: 0,
            minor_operating_system_version: 0,
            major_image_version: 0,
            minor_image_version: 0,
            major_subsystem_version: 0,
            minor_subsystem_version: 0,
            subsystem: object::pe::Subsystem(10),
            dll_characteristics: object::pe::DllFlags(0),
            size_of_stack_reserve: 0,
            size_of_stack_commit: 0,
            size_of_heap_reserve: 0,
            size_of_heap_commit: 0,
        });
        writer.write_section_headers();
        for (range, data) in ranges {
            writer.write_section(range.file_offset, data);
        }
        buffer
    }

    #[test]
    fn a_vmlinux_is_read() {
        let file = vmlinux(&notes("luo-v5", &["a-v1"]), RODATA);
        let image = Image::read(file.as_slice()).unwrap();
        assert_eq!((image.format, image.compression), (Format::Vmlinux, None));
        assert_eq!(
            image.banner.as_deref(),
            Some("Linux version 7.3.4 (a@b) #1 SMP")
        );
        assert_eq!(image.facts.origin, Origin::Notes);
        assert!(image.facts.takes("a-v1"));
    }

    #[test]
    fn a_bz_image_is_read_whatever_its_compression() {
        let kernel = vmlinux(&notes("luo-v5", &["a-v1"]), RODATA);
        for compression in READABLE {
            let file = bz_image(&encode(compression, &kernel));
            let image = Image::read(file.as_slice()).unwrap();
            assert_eq!(
                (image.format, image.compression),
                (Format::BzImage, Some(compression))
            );
            assert_eq!(image.memory, Some(48 << 20));
            assert!(image.facts.takes("a-v1"));
            let whole = encode(compression, &kernel);
            assert_eq!(
                Image::read(whole.as_slice()).unwrap().format,
                Format::Vmlinux
            );
        }
    }

    #[test]
    fn a_unified_kernel_image_is_read_with_its_command_line() {
        let kernel = vmlinux(&notes("luo-v5", &["a-v1"]), RODATA);
        let linux = bz_image(&encode(Compression::Zstd, &kernel));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("uki.efi");
        std::fs::write(&file, uki(&linux, b"liveupdate=on kho=on\n\0")).unwrap();
        let image = Image::open(&file).unwrap();
        assert_eq!(image.format, Format::Uki);
        assert_eq!(image.command_line.as_deref(), Some("liveupdate=on kho=on"));
        assert!(image.facts.takes("a-v1"));
    }

    #[test]
    fn a_kernel_without_notes_is_guessed_at() {
        let file = vmlinux(&[], RODATA);
        let facts = Image::read(file.as_slice()).unwrap().facts;
        assert_eq!(
            (facts.origin, facts.luo.as_deref()),
            (Origin::Guess, Some("luo-v5"))
        );
        assert!(facts.takes("memfd-v2"));
    }

    fn refused(file: &[u8], reason: &str) {
        let error = Image::read(file).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_with_the_reason() {
        refused(b"", "it does not begin like one");
        refused(b"#!/bin/sh\n", "it does not begin like one");
        refused(&vmlinux(&[], b"no banner\0"), "no `Linux version`");
        refused(&vmlinux(&[], b"")[..20], "not a little-endian one");
        refused(&uki(b"x", b""), "no setup header");
        let directory = tempfile::tempdir().unwrap();
        let error = Image::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn truncated_images_are_refused_at_every_length() {
        let kernel = vmlinux(&notes("luo-v5", &["a-v1"]), RODATA);
        let file = bz_image(&encode(Compression::Xz, &kernel));
        for length in 0..file.len() {
            assert!(Image::read(&file[..length]).is_err(), "{length}");
        }
        // A file of sections: what is missing at its end are the headers.
        assert!(Image::read(&kernel[..kernel.len() - 1]).is_err());
    }

    #[test]
    fn wild_sizes_are_refused_without_the_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sparse");
        let mut kernel = vmlinux(&[], RODATA);
        // The first section claims to be as long as a sparse file.
        let header = Image::read(kernel.as_slice()).map(|_| 0x28).unwrap();
        let offset = u64::from_le_bytes(kernel[header..header + 8].try_into().unwrap()) as usize;
        let size = offset + 64 + 0x20;
        kernel[size..size + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        std::fs::write(&path, &kernel).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 41)
            .unwrap();
        let error = Image::open(&path).unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_file_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Image::read(bytes.as_slice());
        }

        #[test]
        fn no_changed_image_panics(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            kind in 0..3,
        ) {
            let kernel = vmlinux(&notes("luo-v5", &["a-v1"]), RODATA);
            let mut file = match kind {
                0 => kernel,
                1 => bz_image(&kernel),
                _ => uki(&bz_image(&kernel), b"kho=on"),
            };
            for (place, byte) in changes {
                let place = place.index(file.len());
                file[place] = byte;
            }
            let _ = Image::read(file.as_slice());
        }
    }
}
