// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Hostile records of devices, ports and sockets: with any of them nothing panics, and only the
//! device or socket that was recorded is handed over.
//!
//! The first eight bytes of an input are what crossed of a port. The next one chooses: with its
//! lowest bit the rest is a record, without it changes bytes of a true one. With the next bit
//! length and checksum are made right, as somebody would who means harm. With the third bit it is
//! the record of a socket.
//!
//! `make fuzz FUZZ=device_records` runs it.

#![no_main]

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    sync::OnceLock,
};

use libfuzzer_sys::fuzz_target;
use luo_handler_api::{record, testing::FakeHost, Crossed, Errno, FileHandler, Host, Retrieved};
use luo_handler_socket::SocketHandler;
use luo_handler_vfio::{
    description::Compared,
    imagined::{edu, Imagined},
    DeviceRecord, UserBackend, VfioHandler,
};

type Handler = VfioHandler<UserBackend<Imagined>>;

static DEVICE: OnceLock<Handler> = OnceLock::new();

fn handler() -> &'static Handler {
    DEVICE.get_or_init(|| VfioHandler(UserBackend(Imagined::new(edu()))))
}

/// A host that holds a sound record and its file, and the handle of the record.
fn true_record() -> (FakeHost, u64) {
    let host = FakeHost::default();
    let null = File::open("/dev/null").expect("a file");
    let prepared = handler().prepare(null.as_fd().into(), host.lend());
    (host, prepared.expect("a record").data)
}

/// The record of an input, not yet made right.
fn changed(truth: &[u8], choice: u8, input: &[u8]) -> Vec<u8> {
    if choice & 1 != 0 {
        return input.to_vec();
    }
    let mut bytes = truth.to_vec();
    for change in input.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[place] ^= change[2];
    }
    bytes
}

/// Fills in length and checksum.
fn make_right(bytes: &mut Vec<u8>) {
    let host = FakeHost::default();
    if let Ok(handle) = record::keep(host.lend(), bytes) {
        *bytes = host.bytes(handle);
    }
}

fn socket(choice: u8, input: &[u8]) {
    let (host, socket) = (FakeHost::default(), UnixStream::pair().expect("a socket").0);
    let handler = SocketHandler(luo_handler_socket::UserBackend);
    let prepared = handler.prepare(socket.as_fd().into(), host.lend());
    let data = prepared.expect("a record").data;
    let truth = luo_handler_socket::SocketRecord::read(host.lend(), data).expect("a record");
    let mut bytes = changed(&host.bytes(data), choice, input);
    if choice & 2 != 0 {
        make_right(&mut bytes);
    }
    host.replace(data, &bytes);
    let file = handler.retrieve(data, host.lend()).map(OwnedFd::from);
    if file.is_ok() {
        let record = luo_handler_socket::SocketRecord::read(host.lend(), data);
        assert_eq!(record, Ok(truth), "another socket was handed over");
    }
    let retrieved = match &file {
        Ok(file) => Retrieved::File(file.as_fd().into()),
        Err(errno) => Retrieved::Failed(*errno),
    };
    handler.finish(Crossed {
        data,
        retrieved,
        host: host.lend(),
    });
    assert!(
        !host.all_bytes().contains_key(&data),
        "the record is left"
    );
}

fn retrieve(host: Host<'_>, data: u64) -> Option<OwnedFd> {
    let record = DeviceRecord::read(host, data);
    let retrieved = handler().retrieve(data, host).map(OwnedFd::from);
    if retrieved.is_ok() {
        let record = record.expect("what was retrieved was read");
        let same = record.description.difference(&edu(), Compared::Everything);
        assert!(same.is_none(), "another device was handed over");
    }
    retrieved.ok()
}

fuzz_target!(|input: &[u8]| {
    let Some((port, [choice, input @ ..])) = input.split_first_chunk() else {
        return;
    };
    let data = u64::from_le_bytes(*port);
    if let Ok(port) = luo_handler_ioport::PortRecord::from_u64(data) {
        assert!(port.is_possible() && port.to_u64() == data);
    }

    if choice & 4 != 0 {
        return socket(*choice, input);
    }
    let (host, data) = true_record();
    let mut bytes = changed(&host.bytes(data), *choice, input);
    if choice & 2 != 0 {
        make_right(&mut bytes);
    }
    host.replace(data, &bytes);
    let file = retrieve(host.lend(), data);
    let retrieved = match &file {
        Some(file) => Retrieved::File(file.as_fd().into()),
        None => Retrieved::Failed(Errno::ENODEV),
    };
    handler().finish(Crossed {
        data,
        retrieved,
        host: host.lend(),
    });
    assert!(
        !host.all_bytes().contains_key(&data),
        "the record is left"
    );
});
