// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Forged records of handlers that the lab does not know: what the user's program preserved.
//!
//! In each session every handler's first file gets copies, under tokens of their own, as a hostile
//! previous kernel could have added them. Each copy is retrieved with another `u64`, or while one
//! byte of its record is another, where a record begins as `luo_handler_api::record` has it: with
//! the checksum as it was, and made right again. What a handler makes of them is up to it; the
//! kernel has to stay sound, a wrong checksum is refused, and the files themselves come back.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};
use luo_handler_api::record::PREFIX;
use luo_handler_api::{crc32c, Token};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::tests::forged::FileEntry;
use crate::tests::held_open::HeldOpen;
use crate::tests::physical_memory::PhysicalMemory;
use luo_liveupdate::{Device, Session};

/// `struct kho_block_header_ser` of `include/linux/kho/abi/block.h`; entries follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    next: U64,
    count: U64,
}

/// `struct luo_session_ser`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SessionEntry {
    name: [u8; 64],
    files: U64,
    count: U64,
}

/// `struct luo_flb_ser`; `struct luo_flb_header_ser`, before them, is like [`Header`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SubsystemEntry {
    name: [u8; 48],
    data: U64,
    count: U64,
}

const HEADER: u64 = size_of::<Header>() as u64;
/// Tokens of copies have their highest bits set.
const COPIES: u64 = 0xf06e << 48;
/// Bytes of a record that are changed, evenly.
const PLACES_MAX: usize = 24;
/// The longest record that is looked at.
const RECORD_MAX: u64 = 1 << 20;
const LENGTH_MASK: u64 = (1 << 24) - 1;
const CHECKSUM: usize = 12;

/// A copy of a file.
struct Copy {
    token: Token,
    compatible: String,
    forgery: Forgery,
}

#[derive(Clone, Debug)]
enum Forgery {
    /// Another number.
    Data(u64),
    /// Other bytes in its record, which is there.
    Record {
        at: u64,
        bytes: Vec<u8>,
        /// Whether the checksum is right.
        is_signed: bool,
    },
}

/// A session, its files, and the copies it got.
struct Forged {
    name: String,
    files: Vec<Token>,
    copies: Vec<Copy>,
}

/// Forges what crossed, and retrieves all of it.
pub(crate) fn refuse_or_survive(_held: &mut HeldOpen) -> Result<()> {
    let memory = PhysicalMemory::open()?;
    let sessions = forge(&memory)?;
    for forged in sessions {
        let session = Device::open()?.retrieve_session(&forged.name)?;
        // First: a copy may take what can be taken once.
        let files: Vec<_> = forged
            .files
            .iter()
            .map(|token| session.retrieve(*token))
            .collect::<Result<_, _>>()?;
        let mut ends = BTreeMap::<&str, [u32; 2]>::new();
        for copy in &forged.copies {
            let made = retrieve(&memory, &session, copy)
                .with_context(|| format!("{}: {:?}", copy.compatible, copy.forgery))?;
            ends.entry(&copy.compatible).or_default()[usize::from(made)] += 1;
        }
        for (compatible, [refused, made]) in ends {
            println!("forged records of {compatible}: {refused} refused, {made} made a file");
        }
        drop(files);
        session.finish()?;
    }
    Ok(())
}

/// Whether the copy makes a file.
fn retrieve(memory: &PhysicalMemory, session: &Session, copy: &Copy) -> Result<bool> {
    let Forgery::Record {
        at,
        bytes,
        is_signed,
    } = &copy.forgery
    else {
        return Ok(session.retrieve(copy.token).is_ok());
    };
    let truth = memory.bytes(*at, bytes.len())?;
    memory.store_bytes(*at, bytes)?;
    let made = session.retrieve(copy.token).is_ok();
    memory.store_bytes(*at, &truth)?;
    ensure!(
        *is_signed || !made,
        "a record with a wrong checksum made a file"
    );
    Ok(made)
}

