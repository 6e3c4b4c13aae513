// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Real programs beside this one: those that take over, and all the ways in which one does not.
//! This process is the old side, and has everything it had after each of them.

mod support;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use luo_handler_api::Token;
use luo_handler_memfd as _;
use luo_orchestrator::error::State;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::program::Program;
use luo_orchestrator::transport::spawn::{
    arrive, spawn, Predecessor, SpawnError, Successor, READY_VARIABLE,
};
use support::{contents, memfd};

const TASK: &str = "LUO_TEST_TASK";
/// Long enough for any machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn new_program(task: &str) -> Program {
    let mut program = Program::new(std::env::current_exe().unwrap());
    program
        .args(["new_side", "--exact", "--ignored", "--nocapture"])
        // Otherwise backtraces would be the last lines.
        .env("RUST_BACKTRACE", "0")
        .env(TASK, task);
    program
}

/// A memfd of a running program, at a position.
fn workload() -> File {
    let mut file = memfd(b"what the old program knows");
    file.seek(SeekFrom::Start(5)).unwrap();
    file
}

fn frozen(file: &File) -> Orchestrator {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    update.preserve(Token(1), file).unwrap();
    update.prepare().unwrap();
    update.freeze().unwrap();
    update
}

fn spawn_from(
    update: &Orchestrator,
    program: &Program,
    deadline: Duration,
) -> Result<Successor, SpawnError> {
    let spawned = update.handover(|handover| {
        Ok::<_, luo_orchestrator::error::Error>(spawn(&handover, program, deadline))
    });
    spawned.unwrap()
}

#[test]
#[ignore = "other tests start it"]
fn new_side() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let predecessor = Predecessor::find().unwrap().unwrap();
    assert!(std::env::var_os(READY_VARIABLE).is_none());
    assert!(Predecessor::find().unwrap().is_none(), "it is found once");
    let arrival = arrive().unwrap().unwrap();
    let new = Orchestrator::arrived(Arc::new(Registry::linked().unwrap()), arrival);
    let file = File::from(new.retrieve(Token(1)).unwrap().try_clone().unwrap());
    let report = new.files().unwrap().remove(0).report;
    if task == "sees what changed" {
        assert_eq!(
            contents(&file),
            [b"what the old program knows".as_slice(), &[0; 74]].concat()
        );
        assert_eq!(report.unwrap(), "changed since freeze: size 26 to 100");
        assert_eq!(new.finish().unwrap(), []);
        return predecessor.ready().unwrap();
    }
    assert_eq!(report, None);
    assert_eq!(contents(&file), b"what the old program knows");
    assert_eq!((&file).stream_position().unwrap(), 5);
    assert_eq!(new.finish().unwrap(), []);
    match task.as_str() {
        "takes over" => {
            predecessor.ready().unwrap();
            // Only once the old one has stopped.
            file.write_all_at(b"WHAT", 0).unwrap();
        }
        "hangs" => std::thread::sleep(DEADLINE * 10),
        "goes on without a word" => {
            drop(predecessor);
            std::thread::sleep(DEADLINE * 10);
        }
        "exits" => std::process::exit(7),
        "is killed" => {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
        "talks a lot" => {
            for line in 0..10_000 {
                eprintln!("line {line} {}", "x".repeat(line % 3000));
            }
            std::process::exit(1);
        }
        "says nothing" => predecessor.give_up("").unwrap(),
        _ => panic!("{task}"),
    }
}

