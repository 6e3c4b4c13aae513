// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a hostile previous kernel could have left: what crossed is changed in memory, behind the jump and before anybody
//! reads it.

use std::fs::{read_to_string, File};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use luo_handler_api::crc32c;
use luo_handler_api::Token;
use luo_handler_vfio::record::{Crossing, RecordBytes};
use rustix::io::Errno;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checks::{self, expect_lost, memfd, Kept};
use crate::ports;
use crate::vfio::Client;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_liveupdate::{Device, Session};

const SESSION: &str = "forged";

/// What is preserved, and what is done to it.
struct Forged {
    token: u64,
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
    Device(&'static str),
}

enum Change {
    /// To what the handler gave the kernel to keep.
    Data(fn(u64) -> u64),
    /// To that of another file.
    DataOf(u64),
    /// To the record that a device's handler kept. Its checksum is right again afterwards.
    Record(fn(&mut RecordBytes)),
}

use Change::{Data, DataOf, Record};
use Kind::{Device as At, Memfd, Port};

/// Nobody else has such a token, so it shows where the kernel's list is; it is the first that is preserved.
const SOUND_PORT: u64 = 0x666f_7267_6564_0001;
const SOUND_MEMFD: Workload = memfd(1 << 20, Fill::sparse(3000), 2);
const SOUND_DEVICE: u64 = 3;
const SOUND_ADDRESS: &str = "0000:00:12.0";

const fn forged(token: u64, file: Kind, change: Change, errno: Errno) -> Forged {
    Forged {
        token,
        file,
        change,
        errno,
    }
}

#[rustfmt::skip]
static FORGED: &[Forged] = &[
    // Another version; a position behind the last port; an access mode that there is not
    forged(0x10, Port, Data(|data| data ^ 1 << 63), Errno::OPNOTSUPP),
    forged(0x11, Port, Data(|data| data | 0xffff_ffff), Errno::INVAL),
    forged(0x12, Port, Data(|data| data | 3 << 32), Errno::INVAL),
    // Memory that nobody kept, and memory that there is not
    forged(0x20, Memfd, Data(|_| 1 << 24 | 4096), Errno::NOENT),
    forged(0x30, At("0000:00:10.0"), Data(|_| !0), Errno::NOENT),
    // A device of another file, which has it already
    forged(0x31, At("0000:00:11.0"), DataOf(SOUND_DEVICE), Errno::BUSY),
    // More regions than there is room for; a file in a host that keeps none; a status of another version
    forged(0x32, At("0000:00:13.0"), Record(|record| record.regions = U32::MAX_VALUE), Errno::INVAL),
    forged(0x33, At("0000:00:14.0"), Record(|record| {
        record.crossing = Crossing::OpenFile as u8;
        record.file = U64::MAX_VALUE;
    }), Errno::OPNOTSUPP),
    forged(0x34, At("0000:02:00.0"), Record(|record| record.status = U32::MAX_VALUE), Errno::OPNOTSUPP),
    // A segment that there is not; the machine's host bridge; a device of another vendor
    forged(0x35, At("0000:00:15.0"), Record(|record| record.segment = U32::new(0xdead)), Errno::NODEV),
    forged(0x36, At("0000:00:16.0"), Record(|record| record.devfn = 0), Errno::NODEV),
    forged(0x37, At("0000:01:00.0"), Record(|record| record.header[0] ^= 0xff), Errno::NODEV),
];

fn preserve(session: &Session, token: u64, file: Kind) -> Result<()> {
    match file {
        Port => ports::preserve(session, token, &ports::REGISTER),
        Memfd => {
            let workload = Workload {
                seed: token,
                ..SOUND_MEMFD
            };
            checks::preserve(session, &[workload]).map(|_| ())
        }
        At(address) => Ok(session.preserve(Token(token), Client::by_cdev(address)?.as_fd())?),
    }
}

pub(super) fn preserve_all(kept: &mut Kept) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    preserve(&session, SOUND_PORT, Port)?;
    preserve(&session, SOUND_MEMFD.seed, Memfd)?;
    preserve(&session, SOUND_DEVICE, At(SOUND_ADDRESS))?;
    for forged in FORGED {
        preserve(&session, forged.token, forged.file)?;
    }
    kept.keep(&session)
}

