// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A key-value server that replaces itself on SIGHUP, and loses neither a value nor a connection.
//!
//!     cargo run --example server          # and in another terminal:
//!     cargo run --example load -- --help
//!
//! `set KEY VALUE` answers `ok`, `get KEY` the value, `updates` the process and how many updates
//! there were. Keys and values are numbers; the values are in a memfd, eight bytes each. The
//! environment names the rest: SERVER_ADDRESS, SERVER_BYTES, and SERVER_UPDATE, which is `spawn` or
//! `exec`.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use luo_handler_api::Token;
use luo_handler_memfd as _;
use luo_handler_socket as _;
use luo_orchestrator::envelope::{self, Versioned};
use luo_orchestrator::handover::Arrival;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::exec;
use luo_orchestrator::transport::program::Program;
use luo_orchestrator::transport::spawn::{self, Predecessor};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{poll, PollFd, PollFlags};
use serde::{Deserialize, Serialize};

type Error = Box<dyn std::error::Error>;
type Result<T> = std::result::Result<T, Error>;

const VALUES: Token = Token(1);
const LISTENER: Token = Token(2);
const STATE: Token = Token(3);
/// Connections have this token and those above it.
const FIRST_CONNECTION: u64 = 16;
/// A new program that is not ready by then is killed, and this one goes on.
const DEADLINE: Duration = Duration::from_secs(30);

struct Server {
    values: File,
    listener: TcpListener,
    /// With what was read of a request that is not complete.
    connections: BTreeMap<u64, (TcpStream, Vec<u8>)>,
    updates: u64,
}

/// What is neither in the memfd nor in the kernel.
#[derive(Serialize, Deserialize)]
struct State {
    updates: u64,
    partial: BTreeMap<u64, Vec<u8>>,
}

impl Versioned for State {
    const NAME: &'static str = "server";
    const VERSION: u32 = 1;
}

/// Runs until it is killed.
pub fn main() -> Result<()> {
    // A signal that comes while the next program starts waits until that program looks for it.
    let signals = SigSet::from(Signal::SIGHUP);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let predecessor = Predecessor::find()?;
    let mut server = match exec::arrive()? {
        Some(arrival) => Server::take_over(arrival)?,
        None => Server::start()?,
    };
    if let Some(predecessor) = predecessor {
        predecessor.ready()?; // the old program has ended, and this one may serve
    }
    loop {
        let (has_signal, has_connection, readable) = server.wait(&signals)?;
        if has_signal && signals.read_signal()?.is_some() {
            // If this returns, the update failed, and this program goes on.
            if let Err(error) = server.update() {
                eprintln!("no update: {error}");
            }
        }
        if has_connection {
            server.accept();
        }
        readable.into_iter().for_each(|id| server.serve(id));
    }
}

