// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The table of the guide, done: what each kind of broken new program costs with each transport.

#[path = "support/manager.rs"]
mod manager;
mod support;

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use luo_handler_api::Token;
use luo_handler_memfd as _;
use luo_orchestrator::handover::{Arrival, Handover};
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::fdstore::FdStore;
use luo_orchestrator::transport::program::Program;
use luo_orchestrator::transport::{exec, image, spawn};
use manager::Manager;
use nix::unistd::execve;
use support::{contents, memfd};

type Anything = Box<dyn std::error::Error>;

/// What a process of this program is to do.
const TASK: &str = "LUO_TEST_TASK";
/// The program that an old side becomes.
const NEXT: &str = "LUO_TEST_NEXT";
/// What that one is to do.
const NEXT_TASK: &str = "LUO_TEST_NEXT_TASK";
/// Where an image is.
const DIRECTORY: &str = "LUO_TEST_DIRECTORY";
/// Arguments of a process of this program.
const SIDE: [&str; 5] = [
    "side",
    "--exact",
    "--ignored",
    "--nocapture",
    "--test-threads=1",
];
const MEMORY: &[u8] = b"what the old program knows";
/// Long enough for any machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A new program: its file, and what it does if it runs.
struct Broken {
    path: PathBuf,
    task: &'static str,
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Bytes of a program that is cut off.
const LEFT: usize = 8192;

/// The rows of the table, by their names.
fn broken_programs(directory: &Path) -> Vec<(&'static str, Broken)> {
    let this = fs::read(this_program()).unwrap();
    let mut foreign = this.clone();
    foreign[18] ^= 0xff;
    let file = |name: &str, contents: &[u8], mode| {
        let path = directory.join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    let does = |task| Broken {
        path: this_program(),
        task,
    };
    let is = |path| Broken { path, task: "" };
    vec![
        ("is missing", is(directory.join("missing"))),
        ("is not executable", is(file("plain", &this, 0o644))),
        ("is a directory", is(directory.to_owned())),
        ("is empty", is(file("empty", b"", 0o755))),
        (
            "is for another machine",
            is(file("foreign", &foreign, 0o755)),
        ),
        (
            "is truncated",
            // In the middle of what is loaded: without its debug information a program runs.
            is(file("short", &this[..LEFT], 0o755)),
        ),
        ("panics at start", does("panics at start")),
        ("panics after retrieve", does("panics after retrieve")),
        ("hangs", does("hangs")),
        ("lacks a handler", does("lacks a handler")),
    ]
}

fn program(path: &Path, task: &str) -> Program {
    let mut program = Program::new(path);
    program
        .args(SIDE)
        // Otherwise backtraces would be the last lines.
        .env("RUST_BACKTRACE", "0")
        .env(TASK, task);
    program
}

/// A memfd of a running program, at a position.
fn workload() -> File {
    let mut file = memfd(MEMORY);
    file.seek(SeekFrom::Start(5)).unwrap();
    file
}

fn registry() -> Arc<Registry> {
    Arc::new(Registry::linked().unwrap())
}

fn frozen(file: &File) -> Orchestrator {
    let update = Orchestrator::new(registry());
    update.preserve(Token(1), file).unwrap();
    update.prepare().unwrap();
    update.freeze().unwrap();
    update
}

fn hand_over<R>(
    update: &Orchestrator,
    jump: impl FnOnce(Handover<'_>) -> Result<R, Anything>,
) -> Result<R, Anything> {
    update.handover(jump)
}

/// The old program goes on, with its file as it was, and is ready for another attempt.
fn assert_goes_on(update: &Orchestrator, file: &mut File) {
    assert_eq!(update.unfreeze().unwrap(), []);
    assert_eq!(contents(&*file), MEMORY);
    assert_eq!(file.stream_position().unwrap(), 5);
    file.write_all(b"the").unwrap();
    file.seek(SeekFrom::Start(5)).unwrap();
    update.freeze().unwrap();
}

/// What arrived is all that there was.
fn assert_arrived(arrival: Arrival) -> Orchestrator {
    let new = Orchestrator::arrived(registry(), arrival);
    let file = File::from(new.retrieve(Token(1)).unwrap().try_clone().unwrap());
    assert_eq!(contents(&file), MEMORY);
    assert_eq!((&file).stream_position().unwrap(), 5);
    new
}

#[test]
#[ignore = "other tests start it"]
fn side() {
    let task = std::env::var(TASK).unwrap_or_default();
    match task.as_str() {
        "" => {}
        "becomes another" => become_another(),
        "starts a service" => start_service(),
        "stores" => {
            let update = frozen(&workload());
            let mut store = FdStore::open("luo").unwrap();
            hand_over(&update, |handover| Ok(store.store(&handover)?)).unwrap();
        }
        task => run_as_new(task),
    }
}

/// An old program; after a jump that fails it goes on, and prints why.
fn become_another() {
    let mut file = workload();
    let update = frozen(&file);
    let next = PathBuf::from(std::env::var_os(NEXT).unwrap());
    let mut program = program(&next, &std::env::var(NEXT_TASK).unwrap());
    let jumped = hand_over(&update, |handover| {
        let Err(error) = exec::Departure::new(&handover, &mut program)?.jump();
        Ok(error)
    });
    assert_goes_on(&update, &mut file);
    println!("\ngoes on: {}", jumped.unwrap());
}

/// As systemd does it: the descriptors are for the process that becomes the service, and a file
/// that the kernel refuses is not given to a shell.
fn start_service() {
    let string = |text: &OsStr| CString::new(text.as_bytes()).unwrap();
    let path = std::env::var_os(NEXT).unwrap();
    std::env::set_var("LISTEN_PID", std::process::id().to_string());
    std::env::set_var(TASK, std::env::var_os(NEXT_TASK).unwrap());
    let variables = std::env::vars_os().map(|(name, value)| {
        let line = [name.as_bytes(), b"=", value.as_bytes()].concat();
        CString::new(line).unwrap()
    });
    let arguments = std::iter::once(&*path).chain(SIDE.iter().map(OsStr::new));
    let arguments: Vec<_> = arguments.map(string).collect();
    let failed = execve(&string(&path), &arguments, &variables.collect::<Vec<_>>());
    println!("\n{failed:?}");
    std::process::exit(203);
}

/// A new program, whichever way it was started. `Ok` is one that works.
fn run_as_new(task: &str) {
    if task == "panics at start" {
        panic!("nothing works today");
    }
    let predecessor = spawn::Predecessor::find().unwrap();
    let (arrival, _store) = arrive();
    if task == "lacks a handler" {
        return lack_a_handler(arrival, predecessor);
    }
    let new = assert_arrived(arrival);
    match task {
        "panics after retrieve" => panic!("one step too far"),
        "hangs" => {
            println!("\nhangs");
            std::thread::sleep(DEADLINE * 10);
        }
        "works" => {
            assert_eq!(new.finish().unwrap(), []);
            predecessor
                .map_or(Ok(()), |predecessor| predecessor.ready())
                .unwrap();
            println!("\nall is here");
        }
        _ => panic!("{task}"),
    }
}

fn arrive() -> (Arrival, Option<FdStore>) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return (image::load(Path::new(&directory), |_| ()).unwrap(), None);
    }
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        // What is not cleared is there at the next start as well.
        let mut store = FdStore::open("luo").unwrap();
        return (store.arrive().unwrap().unwrap(), Some(store));
    }
    (exec::arrive().unwrap().unwrap(), None)
}

