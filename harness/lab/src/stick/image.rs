// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! An image for a whole stick: a GPT with one FAT partition, written and read as plain bytes. That
//! takes neither root nor loop devices.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::ops::Range;

use anyhow::{ensure, Context, Result};
use fatfs::{format_volume, Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::{partition_types, GptConfig};

/// Room for kernel, initrd and some hundred reports; enough clusters for FAT32, which firmware
/// expects of a system partition.
const BYTES: usize = 128 << 20;
const SECTOR: LogicalBlockSize = LogicalBlockSize::Lb512;
/// Flash is erased in blocks, so a partition begins at a whole MiB.
const ALIGNMENT_SECTORS: u64 = 2048;
const LABEL: &[u8; 11] = b"LUO-BENCH  ";

/// An image in the making, without files.
pub(crate) struct Image {
    bytes: Vec<u8>,
    partition: Range<usize>,
    /// Of the partition, in the form that the kernel has it in.
    pub(crate) guid: String,
}

/// A path, with `/` between its parts, and what the file holds.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

impl Image {
    /// An empty one, with a GUID that no other has.
    pub(crate) fn new() -> Result<Self> {
        let mut device = Cursor::new(vec![0; BYTES]);
        let sectors = u32::try_from(BYTES / SECTOR.as_usize() - 1).context("too large an image")?;
        ProtectiveMBR::with_lb_size(sectors)
            .overwrite_lba0(&mut device)
            .context("writing the protective MBR")?;
        let config = GptConfig::new().writable(true).logical_block_size(SECTOR);
        let mut disk = config.create_from_device(device, None)?;
        // The table has a copy at the end.
        let bytes = BYTES as u64 - 2 * ALIGNMENT_SECTORS * SECTOR.as_u64();
        let kind = partition_types::EFI;
        disk.add_partition("luo-bench", bytes, kind, 0, Some(ALIGNMENT_SECTORS))?;
        let bytes = disk.write()?.into_inner();
        let (partition, guid) = partition(&bytes)?;
        let mut image = Self {
            bytes,
            partition,
            guid,
        };
        let options = FormatVolumeOptions::new()
            .fat_type(FatType::Fat32)
            .bytes_per_cluster(1024)
            .volume_label(*LABEL);
        format_volume(Cursor::new(image.volume()), options).context("formatting the volume")?;
        Ok(image)
    }

    fn volume(&mut self) -> &mut [u8] {
        &mut self.bytes[self.partition.clone()]
    }

    /// Adds files, with the directories that they are in.
    pub(crate) fn add(&mut self, files: &Files) -> Result<()> {
        let system = FileSystem::new(Cursor::new(self.volume()), FsOptions::new())?;
        for (path, contents) in files {
            let mut directory = system.root_dir();
            let mut parts = path.split('/').peekable();
            while let Some(name) = parts.next() {
                if parts.peek().is_some() {
                    directory = directory.create_dir(name)?;
                    continue;
                }
                let mut file = directory.create_file(name)?;
                file.write_all(contents)
                    .with_context(|| format!("writing {path} to the image"))?;
                file.flush()?;
            }
        }
        system.unmount().context("finishing the volume")
    }

    /// As it goes to a stick.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Where the partition lies in an image, and its GUID.
fn partition(bytes: &[u8]) -> Result<(Range<usize>, String)> {
    let config = GptConfig::new().writable(false).logical_block_size(SECTOR);
    let disk = config
        .open_from_device(Cursor::new(bytes.to_vec()))
        .context("it has no partition table")?;
    let partitions: Vec<_> = disk.partitions().values().collect();
    let [only] = partitions[..] else {
        anyhow::bail!("it has {} partitions, expected one", partitions.len());
    };
    let (start, length) = (only.bytes_start(SECTOR)?, only.bytes_len(SECTOR)?);
    let range = usize::try_from(start)?..usize::try_from(start + length)?;
    ensure!(range.end <= bytes.len(), "its partition ends beyond it");
    Ok((range, only.part_guid.hyphenated().to_string()))
}

/// All files of an image.
pub(crate) fn read(bytes: &[u8]) -> Result<Files> {
    let (range, _) = partition(bytes)?;
    let volume = Cursor::new(bytes[range].to_vec());
    let system = FileSystem::new(volume, FsOptions::new()).context("opening the volume")?;
    let mut files = Files::new();
    read_directory(&system.root_dir(), "", &mut files)?;
    Ok(files)
}

fn read_directory<T: fatfs::ReadWriteSeek>(
    directory: &Dir<'_, T>,
    path: &str,
    files: &mut Files,
) -> Result<()> {
    for entry in directory.iter() {
        let entry = entry.with_context(|| format!("listing {path}"))?;
        let name = entry.file_name();
        let inside = format!("{path}{name}");
        if entry.is_file() {
            let mut contents = Vec::new();
            let mut file = entry.to_file();
            file.read_to_end(&mut contents)
                .with_context(|| format!("reading {inside}"))?;
            files.insert(inside, contents);
        } else if !name.starts_with('.') {
            read_directory(&entry.to_dir(), &format!("{inside}/"), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_each_image_has_a_guid_of_its_own() {
        let large: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
        let files = Files::from([
            ("EFI/BOOT/BOOTX64.EFI".into(), large),
            ("luo/plan.json".into(), b"{}".to_vec()),
            ("luo/initrd".into(), vec![7]),
        ]);
        let mut image = Image::new().unwrap();
        assert_ne!(image.guid, Image::new().unwrap().guid);
        image.add(&files).unwrap();
        let bytes = image.into_bytes();
        assert_eq!(read(&bytes).unwrap(), files);
        assert_eq!(&bytes[510..512], [0x55, 0xaa], "the protective MBR");
    }

    #[test]
    fn what_is_not_an_image_is_an_error() {
        for bytes in [&[][..], &[0; 1 << 20], &[0xff; 1 << 20]] {
            assert!(read(bytes).is_err());
        }
        let mut cut = Image::new().unwrap().into_bytes();
        cut.truncate(4 << 20);
        assert!(read(&cut).is_err());
    }
}
