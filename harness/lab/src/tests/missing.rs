// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files whose handler the next kernel lacks cost nobody else anything; files under a former name
//! of their format are retrieved.

use std::fs;
use std::os::fd::AsFd;
use std::process::Output;

use anyhow::{ensure, Context, Result};
use rustix::io::Errno;
use serde_json::Value;

use crate::archive::USERS_PROGRAM;
use crate::build::variant::Variant;
use crate::guest::next_kernel::image_of;
use crate::guest::programs::{exit_code, install_shell_commands, program, LUO};
use crate::tests::expect::{expect_errno, expect_lost};
use crate::tests::held_open::HeldOpen;
use crate::tests::incoming::{self, FileEntry};
use crate::tests::memfds::{self, memfd};
use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::ports::{self, REGISTER};
use crate::tests::vfio_client::Client;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::vfio::verify;
use luo_handler_api::Token;
use luo_liveupdate::{sessions, Device};

const SESSIONS: &str = "/sys/kernel/debug/luo_handlers/sessions";
const MIXED: &str = "mixed";
const MEMFD: Workload = memfd(1 << 20, Fill::sparse(3000), 2);
const PORT: Token = Token(1);
const OTHERS: &str = "others";
const OTHER: Workload = memfd(1 << 20, Fill::Dense, 3);

/// A session with a file of ports and a memfd, and one without ports.
pub(crate) fn preserve(held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let session = device.create_session(MIXED)?;
    ports::preserve(&session, PORT, &REGISTER)?;
    memfds::preserve(&session, &[MEMFD])?;
    held.hold(&session)?;
    let session = device.create_session(OTHERS)?;
    memfds::preserve(&session, &[OTHER])?;
    held.hold(&session)?;
    let expected = [
        [MIXED, "0x1", "no"],
        [MIXED, "0x2", "yes"],
        [OTHERS, "0x3", "yes"],
    ];
    expect_check(Variant::Lacking, &expected)
}

/// Before the jump `luo check` reports which file would be lost: session, token and answer of each.
pub(super) fn expect_check(next: Variant, expected: &[[&str; 3]]) -> Result<()> {
    let mut check = program(LUO, &["check", "--json", "--kernel"]);
    let line = "liveupdate=on kho=on";
    check.arg(image_of(next)).args(["--command-line", line]);
    let Output { status, stdout, .. } = check.output().context("starting luo check")?;
    let report: Value = serde_json::from_slice(&stdout).context("luo check printed no JSON")?;
    let files = report["files"].as_array().context("it has no files")?;
    let word = |file: &Value, key: &str| file[key].as_str().unwrap_or_default().to_owned();
    let mut files: Vec<[String; 3]> = files
        .iter()
        .map(|file| ["session", "token", "answer"].map(|key| word(file, key)))
        .collect();
    files.sort_unstable();
    ensure!(
        status.code() == Some(1) && files == expected,
        "luo check ended with {status} and {files:?}"
    );
    Ok(())
}

/// In a kernel without the handler of ports.
pub(crate) fn lose_ports_alone(_held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    expect_shown(" missing luo-handlers,ioport-v1 ", 1)?;
    expect_shown(" waiting luo-handlers,memfd-v1 ", 2)?;
    let session = device.retrieve_session(MIXED)?;
    expect_lost(&session, PORT, Errno::NOENT)?;
    memfds::retrieve(&session, &MEMFD)?;
    session.finish()?;
    drop(session);
    let session = device.retrieve_session(OTHERS)?;
    memfds::retrieve(&session, &OTHER)?;
    expect_shown(" retrieved luo-handlers,memfd-v1 ", 1)?;
    Ok(session.finish()?)
}

const PROGRAMS: &str = "programs";

/// A session of the user's own test program, and one without it.
pub(crate) fn preserve_programs(held: &mut HeldOpen) -> Result<()> {
    install_shell_commands()?;
    let code = exit_code(&mut program(USERS_PROGRAM, &["before", PROGRAMS]))?;
    ensure!(
        code == 0,
        "{USERS_PROGRAM} before {PROGRAMS}: exited with {code}"
    );
    let session = Device::open()?.create_session(OTHERS)?;
    memfds::preserve(&session, &[OTHER])?;
    held.hold(&session)
}