/// It reports that, and if nobody waits for it, it passes everything on to a program that works.
fn lack_a_handler(arrival: Arrival, predecessor: Option<spawn::Predecessor>) {
    let new = Orchestrator::arrived(Arc::default(), arrival);
    let reason = new.retrieve(Token(1)).unwrap_err().to_string();
    println!("\n{reason}");
    if let Some(predecessor) = predecessor {
        return predecessor.give_up(&reason).unwrap();
    }
    if std::env::var_os(DIRECTORY).is_some() || std::env::var_os("NOTIFY_SOCKET").is_some() {
        std::process::exit(1);
    }
    println!("passes on");
    let mut program = program(&this_program(), "works");
    let failed = new.pass_on(|handover| {
        exec::Departure::new(&handover, &mut program)?.jump()?;
        Ok::<_, Anything>(())
    });
    panic!("{failed:?}");
}

/// Runs a program to its end, or until it hangs; returns what it printed, and how it ended.
fn run(mut command: Command) -> String {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "hangs" {
            child.kill().unwrap();
        }
        text += &(line + "\n");
    }
    let mut errors = child.stderr.take().unwrap();
    errors.read_to_string(&mut text).unwrap();
    format!("{text}{}", child.wait().unwrap())
}

/// What becomes of the old program and its files, and what is reported.
type Cell = (&'static str, String);

fn by_exec(broken: &Broken) -> Cell {
    let mut command = program(&this_program(), "becomes another").command();
    command.env(NEXT, &broken.path).env(NEXT_TASK, broken.task);
    let text = run(command);
    let cell = if text.contains("goes on: ") {
        "goes on"
    } else if text.contains("passes on\n") && text.contains("all is here") {
        "passes on"
    } else {
        assert!(!text.contains("all is here"), "{text}");
        "is lost"
    };
    (cell, text)
}

fn by_spawn(broken: &Broken) -> Cell {
    let mut file = workload();
    let update = frozen(&file);
    let start = |path: &Path, task, deadline| {
        let program = program(path, task);
        hand_over(&update, |handover| {
            Ok(spawn::spawn(&handover, &program, deadline))
        })
        .unwrap()
    };
    let deadline = match broken.task {
        "hangs" => Duration::from_millis(500),
        _ => DEADLINE,
    };
    let error = start(&broken.path, broken.task, deadline).unwrap_err();
    assert_goes_on(&update, &mut file);
    // And an update to a program that works still does.
    start(&this_program(), "works", DEADLINE).unwrap();
    update.depart();
    ("goes on", error.to_string())
}

/// Files stay in the store for a program that works.
fn by_fdstore(broken: &Broken) -> Cell {
    let manager = Manager::new();
    let start = |path: &Path, task| {
        // TimeoutStartSec=
        let seconds = if task == "hangs" { "1" } else { "60" };
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", seconds])
            .arg(this_program())
            .args(SIDE)
            .envs([(TASK, "starts a service"), (NEXT_TASK, task)])
            .env(NEXT, path);
        let output = manager.start(&mut command, Vec::new());
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status, String::from_utf8_lossy(&text).into_owned())
    };
    let (status, text) = start(&this_program(), "stores");
    assert!(status.success(), "{text}");
    let before = manager.names();
    assert_eq!(before, ["luo.file.1", "luo.update.1"]);
    let (status, report) = start(&broken.path, broken.task);
    assert!(!status.success(), "{report}");
    assert_eq!(manager.names(), before);
    let (status, text) = start(&this_program(), "works");
    assert!(status.success() && text.contains("all is here"), "{text}");
    ("next start", format!("{report}{status}"))
}

