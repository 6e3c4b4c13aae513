// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Load for the server: clients that write and check, connections that sit on half a request, and
//! updates under all of it. Counts what was lost.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{kill_process, test_kill_process, Pid, Signal};

/// Longer than any answer takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Keys of one client.
const KEYS: u64 = 1000;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `exec` or `spawn`.
    pub by: &'static str,
    /// Bytes of the server's memfd.
    pub bytes: u64,
    /// Updates.
    pub updates: usize,
    /// Clients that write all the time.
    pub clients: u64,
    /// Connections with half a request each.
    pub idle: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Writes that the server acknowledged.
    pub writes: u64,
    /// Acknowledged writes that were not there later.
    pub lost: u64,
    /// Requests that failed, or got a wrong answer.
    pub errors: u64,
    /// Connections that had to be made again.
    pub reconnects: u64,
    /// The longest that a client waited for an answer around each update, in ascending order.
    pub stalls: Vec<Duration>,
    /// The longest that a client waited before the first update.
    pub longest_without: Duration,
    /// Open descriptors of the server after the first update and after the last one.
    pub descriptors: [usize; 2],
    /// Its resident memory in KiB, likewise.
    pub memory: [u64; 2],
    /// Processes that were the server once and still run.
    pub left_behind: usize,
}

impl Outcome {
    /// The stall that this share of the updates does not exceed.
    pub fn stall(&self, share: f64) -> Duration {
        let last = self.stalls.len().saturating_sub(1);
        let place = (last as f64 * share).ceil() as usize;
        self.stalls.get(place).copied().unwrap_or_default()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{:>3} updates  stall p50 {:>7.1} ms  p99 {:>7.1} ms  max {:>7.1} ms  (without: \
             {:.1} ms)  {} writes  {} lost  {} errors  {} reconnects",
            self.stalls.len(),
            ms(self.stall(0.5)),
            ms(self.stall(0.99)),
            ms(self.stall(1.0)),
            ms(self.longest_without),
            self.writes,
            self.lost,
            self.errors,
            self.reconnects,
        )
    }
}

/// Counters that all clients share.
#[derive(Default)]
struct Counters {
    is_over: AtomicBool,
    writes: AtomicU64,
    lost: AtomicU64,
    errors: AtomicU64,
    reconnects: AtomicU64,
    /// Updates that were asked for.
    update: AtomicUsize,
    /// The longest wait since each update, in nanoseconds.
    stalls: Vec<AtomicU64>,
}

/// One connection to the server.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes())
    }

    fn receive(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn ask(&mut self, request: &str) -> io::Result<String> {
        self.send(&format!("{request}\n"))?;
        self.receive()
    }
}

