// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The guest's side of our own tests that have their jumps to themselves, and what all of ours share.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{bail, ensure, Context, Result};
use rustix::io::Errno;

use crate::counters::Counters;
use luo_bench::memory::allocated_bytes;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::kexec::{self, KexecError};
use luo_liveupdate::{Device, Session};
use luo_orchestrator::SharedMapping;

/// What the init process holds open over the jump: closing a session gives its files up.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<OwnedFd>);

impl Kept {
    /// Holds on to a session or a file.
    pub(super) fn keep(&mut self, descriptor: impl AsFd) -> Result<()> {
        self.0.push(
            descriptor
                .as_fd()
                .try_clone_to_owned()
                .context("keeping a descriptor open")?,
        );
        Ok(())
    }
}

/// A memfd of base pages.
pub(super) const fn memfd(size: u64, fill: Fill, seed: u64) -> Workload {
    Workload {
        size,
        pages: Pages::Base,
        fill,
        seed,
    }
}

/// Preserves a memfd of every workload, with its seed for a token. Preparing must not fill holes.
pub(super) fn preserve(session: &Session, workloads: &[Workload]) -> Result<Vec<File>> {
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

/// Refuses a file that takes other memory than it did.
pub(super) fn expect_memory(file: &File, bytes: u64, when: &str) -> Result<()> {
    let found = allocated_bytes(file)?;
    ensure!(
        found == bytes,
        "the memfd takes {found} bytes of memory {when}, it took {bytes}"
    );
    Ok(())
}

/// Retrieves the memfd of a workload and compares all there is to compare.
pub(super) fn retrieve(session: &Session, workload: &Workload) -> Result<File> {
    let file = File::from(session.retrieve(Token(workload.seed))?);
    verify(workload, &file)?;
    Ok(file)
}

/// Compares size, seals, position, holes, memory taken and every byte.
pub(super) fn verify(workload: &Workload, file: &File) -> Result<()> {
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

/// Refuses anything but a failure with this errno.
pub(super) fn expect_errno<T>(
    result: Result<T, luo_liveupdate::Error>,
    errno: Errno,
    what: &str,
) -> Result<()> {
    match result {
        Err(error) if error.errno() == Some(errno) => Ok(()),
        Err(error) => bail!("{what} should have failed with {errno:?}, but: {error}"),
        Ok(_) => bail!("{what} should have failed with {errno:?}, but did not"),
    }
}

/// Refuses a file that can be retrieved: its failure is for good.
pub(super) fn expect_lost(session: &Session, token: u64, errno: Errno) -> Result<()> {
    for attempt in ["retrieving", "retrieving again"] {
        expect_errno(session.retrieve(Token(token)), errno, attempt)?;
    }
    Ok(())
}

/// Jumps, which the file behind so many others has to refuse: they were frozen, and are not any more.
pub(super) fn expect_refused_jump(errno: Errno, frozen: u64) -> Result<()> {
    let refused = kexec::jump();
    ensure!(
        matches!(refused, KexecError::Refused(found) if found == errno),
        "expected a jump refused with {errno:?}, found: {refused}"
    );
    let counters = Counters::read()?;
    for (phase, successes, errors) in [("freeze", frozen, 1), ("unfreeze", frozen, 0)] {
        let found = (counters.successes(phase), counters.errors(phase));
        ensure!(
            found == (successes, errors),
            "{phase} succeeded and failed {found:?} times, not {successes} and {errors} times"
        );
    }
    Ok(())
}

const TWICE: &str = "memfd-twice";
/// The odd size is not a whole number of pages.
const TWICE_MEMFDS: [Workload; 2] = [
    memfd((3 << 20) + 123, Fill::Dense, 0x11),
    memfd(64 << 20, Fill::sparse(500), 0x12),
];

pub(super) fn preserve_memfds(kept: &mut Kept) -> Result<()> {
    let session = Device::open()?.create_session(TWICE)?;
    preserve(&session, &TWICE_MEMFDS)?;
    kept.keep(&session)
}

pub(super) fn pass_memfds_on(kept: &mut Kept) -> Result<()> {
    let files = take_twice()?;
    let session = Device::open()?.create_session(TWICE)?;
    for (workload, file) in TWICE_MEMFDS.iter().zip(&files) {
        session.preserve(Token(workload.seed), file.as_fd())?;
        verify(workload, file)?;
    }
    kept.keep(&session)
}

pub(super) fn take_memfds_back(_kept: &mut Kept) -> Result<()> {
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

const BY_THE_KERNELS: &str = "by-the-kernels-handler";
const BY_OURS: &str = "by-our-handler";
/// Dense: the kernel's handler fills holes.
const SWAPPED: [Workload; 2] = [
    memfd(1 << 20, Fill::Dense, 1),
    memfd(5 << 20, Fill::Dense, 2),
];

/// In a kernel in which ours is switched off.
pub(super) fn preserve_with_the_kernels(kept: &mut Kept) -> Result<()> {
    let session = Device::open()?.create_session(BY_THE_KERNELS)?;
    preserve(&session, &SWAPPED)?;
    let ours = Counters::read()?.share();
    ensure!(
        ours.prepared == 0,
        "our handler prepared {} files, although it is switched off",
        ours.prepared
    );
    kept.keep(&session)
}

/// In a kernel with ours: what the kernel's handler kept is for it to give back, what is new is for ours.
pub(super) fn swap_handlers(kept: &mut Kept) -> Result<()> {
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
    kept.keep(&session)
}

/// In a kernel in which ours is switched off again: its files are lost, and nothing else is.
pub(super) fn fail_to_retrieve(_kept: &mut Kept) -> Result<()> {
    let session = Device::open()?.retrieve_session(BY_OURS)?;
    for workload in &SWAPPED {
        expect_lost(&session, workload.seed, Errno::OPNOTSUPP)?;
    }
    session.finish()?;
    drop(session);
    let session = Device::open()?.create_session("afterwards")?;
    preserve(&session, &SWAPPED)?;
    Ok(())
}

const SOUND: &str = "sound";
const BAD: &str = "bad";
const SOUND_MEMFD: Workload = memfd(4 << 20, Fill::sparse(3000), 1);
/// Fills all that [`SOUND_MEMFD`] fills, and more.
const SOUND_LATER: Workload = memfd(4 << 20, Fill::sparse(6000), 1);
pub(super) const BAD_MEMFD: Workload = memfd(1 << 20, Fill::sparse(0), 2);

/// Memory goes bad between prepare and the jump: the jump is refused, what was frozen is not any more, all runs on, and
/// without the bad memory the next jump succeeds.
pub(super) fn survive_a_failing_freeze(kept: &mut Kept) -> Result<()> {
    let session = Device::open()?.create_session(SOUND)?;
    let sound = preserve(&session, &[SOUND_MEMFD])?;
    let bad_session = Device::open()?.create_session(BAD)?;
    let bad = preserve(&bad_session, &[BAD_MEMFD])?;
    for file in &bad {
        spoil(file)?;
    }
    expect_refused_jump(Errno::IO, 1)?;
    for file in &sound {
        verify(&SOUND_MEMFD, file)?;
        // Its holes may still be filled, also after it was frozen once.
        SOUND_LATER.write(file, |_| ())?;
    }
    kept.keep(&session)
}

/// Writes to a hole, and has the kernel believe that the memory behind it is broken.
pub(super) fn spoil(file: &File) -> Result<()> {
    let page = rustix::param::page_size();
    let mapping = SharedMapping::new(file, 0..BAD_MEMFD.size).context("mapping a memfd")?;
    mapping.write(0, &[1]);
    mapping
        .advise(0..page, rustix::mm::Advice::LinuxHwPoison)
        .context("declaring memory broken; it takes CONFIG_MEMORY_FAILURE")
}

pub(super) fn take_sound(_kept: &mut Kept) -> Result<()> {
    let device = Device::open()?;
    expect_errno(
        device.retrieve_session(BAD),
        Errno::NOENT,
        "retrieving the session with the bad memory",
    )?;
    let session = device.retrieve_session(SOUND)?;
    retrieve(&session, &SOUND_LATER)?;
    Ok(session.finish()?)
}