/// In a kernel without the handlers from outside.
pub(crate) fn lose_programs_alone(_held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let shown = sessions::read().context("what sessions hold")?;
    let programs = shown.into_iter().find(|session| session.name == PROGRAMS);
    let files = programs.context("its session did not cross")?.files;
    let (missing, others): (Vec<_>, Vec<_>) =
        files.iter().partition(|file| file.state == "missing");
    ensure!(
        !missing.is_empty(),
        "no file of it is of a handler from outside"
    );
    let session = device.retrieve_session(PROGRAMS)?;
    for file in &missing {
        expect_lost(&session, file.token, Errno::NOENT)?;
    }
    for file in &others {
        session.retrieve(file.token)?;
    }
    session.finish()?;
    drop(session);
    let session = device.retrieve_session(OTHERS)?;
    memfds::retrieve(&session, &OTHER)?;
    Ok(session.finish()?)
}

/// Refuses another number of files in what the module shows of sessions.
fn expect_shown(what: &str, count: usize) -> Result<()> {
    let shown = fs::read_to_string(SESSIONS).with_context(|| format!("reading {SESSIONS}"))?;
    let found = shown.lines().filter(|line| line.contains(what)).count();
    ensure!(
        found == count,
        "{found} files are{what}instead of {count}:\n{shown}"
    );
    Ok(())
}

/// Nothing else in memory begins so.
const NAMES: &str = "luo-lab names of formats";
const FIRST: Token = Token(1);
const FORMER_PORT: Token = Token(0x10);
const FORMER_MEMFD: Workload = memfd(1 << 20, Fill::sparse(3000), 0x11);
/// A memfd as `memfd-v1`, with the `u64` that mainline's handler wrote under this name.
const MAINLINES: Token = Token(0x12);
const FORMER_DEVICE: Token = Token(0x16);
const DEVICE: &str = "0000:00:10.0";
const ENDLESS: Token = Token(0x13);
const UNPRINTABLE: Token = Token(0x14);
const EMPTY: Token = Token(0x15);
/// More than there are stand-ins.
const MANY: std::ops::Range<u64> = 0x100..0x128;

pub(crate) fn preserve_to_rename(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(NAMES)?;
    let others = [FORMER_PORT, MAINLINES, ENDLESS, UNPRINTABLE, EMPTY];
    for token in [FIRST].into_iter().chain(others) {
        ports::preserve(&session, token, &REGISTER)?;
    }
    memfds::preserve(&session, &[FORMER_MEMFD])?;
    session.preserve(FORMER_DEVICE, Client::by_cdev(DEVICE)?.as_fd())?;
    for token in MANY.map(Token) {
        ports::preserve(&session, token, &REGISTER)?;
    }
    held.hold(&session)
}

/// Gives the files of the list other formats, as an older or a hostile kernel would have.
pub(crate) fn retrieve_renamed(_held: &mut HeldOpen) -> Result<()> {
    let memory = PhysicalMemory::open()?;
    for (at, mut entry) in incoming::session_files(&memory, NAMES)? {
        let name: Vec<u8> = match Token(entry.token.get()) {
            FORMER_PORT => b"ioport-v1".into(),
            FORMER_DEVICE => b"vfio-v1".into(),
            Token(token) if token == FORMER_MEMFD.seed => b"memfd-v1".into(),
            MAINLINES => {
                // The address of a page.
                entry.data = 0x1234_5000.into();
                b"memfd-v1".into()
            }
            ENDLESS => [b'x'; 48].into(),
            UNPRINTABLE => b"\x1b[2J\n%s\xff".into(),
            EMPTY => Vec::new(),
            Token(token) if MANY.contains(&token) => format!("kind-{token}").into_bytes(),
            _ => continue,
        };
        entry.compatible = [0; 48];
        entry.compatible[..name.len()].copy_from_slice(&name);
        memory.store::<FileEntry>(at, &entry)?;
    }
    let session = Device::open()?.retrieve_session(NAMES)?;
    for token in [FIRST, FORMER_PORT] {
        ports::retrieve(&session, token, &REGISTER)?;
    }
    memfds::retrieve(&session, &FORMER_MEMFD)?;
    verify(session.retrieve(FORMER_DEVICE)?.as_fd(), DEVICE)?;
    expect_lost(&session, MAINLINES, Errno::NOENT)?;
    expect_shown(" missing ", 3 + MANY.count())?;
    for token in [ENDLESS, UNPRINTABLE, EMPTY]
        .into_iter()
        .chain(MANY.map(Token))
    {
        expect_errno(
            session.retrieve(token),
            Errno::NOENT,
            "a file without a handler",
        )?;
    }
    Ok(session.finish()?)
}
