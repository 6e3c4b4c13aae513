// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A key-value server that replaces itself on SIGHUP, and loses neither a value nor a connection.
//!
//! `cargo run --example load` starts it, puts it under load, and updates it.
//!
//! `set KEY VALUE` answers `ok`, `get KEY` the value, `updates` the process and the number of
//! updates. Keys and values are numbers, the values are in a memfd. The environment names the rest:
//! SERVER_ADDRESS, SERVER_BYTES, and SERVER_UPDATE, which is `spawn` or `exec`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::{fd::AsFd, unix::fs::FileExt};
use std::{collections::BTreeMap, env, fs::File, sync::Arc, time::Duration};

use luo_handler_api::Token;
use luo_handler_memfd as _;
use luo_handler_socket as _;
use luo_orchestrator::envelope::{self, Versioned};
use luo_orchestrator::transport::{exec, program::Program, spawn};
use luo_orchestrator::{handover::Arrival, orchestrator::Orchestrator, registry::Registry};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::{fallocate, FallocateFlags};
use serde::{Deserialize, Serialize};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const VALUES: Token = Token(1);
const LISTENER: Token = Token(2);
const STATE: Token = Token(3);
const FIRST_CONNECTION: u64 = 16; // and those above it

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

fn main() -> Result<()> {
    // A signal that comes while the next program starts waits until that program looks for it.
    let signals = SigSet::from(Signal::SIGHUP);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let predecessor = spawn::Predecessor::find()?;
    let mut server = match exec::arrive()? {
        Some(arrival) => Server::take_over(arrival)?,
        None => Server::start()?,
    };
    // From here on the old program has ended, and this one serves.
    predecessor.map_or(Ok(()), |predecessor| predecessor.ready())?;
    loop {
        let readable = server.wait(&signals)?;
        if signals.read_signal()?.is_some() {
            // What returns is an update that failed: this program goes on.
            let Err(error) = server.update();
            eprintln!("no update: {error}");
        }
        server.accept();
        for id in readable {
            server.serve(id);
        }
    }
}

impl Server {
    fn start() -> Result<Self> {
        let address = env::var("SERVER_ADDRESS").unwrap_or_else(|_| "127.0.0.1:0".into());
        let bytes: u64 = env::var("SERVER_BYTES").map_or(Ok(1 << 20), |bytes| bytes.parse())?;
        let options = memfd::MemfdOptions::default().allow_sealing(true);
        let values = options.create("values")?;
        fallocate(values.as_file(), FallocateFlags::empty(), 0, bytes)?;
        values.add_seal(memfd::FileSeal::SealGrow)?; // no key comes after the last one
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        println!("listening on {}", listener.local_addr()?);
        Ok(Self {
            values: values.into_file(),
            listener,
            connections: BTreeMap::new(),
            updates: 0,
        })
    }

    /// What the program before this one left.
    fn take_over(arrival: Arrival) -> Result<Self> {
        let update = Orchestrator::arrived(Arc::new(Registry::linked()?), arrival);
        let own = |token| Result::<_>::Ok(update.retrieve(token)?.try_clone()?);
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
    fn update(&self) -> Result<std::convert::Infallible> {
        let update = Orchestrator::new(Arc::new(Registry::linked()?));
        update.preserve(VALUES, &self.values)?;
        update.preserve(LISTENER, &self.listener)?;
        let (updates, mut partial) = (self.updates, BTreeMap::new());
        for (&id, (stream, bytes)) in &self.connections {
            update.preserve(Token(id), stream)?;
            partial.insert(id, bytes.clone());
        }
        let state = envelope::to_memfd(&State { updates, partial })?;
        update.preserve(STATE, &state)?;
        update.prepare()?;
        update.freeze()?;
        let mut arguments = env::args_os();
        let mut program = Program::new(arguments.next().ok_or("no name of a program")?);
        program.args(arguments);
        let deadline = Duration::from_secs(30); // then the new program is killed
        let by_exec = env::var("SERVER_UPDATE").is_ok_and(|transport| transport == "exec");
        update.handover(|handover| match by_exec {
            true => match exec::Departure::new(&handover, &mut program)?.jump()? {},
            false => Result::<_>::Ok(spawn::spawn(&handover, &program, deadline)?.tell_systemd()?),
        })?;
        std::process::exit(0);
    }

    /// Waits for a signal, a new connection, or requests on the connections that it returns.
    fn wait(&self, signals: &SignalFd) -> Result<Vec<u64>> {
        let wanted = |file| PollFd::from_borrowed_fd(file, PollFlags::IN);
        let mut files = vec![wanted(signals.as_fd()), wanted(self.listener.as_fd())];
        let streams = self.connections.values();
        files.extend(streams.map(|(stream, _)| wanted(stream.as_fd())));
        poll(&mut files, None)?;
        let ready = files[2..].iter().map(|file| !file.revents().is_empty());
        let readable = self.connections.keys().zip(ready);
        let readable = readable.filter_map(|(&id, ready)| ready.then_some(id));
        Ok(readable.collect())
    }

    fn accept(&mut self) {
        if let Ok((stream, _)) = self.listener.accept() {
            // Who does not read the answers does not hold the others up for long.
            let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
            let last = self.connections.keys().last();
            let id = last.map_or(FIRST_CONNECTION, |last| last + 1);
            self.connections.insert(id, (stream, Vec::new()));
        }
    }

    /// Answers what is complete; a connection that has ended is not put back.
    fn serve(&mut self, id: u64) -> Option<()> {
        let (mut stream, mut partial) = self.connections.remove(&id)?;
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).ok().filter(|&length| length > 0)?;
        partial.extend_from_slice(&bytes[..length]);
        while let Some(end) = partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            let answer = self.answer(&String::from_utf8_lossy(&line));
            let answer = answer.unwrap_or_else(|error| format!("error: {error}"));
            stream.write_all((answer + "\n").as_bytes()).ok()?;
        }
        (partial.len() <= bytes.len()).then(|| drop(self.connections.insert(id, (stream, partial))))
    }

    fn answer(&self, request: &str) -> Result<String> {
        let words: Vec<&str> = request.split_whitespace().collect();
        let place = |key: &str| key.parse::<u32>().map(|key| u64::from(key) * 8);
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
