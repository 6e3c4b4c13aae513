// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Hostile records of memfds: whatever the previous side preserved, nothing panics.
//!
//! The first byte of an input chooses. With its lowest bit the rest is what the host holds, each
//! object with its length before it; without, it changes bytes of a true record. With the next bit
//! the checksums are made right, as somebody would who means harm.
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
    crc32c, Crossed, Errno, FileHandler, FileRef, Host, HostServices, OwnedFile,
};
use luo_handler_memfd::{inspect, record::RecordHeader, Record, MEMFD};
use memfd::MemfdOptions;

type Objects = BTreeMap<u64, Vec<u8>>;

/// Bytes of the header of a block, and where its checksums are.
const BLOCK_HEADER: usize = 32;

/// Holds bytes and returns one file.
#[derive(Default)]
struct FuzzHost {
    bytes: Mutex<Objects>,
    file: Mutex<Option<OwnedFd>>,
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

/// What a host holds of a memfd with a few runs of pages; the record is the last.
fn true_objects() -> &'static Objects {
    static OBJECTS: OnceLock<Objects> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let host = FuzzHost::default();
        let file = bare_memfd(1 << 20).expect("a memfd");
        for page in [0, 1, 7, 9, 200, 255] {
            file.write_all_at(&[1; 4096], page << 12).expect("memory");
        }
        MEMFD
            .prepare(file.as_fd().into(), Host::new(&host))
            .expect("a record");
        host.bytes.into_inner().unwrap()
    })
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
fn changed_objects(input: &[u8]) -> Objects {
    let mut objects = true_objects().clone();
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

/// A file that a sound record may have been made of.
fn file_of(record: &Record, host: Host<'_>) -> Option<OwnedFd> {
    let file = bare_memfd(record.attributes.size)?;
    if record.chain.pages <= 256 {
        let written = record.extents(host).for_each(&mut |extent| {
            let start = extent.index() << record.page_shift;
            let end = (extent.end() << record.page_shift).min(record.attributes.size);
            file.write_all_at(&vec![1; (end - start) as usize], start)?;
            Ok(())
        });
        written.ok()?;
    }
    Some(file.into())
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    let is_true = choice & 1 == 0 && input.len() < 4;
    let mut objects = if choice & 1 == 1 {
        raw_objects(input)
    } else {
        changed_objects(input)
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

    let summary = inspect(data, host);
    if let Ok(summary) = &summary {
        assert!(summary.size <= i64::MAX as u64);
        assert!(summary.data_bytes <= summary.size.next_multiple_of(summary.page_bytes));
        let record = Record::read(host, data).expect("inspect has read it");
        *services.file.lock().unwrap() = file_of(&record, host);
    }
    let retrieved = MEMFD.retrieve(data, host).map(OwnedFd::from);
    assert!(retrieved.is_err() || summary.is_ok());
    assert!(retrieved.is_ok() || !is_true);
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