fn by_image(broken: &Broken) -> Cell {
    let directory = tempfile::tempdir().unwrap();
    let mut file = workload();
    let update = frozen(&file);
    hand_over(&update, |handover| {
        Ok(image::save(&handover, directory.path(), &|_| ())?)
    })
    .unwrap();
    let mut program = program(&broken.path, broken.task);
    program.env(DIRECTORY, directory.path());
    let cell = match broken.task {
        "" => {
            let error = program.replace_process();
            assert_goes_on(&update, &mut file);
            ("goes on", error.to_string())
        }
        _ => ("next load", run(program.command())),
    };
    assert_arrived(image::load(directory.path(), |_| ()).unwrap());
    cell
}

/// The cells of the guide's table, below its head.
fn documented() -> Vec<Vec<&'static str>> {
    let lines = include_str!("../src/guide.rs").lines();
    let lines = lines.map(|line| line.trim_start_matches("//!").trim());
    lines
        .skip_while(|line| !line.starts_with("| The new program |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn broken_programs_cost_what_the_guide_has() {
    let directory = tempfile::tempdir().unwrap();
    let documented = documented();
    let programs = broken_programs(directory.path());
    assert_eq!(documented.len(), programs.len());
    for ((name, broken), row) in programs.iter().zip(documented) {
        let cells = [by_exec, by_spawn, by_fdstore, by_image].map(|by| by(broken));
        let found = cells.iter().map(|(cell, _)| *cell);
        let found: Vec<_> = [*name].into_iter().chain(found).collect();
        println!("| {} | {} |", found.join(" | "), row[5]);
        assert_eq!(found, row[..5]);
        // By spawn it is reported in each row; what is found before the jump, by all that jump.
        let words = row[5].trim_matches('`');
        let [by_exec, by_spawn, _, by_image] = cells.map(|(_, report)| report);
        assert!(by_spawn.contains(words), "{name}: {by_spawn}");
        if broken.task.is_empty() || broken.task == "lacks a handler" {
            assert!(by_exec.contains(words), "{name}: {by_exec}");
            assert!(by_image.contains(words), "{name}: {by_image}");
        }
    }
}
