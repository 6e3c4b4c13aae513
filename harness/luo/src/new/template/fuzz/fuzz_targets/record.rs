// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Hostile records: with any of them nothing panics, and nothing is left of it.
//!
//! With the lowest bit of its first byte an input is a record whose length and checksum are made
//! right, as somebody would who means harm.

#![no_main]

use std::os::fd::{AsFd, OwnedFd};

use libfuzzer_sys::fuzz_target;
use luo_handler_api::{record, testing::FakeHost, Crossed, FileHandler, Retrieved};
use luo_handler_sample::SAMPLE;

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else {
        return;
    };
    let (host, mut bytes) = (FakeHost::default(), bytes.to_vec());
    let kept = match choice & 1 {
        0 => host.lend().preserve_bytes(&bytes),
        _ => record::keep(host.lend(), &mut bytes),
    };
    let Ok(data) = kept else {
        return;
    };
    let file = SAMPLE.retrieve(data, host.lend()).map(OwnedFd::from);
    let retrieved = match &file {
        Ok(file) => Retrieved::File(file.as_fd().into()),
        Err(errno) => Retrieved::Failed(*errno),
    };
    let host = host.lend();
    SAMPLE.finish(Crossed {
        data,
        retrieved,
        host,
    });
});
