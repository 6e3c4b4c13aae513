// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Hostile records of memfds: with any of them nothing panics.
//!
//! The first byte of an input chooses. With its lowest bit the rest is what the host holds, each
//! object with its length before it; without, it changes bytes of a true record. With the next bit
//! the checksums are made right, as an attacker would. With the next the true record
//! is one of the kernel, with extents.
//!
//! `make fuzz FUZZ=memfd_record` runs it with coverage on a stable compiler; cargo-fuzz does as
//! well.

#![no_main]

use std::{
    collections::BTreeMap,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::{Mutex, OnceLock},
};

use libfuzzer_sys::fuzz_target;
use luo_handler_api::{
    crc32c, Crossed, Errno, FileHandler, FileRef, Host, HostServices, OwnedFile, Pairs,
};
use luo_handler_memfd::{extent::ORDER_MAX, record::RecordHeader, Contents, Summary, MEMFD};
use memfd::MemfdOptions;

type Objects = BTreeMap<u64, Vec<u8>>;

/// Bytes of the header of a block.
const BLOCK_HEADER: usize = 32;

/// Where a record has the kind of its contents, and its first chain.
const CONTENTS_IN: usize = 47;
const CHAIN: usize = 64;

/// Holds bytes and returns one file.
#[derive(Default)]
struct FuzzHost {
    bytes: Mutex<Objects>,
    file: Mutex<Option<OwnedFd>>,
}

impl FuzzHost {
    fn bytes(&self, handle: u64) -> Vec<u8> {
        self.bytes.lock().unwrap()[&handle].clone()
    }
}

impl HostServices for FuzzHost {
    fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
        let mut objects = self.bytes.lock().unwrap();
        let handle = objects.last_key_value().map_or(1, |(last, _)| last + 1);
        objects.insert(handle, bytes.to_vec());
        Ok(handle)
    }

    fn bytes_len(&self, handle: u64) -> Result<u64, Errno> {
        let objects = self.bytes.lock().unwrap();
        objects
            .get(&handle)
            .map(|bytes| bytes.len() as u64)
            .ok_or(Errno::ENOENT)
    }

    fn read_bytes(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let objects = self.bytes.lock().unwrap();
        let bytes = objects.get(&handle).ok_or(Errno::ENOENT)?;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(range).ok_or(Errno::ERANGE)?);
        Ok(())
    }

    fn release_bytes(&self, handle: u64) {
        self.bytes.lock().unwrap().remove(&handle);
    }

    fn preserve_file(&self, _: FileRef<'_>) -> Result<u64, Errno> {
        Ok(1)
    }

    fn take_file(&self, _: u64) -> Result<OwnedFile, Errno> {
        let file = self.file.lock().unwrap().take();
        file.map(OwnedFile::from).ok_or(Errno::ENOENT)
    }

    fn release_file(&self, _: u64) {
        self.file.lock().unwrap().take();
    }
}

fn bare_memfd(size: u64) -> Option<File> {
    let memfd = MemfdOptions::new()
        .allow_sealing(true)
        .create("fuzz")
        .ok()?;
    memfd.as_file().set_len(size).ok()?;
    Some(memfd.into_file())
}

/// What a host holds of a memfd with a few runs of pages, in a process and in the kernel; the
/// record is the last.
fn true_objects() -> &'static [Objects; 2] {
    static OBJECTS: OnceLock<[Objects; 2]> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let host = FuzzHost::default();
        let file = bare_memfd(1 << 20).expect("a memfd");
        for page in [0, 1, 7, 9, 200, 255] {
            file.write_all_at(&[1; 4096], page << 12).expect("memory");
        }
        let record = MEMFD.prepare(file.as_fd().into(), Host::new(&host));
        let record = host.bytes(record.expect("a record").data);
        [vec![record.clone()], frames_of(record)].map(|objects| (1..).zip(objects).collect())
    })
}

