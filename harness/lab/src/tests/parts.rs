// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds so large that several processors retrieve parts of them: one part fails, all is given up.

use std::fs;

use anyhow::{ensure, Context, Result};
use luo_bench::memory::free_bytes;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::Device;
use rustix::io::Errno;
use zerocopy::little_endian::U32;

use crate::tests::blocks::{blocks_of, Block};
use crate::tests::expect::{expect_errno, expect_freed, expect_lost, soon};
use crate::tests::held_open::HeldOpen;
use crate::tests::incoming;
use crate::tests::limit::{charged, mount_cgroups};
use crate::tests::memfds::{memfd, preserve, retrieve};
use crate::tests::physical_memory::PhysicalMemory;

/// Nothing else in memory begins so.
const SESSION: &str = "luo-lab forged parts";
const SIZE: u64 = 96 << 20;
const SOUND: [Workload; 2] = [memfd(SIZE, Fill::Shuffled, 1), memfd(SIZE, Fill::Dense, 2)];

/// A frame of one block that is put in the place of another block's.
struct Forged {
    token: u64,
    /// Both are counted from the last block on, which is read first.
    from: From,
    to: usize,
}

enum From {
    Block(usize),
    /// A frame that nobody preserved.
    Nowhere,
}

const fn forged(token: u64, from: From, to: usize) -> Forged {
    Forged { token, from, to }
}

/// The block that is read last. How many there are depends on how the kernel gave memory out.
const OLDEST: usize = usize::MAX;

/// A part is about five blocks of such a file: one of [`forged_memfd`].
static FORGED: &[Forged] = &[
    // The same frame twice: in two parts that are worked on at the same time, and far apart
    forged(0x10, From::Block(0), 7),
    forged(0x11, From::Block(7), 12),
    forged(0x12, From::Block(1), OLDEST),
    // Memory that is not the file's: in the first part, and in a later one
    forged(0x13, From::Nowhere, 0),
    forged(0x14, From::Nowhere, 20),
];

/// With as many pages as [`SOUND`] has. Half of the places are holes, here and there: so there are
/// many extents, also if pages lie in order in memory, as they do after they were moved out of
/// scratch.
const fn forged_memfd(forged: &Forged) -> Workload {
    memfd(2 * SIZE, Fill::sparse(5000), forged.token)
}

pub(super) fn preserve_all(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    preserve(&session, &SOUND)?;
    for forged in FORGED {
        preserve(&session, &[forged_memfd(forged)])?;
    }
    held.hold(&session)
}

/// Each forged one fails alone, and all of its memory is free in the end.
pub(super) fn refuse_forged(_held: &mut HeldOpen) -> Result<()> {
    let memory = PhysicalMemory::open()?;
    let entries = incoming::session_files(&memory, SESSION)?;
    for forged in FORGED {
        let entry = entries
            .iter()
            .find(|(_, entry)| entry.token.get() == forged.token);
        let (_, entry) = entry.context("a file is not in the list of the kernel")?;
        forge(&memory, entry.data.get(), forged)
            .with_context(|| format!("token {:#x}", forged.token))?;
    }
    let session = Device::open()?.retrieve_session(SESSION)?;
    let sound = SOUND.iter().map(|workload| retrieve(&session, workload));
    let sound = sound.collect::<Result<Vec<_>>>()?;
    let before = free_bytes()?;
    for forged in FORGED {
        expect_lost(&session, Token(forged.token), Errno::INVAL)
            .with_context(|| format!("token {:#x}", forged.token))?;
    }
    session.finish()?;
    drop(sound);
    expect_freed(before, SIZE * (SOUND.len() + FORGED.len()) as u64)
}

/// Changes the first frame of a block of the record with the handle `data`.
fn forge(memory: &PhysicalMemory, data: u64, forged: &Forged) -> Result<()> {
    let blocks = blocks_of(memory, data)?;
    let block = |number: usize| {
        let handle = match number {
            OLDEST => blocks.last(),
            _ => blocks.get(number),
        };
        let handle = handle.with_context(|| format!("the file has {} blocks", blocks.len()))?;
        Block::load(memory, *handle)
    };
    let frame = match forged.from {
        From::Block(number) => {
            let block = block(number)?;
            block.words[place_of_frame(&block)?]
        }
        // Of the first megabyte.
        From::Nowhere => U32::new(1),
    };
    let mut changed = block(forged.to)?;
    let place = place_of_frame(&changed)?;
    changed.words[place] = frame;
    changed.store(memory)
}

/// Which word of a block is the frame of a single page. A longer run would name the frames after a
/// forged one as well, which may be those of the record itself.
fn place_of_frame(block: &Block) -> Result<usize> {
    let (place, _) = block.find(|extent| extent.length() == 1)?;
    Ok(place)
}

const LIMITED: &str = "luo-lab limited parts";
const ENOUGH: Workload = memfd(SIZE, Fill::Dense, 1);
/// With a page here and there, for which the page cache takes 6 MiB besides.
const SCARCE: Workload = memfd(4 << 30, Fill::sparse(200), 2);
/// The room for them.
const MORE: u64 = 2 << 20;

pub(super) fn preserve_large(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(LIMITED)?;
    preserve(&session, &[ENOUGH, SCARCE])?;
    held.hold(&session)
}

/// There is room for the pages under the limit, but not for what finds them in the page cache: so
/// parts fail, after others are in. What workers insert is charged to the group of the task.
pub(super) fn retrieve_under_a_limit(_held: &mut HeldOpen) -> Result<()> {
    let group = mount_cgroups("memory")?.join("parts");
    fs::create_dir(&group)?;
    let before = free_bytes()?;
    let session = Device::open()?.retrieve_session(LIMITED)?;
    fs::write(group.join("cgroup.procs"), "0")?;

    let enough = retrieve(&session, &ENOUGH)?;
    let found = charged(&group)?;
    ensure!(
        found.used >= SIZE && found.is_of(SIZE),
        "a memfd of {SIZE} bytes was retrieved: {found:?}"
    );
    let limit = found.used + SCARCE.data_bytes() + MORE;
    fs::write(group.join("memory.max"), limit.to_string())?;
    expect_errno(
        session.retrieve(Token(SCARCE.seed)),
        Errno::NOMEM,
        "retrieving more than the limit allows",
    )?;
    soon(
        || charged(&group),
        |left| left.is_of(SIZE) && left.used < found.used + MORE,
    )
    .context("what was inserted before is still charged")?;
    session.finish()?;
    drop((session, enough));
    expect_freed(before, SIZE + SCARCE.data_bytes())
}
