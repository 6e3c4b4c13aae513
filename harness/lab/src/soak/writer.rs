// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Somebody who writes to a memfd while the kernel freezes and jumps.
//!
//! Into page after page goes the page's number, and only then into the first page how many there
//! are. So at every moment every page up to that number holds its own.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{fence, Ordering};
use std::thread;

use anyhow::{ensure, Context, Result};
use rustix::fs::MemfdFlags;
use rustix::param::page_size;

use crate::soak::plan::Access;
use crate::tests::held_open::HeldOpen;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};
use luo_orchestrator::SharedMapping;

const SESSION: &str = "soak-writer";
const TOKEN: Token = Token(1);
/// Enough to be at it for as long as a jump takes.
const PAGES: u64 = 1 << 16;

/// A memfd that is preserved, and how it will be written to.
pub(crate) struct Writer {
    file: File,
    access: Access,
}

/// Preserves a memfd that has nothing but holes.
pub(crate) fn prepare(access: Access, held: &mut HeldOpen) -> Result<Writer> {
    let file = File::from(rustix::fs::memfd_create("writer", MemfdFlags::CLOEXEC)?);
    file.set_len(PAGES * page_size() as u64)?;
    let session = Device::open()?.create_session(SESSION)?;
    session.preserve(TOKEN, file.as_fd())?;
    held.hold(&session)?;
    Ok(Writer { file, access })
}

/// Writes until all pages are written or the machine jumps, in a thread of its own.
pub(crate) fn start(writer: Writer) -> Result<()> {
    let Writer { file, access } = writer;
    let page = page_size();
    let store: Box<dyn Fn(usize, u64) -> Result<()> + Send> = match access {
        Access::Mapping => {
            let mapping = SharedMapping::new(&file, 0..PAGES * page as u64)?;
            Box::new(move |offset, number| {
                mapping.write(offset, &number.to_ne_bytes());
                // The next store must not come before this one.
                fence(Ordering::SeqCst);
                Ok(())
            })
        }
        Access::Pwrite => Box::new(move |offset, number: u64| {
            Ok(file.write_all_at(&number.to_ne_bytes(), offset as u64)?)
        }),
    };
    let write = move || -> Result<()> {
        for number in 1..PAGES {
            store(number as usize * page, number)?;
            store(0, number)?;
        }
        Ok(())
    };
    thread::Builder::new()
        .spawn(move || {
            // The kernel may refuse it from freeze on; then it does not happen.
            let _ = write();
        })
        .context("starting a thread")?;
    Ok(())
}

/// Compares what crossed, and finishes.
pub(crate) fn verify() -> Result<()> {
    let session: Session = Device::open()?.retrieve_session(SESSION)?;
    let file = File::from(session.retrieve(TOKEN)?);
    let read = |page: u64| -> Result<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, page * page_size() as u64)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    let written = read(0)?;
    ensure!(written < PAGES, "the number of pages written is {written}");
    let lost = (1..=written).filter(|&page| !read(page).is_ok_and(|number| number == page));
    let lost = lost.count();
    ensure!(
        lost == 0,
        "of {written} pages that were written before and during freeze {lost} are lost"
    );
    Ok(session.finish()?)
}
