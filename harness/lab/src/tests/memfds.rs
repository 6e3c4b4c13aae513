// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds with known contents: made, preserved, retrieved, compared.

use std::fs::{self, File};
use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};

use luo_bench::memory::allocated_bytes;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::Session;

/// A memfd of base pages.
pub(crate) const fn memfd(size: u64, fill: Fill, seed: u64) -> Workload {
    Workload {
        size,
        pages: Pages::Base,
        fill,
        seed,
    }
}

/// Preserves a memfd of every workload, with its seed for a token. Preparing must not fill holes.
pub(crate) fn preserve(session: &Session, workloads: &[Workload]) -> Result<Vec<File>> {
    workloads
        .iter()
        .map(|workload| {
            let file = workload.make(|_| ())?;
            let before = allocated_bytes(&file)?;
            session.preserve(Token(workload.seed), file.as_fd())?;
            expect_memory(&file, before, "after it was preserved")?;
            Ok(file)
        })
        .collect()
}

/// Has memfds of huge pages when they are asked for.
pub(crate) fn allow_huge_pages() -> Result<()> {
    let switch = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    fs::write(switch, "advise").context("allowing huge pages")
}

/// Refuses a file that takes other memory than it did.
pub(crate) fn expect_memory(file: &File, bytes: u64, when: &str) -> Result<()> {
    let found = allocated_bytes(file)?;
    ensure!(
        found == bytes,
        "the memfd takes {found} bytes of memory {when}, it took {bytes}"
    );
    Ok(())
}

/// Retrieves the memfd of a workload and compares all there is to compare.
pub(crate) fn retrieve(session: &Session, workload: &Workload) -> Result<File> {
    let file = File::from(session.retrieve(Token(workload.seed))?);
    verify(workload, &file)?;
    Ok(file)
}

/// Compares size, seals, position, holes, memory taken and every byte.
pub(crate) fn verify(workload: &Workload, file: &File) -> Result<()> {
    workload
        .verify(file.as_fd(), |_| ())
        .with_context(|| format!("the memfd of token {:#x}", workload.seed))?;
    let page = rustix::param::page_size() as u64;
    expect_memory(
        file,
        workload.data_bytes().next_multiple_of(page),
        "after it was retrieved",
    )
}
