// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Records of huge pages that a hostile previous kernel could have left.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::Device;
use rustix::io::Errno;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use crate::tests::expect::expect_lost;
use crate::tests::forged::change_extents;
use crate::tests::held_open::HeldOpen;
use crate::tests::hugetlb::{huge_memfd, map, number, number_at, Counters, POOL};
use crate::tests::incoming;
use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::records::{MemfdExtent, MemfdRecord};

/// Nothing else in memory begins so.
const SESSION: &str = "luo-lab forged huge pages";
const SOUND: Token = Token(1);
const PAGES: u64 = 2;

type Change = fn(&mut MemfdRecord, &mut MemfdExtent);

fn in_order(extent: MemfdExtent, order: u8) -> MemfdExtent {
    MemfdExtent::of_folios(extent.index(), extent.frame(), extent.length(), order)
        .expect("a multiple of a smaller order")
}

/// Its second word, which begins with the frame, changed.
fn with_frame(extent: MemfdExtent, change: fn(u64) -> u64) -> MemfdExtent {
    let mut words = <[U64; 2]>::read_from_bytes(extent.as_bytes()).expect("two words");
    words[1] = U64::new(change(words[1].get()));
    MemfdExtent::read_from_bytes(words.as_bytes()).expect("two words")
}

/// What is done to each memfd but the sound one.
static FORGED: &[Change] = &[
    // Single pages, and folios that are too small
    |_, extent| *extent = in_order(*extent, 0),
    |_, extent| *extent = in_order(*extent, 8),
    // Frames that begin no huge page; that this machine does not have; that nobody preserved
    |_, extent| *extent = with_frame(*extent, |word| word + (1 << 24)),
    |_, extent| *extent = with_frame(*extent, |word| word | 1 << 63),
    |_, extent| *extent = with_frame(*extent, |word| 512 << 24 | word & 0xff_ffff),
    // Every page twice
    |record, _| record.late = record.chain,
    // Pages of 1 GiB, which they are not, and of 64 KiB, which there are none of
    |record, _| record.file_page_shift = 30,
    |record, extent| {
        record.file_page_shift = 16;
        *extent = in_order(*extent, 4);
    },
];

fn token(number: usize) -> Token {
    Token(0x10 + number as u64)
}

pub(super) fn preserve_all(held: &mut HeldOpen) -> Result<()> {
    POOL.resize(PAGES * (1 + FORGED.len() as u64))?;
    let session = Device::open()?.create_session(SESSION)?;
    for token in (0..FORGED.len()).map(token).chain([SOUND]) {
        let file = huge_memfd("forged", PAGES)?;
        let mapping = map(&file, PAGES)?;
        (0..PAGES).for_each(|page| number(&mapping, page));
        session.preserve(token, file.as_fd())?;
    }
    held.hold(&session)
}

/// Each fails alone.
pub(super) fn refuse_all(_held: &mut HeldOpen) -> Result<()> {
    let memory = PhysicalMemory::open()?;
    let entries = incoming::session_files(&memory, SESSION)?;
    for (number, change) in FORGED.iter().enumerate() {
        let entry = entries
            .iter()
            .find(|(_, entry)| Token(entry.token.get()) == token(number));
        let (_, entry) = entry.context("a file is not in the list of the kernel")?;
        change_extents(&memory, entry.data.get(), *change)?;
    }
    let session = Device::open()?.retrieve_session(SESSION)?;
    for number in 0..FORGED.len() {
        let errno = match number {
            7 => Errno::OPNOTSUPP,
            _ => Errno::INVAL,
        };
        expect_lost(&session, token(number), errno).with_context(|| format!("record {number}"))?;
    }
    let file = File::from(session.retrieve(SOUND)?);
    for page in 0..PAGES {
        ensure!(number_at(&file, page)? == page + 1, "page {page} is lost");
    }
    session.finish()?;
    drop(file);
    POOL.expect(Counters::default(), "after the last close")
}
