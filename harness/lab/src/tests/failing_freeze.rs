// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memory that goes bad between prepare and the jump.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::sys::surviving_bus_errors;
use crate::tests::expect::{expect_errno, expect_refused_jump};
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{memfd, preserve, retrieve, verify};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_liveupdate::Device;
use luo_orchestrator::SharedMapping;

pub(super) const SOUND: &str = "sound";
pub(super) const BAD: &str = "bad";
const SOUND_MEMFD: Workload = memfd(4 << 20, Fill::sparse(3000), 1);
/// Fills all that [`SOUND_MEMFD`] fills, and more.
const SOUND_LATER: Workload = memfd(4 << 20, Fill::sparse(6000), 1);
pub(crate) const BAD_MEMFD: Workload = memfd(1 << 20, Fill::sparse(0), 2);

/// Memory goes bad between prepare and the jump: the jump is refused, what was frozen is not any
/// more, all runs on, and without the bad memory the next jump succeeds.
pub(crate) fn survive_a_failing_freeze(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SOUND)?;
    let sound = preserve(&session, &[SOUND_MEMFD])?;
    let bad_session = Device::open()?.create_session(BAD)?;
    let bad = preserve(&bad_session, &[BAD_MEMFD])?;
    for file in &bad {
        spoil(file, 0)?;
    }
    expect_refused_jump(Errno::IO, 1)?;
    for file in &sound {
        verify(&SOUND_MEMFD, file)?;
        // Its holes may still be filled, also after it was frozen once.
        SOUND_LATER.write(file, |_| ())?;
    }
    held.hold(&session)
}

/// Writes to a page in the first MiB, and has the kernel believe that its memory is broken.
pub(crate) fn spoil(file: &File, page: usize) -> Result<()> {
    let size = rustix::param::page_size();
    let bytes = page * size..(page + 1) * size;
    let mapping = SharedMapping::new(file, 0..BAD_MEMFD.size).context("mapping a memfd")?;
    mapping.write(bytes.start, &[1]);
    match surviving_bus_errors(|| mapping.advise(bytes, Advice::LinuxHwPoison)) {
        // What is preserved cannot be taken away from the file, but it is marked as broken.
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(()),
        result => result.context("declaring memory broken; it takes CONFIG_MEMORY_FAILURE"),
    }
}

pub(crate) fn take_sound(_held: &mut HeldOpen) -> Result<()> {
    take_only_sound(&SOUND_LATER)
}

/// Retrieves the memfd of the sound session; the other session did not cross.
pub(super) fn take_only_sound(memfd: &Workload) -> Result<()> {
    let device = Device::open()?;
    expect_errno(
        device.retrieve_session(BAD),
        Errno::NOENT,
        "retrieving the session with the bad memory",
    )?;
    let session = device.retrieve_session(SOUND)?;
    retrieve(&session, memfd)?;
    Ok(session.finish()?)
}