/// The same memfd as a kernel preserves it: blocks of extents, one in words and one in the earlier
/// layout, and the record.
fn frames_of(mut record: Vec<u8>) -> Vec<Vec<u8>> {
    let block = |magic: &[u8; 4], previous: u64, extents: &[u8]| {
        let mut block = [magic.as_slice(), &[0; 4], &3u32.to_le_bytes(), &[0; 4]].concat();
        // The first of them begins at 0.
        block.extend([previous, 0].map(u64::to_le_bytes).as_flattened());
        block.extend(extents);
        seal(&mut block);
        block
    };
    // Two pages at 0, 7 and 9, in frames of their own.
    let (hole, two) = (2 << 30 | 5, 3 << 30 | 2);
    let words = [two, 100, hole, two, 107, two, 109u32].map(u32::to_le_bytes);
    // Two pages at 20, 200 and 254.
    let whole = [20u64, 200, 254].map(|index| [index << 13, (100 + index) << 24 | 2]);
    let whole: Vec<u8> = whole
        .into_iter()
        .flatten()
        .flat_map(u64::to_le_bytes)
        .collect();
    record[CONTENTS_IN] = Contents::Frames as u8;
    // Extents, pages, and the last block.
    let chain = [6u64, 12, 2].map(u64::to_le_bytes).concat();
    record[CHAIN..CHAIN + chain.len()].copy_from_slice(&chain);
    seal(&mut record);
    let blocks = [
        block(b"mfdw", 0, words.as_flattened()),
        block(b"mfdx", 1, &whole),
    ];
    blocks.into_iter().chain([record]).collect()
}

/// Objects one after the other, each after two bytes with its length.
fn raw_objects(mut input: &[u8]) -> Objects {
    let mut objects = Objects::new();
    while let Some((length, rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (object, rest) = rest.split_at(length);
        objects.insert(objects.len() as u64 + 1, object.to_vec());
        input = rest;
    }
    objects
}

/// The true objects with changes of four bytes each: which object, where (two bytes), what.
fn changed_objects(input: &[u8], of_kernel: bool) -> Objects {
    let mut objects = true_objects()[usize::from(of_kernel)].clone();
    let count = objects.len();
    for change in input.chunks_exact(4) {
        let object = objects.values_mut().nth(usize::from(change[0]) % count);
        let place = usize::from(u16::from_le_bytes([change[1], change[2]]));
        if let Some(bytes) = object {
            match bytes.get_mut(place) {
                Some(byte) => *byte = change[3],
                None => bytes.resize(place.min(512), change[3]),
            }
        }
    }
    objects
}

fn seal(object: &mut [u8]) {
    let (at, length) = match object.len() {
        RecordHeader::LENGTH if object.starts_with(b"memfd") => (12, RecordHeader::LENGTH),
        BLOCK_HEADER.. => {
            let extents = crc32c(0, &object[BLOCK_HEADER..]);
            object[12..16].copy_from_slice(&extents.to_le_bytes());
            (4, BLOCK_HEADER)
        }
        _ => return,
    };
    object[at..at + 4].fill(0);
    let sum = crc32c(0, &object[..length]);
    object[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    let is_true = choice & 1 == 0 && input.len() < 4;
    // A process reads what the kernel preserved, and takes nothing of it.
    let is_taken = choice & 4 == 0;
    let mut objects = if choice & 1 == 1 {
        raw_objects(input)
    } else {
        changed_objects(input, choice & 4 == 4)
    };
    if choice & 2 == 2 {
        objects.values_mut().for_each(|object| seal(object));
    }
    let Some(&data) = objects.keys().last() else {
        return;
    };
    let services = FuzzHost::default();
    *services.bytes.lock().unwrap() = objects;
    let host = Host::new(&services);

    let summary = Summary::read(host, data);
    if let Ok(summary) = &summary {
        assert!(summary.size <= i64::MAX as u64);
        if let Some(contents) = summary.contents_data {
            let most = summary
                .size
                .next_multiple_of(summary.page_bytes << ORDER_MAX);
            assert!(contents.bytes <= most);
        }
        // A host that copies may hand out a file of any other size.
        *services.file.lock().unwrap() = bare_memfd(summary.size).map(OwnedFd::from);
    }
    let mut pairs = |_: &str, _: &str| ();
    let described = MEMFD.describe(data, host, &mut Pairs::new(&mut pairs));
    assert_eq!(described.is_ok(), summary.is_ok());
    let retrieved = MEMFD.retrieve(data, host).map(OwnedFd::from);
    assert!(retrieved.is_err() || summary.is_ok());
    assert!(summary.is_ok() || !is_true);
    assert!(!is_true || retrieved.is_ok() == is_taken);
    MEMFD.finish(Crossed {
        data,
        retrieved: retrieved
            .as_ref()
            .ok()
            .map(|file| file.as_fd().into())
            .into(),
        host,
    });
    assert!(host.bytes_len(data).is_err());
});
