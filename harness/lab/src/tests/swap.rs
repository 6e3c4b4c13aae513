// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds while swap is in use: before prepare, and between prepare and freeze.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};
use rustix::mm::Advice;

use crate::guest::programs::{exit_code, program, BUSYBOX};
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{memfd, preserve, retrieve};
use luo_bench::memory::expect_meminfo;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::Device;
use luo_orchestrator::SharedMapping;

/// Gives the RAM disk room for both memfds.
pub(crate) const PARAMETERS: &str = "brd.rd_size=131072";
const DISK: &str = "/dev/ram0";
const SESSION: &str = "swapped";

const SWAPPED: Workload = memfd(24 << 20, Fill::Dense, 1);
const EARLY: Workload = memfd(64 << 20, Fill::sparse(300), 2);
/// Fills all that [`EARLY`] fills, and more.
const LATE: Workload = memfd(64 << 20, Fill::sparse(3000), 2);

/// One file is in swap when it is preserved; of another, pages that are new since prepare are in
/// swap when it is frozen.
pub(crate) fn preserve_swapped(held: &mut HeldOpen) -> Result<()> {
    for command in ["mkswap", "swapon"] {
        let code = exit_code(&mut program(BUSYBOX, &[command, DISK]))?;
        ensure!(code == 0, "{command} exited with {code}");
    }
    let session = Device::open()?.create_session(SESSION)?;
    let swapped = SWAPPED.make(|_| ())?;
    let before = used_swap()?;
    swap_out(&swapped, SWAPPED.size)?;
    let in_swap = used_swap()?.saturating_sub(before);
    ensure!(
        in_swap > SWAPPED.size / 2,
        "only {in_swap} of {} bytes are in swap",
        SWAPPED.size
    );
    session.preserve(Token(SWAPPED.seed), swapped.as_fd())?;

    for file in preserve(&session, &[EARLY])? {
        LATE.write(&file, |_| ())?;
        let before = used_swap()?;
        swap_out(&file, LATE.size)?;
        let in_swap = used_swap()?.saturating_sub(before);
        ensure!(
            in_swap > LATE.size / 10,
            "only {in_swap} bytes that are new since prepare are in swap"
        );
    }
    held.hold(&session)
}

pub(crate) fn take_swapped(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(SESSION)?;
    retrieve(&session, &SWAPPED)?;
    retrieve(&session, &LATE)?;
    Ok(session.finish()?)
}

/// Has the kernel swap out what it can of a file.
fn swap_out(file: &File, size: u64) -> Result<()> {
    let mapping = SharedMapping::new(file, 0..size).context("mapping a memfd")?;
    // Reclaim goes by the page tables: what is not in them is not found.
    let whole = || 0..size as usize;
    mapping
        .advise(whole(), Advice::LinuxPopulateRead)
        .and_then(|()| mapping.advise(whole(), Advice::LinuxPageOut))
        .context("swapping a memfd out")
}

fn used_swap() -> Result<u64> {
    Ok(expect_meminfo("SwapTotal:")? - expect_meminfo("SwapFree:")?)
}