impl Server {
    fn start() -> Result<Self> {
        let address = env::var("SERVER_ADDRESS").unwrap_or_else(|_| "127.0.0.1:0".into());
        let bytes: u64 = env::var("SERVER_BYTES").map_or(Ok(1 << 20), |bytes| bytes.parse())?;
        let values = memfd::MemfdOptions::default().create("values")?.into_file();
        rustix::fs::fallocate(&values, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        println!("listening on {}", listener.local_addr()?);
        let (connections, updates) = (BTreeMap::new(), 0);
        Ok(Self {
            values,
            listener,
            connections,
            updates,
        })
    }

    /// What the program before this one left.
    fn take_over(arrival: Arrival) -> Result<Self> {
        let update = Orchestrator::arrived(Arc::new(Registry::linked()?), arrival);
        let own = |token| Ok::<_, Error>(update.retrieve(token)?.try_clone()?);
        let state: State = envelope::from_file(own(STATE)?)?;
        let mut connections = BTreeMap::new();
        for (id, partial) in state.partial {
            connections.insert(id, (own(Token(id))?.into(), partial));
        }
        let server = Self {
            values: own(VALUES)?.into(),
            listener: own(LISTENER)?.into(),
            connections,
            updates: state.updates + 1,
        };
        update.finish()?;
        Ok(server)
    }

    /// Becomes the program in this one's file, which may be another one by now.
    fn update(&self) -> Result<()> {
        let update = Orchestrator::new(Arc::new(Registry::linked()?));
        update.preserve(VALUES, &self.values)?;
        update.preserve(LISTENER, &self.listener)?;
        let mut partial = BTreeMap::new();
        for (&id, (stream, bytes)) in &self.connections {
            update.preserve(Token(id), stream)?;
            partial.insert(id, bytes.clone());
        }
        let updates = self.updates;
        let state = envelope::to_memfd(&State { updates, partial })?;
        update.preserve(STATE, &state)?;
        update.prepare()?;
        update.freeze()?;
        let mut arguments = env::args_os();
        let mut program = Program::new(arguments.next().ok_or("no name of a program")?);
        program.args(arguments);
        let by_exec = env::var("SERVER_UPDATE").is_ok_and(|transport| transport == "exec");
        update.handover(|handover| match by_exec {
            true => match exec::Departure::new(&handover, &mut program)?.jump()? {},
            false => Ok::<_, Error>(spawn::spawn(&handover, &program, DEADLINE)?.tell_systemd()?),
        })?;
        update.depart();
        std::process::exit(0);
    }

    /// Waits for something to do: a signal, a new connection, requests.
    fn wait(&self, signals: &SignalFd) -> Result<(bool, bool, Vec<u64>)> {
        let mut files = vec![
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let streams = self.connections.values();
        files.extend(streams.map(|(stream, _)| PollFd::new(stream, PollFlags::IN)));
        poll(&mut files, None)?;
        let ready = |file: &PollFd<'_>| !file.revents().is_empty();
        let readable = self.connections.keys().zip(&files[2..]);
        let readable = readable.filter(|(_, file)| ready(file)).map(|(&id, _)| id);
        Ok((ready(&files[0]), ready(&files[1]), readable.collect()))
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else {
            return; // it was closed meanwhile
        };
        // Who does not read the answers does not hold the others up for long.
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let last = self.connections.last_key_value();
        let id = last.map_or(FIRST_CONNECTION, |(last, _)| last + 1);
        self.connections.insert(id, (stream, Vec::new()));
    }

    /// Answers what is complete, and closes a connection that has ended.
    fn serve(&mut self, id: u64) {
        let Some((mut stream, mut partial)) = self.connections.remove(&id) else {
            return;
        };
        let mut bytes = [0; 4096];
        let Ok(length @ 1..) = stream.read(&mut bytes) else {
            return;
        };
        partial.extend_from_slice(&bytes[..length]);
        while let Some(end) = partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            let answer = self.answer(&String::from_utf8_lossy(&line));
            let answer = answer.unwrap_or_else(|error| format!("error: {error}"));
            if stream.write_all((answer + "\n").as_bytes()).is_err() {
                return;
            }
        }
        if partial.len() <= bytes.len() {
            self.connections.insert(id, (stream, partial));
        }
    }

    fn answer(&self, request: &str) -> Result<String> {
        let words: Vec<&str> = request.split_whitespace().collect();
        let places = self.values.metadata()?.len() / 8;
        let place = |key: &str| {
            let key = key.parse().ok().filter(|&key: &u64| key < places);
            key.map(|key| key * 8).ok_or("no such key")
        };
        match words[..] {
            ["set", key, value] => {
                let value = value.parse::<u64>()?.to_le_bytes();
                self.values.write_all_at(&value, place(key)?)?;
                Ok("ok".into())
            }
            ["get", key] => {
                let mut value = [0; 8];
                self.values.read_exact_at(&mut value, place(key)?)?;
                Ok(u64::from_le_bytes(value).to_string())
            }
            ["updates"] => Ok(format!("{} {}", std::process::id(), self.updates)),
            _ => Err("expected set KEY VALUE, get KEY or updates".into()),
        }
    }
}
