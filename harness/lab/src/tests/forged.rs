// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a hostile previous kernel could have left: what crossed is changed in memory, after the
//! jump and before anybody reads it.

use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};
use rustix::io::Errno;
use zerocopy::little_endian::{U32, U64};

use crate::tests::blocks::Block;
use crate::tests::expect::expect_lost;
use crate::tests::held_open::HeldOpen;
use crate::tests::incoming;
use crate::tests::memfds::{self, memfd};
use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::ports;
use crate::tests::records::{
    handle_of, memory_of, sign, sign_memfd, MemfdBlock, MemfdExtent, MemfdRecord, VfioCrossing,
    VfioRecord, MEMFD_MAGIC, MEMFD_WHOLE_BLOCK, VFIO_MAGIC,
};
use crate::tests::vfio_client::Client;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};

/// Nothing else in memory begins so.
const SESSION: &str = "luo-lab forged records";

/// What is preserved, and what is done to it.
struct Forged {
    token: Token,
    file: Kind,
    change: Change,
    /// What retrieving it has to fail with.
    errno: Errno,
}

#[derive(Clone, Copy)]
enum Kind {
    Port,
    Memfd,
    /// At this address.
    VfioDevice(&'static str),
}

enum Change {
    /// To the handler's serialized data.
    Data(fn(u64) -> u64),
    /// To that of another file.
    DataOf(Token),
    /// To the record of a device's handler. Its checksum is right again afterwards.
    Record(fn(&mut VfioRecord)),
    /// To the record of a memfd and its first extent, which is the only one of its block then. The
    /// checksums are right again afterwards.
    Extents(fn(&mut MemfdRecord, &mut MemfdExtent)),
}

use Change::{Data, DataOf, Extents, Record};
use Kind::{Memfd, Port, VfioDevice};

const SOUND_PORT: Token = Token(1);
const SOUND_MEMFD: Workload = memfd(1 << 20, Fill::sparse(3000), 2);
const SOUND_DEVICE: Token = Token(3);
const SOUND_ADDRESS: &str = "0000:00:12.0";

const fn forged(token: Token, file: Kind, change: Change, errno: Errno) -> Forged {
    Forged {
        token,
        file,
        change,
        errno,
    }
}

#[rustfmt::skip]
static FORGED: &[Forged] = &[
    // Another version; a position after the last port; an access mode that does not exist
    forged(Token(0x10), Port, Data(|data| data ^ 1 << 63), Errno::OPNOTSUPP),
    forged(Token(0x11), Port, Data(|data| data | 0xffff_ffff), Errno::INVAL),
    forged(Token(0x12), Port, Data(|data| data | 3 << 32), Errno::INVAL),
    // Memory that nobody preserved, and memory that does not exist
    forged(Token(0x20), Memfd, Data(|_| 1 << 24 | 4096), Errno::NOENT),
    // Frames beyond memory, and more than there are: close(2) of the session must not look for each
    // of them. The same frames for the same places twice
    forged(Token(0x21), Memfd, Extents(|record, extent| {
        record.size = U64::new(i64::MAX as u64);
        record.chain.pages = U64::new(u32::MAX.into());
        *extent = MemfdExtent::new(0, 1 << 39, u32::MAX.into()).expect("an extent");
    }), Errno::INVAL),
    forged(Token(0x22), Memfd, Extents(|record, _| record.late = record.chain), Errno::INVAL),
    // An owner that is not a user; set-uid; a name without an end
    forged(Token(0x23), Memfd, Extents(|record, _| record.uid = U32::MAX_VALUE), Errno::INVAL),
    forged(Token(0x24), Memfd, Extents(|record, _| record.mode = U32::new(0o4755)), Errno::INVAL),
    forged(Token(0x25), Memfd, Extents(|record, _| record.name = [b'x'; 256]), Errno::INVAL),
    forged(Token(0x30), VfioDevice("0000:00:10.0"), Data(|_| !0), Errno::NOENT),
    // A device of another file, which has it already
    forged(Token(0x31), VfioDevice("0000:00:11.0"), DataOf(SOUND_DEVICE), Errno::BUSY),
    // More regions than there is room for; a file in a host that preserves no files; a status of
    // another version
    forged(Token(0x32), VfioDevice("0000:00:13.0"), Record(|record| {
        record.regions = U32::MAX_VALUE;
    }), Errno::INVAL),
    forged(Token(0x33), VfioDevice("0000:00:14.0"), Record(|record| {
        record.crossing = VfioCrossing::OpenFile as u8;
        record.file = U64::MAX_VALUE;
    }), Errno::OPNOTSUPP),
    forged(Token(0x34), VfioDevice("0000:02:00.0"), Record(|record| {
        record.status = U32::MAX_VALUE;
    }), Errno::OPNOTSUPP),
    // A segment that does not exist; the machine's host bridge; a device of another vendor
    forged(Token(0x35), VfioDevice("0000:00:15.0"), Record(|record| {
        record.segment = U32::new(0xdead);
    }), Errno::NODEV),
    forged(Token(0x36), VfioDevice("0000:00:16.0"), Record(|record| {
        record.devfn = 0;
    }), Errno::NODEV),
    forged(Token(0x37), VfioDevice("0000:01:00.0"), Record(|record| {
        record.header[0] ^= 0xff;
    }), Errno::NODEV),
];

fn preserve(session: &Session, token: Token, file: Kind) -> Result<()> {
    match file {
        Port => ports::preserve(session, token, &ports::REGISTER),
        Memfd => {
            let workload = Workload {
                seed: token.0,
                ..SOUND_MEMFD
            };
            memfds::preserve(session, &[workload]).map(|_| ())
        }
        VfioDevice(address) => Ok(session.preserve(token, Client::by_cdev(address)?.as_fd())?),
    }
}

pub(crate) fn preserve_all(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    preserve(&session, SOUND_PORT, Port)?;
    preserve(&session, Token(SOUND_MEMFD.seed), Memfd)?;
    preserve(&session, SOUND_DEVICE, VfioDevice(SOUND_ADDRESS))?;
    for forged in FORGED {
        preserve(&session, forged.token, forged.file)?;
    }
    held.hold(&session)
}

/// What was forged fails alone, and the session comes to its end.
pub(crate) fn refuse_forged(_held: &mut HeldOpen) -> Result<()> {
    forge_all()?;
    let session = Device::open()?.retrieve_session(SESSION)?;
    let device = Client::retrieved(session.retrieve(SOUND_DEVICE)?)?;
    for forged in FORGED {
        expect_lost(&session, forged.token, forged.errno)
            .with_context(|| format!("token {}", forged.token))?;
    }
    ports::retrieve(&session, SOUND_PORT, &ports::REGISTER)?;
    memfds::retrieve(&session, &SOUND_MEMFD)?;
    session.finish()?;
    drop(session);
    device.expect_answers()?;
    drop(device);
    // Nobody holds a device any more, also those of forged records.
    for forged in FORGED {
        if let VfioDevice(address) = forged.file {
            Client::by_cdev(address)?;
        }
    }
    Ok(())
}

/// Changes the kernel's list of the files, which it has not read yet, and the records of handlers.
fn forge_all() -> Result<()> {
    let memory = PhysicalMemory::open()?;
    let entries = incoming::session_files(&memory, SESSION)?;
    let find = |token: Token| {
        let found = entries
            .iter()
            .find(|(_, entry)| Token(entry.token.get()) == token);
        found.with_context(|| format!("token {token} is not in the list of the kernel"))
    };
    for forged in FORGED {
        let (at, mut entry) = *find(forged.token)?;
        let data = entry.data.get();
        match forged.change {
            Data(change) => entry.data = U64::new(change(data)),
            DataOf(token) => entry.data = find(token)?.1.data,
            Record(change) => {
                let (at, _) = memory_of(data);
                let mut record: VfioRecord = memory.load(at)?;
                ensure!(
                    record.magic == VFIO_MAGIC,
                    "token {} has no record at {at:#x}",
                    forged.token
                );
                change(&mut record);
                sign(&mut record);
                memory.store(at, &record)?;
            }
            Extents(change) => change_extents(&memory, data, change)?,
        }
        memory.store(at, &entry)?;
    }
    Ok(())
}

/// Changes the record of a memfd with the handle `data`, and the first extent of its last block.
pub(super) fn change_extents(
    memory: &PhysicalMemory,
    data: u64,
    change: fn(&mut MemfdRecord, &mut MemfdExtent),
) -> Result<()> {
    let (at, _) = memory_of(data);
    let mut record: MemfdRecord = memory.load(at)?;
    ensure!(record.magic == MEMFD_MAGIC, "{at:#x} has no record");
    let last_block = record.chain.last_block.get();
    let (block_at, _) = memory_of(last_block);
    let extent_at = block_at + size_of::<MemfdBlock>() as u64;
    let block = Block::load(memory, last_block)?;
    let (_, mut extent) = block.find(|_| true)?;
    let mut block = block.header;
    let length = (size_of::<MemfdBlock>() + size_of::<MemfdExtent>()) as u64;
    record.chain.last_block = U64::new(handle_of(block_at, length));
    record.chain.extents = U64::new(1);
    record.chain.pages = U64::new(extent.length());
    change(&mut record, &mut extent);
    // In the earlier layout, in which every extent is as long as another.
    block.magic = MEMFD_WHOLE_BLOCK;
    block.first = U64::ZERO;
    block.count = U32::new(1);
    block.previous = U64::ZERO;
    sign_memfd(&mut record, &mut block, &extent);
    memory.store(extent_at, &extent)?;
    memory.store(block_at, &block)?;
    memory.store(at, &record)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn tokens_are_unique() {
        let mut tokens: Vec<Token> = FORGED.iter().map(|forged| forged.token).collect();
        tokens.extend([SOUND_PORT, Token(SOUND_MEMFD.seed), SOUND_DEVICE]);
        let all = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), all);
    }
}
