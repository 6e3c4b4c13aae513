// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds that cross two jumps in a row.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{ensure, Result};

use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{memfd, preserve, retrieve, verify};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::Device;

const TWICE: &str = "memfd-twice";
/// The odd size is not a whole number of pages.
const TWICE_MEMFDS: [Workload; 2] = [
    memfd((3 << 20) + 123, Fill::Dense, 0x11),
    memfd(64 << 20, Fill::sparse(500), 0x12),
];

pub(crate) fn preserve_memfds(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(TWICE)?;
    preserve(&session, &TWICE_MEMFDS)?;
    held.hold(&session)
}

pub(crate) fn pass_memfds_on(held: &mut HeldOpen) -> Result<()> {
    let files = take_twice()?;
    let session = Device::open()?.create_session(TWICE)?;
    for (workload, file) in TWICE_MEMFDS.iter().zip(&files) {
        session.preserve(Token(workload.seed), file.as_fd())?;
        verify(workload, file)?;
    }
    held.hold(&session)
}

pub(crate) fn take_memfds_back(_held: &mut HeldOpen) -> Result<()> {
    take_twice().map(|_| ())
}

fn take_twice() -> Result<Vec<File>> {
    let session = Device::open()?.retrieve_session(TWICE)?;
    ensure!(
        session.name()? == TWICE,
        "the session came back as {}",
        session.name()?
    );
    let files = TWICE_MEMFDS
        .iter()
        .map(|workload| retrieve(&session, workload))
        .collect::<Result<_>>()?;
    session.finish()?;
    Ok(files)
}