/// What was forged fails alone, and the session comes to its end.
pub(super) fn refuse_forged(_kept: &mut Kept) -> Result<()> {
    forge_all()?;
    let session = Device::open()?.retrieve_session(SESSION)?;
    let device = Client::retrieved(session.retrieve(Token(SOUND_DEVICE))?)?;
    for forged in FORGED {
        expect_lost(&session, forged.token, forged.errno)
            .with_context(|| format!("token {:#x}", forged.token))?;
    }
    ports::retrieve(&session, SOUND_PORT, &ports::REGISTER)?;
    checks::retrieve(&session, &SOUND_MEMFD)?;
    session.finish()?;
    drop(session);
    device.expect_answers()?;
    drop(device);
    // Nobody holds a device any more, whatever it was used for.
    for forged in FORGED {
        if let At(address) = forged.file {
            Client::by_cdev(address)?;
        }
    }
    Ok(())
}

/// `struct luo_file_ser` of `include/linux/kho/abi/luo.h`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    compatible: [u8; 48],
    data: U64,
    token: U64,
}

/// Bytes of `struct kho_block_header_ser` of `include/linux/kho/abi/block.h`, which a page of entries begins with.
const HEADER: u64 = 16;
const ENTRY: u64 = size_of::<Entry>() as u64;

/// Changes the kernel's list of the files, which it has not read yet, and the records of handlers.
fn forge_all() -> Result<()> {
    let memory = File::options()
        .read(true)
        .write(true)
        .open("/dev/mem")
        .context("opening the machine's memory; it takes CONFIG_DEVMEM")?;
    let list = find_list(&memory)?;
    let page = rustix::param::page_size() as u64;
    let places = (list + HEADER..=list + page - ENTRY).step_by(ENTRY as usize);
    let entries: Vec<(u64, Entry)> = places
        .map(|at| Ok((at, load(&memory, at)?)))
        .collect::<Result<_>>()?;
    let find = |token: u64| {
        let found = entries.iter().find(|(_, entry)| entry.token.get() == token);
        found.with_context(|| format!("token {token:#x} is not in the list of the kernel"))
    };
    for forged in FORGED {
        let (at, mut entry) = *find(forged.token)?;
        let data = entry.data.get();
        match forged.change {
            Data(change) => entry.data = U64::new(change(data)),
            DataOf(token) => entry.data = find(token)?.1.data,
            Record(change) => {
                // Its handle is the number of its first page, and its length; see `kmod/host.rs`.
                let at = (data >> 24) * page;
                let mut record: RecordBytes = load(&memory, at)?;
                ensure!(
                    record.magic == luo_handler_vfio::record::MAGIC,
                    "token {:#x} has no record at {at:#x}",
                    forged.token
                );
                change(&mut record);
                record.checksum = U32::ZERO;
                record.checksum = U32::new(crc32c(0, record.as_bytes()));
                memory.write_all_at(record.as_bytes(), at)?;
            }
        }
        memory.write_all_at(entry.as_bytes(), at)?;
    }
    Ok(())
}

/// Where the page is that begins with the first file.
fn find_list(memory: &File) -> Result<u64> {
    let page = rustix::param::page_size() as u64;
    for range in ram(&read_to_string("/proc/iomem")?) {
        // Whole pages: the others are not all memory.
        for at in (range.start.div_ceil(page)..range.end / page).map(|number| number * page) {
            let entry: Entry = load(memory, at + HEADER)?;
            if entry.token.get() == SOUND_PORT && entry.compatible.starts_with(b"ioport-v1\0") {
                return Ok(at);
            }
        }
    }
    anyhow::bail!("the kernel's list of the files is nowhere in memory")
}

/// The ranges of memory that `/proc/iomem` tells of.
fn ram(iomem: &str) -> impl Iterator<Item = Range<u64>> + '_ {
    iomem.lines().filter_map(|line| {
        let (first, last) = line.strip_suffix(" : System RAM")?.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(number(first)?..number(last)? + 1)
    })
}

fn load<T: FromBytes + IntoBytes>(memory: &File, at: u64) -> Result<T> {
    let mut value = T::new_zeroed();
    memory
        .read_exact_at(value.as_mut_bytes(), at)
        .with_context(|| format!("reading memory at {at:#x}"))?;
    Ok(value)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn memory_is_what_iomem_calls_so() {
        let iomem = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n  00002000-00002fff : Kernel code\n\
                     100000000-13fffffff : System RAM\n";
        let found: Vec<_> = ram(iomem).collect();
        assert_eq!(found, [0x1000..0x9fc00, 0x1_0000_0000..0x1_4000_0000]);
    }

    #[test]
    fn tokens_are_unique() {
        let mut tokens: Vec<u64> = FORGED.iter().map(|forged| forged.token).collect();
        tokens.extend([SOUND_PORT, SOUND_MEMFD.seed, SOUND_DEVICE]);
        let all = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), all);
    }
}
