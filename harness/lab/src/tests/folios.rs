// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Huge pages that are split, and base pages that become huge ones, between prepare and freeze.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};

use crate::sys::collapse;
use crate::tests::memfds::{memfd, retrieve};
use luo_bench::memory::meminfo;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::Session;
use luo_orchestrator::SharedMapping;

const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

const HUGE: Workload = Workload {
    size: 32 << 20,
    pages: Pages::Thp,
    fill: Fill::Dense,
    seed: 1,
};
/// With holes in each huge page's worth.
const SPARSE: Workload = memfd(16 << 20, Fill::sparse(2000), 2);
/// Nothing of it is there at prepare.
const EMPTY: Workload = memfd(16 << 20, Fill::sparse(0), 3);
const FILLED: Workload = memfd(16 << 20, Fill::Dense, 3);

/// The folios that were preserved are asked to become others, and new ones do.
pub(super) fn split_and_collapse(session: &Session) -> Result<()> {
    fs::write(SWITCH, "advise").context("allowing huge pages")?;
    let huge = HUGE.make(|_| ())?;
    let sparse = SPARSE.make(|_| ())?;
    let empty = EMPTY.make(|_| ())?;
    for (workload, file) in [(&HUGE, &huge), (&SPARSE, &sparse), (&EMPTY, &empty)] {
        session.preserve(Token(workload.seed), file.as_fd())?;
    }

    fs::write(SPLIT, "1").context("splitting all huge pages; it takes debugfs")?;
    HUGE.verify(huge.as_fd(), |_| ())?;
    // Whether pages that are held can be collapsed is the kernel's affair; they must not get lost.
    let _ = collapse(&SharedMapping::new(&sparse, 0..SPARSE.size)?);
    SPARSE.verify(sparse.as_fd(), |_| ())?;

    FILLED.write(&empty, |_| ())?;
    let before = meminfo("ShmemHugePages:").unwrap_or(0);
    collapse(&SharedMapping::new(&empty, 0..FILLED.size)?)
        .context("collapsing pages that are new since prepare")?;
    let collapsed = meminfo("ShmemHugePages:").unwrap_or(0) - before;
    ensure!(
        collapsed == FILLED.size,
        "expected {} bytes in new huge pages, found {collapsed}",
        FILLED.size
    );
    Ok(())
}

pub(super) fn take_split_and_collapsed(session: &Session) -> Result<()> {
    for workload in [HUGE, SPARSE, FILLED] {
        retrieve(session, &workload)?;
    }
    Ok(session.finish()?)
}
