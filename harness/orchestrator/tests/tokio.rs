// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A server on tokio, with a runtime of several threads, is updated by exec: what the guide says on
//! async runtimes, done.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use luo_handler_api::Token;
use luo_handler_memfd as _;
use luo_handler_socket as _;
use luo_orchestrator::envelope::{self, Versioned};
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::{exec, program::Program};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const TASK: &str = "LUO_TEST_TASK";
const LISTENER: Token = Token(0);
const STATE: Token = Token(1);
const FIRST_CONNECTION: u64 = 2;

#[derive(Default, Serialize, Deserialize)]
struct State {
    updates: u64,
    partial: BTreeMap<u64, Vec<u8>>,
}

impl Versioned for State {
    const NAME: &'static str = "tokio";
    const VERSION: u32 = 1;
}

/// A connection, and what was read of a line that is not complete.
type Connection = (net::TcpStream, Vec<u8>);

#[test]
#[ignore = "other tests start it"]
fn server() {
    if std::env::var(TASK).as_deref() != Ok("server") {
        return;
    }
    // Before the runtime starts its threads, which inherit the mask.
    let signals = SigSet::from(Signal::SIGHUP);
    signals.thread_block().unwrap();
    let (listener, connections, updates) = take_over();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let serving = serve(listener, connections, updates, signals);
    let (listener, connections) = runtime.block_on(serving);
    // No task is left, and now no thread: everything stands still.
    drop(runtime);
    update(listener, connections, updates);
}

fn take_over() -> (net::TcpListener, Vec<Connection>, u64) {
    let Some(arrival) = exec::arrive().unwrap() else {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        println!("\nlistening on {}", listener.local_addr().unwrap());
        return (listener, Vec::new(), 0);
    };
    let update = Orchestrator::arrived(Arc::new(Registry::linked().unwrap()), arrival);
    let own = |token| update.retrieve(token).unwrap().try_clone().unwrap();
    let state: State = envelope::from_file(own(STATE)).unwrap();
    let connections = state.partial.into_iter();
    let connections = connections
        .map(|(id, partial)| (own(Token(id)).into(), partial))
        .collect();
    let listener = own(LISTENER).into();
    update.finish().unwrap();
    (listener, connections, state.updates + 1)
}

/// Serves until the signal comes; then no task holds a socket any more.
async fn serve(
    listener: net::TcpListener,
    connections: Vec<Connection>,
    updates: u64,
    signals: SigSet,
) -> (net::TcpListener, Vec<Connection>) {
    let mut signal = tokio::task::spawn_blocking(move || signals.wait());
    // O_NONBLOCK belongs to the open socket, and so it crossed.
    let listener = TcpListener::from_std(listener).unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for (stream, partial) in connections {
        let stream = TcpStream::from_std(stream).unwrap();
        tasks.spawn(connection(stream, partial, updates, stopped.clone()));
    }
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let stream = accepted.unwrap().0;
                tasks.spawn(connection(stream, Vec::new(), updates, stopped.clone()));
            }
            signal = &mut signal => {
                assert_eq!(signal.unwrap(), Ok(Signal::SIGHUP));
                break;
            }
        }
    }
    stop.send(true).unwrap();
    let left = tasks.join_all().await.into_iter().flatten();
    let left = left.map(|(stream, partial)| (stream.into_std().unwrap(), partial));
    (listener.into_std().unwrap(), left.collect())
}

/// Answers each line with the number of updates and the line.
async fn connection(
    mut stream: TcpStream,
    mut partial: Vec<u8>,
    updates: u64,
    mut stopped: watch::Receiver<bool>,
) -> Option<(TcpStream, Vec<u8>)> {
    loop {
        while let Some(end) = partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            let answer = [format!("{updates} ").as_bytes(), &line].concat();
            stream.write_all(&answer).await.ok()?;
        }
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return Some((stream, partial)),
            read = stream.read_buf(&mut partial) => {
                if read.ok()? == 0 {
                    return None;
                }
            }
        }
    }
}

fn update(listener: net::TcpListener, connections: Vec<Connection>, updates: u64) {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    update.preserve(LISTENER, &listener).unwrap();
    let mut state = State {
        updates,
        ..State::default()
    };
    for ((stream, partial), id) in connections.iter().zip(FIRST_CONNECTION..) {
        update.preserve(Token(id), stream).unwrap();
        state.partial.insert(id, partial.clone());
    }
    let state = envelope::to_memfd(&state).unwrap();
    update.preserve(STATE, &state).unwrap();
    update.prepare().unwrap();
    update.freeze().unwrap();
    let mut program = Program::new(std::env::current_exe().unwrap());
    program.args(std::env::args_os().skip(1));
    let failed = update.handover(|handover| {
        exec::Departure::new(&handover, &mut program)?.jump()?;
        Ok::<_, Box<dyn std::error::Error>>(())
    });
    panic!("the exec failed: {failed:?}");
}

#[test]
fn a_server_on_tokio_is_updated_under_its_connections() {
    // The server's main thread is not the one of its test; it inherits the mask from here.
    SigSet::from(Signal::SIGHUP).thread_block().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "server",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(TASK, "server")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("listening on ") {
        line.clear();
        assert_ne!(printed.read_line(&mut line).unwrap(), 0, "the server ended");
    }
    let address: net::SocketAddr = line["listening on ".len()..].trim().parse().unwrap();
    let connect = || {
        let stream = net::TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        BufReader::new(stream)
    };
    let ask = |client: &mut BufReader<net::TcpStream>, text: &str| {
        client.get_mut().write_all(text.as_bytes()).unwrap();
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        line
    };
    let mut clients: Vec<_> = (0..8).map(|_| connect()).collect();
    let process = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    for updates in 0..10 {
        for client in &mut clients {
            let answer = ask(client, "whole\nhalf ");
            assert_eq!(answer, format!("{updates} whole\n"));
        }
        rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
        for client in &mut clients {
            // Nobody knows which of the two programs answers, but one does, and with the whole
            // line.
            let answer = ask(client, "line\n");
            let (by, line) = answer.split_once(' ').unwrap();
            assert_eq!(line, "half line\n");
            assert!(
                [updates, updates + 1].contains(&by.parse::<u64>().unwrap()),
                "{answer}"
            );
        }
        while ask(&mut clients[0], "again\n") != format!("{} again\n", updates + 1) {}
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
