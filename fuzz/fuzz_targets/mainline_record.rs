// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Hostile records in mainline's format of memfds: with any of them nothing panics, no memory is
//! taken or released that was not preserved, and none twice.
//!
//! The first byte of an input chooses. With its lowest bit the rest is what the host holds, each
//! object after two bytes with its length, the header last; without, it changes bytes of a true
//! record. With the next bit the header crosses where the input says, not where it is.
//!
//! `make fuzz FUZZ=mainline_record` runs it.

#![no_main]

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard},
};

use libfuzzer_sys::fuzz_target;
use luo_handler_api::{
    testing::FakeHost, Crossed, Errno, FileHandler, FileRef, Host, OwnedFile, Pairs, Retrieved,
};
use luo_handler_memfd::{
    Attributes, Contents, Kind, MainlineBackend, MainlineHandler, MainlineRecord, MemfdBackend,
    Name, Record, Run, ShowRun,
};

const PAGE_SHIFT: u8 = 12;
const FRAME_END: u64 = 1 << 20;
/// Pages of the file; more than a page of folios has room for.
const PAGES: u64 = 1000;

/// A machine in memory: a handle is the number of a page, which nothing else is in.
#[derive(Default)]
struct Machine {
    /// Orders of the folios that nobody took or released, by frame.
    folios: Mutex<BTreeMap<u64, u8>>,
}

impl Machine {
    fn folios(&self) -> MutexGuard<'_, BTreeMap<u64, u8>> {
        self.folios.lock().unwrap()
    }

    fn take(&self, run: Run) -> Result<(), Errno> {
        let order = self.folios().remove(&run.frame()).ok_or(Errno::EINVAL)?;
        assert_eq!((run.order(), run.length()), (order, 1 << order));
        Ok(())
    }
}

/// Single pages at every third place, and a large folio at the end: place, frame, order.
fn folios() -> impl Iterator<Item = (u64, u64, u8)> {
    let pages = (0..300).map(|number| (3 * number, 5000 + 2 * number, 0));
    pages.chain([(992, 1 << 10, 5)])
}

/// What every file here is like.
fn attributes() -> Attributes {
    Attributes {
        size: PAGES << PAGE_SHIFT,
        position: 7,
        seals: 0,
        status: 2,
        mode: 0o777,
        uid: 1,
        gid: 2,
        kind: Kind::Shmem,
        file_page_shift: PAGE_SHIFT,
    }
}

fn any_file() -> OwnedFd {
    File::open("/dev/null").expect("a file").into()
}

impl MemfdBackend for Machine {
    type Kept = ();
    type Buffer = Vec<u8>;

    fn contents_in(&self) -> Contents {
        Contents::Frames
    }

    fn page_shift(&self) -> u8 {
        PAGE_SHIFT
    }

    fn frame_end(&self) -> u64 {
        FRAME_END
    }

    fn buffer(&self, bytes: usize) -> Result<Vec<u8>, Errno> {
        Ok(vec![0; bytes])
    }

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        true
    }

    fn keep(&self, _: FileRef<'_>, _: Host<'_>) -> Result<(u64, ()), Errno> {
        Ok((0, ()))
    }

    fn release(&self, _: FileRef<'_>, _: u64, _: &mut (), _: Host<'_>) {}

    fn attributes(&self, _: FileRef<'_>) -> Result<Attributes, Errno> {
        Ok(attributes())
    }

    fn name(&self, _: FileRef<'_>) -> Name {
        Name::EMPTY
    }

    fn populated(
        &self,
        _: FileRef<'_>,
        _: &mut (),
        _: u64,
        _: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        for (index, frame, order) in folios() {
            show(Run::new(index, frame, 1 << order, order).expect("a run"))?;
        }
        Ok(())
    }

    fn restore(&self, _: &Record, _: Host<'_>) -> Result<OwnedFile, Errno> {
        unreachable!("a record of our own format")
    }

    fn discard(&self, _: &Record, _: Host<'_>) {
        unreachable!("a record of our own format")
    }
}

impl MainlineBackend for Machine {
    fn address(&self, handle: u64) -> u64 {
        handle << PAGE_SHIFT
    }