/// Starts `server`, and follows the plan.
///
/// # Errors
///
/// Those of starting the server, and of its control connection; what happens to a client is
/// counted.
pub fn run(plan: &Plan, mut server: Command) -> io::Result<Outcome> {
    server
        .env("SERVER_UPDATE", plan.by)
        .env("SERVER_BYTES", plan.bytes.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = server.spawn()?;
    let outcome = drive(plan, &mut child);
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

fn drive(plan: &Plan, child: &mut Child) -> io::Result<Outcome> {
    let mut printed = BufReader::new(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
    let address = address(&mut printed)?;
    // Later programs print as well: to a pipe that is full they would wait.
    std::thread::spawn(move || io::copy(&mut printed, &mut io::sink()));
    let mut control = Client::connect(address)?;
    let mut idle = Vec::new();
    for key in 0..plan.idle {
        let mut client = Client::connect(address)?;
        client.send(&format!("set {} 12", key + plan.clients * KEYS))?;
        idle.push(client);
    }
    let clients = (0..plan.clients).map(|_| Client::connect(address));
    let clients: Vec<Client> = clients.collect::<io::Result<_>>()?;
    let counters = Counters {
        stalls: (0..=plan.updates).map(|_| AtomicU64::new(0)).collect(),
        ..Counters::default()
    };
    let mut outcome = std::thread::scope(|scope| {
        for (client, number) in clients.into_iter().zip(0..) {
            let counters = &counters;
            scope.spawn(move || work(client, number, address, counters));
        }
        let outcome = update(plan, &mut control, child.id(), &counters);
        counters.is_over.store(true, Relaxed);
        outcome
    })?;
    for (client, key) in idle.iter_mut().zip(plan.clients * KEYS..) {
        let finished = client
            .ask("34")
            .and_then(|_| client.ask(&format!("get {key}")));
        if finished.ok().as_deref() != Some("1234") {
            counters.errors.fetch_add(1, Relaxed);
        }
    }
    outcome.writes = counters.writes.load(Relaxed);
    outcome.lost = counters.lost.load(Relaxed);
    outcome.errors = counters.errors.load(Relaxed);
    outcome.reconnects = counters.reconnects.load(Relaxed);
    let stalls = counters
        .stalls
        .iter()
        .map(|stall| Duration::from_nanos(stall.load(Relaxed)));
    outcome.stalls = stalls.collect();
    outcome.longest_without = outcome.stalls.remove(0);
    outcome.stalls.sort();
    let (last, _) = status(&mut control)?;
    kill(last, Signal::KILL)?;
    Ok(outcome)
}

fn address(printed: &mut impl BufRead) -> io::Result<SocketAddr> {
    for line in printed.lines() {
        if let Some((_, address)) = line?.split_once("listening on ") {
            return address.parse().map_err(io::Error::other);
        }
    }
    Err(io::Error::other("the server ended before it listened"))
}

/// The server's process, and how many updates there were.
fn status(control: &mut Client) -> io::Result<(u32, usize)> {
    let answer = control.ask("updates")?;
    let (process, updates) = answer.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
    let numbers = process.parse().ok().zip(updates.parse().ok());
    numbers.ok_or(io::ErrorKind::InvalidData.into())
}

/// Updates the server, one time after the other.
fn update(
    plan: &Plan,
    control: &mut Client,
    first: u32,
    counters: &Counters,
) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut processes = vec![first];
    for number in 1..=plan.updates {
        std::thread::sleep(Duration::from_millis(50));
        let (process, before) = status(control)?;
        counters.update.store(number, Relaxed);
        kill(process, Signal::HUP)?;
        let deadline = Instant::now() + DEADLINE;
        let process = loop {
            let (process, after) = status(control)?;
            if after > before {
                break process;
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("update {number} did not come")));
            }
        };
        if !processes.contains(&process) {
            processes.push(process);
        }
        if number == 1 || number == plan.updates {
            let place = usize::from(number == plan.updates);
            outcome.descriptors[place] = descriptors(process)?;
            outcome.memory[place] = memory(process)?;
        }
    }
    // The one before the last may be about to end still.
    let deadline = Instant::now() + Duration::from_secs(5);
    let others = &processes[..processes.len() - 1];
    while others.iter().any(|process| runs(*process)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    outcome.left_behind = others.iter().filter(|process| runs(**process)).count();
    Ok(outcome)
}

/// One client: writes keys of its own in turn, and reads back what it wrote before.
fn work(mut client: Client, number: u64, address: SocketAddr, counters: &Counters) {
    let mut written: HashMap<u64, u64> = HashMap::new();
    let again = |client: &mut Client| {
        counters.errors.fetch_add(1, Relaxed);
        counters.reconnects.fetch_add(1, Relaxed);
        if let Ok(new) = Client::connect(address) {
            *client = new;
        }
    };
    let mut value = 0;
    while !counters.is_over.load(Relaxed) {
        value += 1;
        let key = number * KEYS + value % KEYS;
        let start = Instant::now();
        let answer = client.ask(&format!("set {key} {value}"));
        let waited = start.elapsed().as_nanos() as u64;
        counters.stalls[counters.update.load(Relaxed)].fetch_max(waited, Relaxed);
        match answer.as_deref() {
            Ok("ok") => {
                counters.writes.fetch_add(1, Relaxed);
                written.insert(key, value);
            }
            _ => again(&mut client),
        }
        if value % 8 == 0 {
            check(
                &mut client,
                &written,
                number * KEYS + value / 8 % KEYS,
                counters,
            );
        }
    }
    for key in written.keys() {
        check(&mut client, &written, *key, counters);
    }
}

/// What was acknowledged is there.
fn check(client: &mut Client, written: &HashMap<u64, u64>, key: u64, counters: &Counters) {
    let Some(value) = written.get(&key) else {
        return;
    };
    match client.ask(&format!("get {key}")) {
        Ok(answer) if answer == value.to_string() => {}
        Ok(_) => drop(counters.lost.fetch_add(1, Relaxed)),
        Err(_) => drop(counters.errors.fetch_add(1, Relaxed)),
    }
}

fn pid(process: u32) -> io::Result<Pid> {
    let number = i32::try_from(process).ok().and_then(Pid::from_raw);
    number.ok_or(io::ErrorKind::InvalidData.into())
}

fn kill(process: u32, signal: Signal) -> io::Result<()> {
    Ok(kill_process(pid(process)?, signal)?)
}

/// Whether a process runs; one that ended and that nobody waited for does not.
fn runs(process: u32) -> bool {
    let there = pid(process).is_ok_and(|pid| test_kill_process(pid).is_ok());
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    there && !status.contains("State:\tZ")
}

fn descriptors(process: u32) -> io::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{process}/fd"))?.count())
}

/// Resident memory in KiB.
fn memory(process: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or(io::ErrorKind::InvalidData.into())
}