/// Adds copies to each session with room for them.
fn forge(memory: &PhysicalMemory) -> Result<Vec<Forged>> {
    let (sessions, subsystems) = find_lists(memory)?;
    let mut forged = Vec::new();
    for (at, mut session) in entries::<SessionEntry>(memory, sessions)? {
        let files = entries::<FileEntry>(memory, session.files.get())?;
        let copies = copies_of(memory, &files)?;
        let Some((last, _)) = files.last() else {
            continue;
        };
        let page = rustix::param::page_size() as u64;
        let block = last - last % page;
        let mut header: Header = memory.load(block)?;
        let mut place = last + size_of::<FileEntry>() as u64;
        let room = (block + page - place) / size_of::<FileEntry>() as u64;
        let mut added = Vec::new();
        for (mut entry, copy) in evenly(copies, room as usize) {
            if let Forgery::Data(data) = copy.forgery {
                entry.data = U64::new(data);
            }
            entry.token = U64::new(copy.token.0);
            memory.store(place, &entry)?;
            place += size_of::<FileEntry>() as u64;
            added.push(copy);
        }
        for count in [&mut header.count, &mut session.count] {
            *count = U64::new(count.get() + added.len() as u64);
        }
        memory.store(block, &header)?;
        memory.store(at, &session)?;
        count_for_subsystems(memory, subsystems, added.len() as u64)?;
        let end = session.name.iter().position(|byte| *byte == 0);
        forged.push(Forged {
            name: String::from_utf8_lossy(&session.name[..end.unwrap_or(64)]).into_owned(),
            files: files
                .iter()
                .map(|(_, file)| Token(file.token.get()))
                .collect(),
            copies: added,
        });
    }
    Ok(forged)
}

/// Every subsystem counts the files of all handlers.
fn count_for_subsystems(memory: &PhysicalMemory, list: Option<u64>, added: u64) -> Result<()> {
    let Some(list) = list else {
        return Ok(());
    };
    let header: Header = memory.load(list)?;
    for index in 0..header.count.get() {
        let at = list + HEADER + index * size_of::<SubsystemEntry>() as u64;
        let mut entry: SubsystemEntry = memory.load(at)?;
        entry.count = U64::new(entry.count.get() + added);
        memory.store(at, &entry)?;
    }
    Ok(())
}

/// At most so many of them, from all over the list.
fn evenly<T>(list: Vec<T>, most: usize) -> impl Iterator<Item = T> {
    let count = list.len().max(1);
    let most = most.min(count);
    let is_chosen = move |index: usize| index * most / count != (index + 1) * most / count;
    let numbered = list.into_iter().enumerate();
    numbered.filter_map(move |(index, item)| is_chosen(index).then_some(item))
}

/// All copies of the first file of each handler.
fn copies_of(
    memory: &PhysicalMemory,
    files: &[(u64, FileEntry)],
) -> Result<Vec<(FileEntry, Copy)>> {
    let mut seen = BTreeMap::new();
    for (_, file) in files {
        seen.entry(file.compatible).or_insert(*file);
    }
    let mut copies = Vec::new();
    for (compatible, file) in seen {
        let end = compatible.iter().position(|byte| *byte == 0);
        let name = String::from_utf8_lossy(&compatible[..end.unwrap_or(48)]).into_owned();
        for forgery in forgeries(memory, file.data.get())? {
            let copy = Copy {
                token: Token(COPIES | copies.len() as u64),
                compatible: name.clone(),
                forgery,
            };
            copies.push((file, copy));
        }
    }
    Ok(copies)
}

/// What is done to a file with this number.
fn forgeries(memory: &PhysicalMemory, data: u64) -> Result<Vec<Forgery>> {
    let numbers = [
        0,
        u64::MAX,
        data ^ 1,
        data ^ 1 << 63,
        data.wrapping_add(1 << 24),
        1 << 24 | 4096,
    ];
    let mut all: Vec<Forgery> = numbers.map(Forgery::Data).into();
    let Some((at, truth)) = record(memory, data)? else {
        return Ok(all);
    };
    for place in evenly((0..truth.len()).collect(), PLACES_MAX) {
        for is_signed in [false, true] {
            let mut bytes = truth.clone();
            bytes[place] ^= 0xff;
            if is_signed {
                sign(&mut bytes);
            }
            // The checksum's own bytes are right again then.
            if bytes != truth {
                all.push(Forgery::Record {
                    at,
                    bytes,
                    is_signed,
                });
            }
        }
    }
    Ok(all)
}

/// The record that a number is the handle of, if it is one; see `kmod/host.rs`.
fn record(memory: &PhysicalMemory, data: u64) -> Result<Option<(u64, Vec<u8>)>> {
    let at = (data >> 24) * rustix::param::page_size() as u64;
    let length = data & LENGTH_MASK;
    if !(PREFIX as u64..=RECORD_MAX).contains(&length) || !memory.has(at, length)? {
        return Ok(None);
    }
    let bytes = memory.bytes(at, length as usize)?;
    let mut signed = bytes.clone();
    sign(&mut signed);
    Ok((signed == bytes).then_some((at, bytes)))
}

