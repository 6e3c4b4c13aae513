// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The file descriptor store, with a small service manager in the place of systemd: it holds what
//! is sent to its notify socket, and starts the next program with it.
//!
//! The service is this program once more: a test of its own, ignored unless it is started so.

#[path = "support/manager.rs"]
mod manager;
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use std::sync::Arc;

use luo_handler_api::{Errno, Token};
use luo_handler_memfd as _;
use luo_handler_socket as _;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::fdstore::{FdStore, StoreError};
use manager::Manager;
use support::{contents, memfd};

const TASK: &str = "LUO_TEST_TASK";

const MEMORY: Token = Token(1);
const LISTENER: Token = Token(2);
const CONNECTION: Token = Token(3);

/// One run of the service.
fn run(manager: &Manager, task: &str) -> String {
    let output = start(manager, task, Vec::new());
    let text = text_of(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    text
}

fn text_of(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn start(manager: &Manager, task: &str, activated: Vec<(&str, OwnedFd)>) -> Output {
    manager.start(&mut service_command(task), activated)
}

fn service_command(task: &str) -> Command {
    // The manager's shell sets LISTEN_PID, which is the shell's own and so the program's.
    let mut command = Command::new("sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "service",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(TASK, task);
    command
}

#[test]
#[ignore = "other tests start it"]
fn service() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    match task.as_str() {
        "store" => drop(store()),
        "store and crash" => {
            let (files, update, _) = store();
            update.unfreeze().unwrap();
            files.0.write_all_at(b"LATER bytes and more", 0).unwrap();
            std::process::abort();
        }
        "store twice" => store_twice(),
        "store too much" => store_too_much(),
        "take" => {
            let mut store = take();
            store.clear().unwrap();
        }
        "take and crash" => {
            take();
            std::process::abort();
        }
        "report" => drop(report()),
        "report and clear" => report().clear().unwrap(),
        "damaged" => damaged(),
        "incomplete" => incomplete(),
        "nothing" => nothing(),
        "open twice" => {
            FdStore::open("luo").unwrap();
            let error = FdStore::open("luo").unwrap_err();
            assert!(matches!(error, StoreError::TakenBefore), "{error}");
        }
        "no manager" => {
            let error = FdStore::open("luo").unwrap_err();
            assert!(matches!(error, StoreError::NoManager), "{error}");
        }
        _ => panic!("{task}"),
    }
}

fn registry() -> Arc<Registry> {
    Arc::new(Registry::linked().unwrap())
}

fn frozen(update: &Orchestrator) {
    update.prepare().unwrap();
    update.freeze().unwrap();
}

type Files = (File, TcpListener, TcpStream);

/// A memfd, the listener that the manager passed, and the connection that waits there.
fn open_files(store: &mut FdStore) -> (Files, Orchestrator) {
    assert!(store.arrive().unwrap().is_none());
    let others = store.others();
    let [(name, listener)] = <[_; 1]>::try_from(others).unwrap();
    assert_eq!(name, "http");
    let listener = TcpListener::from(listener);
    let files = (
        memfd(b"first bytes"),
        listener.try_clone().unwrap(),
        listener.accept().unwrap().0,
    );
    let update = Orchestrator::new(registry());
    update.preserve(MEMORY, &files.0).unwrap();
    update.preserve(LISTENER, &files.1).unwrap();
    update.preserve(CONNECTION, &files.2).unwrap();
    (files, update)
}

fn hand_over(update: &Orchestrator, store: &mut FdStore) -> Result<(), Box<dyn std::error::Error>> {
    update.handover(|handover| Ok(store.store(&handover)?))
}

fn store() -> (Files, Orchestrator, FdStore) {
    let mut store = FdStore::open("luo").unwrap();
    let (files, update) = open_files(&mut store);
    frozen(&update);
    hand_over(&update, &mut store).unwrap();
    assert_eq!(store.count(), 4);
    (files, update, store)
}

fn store_twice() {
    let (_files, update, mut store) = store();
    update.cancel().unwrap();
    update.unpreserve(CONNECTION).unwrap();
    let more = memfd(b"more");
    update.preserve(Token(4), &more).unwrap();
    frozen(&update);
    hand_over(&update, &mut store).unwrap();
    assert_eq!(store.count(), 4);
}

fn store_too_much() {
    let mut store = FdStore::open("luo").unwrap();
    let (_files, update) = open_files(&mut store);
    frozen(&update);
    let error = hand_over(&update, &mut store).unwrap_err().to_string();
    assert!(
        error.contains("room for 3 files, and 4 are needed"),
        "{error}"
    );
    assert!(error.contains("FileDescriptorStoreMax="), "{error}");
    update.unfreeze().unwrap();
    assert_eq!(store.count(), 0);
}

/// Everything is here and works.
fn take() -> FdStore {
    let mut store = FdStore::open("luo").unwrap();
    let arrival = store.arrive().unwrap().unwrap();
    assert!(store.arrive().unwrap().is_none(), "it arrives once");
    assert_eq!(store.problems(), []);
    let new = Orchestrator::arrived(registry(), arrival);
    println!(
        "\nmemory: {}",
        String::from_utf8_lossy(&contents(new.retrieve(MEMORY).unwrap()))
    );
    let memory = new
        .files()
        .unwrap()
        .into_iter()
        .find(|file| file.token == MEMORY);
    println!("report: {:?}", memory.unwrap().report);
    let owned = |token| new.retrieve(token).unwrap().try_clone().unwrap();
    let mut connection = TcpStream::from(owned(CONNECTION));
    let mut request = [0; 7];
    connection.read_exact(&mut request).unwrap();
    connection.write_all(&request).unwrap();
    let mut later = TcpListener::from(owned(LISTENER)).accept().unwrap().0;
    later.write_all(b"welcome").unwrap();
    assert_eq!(new.finish().unwrap(), []);
    store
}

/// Prints what is here and what is not.
fn report() -> FdStore {
    let mut store = FdStore::open("luo").unwrap();
    println!("\nothers: {}", store.others().len());
    let arrival = store.arrive().unwrap();
    store
        .problems()
        .iter()
        .for_each(|problem| println!("problem: {problem}"));
    let arrival = arrival.unwrap();
    let new = Orchestrator::arrived(registry(), arrival);
    for file in new.files().unwrap() {
        match new.retrieve(file.token) {
            Ok(_) => println!("file {}: here", file.token),
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOENT);
                println!("file {}: {error}", file.token);
            }
        }
    }
    store
}

