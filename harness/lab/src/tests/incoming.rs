// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What LUO finds at its first use after a jump, where it is in memory: `include/linux/kho/abi/`,
//! `luo.h` and `block.h`.

use anyhow::{bail, Context, Result};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::tests::physical_memory::PhysicalMemory;

/// `struct luo_file_ser`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct FileEntry {
    pub(crate) compatible: [u8; 48],
    pub(crate) data: U64,
    pub(crate) token: U64,
}

impl FileEntry {
    pub(crate) fn compatible(&self) -> String {
        let name = self.compatible.split(|byte| *byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}

/// `struct luo_session_ser`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct SessionEntry {
    name: [u8; 64],
    files: U64,
    count: U64,
}

impl SessionEntry {
    pub(crate) fn name(&self) -> Result<&str> {
        let name = self.name.split(|byte| *byte == 0).next();
        Ok(std::str::from_utf8(name.unwrap_or_default())?)
    }

    /// Its files, each with its address.
    pub(crate) fn files(&self, memory: &PhysicalMemory) -> Result<Vec<(u64, FileEntry)>> {
        entries(memory, self.files.get())
    }
}

/// `struct kho_block_header_ser`, which a page of entries begins with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlockHeader {
    next: U64,
    count: U64,
}

const HEADER: u64 = size_of::<BlockHeader>() as u64;
/// More blocks than any test fills.
const BLOCKS_MAX: usize = 1000;

/// The entries of a list that begins with the block at `block`, each with its address.
fn entries<T: FromBytes + IntoBytes>(
    memory: &PhysicalMemory,
    mut block: u64,
) -> Result<Vec<(u64, T)>> {
    let mut entries = Vec::new();
    for _ in 0..BLOCKS_MAX {
        if block == 0 {
            return Ok(entries);
        }
        let header: BlockHeader = memory.load(block)?;
        for number in 0..header.count.get() {
            let at = block + HEADER + number * size_of::<T>() as u64;
            entries.push((at, memory.load(at)?));
        }
        block = header.next.get();
    }
    bail!("a list of the kernel has no end");
}

/// All sessions. The first was called `marker`, and nothing else in memory begins so.
pub(crate) fn sessions(memory: &PhysicalMemory, marker: &str) -> Result<Vec<SessionEntry>> {
    for at in memory.pages()? {
        let entry: SessionEntry = memory.load(at + HEADER)?;
        if entry.name().is_ok_and(|name| name == marker) {
            let sessions = entries(memory, at)?;
            return Ok(sessions.into_iter().map(|(_, session)| session).collect());
        }
    }
    bail!("the kernel's list of the sessions is nowhere in memory")
}

/// The files of one session.
pub(crate) fn session_files(
    memory: &PhysicalMemory,
    marker: &str,
) -> Result<Vec<(u64, FileEntry)>> {
    let sessions = sessions(memory, marker)?;
    sessions
        .first()
        .context("there is no session")?
        .files(memory)
}
