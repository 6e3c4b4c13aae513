// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Our handler of memfds is switched off in some kernels: the kernel's own takes its place.

use anyhow::{ensure, Result};

use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{memfd, preserve, retrieve};
use luo_bench::counters::Counters;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_liveupdate::Device;

const BY_THE_KERNELS: &str = "by-the-kernels-handler";
const BY_OURS: &str = "by-our-handler";
/// Dense: the kernel's handler fills holes.
const SWAPPED: [Workload; 2] = [
    memfd(1 << 20, Fill::Dense, 1),
    memfd(5 << 20, Fill::Dense, 2),
];

/// In a kernel in which ours is switched off.
pub(crate) fn preserve_with_the_kernels(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(BY_THE_KERNELS)?;
    preserve(&session, &SWAPPED)?;
    let ours = Counters::read()?.share();
    ensure!(
        ours.prepared == 0,
        "our handler prepared {} files, although it is switched off",
        ours.prepared
    );
    held.hold(&session)
}

/// In a kernel with ours: what the kernel's handler preserved is for it to give back, what is new
/// is for ours.
pub(crate) fn swap_handlers(held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let session = device.retrieve_session(BY_THE_KERNELS)?;
    for workload in &SWAPPED {
        retrieve(&session, workload)?;
    }
    session.finish()?;
    let ours = Counters::read()?.share();
    ensure!(
        ours.retrieved == 0,
        "our handler retrieved files of the kernel's"
    );
    let session = device.create_session(BY_OURS)?;
    preserve(&session, &SWAPPED)?;
    held.hold(&session)
}

/// In a kernel in which ours is switched off again: it gives its files back, and takes no more.
pub(crate) fn take_what_came_in(_held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let session = device.retrieve_session(BY_OURS)?;
    for workload in &SWAPPED {
        retrieve(&session, workload)?;
    }
    session.finish()?;
    drop(session);
    preserve(&device.create_session("afterwards")?, &SWAPPED)?;
    let ours = Counters::read()?.share();
    ensure!(
        ours.prepared == 0,
        "our handler prepared {} files, although it is switched off",
        ours.prepared
    );
    Ok(())
}