fn damaged() {
    let mut store = FdStore::open("luo").unwrap();
    let error = store.arrive().unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    println!("\n{error}");
    store.clear().unwrap();
}

fn incomplete() {
    let mut store = FdStore::open("luo").unwrap();
    let error = store.arrive().unwrap_err();
    assert!(
        matches!(error, StoreError::Incomplete { files: 3 }),
        "{error}"
    );
    println!("\n{error}");
    let (name, memory) = store.files().next().unwrap();
    println!("{name}: {}", String::from_utf8_lossy(&contents(memory)));
}

fn nothing() {
    let mut store = FdStore::open("luo").unwrap();
    assert!(store.arrive().unwrap().is_none());
    assert_eq!(store.problems(), []);
    assert_eq!(store.others().len(), 0);
}

/// A manager whose service has stored its files, and a client whose connection is among them.
fn stored(manager: &Manager, task: &str) -> (TcpStream, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"request").unwrap();
    let output = start(manager, task, vec![("http", listener.into())]);
    let crashed = task.ends_with("crash");
    assert_eq!(output.status.success(), !crashed, "{}", text_of(&output));
    (client, address)
}

/// The next service has it all.
fn is_served(manager: &Manager, task: &str, client: &mut TcpStream, address: std::net::SocketAddr) {
    let mut later = TcpStream::connect(address).unwrap();
    let output = start(manager, task, Vec::new());
    let text = text_of(&output);
    assert!(!text.contains("report: Some"), "nothing changed: {text}");
    let expected = match task.ends_with("crash") {
        true => "memory: first bytes",
        false => "1 passed",
    };
    assert!(text.contains(expected), "{text}");
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"request");
    later.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"welcome");
}

#[test]
fn files_come_back_at_the_next_start() {
    let manager = Manager::new();
    let (mut client, address) = stored(&manager, "store");
    let names = ["luo.file.1", "luo.file.2", "luo.file.3", "luo.update.1"];
    assert_eq!(manager.names(), names);
    is_served(&manager, "take", &mut client, address);
    assert_eq!(manager.names(), [""; 0], "nothing is left");
    // The store has no descriptor of it any more, and the service has ended.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    run(&manager, "nothing");
}

#[test]
fn a_crash_loses_nothing_that_is_in_the_store() {
    let manager = Manager::new();
    let (_client, address) = stored(&manager, "store and crash");
    let _later = TcpStream::connect(address).unwrap();
    let text = text_of(&start(&manager, "take", Vec::new()));
    assert!(text.contains("memory: LATER bytes and more"), "{text}");
    assert!(text.contains("size 11 to 20"), "{text}");
}

#[test]
fn a_crash_before_the_update_is_finished_leaves_everything_for_the_next_start() {
    let manager = Manager::new();
    let (mut client, address) = stored(&manager, "store");
    let before = manager.names();
    is_served(&manager, "take and crash", &mut client, address);
    assert_eq!(manager.names(), before);
    client.write_all(b"request").unwrap();
    is_served(&manager, "take", &mut client, address);
    assert_eq!(manager.names(), [""; 0]);
}

