// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Forges what every handler preserved, whatever its record looks like: bytes flipped, lengths cut,
//! bits of the `u64` flipped, with the checksum wrong and right; and numbers that lead to the
//! kernel's own list of the files.
//!
//! A record with a wrong checksum has to be refused. For the rest the verdict is the kernel's: it
//! must not report anything, and everything comes to its end.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::os::fd::AsFd;

use anyhow::{bail, ensure, Context, Result};
use zerocopy::little_endian::U64;

use crate::archive::USERS_PROGRAM;
use crate::guest::programs::{exit_code, install_shell_commands, program};
use crate::tests::held_open::HeldOpen;
use crate::tests::incoming::{sessions, FileEntry};
use crate::tests::memfds::memfd;
use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::ports;
use crate::tests::records::{handle_of, memory_of};
use crate::tests::vfio_client::Client;
use crate::vm::machine::VFIO_DEVICES;
use luo_bench::subject::fill::Fill;
use luo_handler_api::{record, Token};
use luo_liveupdate::{Device, Session};

/// The first session; nothing else in memory begins so.
const MARKER: &str = "luo-lab forged bytes";
const OURS: &str = "forged";
/// Files of each type, of which one is left as it is.
const FILES: u64 = 42;

/// What is done to one file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Forgery {
    /// Nothing.
    Sound,
    /// To a byte of its record.
    Flip { at: usize, flip: u8, sign: bool },
    /// To the record's length.
    Cut { length: usize, sign: bool },
    /// To a bit of the `u64` itself.
    Bit(u32),
    /// To the `u64` itself, or to 8 bytes of a record, signed: they lead to the kernel's list that
    /// names the file.
    List { at: Option<usize> },
}

use Forgery::{Bit, Cut, Flip, List, Sound};

impl Forgery {
    /// The one with this number, from 0 on, to a record of `length` bytes: of each kind some, and
    /// all over the record.
    fn numbered(number: usize, length: Option<usize>) -> Self {
        let bit = Bit((number * 23 % 64) as u32);
        let Some(length) = length.filter(|length| *length > 0) else {
            return match number % 6 {
                0 => List { at: None },
                _ => bit,
            };
        };
        // Multiples of the golden section are spread evenly, however many there are.
        let spread = |number: usize, over: usize| (number * 40_503 % 65_536) * over / 65_536;
        let place = spread(number, length);
        let words = (length / 4).saturating_sub(record::PREFIX / 4 + 1);
        let flip = match number % 4 {
            0 => 0xff,
            _ => 1 << (number % 8),
        };
        match number % 7 {
            0 | 1 => Flip {
                at: place,
                flip,
                sign: false,
            },
            2 | 3 => Flip {
                at: place,
                flip,
                sign: true,
            },
            4 => Cut {
                length: place,
                sign: number.is_multiple_of(2),
            },
            5 if number % 2 == 1 => bit,
            6 if words > 0 => List {
                at: Some(record::PREFIX + 4 * spread(number / 7, words)),
            },
            _ => List { at: None },
        }
    }

    /// Whether a record that was signed is not any more.
    const fn breaks_checksum(self) -> bool {
        matches!(self, Flip { sign: false, .. } | Cut { sign: false, .. })
    }
}

/// A record where it is in memory.
struct Record {
    at: u64,
    bytes: Vec<u8>,
    is_signed: bool,
}

/// The one that a handle leads to. `None` for any other number.
fn find_record(memory: &PhysicalMemory, ram: &[Range<u64>], data: u64) -> Result<Option<Record>> {
    let (at, length) = memory_of(data);
    let end = at.saturating_add(length);
    if length == 0
        || !ram
            .iter()
            .any(|range| range.start <= at && end <= range.end)
    {
        return Ok(None);
    }
    let bytes = memory.load_bytes(at, length as usize)?;
    let mut signed = bytes.clone();
    let is_signed = record::sign(&mut signed).is_ok() && signed == bytes;
    Ok(Some(Record {
        at,
        bytes,
        is_signed,
    }))
}

/// A file that came in, and what was done to it.
struct Forged {
    session: String,
    token: Token,
    compatible: String,
    forgery: Forgery,
    /// It has to be refused.
    is_broken: bool,
}

impl fmt::Display for Forged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            session,
            token,
            compatible,
            forgery,
            ..
        } = self;
        write!(
            f,
            "{compatible}, session {session}, token {token}: {forgery:?}"
        )
    }
}

/// Changes the record of a file, or its `u64` in the list of the kernel.
fn forge(
    memory: &PhysicalMemory,
    (at, mut entry): (u64, FileEntry),
    record: Option<Record>,
    forgery: Forgery,
) -> Result<()> {
    let data = entry.data.get();
    // As long as what it stands for.
    let list = |handle| handle_of(at, memory_of(handle).1.max(1));
    let data = match (forgery, record) {
        (Flip { at, flip, sign }, Some(mut record)) => {
            record.bytes[at] ^= flip;
            if sign {
                // One that is too short for a checksum has none.
                let _ = record::sign(&mut record.bytes);
            }
            memory.store(record.at, &record.bytes[..])?;
            data
        }
        (Cut { length, sign }, Some(mut record)) => {
            record.bytes.truncate(length);
            if sign {
                let _ = record::sign(&mut record.bytes);
            }
            memory.store(record.at, &record.bytes[..])?;
            data & !0xff_ffff | length as u64
        }
        (Bit(bit), _) => data ^ 1 << bit,
        (List { at: Some(place) }, Some(mut record)) => {
            let bytes = &mut record.bytes[place..place + 8];
            let old = bytes.try_into().map(u64::from_le_bytes)?;
            bytes.copy_from_slice(&list(old).to_le_bytes());
            record::sign(&mut record.bytes)?;
            memory.store(record.at, &record.bytes[..])?;
            data
        }
        (List { .. }, _) => list(data),
        _ => data,
    };
    entry.data = U64::new(data);
    memory.store(at, &entry)
}