#[test]
fn the_new_program_takes_over_and_the_old_one_knows_its_process() {
    let file = workload();
    let update = frozen(&file);
    let successor = spawn_from(&update, &new_program("takes over"), DEADLINE).unwrap();
    update.depart();
    let start = Instant::now();
    while contents(&file) != b"WHAT the old program knows" {
        assert!(start.elapsed() < DEADLINE, "it does not write");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_ne!(successor.process(), std::process::id());
}

#[test]
fn a_file_that_somebody_grew_after_freeze_is_handed_over() {
    let file = workload();
    let update = frozen(&file);
    file.set_len(100).unwrap();
    spawn_from(&update, &new_program("sees what changed"), DEADLINE).unwrap();
    update.depart();
}

/// The old program goes on, with its file as it was.
fn assert_goes_on(update: &Orchestrator, file: &mut File) {
    assert_eq!(update.state(), State::Frozen);
    assert_eq!(update.unfreeze().unwrap(), []);
    assert_eq!(contents(&*file), b"what the old program knows");
    assert_eq!(file.stream_position().unwrap(), 5);
    file.write_all(b"the").unwrap();
    file.seek(SeekFrom::Start(5)).unwrap();
    update.freeze().unwrap();
}

#[test]
fn a_new_program_that_ends_or_hangs_costs_nothing() {
    let mut file = workload();
    let update = frozen(&file);
    let fails = |task: &str, deadline| {
        let error = spawn_from(&update, &new_program(task), deadline).unwrap_err();
        (error.to_string(), error)
    };
    let (text, _) = fails("exits", DEADLINE);
    assert!(text.contains("exit status: 7"), "{text}");
    assert_goes_on(&update, &mut file);
    let (text, error) = fails("is killed", DEADLINE);
    let SpawnError::Ended(end) = error else {
        panic!("{text}");
    };
    assert_eq!(end.status.signal(), Some(libc::SIGKILL));
    assert_goes_on(&update, &mut file);

    let (text, error) = fails("says nothing", DEADLINE);
    assert!(matches!(error, SpawnError::GaveUp { .. }), "{text}");
    assert!(text.contains("gave up: without a reason"), "{text}");
    assert_goes_on(&update, &mut file);

    let (text, error) = fails("goes on without a word", DEADLINE);
    let SpawnError::Ended(end) = error else {
        panic!("{text}");
    };
    assert_eq!(end.status.signal(), Some(libc::SIGKILL), "{text}");
    assert_goes_on(&update, &mut file);
    let (text, error) = fails("hangs", Duration::from_millis(200));
    assert!(matches!(error, SpawnError::Deadline { .. }), "{text}");
    assert!(text.contains("200ms"), "{text}");
    assert_goes_on(&update, &mut file);

    let (_, error) = fails("talks a lot", DEADLINE);
    let SpawnError::Ended(end) = error else {
        panic!("it ended");
    };
    assert_eq!(end.lines.len(), 20);
    assert!(
        end.lines[19].starts_with("line 9999 xxx"),
        "{:?}",
        end.lines[19]
    );
    assert!(end.lines.iter().all(|line| line.len() <= 1000));
    assert_goes_on(&update, &mut file);

    // After all of that an update still works.
    spawn_from(&update, &new_program("takes over"), DEADLINE).unwrap();
    update.depart();
}

#[test]
fn a_program_that_knows_nothing_of_updates_costs_nothing() {
    let mut file = workload();
    let update = frozen(&file);
    let script = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    fs::write(&script, "#!/bin/sh\necho usage: nothing >&2\nexit 2\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, executable).unwrap();
    let error = spawn_from(&update, &Program::new(&*script), DEADLINE).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, SpawnError::Ended(_)), "{text}");
    assert!(
        text.contains("exit status: 2, its last lines: usage: nothing"),
        "{text}"
    );
    assert_goes_on(&update, &mut file);
}

#[test]
fn a_program_that_was_started_otherwise_has_no_predecessor() {
    // Told by a process that is started once more, as the variable is one of the whole process.
    for (value, words) in [
        ("7.1.1", "inherited descriptor"),
        ("", "inherited descriptor"),
    ] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["new_side", "--exact", "--ignored", "--nocapture"])
            .env(TASK, "takes over")
            .env(READY_VARIABLE, value)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words), "{text}");
    }
    assert!(Predecessor::find().unwrap().is_none());
}

#[test]
#[ignore = "another test starts it"]
fn service() {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        let update = frozen(&workload());
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let successor = spawn_from(&update, &new_program("takes over"), DEADLINE).unwrap();
        spawn_from(&update, &new_program("exits"), DEADLINE).unwrap_err();
        assert_eq!(open(), before, "nothing of a spawn stays open");
        assert!(successor.tell_systemd().unwrap());
        println!("process {}.", successor.process());
    }
}

#[test]
fn systemd_is_told_the_new_main_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["service", "--exact", "--ignored", "--nocapture"])
        .env("NOTIFY_SOCKET", &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let mut message = [0; 100];
    let length = systemd.recv(&mut message).unwrap();
    let message = std::str::from_utf8(&message[..length]).unwrap();
    let process = message.strip_prefix("MAINPID=").unwrap().trim_end();
    assert!(
        text.contains(&format!("process {process}.")),
        "{text} {message}"
    );
}