    fn handle(&self, address: u64, _: u64) -> Option<u64> {
        let handle = address >> PAGE_SHIFT;
        (handle << PAGE_SHIFT == address).then_some(handle)
    }

    fn preserved_order(&self, frame: u64) -> Option<u8> {
        self.folios().get(&frame).copied()
    }

    fn owner(&self) -> (u32, u32) {
        (1, 2)
    }

    fn restore_runs(
        &self,
        attributes: &Attributes,
        pages: u64,
        _: Host<'_>,
        walk: &mut dyn FnMut(&mut ShowRun<'_>) -> Result<(), Errno>,
    ) -> Result<OwnedFile, Errno> {
        assert!(attributes.size <= i64::MAX as u64 && pages <= FRAME_END);
        let mut taken = 0;
        walk(&mut |run| {
            self.take(run)?;
            taken += run.length();
            // A large folio may reach beyond the end, by less than its length.
            assert!(run.index() << PAGE_SHIFT < attributes.size);
            Ok(())
        })?;
        assert_eq!(taken, pages);
        Ok(any_file().into())
    }

    fn discard_run(&self, run: Run) {
        self.take(run).expect("somebody's memory was released");
    }
}

/// Objects one after the other, each after two bytes with its length, after the `last` handle.
fn put_raw(host: &FakeHost, mut input: &[u8], mut last: u64) -> u64 {
    while let Some((length, rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (object, rest) = rest.split_at(length);
        let mut page = object.to_vec();
        // Lists are whole pages.
        if length > 48 {
            page.resize(1 << PAGE_SHIFT, 0);
        }
        last += 1;
        host.replace(last, &page);
        input = rest;
    }
    last
}

/// Changes of four bytes each: which object, where (two bytes), what.
fn change(host: &FakeHost, input: &[u8]) {
    let (handles, _) = host.handles();
    for change in input.chunks_exact(4) {
        let handle = handles[usize::from(change[0]) % handles.len()];
        let place = usize::from(u16::from_le_bytes([change[1], change[2]]));
        let mut bytes = host.bytes(handle);
        match bytes.get_mut(place) {
            Some(byte) => *byte = change[3],
            None => bytes.resize(place.min(2 << PAGE_SHIFT), change[3]),
        }
        host.replace(handle, &bytes);
    }
}

static MACHINE: MainlineHandler<Machine> = MainlineHandler(Machine {
    folios: Mutex::new(BTreeMap::new()),
});

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    let host = FakeHost::default();
    let prepared = MACHINE.prepare(any_file().as_fd().into(), host.lend());
    let mut data = prepared.expect("a record").data;
    *MACHINE.0.folios() = folios().map(|folio| (folio.1, folio.2)).collect();
    let is_true = choice & 1 == 0 && input.len() < 4;
    match choice & 1 {
        0 => change(&host, input),
        _ => data = put_raw(&host, input, data >> PAGE_SHIFT) << PAGE_SHIFT,
    }
    if let (2, Some(address)) = (choice & 2, input.first_chunk()) {
        data = u64::from_le_bytes(*address);
    }

    let record = MainlineRecord::read(&MACHINE.0, host.lend(), data);
    let mut pairs = |_: &str, _: &str| ();
    let described = MACHINE.describe(data, host.lend(), &mut Pairs::new(&mut pairs));
    assert_eq!(described.is_ok(), record.is_ok());
    let retrieved = MACHINE.retrieve(data, host.lend()).map(OwnedFd::from);
    assert!(retrieved.is_err() || record.is_ok());
    assert!(retrieved.is_ok() || !is_true || choice & 2 == 2);
    let retrieved = match &retrieved {
        Ok(file) => Retrieved::File(file.as_fd().into()),
        Err(errno) => Retrieved::Failed(*errno),
    };
    MACHINE.finish(Crossed {
        data,
        retrieved,
        host: host.lend(),
    });
    let handle = MACHINE.0.handle(data, 1);
    assert!(handle.is_none_or(|handle| host.lend().bytes_len(handle).is_err()));
    if is_true && choice & 2 == 0 {
        assert!(host.is_empty() && MACHINE.0.folios().is_empty());
    }
});