/// Changes all files that came in but the first of each handler.
fn forge_all() -> Result<Vec<Forged>> {
    let memory = PhysicalMemory::open()?;
    let ram = memory.ranges()?;
    let mut forged = Vec::new();
    let mut numbers = BTreeMap::<String, usize>::new();
    for session in sessions(&memory, MARKER)? {
        for (at, entry) in session.files(&memory)? {
            let compatible = entry.compatible();
            let number = numbers.entry(compatible.clone()).or_default();
            let record = find_record(&memory, &ram, entry.data.get())?;
            let length = record.as_ref().map(|record| record.bytes.len());
            let forgery = match number.checked_sub(1) {
                Some(number) => Forgery::numbered(number, length),
                None => Sound,
            };
            *number += 1;
            let is_signed = record.as_ref().is_some_and(|record| record.is_signed);
            forged.push(Forged {
                session: session.name()?.into(),
                token: Token(entry.token.get()),
                compatible,
                forgery,
                is_broken: is_signed && forgery.breaks_checksum(),
            });
            forge(&memory, (at, entry), record, forgery)?;
        }
    }
    for (compatible, number) in &numbers {
        println!("luo: {} files of {compatible} are forged", number - 1);
        ensure!(*number > 1, "there is one file of {compatible} alone");
    }
    ensure!(!numbers.is_empty(), "no file has crossed");
    Ok(forged)
}

/// Asks for everything, and finishes all sessions.
fn take_all() -> Result<()> {
    let forged = forge_all()?;
    let device = Device::open()?;
    let mut sessions = BTreeMap::<&str, Session>::new();
    for name in forged.iter().map(|forged| forged.session.as_str()) {
        if !sessions.contains_key(name) {
            sessions.insert(name, device.retrieve_session(name)?);
        }
    }
    let retrieve = |forged: &Forged| {
        let session = sessions.get(forged.session.as_str());
        let session = session.context("a session that is not there")?;
        anyhow::Ok(session.retrieve(forged.token))
    };
    // Those that are refused do no harm to the sound ones; what comes after that may be any file.
    for forged in forged.iter().filter(|forged| forged.is_broken) {
        if retrieve(forged)?.is_ok() {
            bail!("a record with a wrong checksum is not refused: {forged}");
        }
    }
    for forged in forged.iter().filter(|forged| forged.forgery == Sound) {
        retrieve(forged)?.with_context(|| forged.to_string())?;
    }
    for forged in &forged {
        if !forged.is_broken && forged.forgery != Sound {
            drop(retrieve(forged)?);
        }
    }
    for (name, session) in &sessions {
        session
            .finish()
            .with_context(|| format!("session {name}"))?;
    }
    Ok(())
}

/// Ports, memfds and devices.
pub(crate) fn preserve_all(held: &mut HeldOpen) -> Result<()> {
    let luo = Device::open()?;
    held.hold(&luo.create_session(MARKER)?)?;
    let session = luo.create_session(OURS)?;
    for number in 0..FILES {
        ports::preserve(&session, Token(number), &ports::REGISTER)?;
        let file = memfd(64 << 10, Fill::sparse(500), number).make(|_| ())?;
        session.preserve(Token(FILES + number), file.as_fd())?;
    }
    for (address, token) in VFIO_DEVICES.into_iter().zip(2 * FILES..) {
        session.preserve(Token(token), Client::by_cdev(address)?.as_fd())?;
    }
    held.hold(&session)
}

pub(crate) fn refuse_all(_held: &mut HeldOpen) -> Result<()> {
    take_all()?;
    // Nobody holds a device any more.
    for address in VFIO_DEVICES {
        Client::by_cdev(address)?;
    }
    Ok(())
}

/// The files of the user's own test program, which is run many times.
pub(crate) fn preserve_programs(held: &mut HeldOpen) -> Result<()> {
    install_shell_commands()?;
    held.hold(&Device::open()?.create_session(MARKER)?)?;
    for number in 0..FILES {
        let session = format!("{OURS}-{number}");
        let code = exit_code(&mut program(USERS_PROGRAM, &["before", &session]))?;
        ensure!(
            code == 0,
            "{USERS_PROGRAM} before {session}: exited with {code}. It is run {FILES} times, and \
             has to call its session by its second argument"
        );
    }
    Ok(())
}

pub(crate) fn refuse_programs(_held: &mut HeldOpen) -> Result<()> {
    take_all()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn forgeries_are_of_every_kind_and_all_over_the_record() {
        let forgeries = |length| (0..41).map(move |number| Forgery::numbered(number, length));
        for length in [1, 17, 368, 5000] {
            let mut places = Vec::new();
            let mut kinds = [0; 6];
            for forgery in forgeries(Some(length)) {
                let kind = match forgery {
                    Sound => panic!("nothing is done"),
                    Flip { at, flip, sign } => {
                        assert!(at < length && flip != 0);
                        places.push(at * 8 / length);
                        usize::from(sign)
                    }
                    Cut { length: to, sign } => {
                        assert!(to < length);
                        2 + usize::from(sign)
                    }
                    Bit(bit) => {
                        assert!(bit < 64);
                        4
                    }
                    List { at } => {
                        assert!(at.is_none_or(|at| at + 8 <= length));
                        5
                    }
                };
                kinds[kind] += 1;
            }
            assert!(kinds.iter().all(|count| *count >= 3), "{kinds:?}");
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), length.min(8));
        }
        for length in [None, Some(0)] {
            assert!(forgeries(length).all(|forgery| matches!(forgery, Bit(_) | List { at: None })));
        }
    }
}
