// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files of `/dev/port`, opened in every way and compared after the jump.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;

use anyhow::{anyhow, ensure, Context, Result};
use luo_handler_api::Token;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::{capabilities, set_capabilities, CapabilitySet};

use crate::tests::expect::expect_errno;
use luo_bench::subject::ioport::PortFile;
use luo_liveupdate::Session;

/// The position after the last port of an x86.
const END: u64 = 1 << 16;
/// The scratch register of the console's UART: it holds any byte, which means nothing.
const SCRATCH: u64 = 0x3ff;

const fn port_file(position: u64, flags: OFlags) -> PortFile {
    PortFile { position, flags }
}

/// One that reads and writes a register.
pub(crate) const REGISTER: PortFile = port_file(SCRATCH, OFlags::RDWR);
/// One for each token.
const FILES: [(Token, PortFile); 4] = [
    (Token(1), REGISTER),
    (Token(2), port_file(0, OFlags::RDONLY)),
    (
        Token(3),
        port_file(END - 1, OFlags::WRONLY.union(OFlags::APPEND)),
    ),
    (
        Token(4),
        port_file(
            END,
            OFlags::RDWR.union(OFlags::NONBLOCK).union(OFlags::APPEND),
        ),
    ),
];

/// It gets its position only after it was prepared.
pub(crate) fn preserve(session: &Session, token: Token, port: &PortFile) -> Result<()> {
    let mut file = port.open().context("opening /dev/port")?;
    session.preserve(token, file.as_fd())?;
    file.seek(SeekFrom::Start(port.position))?;
    Ok(())
}

/// Retrieves it and compares it with one that is newly opened.
pub(crate) fn retrieve(session: &Session, token: Token, port: &PortFile) -> Result<File> {
    let file = File::from(session.retrieve(token)?);
    let verified = port.verify(file.as_fd());
    verified.with_context(|| format!("token {token}"))?;
    Ok(file)
}

pub(crate) fn send(session: &Session) -> Result<()> {
    FILES
        .iter()
        .try_for_each(|(token, port)| preserve(session, *token, port))
}

pub(crate) fn take(session: &Session) -> Result<()> {
    for (token, port) in &FILES {
        retrieve(session, *token, port)?;
    }
    Ok(session.finish()?)
}

/// Writes to a port, and reads it where the file's position is.
pub(crate) fn expect_register(mut file: File) -> Result<()> {
    let (written, mut read) = ([0x5a], [0]);
    file.write_all_at(&written, SCRATCH)?;
    file.read_exact(&mut read)?;
    ensure!(
        read == written,
        "the port reads as {read:#x?} instead of {written:#x?}"
    );
    Ok(())
}

/// Tokens of files that are retrieved without and with the right to use ports.
const UNPRIVILEGED: Token = Token(1);
const PRIVILEGED: Token = Token(2);

pub(crate) fn send_two(session: &Session) -> Result<()> {
    preserve(session, UNPRIVILEGED, &REGISTER)?;
    preserve(session, PRIVILEGED, &REGISTER)
}

pub(crate) fn take_unprivileged(session: &Session) -> Result<()> {
    let refuse = || {
        drop_capability(CapabilitySet::SYS_RAWIO)?;
        anyhow::Ok(session.retrieve(UNPRIVILEGED))
    };
    // Capabilities are a thread's own, and so the right stays with the others.
    let refused = thread::scope(|scope| scope.spawn(refuse).join());
    let refused = refused.map_err(|_| anyhow!("the thread without the right panicked"))??;
    expect_errno(refused, Errno::PERM, "retrieving without the right")?;
    expect_errno(
        session.retrieve(UNPRIVILEGED),
        Errno::PERM,
        "retrieving it again",
    )?;
    retrieve(session, PRIVILEGED, &REGISTER)?;
    Ok(session.finish()?)
}

fn drop_capability(capability: CapabilitySet) -> Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective.remove(capability);
    set_capabilities(None, sets).context("giving a capability up")
}

pub(crate) fn refuse_far(session: &Session) -> Result<()> {
    let mut far = REGISTER.open()?;
    far.seek(SeekFrom::Start(END + 1))?;
    expect_errno(
        session.preserve(Token(1), far.as_fd()),
        Errno::OPNOTSUPP,
        "preserving a position after the last port",
    )
}