#[test]
fn a_later_update_replaces_an_earlier_one() {
    let manager = Manager::new();
    let (mut client, _) = stored(&manager, "store twice");
    // Files that were there before keep their names; the connection is in the store no more.
    let names = ["luo.file.1", "luo.file.2", "luo.file.4", "luo.update.2"];
    assert_eq!(manager.names(), names);
    assert_eq!(client.read(&mut [0; 7]).unwrap_or(0), 0);
    let text = run(&manager, "report");
    assert_eq!(text.matches(": here").count(), 3, "{text}");
    assert!(!text.contains("problem"), "{text}");
}

#[test]
fn a_full_store_is_found_out_before_anything_is_stored() {
    let mut manager = Manager::new();
    manager.room = 3;
    stored(&manager, "store too much");
    assert_eq!(manager.names(), [""; 0]);
}

#[test]
fn what_a_full_store_dropped_silently_is_found_out_at_the_next_start() {
    let mut manager = Manager::new();
    manager.reports_room = false;
    manager.room = 3;
    stored(&manager, "store");
    assert_eq!(manager.names(), ["luo.file.1", "luo.file.2", "luo.file.3"]);
    let text = run(&manager, "incomplete");
    assert!(
        text.contains("holds 3 files and no update that lists them"),
        "{text}"
    );
    assert!(text.contains("luo.file.1: first bytes"), "{text}");
    assert_eq!(manager.names().len(), 3, "all of them stay");
}

#[test]
fn a_lost_file_is_named_and_the_others_are_here() {
    let manager = Manager::new();
    let (_client, _) = stored(&manager, "store");
    manager.remove("luo.file.3");
    let text = run(&manager, "report");
    assert!(
        text.contains("problem: luo.file.3 of file 0x3 is missing"),
        "{text}"
    );
    assert!(
        text.contains("file 0x3: retrieve of file 0x3 failed"),
        "{text}"
    );
    assert!(text.contains("did not cross"), "{text}");
    assert_eq!(text.matches(": here").count(), 2, "{text}");
}

#[test]
fn leftovers_of_an_older_update_are_named_and_removed() {
    let mut manager = Manager::new();
    manager.removes = false;
    let (_client, _) = stored(&manager, "store twice");
    assert_eq!(manager.names().len(), 6);
    manager.removes = true;
    manager.add("luo.file.9", memfd(b"of a crash").into());
    manager.add("other.file.1", memfd(b"another program's").into());
    let text = run(&manager, "report");
    for name in ["luo.update.1", "luo.file.3", "luo.file.9"] {
        assert!(text.contains(&format!("{name} was left over")), "{text}");
    }
    assert!(text.contains("others: 1"), "{text}");
    assert_eq!(text.matches(": here").count(), 3, "{text}");
    let names = [
        "luo.file.1",
        "luo.file.2",
        "luo.file.4",
        "luo.update.2",
        "other.file.1",
    ];
    assert_eq!(manager.names(), names);
}

#[test]
fn a_name_that_stands_for_two_files_is_taken_by_neither() {
    let manager = Manager::new();
    let (_client, _) = stored(&manager, "store");
    manager.add("luo.file.1", memfd(b"another").into());
    let text = run(&manager, "report");
    assert!(text.contains("luo.file.1 names several files"), "{text}");
    assert!(
        text.contains("problem: luo.file.1 of file 0x1 is missing"),
        "{text}"
    );
    assert_eq!(text.matches(": here").count(), 2, "{text}");
    assert_eq!(manager.names().len(), 5, "both stay");
    run(&manager, "report and clear");
    assert_eq!(manager.names(), [""; 0]);
}

#[test]
fn a_damaged_update_is_one_clear_error_and_everything_stays() {
    type Damage = fn(&Manager);
    let cases: [(Damage, &str); 3] = [
        (
            |manager| manager.add("luo.update.2", memfd(&[0; 100]).into()),
            "luo.update.2",
        ),
        (
            |manager| manager.add("luo.update.1", memfd(b"").into()),
            "several files",
        ),
        (
            |manager| manager.add("luo.update.7", memfd(b"short").into()),
            "too short",
        ),
    ];
    for (damage, part) in cases {
        let manager = Manager::new();
        let (_client, _) = stored(&manager, "store");
        damage(&manager);
        let text = run(&manager, "damaged");
        assert!(text.contains("is damaged") && text.contains(part), "{text}");
        assert_eq!(manager.names(), [""; 0], "it was cleared");
    }
}

#[test]
fn what_was_passed_to_another_process_is_not_taken() {
    let manager = Manager::new();
    manager.add("luo.file.1", memfd(b"somebody's").into());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "service",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .envs([(TASK, "nothing"), ("LISTEN_PID", "1")]);
    let output = manager.start(&mut command, Vec::new());
    assert!(output.status.success(), "{}", text_of(&output));
    assert_eq!(manager.names(), ["luo.file.1"]);
}

#[test]
fn a_store_is_opened_once_and_needs_a_manager() {
    run(&Manager::new(), "open twice");
    let output = service_command("no manager")
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
}