/// Makes length and checksum right.
fn sign(record: &mut [u8]) {
    let length = record.len() as u32;
    record[8..CHECKSUM].copy_from_slice(&length.to_le_bytes());
    record[CHECKSUM..PREFIX].fill(0);
    let checksum = crc32c(0, record);
    record[CHECKSUM..PREFIX].copy_from_slice(&checksum.to_le_bytes());
}

/// The entries of a list of blocks, with their places.
fn entries<T: FromBytes + IntoBytes>(
    memory: &PhysicalMemory,
    mut block: u64,
) -> Result<Vec<(u64, T)>> {
    let mut all = Vec::new();
    while block != 0 {
        let header: Header = memory.load(block)?;
        for index in 0..header.count.get() {
            let at = block + HEADER + index * size_of::<T>() as u64;
            all.push((at, memory.load(at)?));
        }
        block = header.next.get();
    }
    Ok(all)
}

/// Where the list of sessions begins, and that of subsystems if there is one. They are known by
/// what they hold: nothing leads to them any more. In the second kernel of a guest there are no
/// older ones.
fn find_lists(memory: &PhysicalMemory) -> Result<(u64, Option<u64>)> {
    const ENTRY: usize = HEADER as usize;
    let (mut sessions, mut subsystems) = (None, None);
    for at in memory.pages()? {
        let bytes: [u8; ENTRY + size_of::<SessionEntry>()] = memory.load(at)?;
        let (header, entry) = bytes.split_at(ENTRY);
        let (Ok(header), Ok(session), Ok((subsystem, _))) = (
            Header::read_from_bytes(header),
            SessionEntry::read_from_bytes(entry),
            SubsystemEntry::read_from_prefix(entry),
        ) else {
            continue;
        };
        if is_session(&header, &session) && holds_files(memory, &session)? {
            sessions.get_or_insert(at);
        }
        let has_one_page = header.next.get() == 1;
        if has_one_page && is_name(&subsystem.name) && subsystem.count.get() > 0 {
            subsystems.get_or_insert(at);
        }
    }
    let sessions = sessions.context(
        "the list of sessions is nowhere in memory: the program preserved no file, or its session \
         ended before the kexec",
    )?;
    Ok((sessions, subsystems))
}

fn is_session(header: &Header, entry: &SessionEntry) -> bool {
    let page = rustix::param::page_size() as u64;
    let first = entry.files.get();
    let is_place = |place: u64| place % page == 0;
    (1..page).contains(&header.count.get())
        && is_place(header.next.get())
        && is_name(&entry.name)
        && first != 0
        && is_place(first)
        && (1..page).contains(&entry.count.get())
}

/// Whether the files of a session are where it has them.
fn holds_files(memory: &PhysicalMemory, session: &SessionEntry) -> Result<bool> {
    let block = session.files.get();
    if !memory.has(block, rustix::param::page_size() as u64)? {
        return Ok(false);
    }
    let header: Header = memory.load(block)?;
    let file: FileEntry = memory.load(block + HEADER)?;
    Ok((1..=session.count.get()).contains(&header.count.get()) && is_name(&file.compatible))
}

/// Printable letters, and after them nothing but zeros.
fn is_name(bytes: &[u8]) -> bool {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    let (name, rest) = bytes.split_at(length);
    let is_printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    length > 0 && name.iter().all(is_printable) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_sample_is_from_all_over_the_list() {
        let sample = |count: usize, most| evenly((0..count).collect(), most).collect::<Vec<_>>();
        assert_eq!(sample(3, 5), [0, 1, 2]);
        assert_eq!(sample(10, 2), [4, 9]);
        assert_eq!(sample(100, 24).len(), 24);
        assert_eq!(sample(0, 5), [0; 0]);
        assert_eq!(sample(5, 0), [0; 0]);
    }

    #[test]
    fn a_name_is_letters_and_zeros_after_them() {
        assert!(is_name(b"memfd-v2\0\0") && is_name(b"a session\0"));
        for other in [&b"\0\0"[..], b"abc", b"a\0b\0", b"\x01a\0", b""] {
            assert!(!is_name(other), "{other:?}");
        }
    }
}
