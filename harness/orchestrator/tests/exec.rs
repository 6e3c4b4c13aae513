// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Real execs of this very program: what crosses, what does not, and what goes on if the exec
//! fails.
//!
//! Each test starts this program once more as the *old side*, which becomes the *new side* by an
//! exec. Both are tests of their own, ignored unless they are started so.

#![allow(unsafe_code)] // an edge of the tests

mod support;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use luo_handler_api::registry::registered_handlers;
use luo_handler_api::{Errno, Token};
use luo_handler_memfd as _;
use luo_orchestrator::error::State;
use luo_orchestrator::handover::Handover;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::exec::{arrive, ArriveError, Departure, HANDOVER_VARIABLE};
use luo_orchestrator::transport::program::{JumpError, Program};
use rustix::fs::{
    fallocate, fcntl_add_seals, fcntl_get_seals, fstat, FallocateFlags, OFlags, SealFlags,
};
use rustix::io::{fcntl_getfd, fcntl_setfd, FdFlags};
use support::{contents, inode, memfd, Crossing};

const TASK: &str = "LUO_TEST_TASK";
const INODES: &str = "LUO_TEST_INODES";
const MIB: usize = 1 << 20;

type Anything = Box<dyn std::error::Error>;

fn this_program(test: &str, task: &str) -> Program {
    let mut program = Program::new(std::env::current_exe().unwrap());
    program
        .args([
            test,
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(TASK, task)
        .env_remove(HANDOVER_VARIABLE);
    program
}

/// Runs a side to its end, which is a good one; yields what it printed.
fn run(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
    text
}

/// Starts an old side, which is to become a new one.
fn cross(task: &str) -> String {
    let text = run(this_program("old_side", task).command());
    assert!(text.contains("this is the new side"), "{text}");
    text
}

#[test]
#[ignore = "other tests start it"]
fn old_side() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    match task.as_str() {
        "cross" | "release" | "without a handler" => jump(&update_of(&workload()), &task),
        "leak" => with_leaks(),
        "without streams" => close_streams_and_jump(),
        "sockets of systemd" => jump_with_listen_variables(),
        "children" => start_children_while_jumping(),
        "pass on" => jump(&update_of(&workload()), "pass on"),
        "changed" => change_and_jump(),
        "fail" => fail_and_go_on(),
        _ => match task.split_once(": ") {
            Some(("hand over", what)) => hand_over_something_else(what),
            Some(("list", what)) => list_something_else(what),
            _ => panic!("{task}"),
        },
    }
}

#[test]
#[ignore = "other tests start it"]
fn new_side() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    println!("\nthis is the new side");
    match task.as_str() {
        "cross" => everything_is_here(),
        "release" => what_nobody_takes_closes(),
        "without a handler" => a_handler_comes_later(),
        "hostile" => tell_why_not(),
        "own descriptors" => own_descriptors_stay(),
        "stale variable" => a_stale_variable_takes_nothing(),
        "without streams" => everything_is_in_a_file(),
        "sockets of systemd" => there_are_no_sockets(),
        "pass on" => pass_everything_on(),
        "passed on" => everything_is_here(),
        "changed" => what_changed_is_here(),
        "nothing in the list" => nothing_is_here(),
        _ => panic!("{task}"),
    }
}

/// A dense memfd, a sparse one, and one with all that is not contents.
fn workload() -> Vec<File> {
    let dense: Vec<u8> = (0..3 * MIB)
        .map(|place| (place / 4096 * 7 + place) as u8)
        .collect();
    let sparse = memfd(b"");
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"far away", 1 << 39).unwrap();
    let mut sealed = memfd(b"sealed");
    sealed.seek(SeekFrom::Start(4)).unwrap();
    rustix::fs::fcntl_setfl(&sealed, OFlags::APPEND).unwrap();
    fcntl_add_seals(&sealed, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    vec![memfd(&dense), sparse, sealed]
}

fn assert_is_workload(files: [File; 3]) {
    let [dense, mut sparse, mut sealed] = files;
    let bytes = contents(&dense);
    assert_eq!(bytes.len(), 3 * MIB);
    let right = |(place, byte): (usize, &u8)| *byte == (place / 4096 * 7 + place) as u8;
    assert!(bytes.iter().enumerate().all(right));

    assert_eq!(sparse.metadata().unwrap().len(), 1 << 40);
    let data = rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert_eq!(data, 1 << 39);
    let mut text = [0; 8];
    sparse.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"far away");

    assert_eq!(sealed.stream_position().unwrap(), 4);
    let seals = SealFlags::SHRINK | SealFlags::GROW;
    assert_eq!(fcntl_get_seals(&sealed).unwrap(), seals);
    let flags = rustix::fs::fcntl_getfl(&sealed).unwrap();
    assert!(flags.contains(OFlags::APPEND));
    assert_eq!(contents(&sealed), b"sealed");
}

fn update_of(files: &[File]) -> Orchestrator {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    for (file, token) in files.iter().zip(0..) {
        update.preserve(Token(token), file).unwrap();
    }
    update.prepare().unwrap();
    update.freeze().unwrap();
    let inodes: Vec<_> = files.iter().map(|file| inode(file).to_string()).collect();
    std::env::set_var(INODES, inodes.join(" "));
    update
}

/// Becomes the new side.
fn jump(update: &Orchestrator, task: &str) {
    let mut program = this_program("new_side", task);
    let failed = update.handover(|handover| {
        let departure = Departure::new(&handover, &mut program)?;
        Ok::<_, Anything>(departure.jump())
    });
    panic!("the exec failed: {failed:?}");
}

/// Open descriptors above the standard streams, and whether an exec inherits them.
fn descriptors() -> Vec<(RawFd, bool)> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let numbers: Vec<RawFd> = entries
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    let open = numbers.into_iter().filter(|&fd| fd > 2).filter_map(|fd| {
        // SAFETY: looked at for the length of one call; what is closed meanwhile is an error.
        let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
        Some((fd, !flags.contains(FdFlags::CLOEXEC)))
    });
    open.collect()
}

fn inheritable() -> Vec<RawFd> {
    let open = descriptors().into_iter();
    open.filter(|(_, inheritable)| *inheritable)
        .map(|(fd, _)| fd)
        .collect()
}

fn path_of(fd: RawFd) -> String {
    let path = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    path.to_string_lossy().into_owned()
}

fn set_inheritable(file: impl AsFd) {
    fcntl_setfd(file, FdFlags::empty()).unwrap();
}

fn errno<T: std::fmt::Debug>(result: Result<T, luo_orchestrator::error::Error>) -> Errno {
    result.unwrap_err().errno()
}

fn arrived(registry: Arc<Registry>) -> Orchestrator {
    let new = Orchestrator::arrived(registry, arrive().unwrap().unwrap());
    assert!(std::env::var_os(HANDOVER_VARIABLE).is_none());
    assert!(arrive().unwrap().is_none(), "it arrives once");
    new
}

#[test]
fn memfds_cross_an_exec_and_are_the_same_inodes() {
    cross("cross");
}

fn everything_is_here() {
    // The devicetree, the memory file, the list, and the three memfds.
    let inherited = inheritable();
    assert_eq!(inherited.len(), 6);
    for fd in inherited {
        assert!(path_of(fd).starts_with("/memfd:"), "{}", path_of(fd));
    }
    let new = arrived(Arc::new(Registry::linked().unwrap()));
    assert!(
        inheritable().is_empty(),
        "nothing goes on to the next program"
    );
    let files = [0, 1, 2].map(|token| {
        let file = new.retrieve(Token(token)).unwrap();
        assert!(fcntl_getfd(&file).unwrap().contains(FdFlags::CLOEXEC));
        File::from(file.try_clone().unwrap())
    });
    let inodes = std::env::var(INODES).unwrap();
    let found: Vec<_> = files.iter().map(|file| inode(file).to_string()).collect();
    assert_eq!(found.join(" "), inodes, "nothing was copied");
    assert_is_workload(files);
    assert_eq!(new.finish().unwrap(), []);
}

#[test]
fn files_that_others_changed_after_freeze_cross_as_they_are() {
    cross("changed");
}

/// As another process does that shares the files.
fn change_and_jump() {
    let files = workload();
    let update = update_of(&files);
    let [dense, sparse, sealed] = <[File; 3]>::try_from(files).unwrap();
    dense.set_len(4 * MIB as u64).unwrap();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&sparse, hole, 1 << 39, 4096).unwrap();
    let mut shared = sealed.try_clone().unwrap();
    shared.seek(SeekFrom::Start(6)).unwrap();
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    jump(&update, "changed");
}

fn what_changed_is_here() {
    let new = arrived(Arc::new(Registry::linked().unwrap()));
    let [dense, sparse, mut sealed] =
        [0, 1, 2].map(|token| File::from(new.retrieve(Token(token)).unwrap().try_clone().unwrap()));
    let bytes = contents(&dense);
    assert_eq!(bytes.len(), 4 * MIB);
    assert!(bytes[3 * MIB..].iter().all(|&byte| byte == 0));
    assert_eq!(bytes[MIB], (MIB / 4096 * 7 + MIB) as u8);
    assert_eq!(fstat(&sparse).unwrap().st_size, 1 << 40);
    assert_eq!(fstat(&sparse).unwrap().st_blocks, 0, "it is one hole");
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    assert_eq!(fcntl_get_seals(&sealed).unwrap(), seals);
    assert_eq!(sealed.stream_position().unwrap(), 6);
    let reports: Vec<_> = new
        .files()
        .unwrap()
        .into_iter()
        .map(|file| file.report)
        .collect();
    let changed = |what: &str| Some(format!("changed since freeze: {what}"));
    let expected = [
        changed("size 3145728 to 4194304"),
        // Nobody looked where its holes are.
        None,
        changed("position 4 to 6, seals 0o6 to 0o16"),
    ];
    assert_eq!(reports, expected);
    assert_eq!(new.finish().unwrap(), []);
}

#[test]
fn nothing_crosses_that_the_handover_does_not_name() {
    cross("leak");
}

fn with_leaks() {
    let files = workload();
    let update = update_of(&files);
    // Memfds, so that the new side would count them; the workload's own descriptors as well.
    let leaks = [memfd(b"leaked"), memfd(b"leaked")];
    files.iter().chain(&leaks).for_each(set_inheritable);
    let high = rustix::io::fcntl_dupfd_cloexec(&leaks[0], 700).unwrap();
    set_inheritable(&high);
    jump(&update, "cross");
}

#[test]
fn what_nobody_takes_closes_at_the_end() {
    cross("release");
}

fn what_nobody_takes_closes() {
    let memfds = || {
        let open = descriptors().into_iter();
        open.filter(|(fd, _)| path_of(*fd).starts_with("/memfd:test"))
            .count()
    };
    let new = arrived(Arc::new(Registry::linked().unwrap()));
    let taken = new.retrieve(Token(1)).unwrap();
    assert_eq!(memfds(), 3);
    assert_eq!(new.finish().unwrap(), []);
    assert_eq!(memfds(), 1);
    assert_eq!(fstat(&taken).unwrap().st_size, 1 << 40);
}

#[test]
fn a_program_that_lacks_the_handler_says_so_and_may_get_it_later() {
    cross("without a handler");
}

fn a_handler_comes_later() {
    let registry = Arc::new(Registry::new());
    let new = arrived(registry.clone());
    assert_eq!(new.bad_entries().unwrap(), []);
    for file in new.files().unwrap() {
        assert!(!file.claimed);
        let error = new.retrieve(file.token).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOENT);
        let message = error.to_string();
        let named =
            message.contains("luo-handlers,memfd-v1") && message.contains(&file.token.to_string());
        assert!(named && message.contains("no handler"), "{message}");
    }
    for ops in registered_handlers() {
        registry.register(ops).unwrap();
    }
    let files = [0, 1, 2].map(|token| {
        let file = new.retrieve(Token(token)).unwrap();
        File::from(file.try_clone().unwrap())
    });
    assert_is_workload(files);
}

#[test]
fn an_exec_that_fails_changes_nothing_and_a_later_one_works() {
    cross("fail");
}

fn fail_and_go_on() {
    use libc::{SIGPIPE, SIGUSR1, SIG_BLOCK, SIG_IGN};
    // SAFETY: all of them read and write local variables.
    let signals = |block: bool| unsafe {
        let (mut set, mut mask, mut action) =
            (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut set);
        if block {
            libc::sigaddset(&mut set, SIGUSR1);
        }
        libc::pthread_sigmask(SIG_BLOCK, &set, std::ptr::null_mut());
        libc::pthread_sigmask(SIG_BLOCK, std::ptr::null(), &mut mask);
        libc::sigaction(SIGPIPE, std::ptr::null(), &mut action);
        let action: libc::sigaction = action;
        (libc::sigismember(&mask, SIGUSR1), action.sa_sigaction)
    };
    assert_eq!(signals(true), (1, SIG_IGN));
    let mut files = workload();
    let update = update_of(&files);
    set_inheritable(&files[0]);
    let open = descriptors();
    // This process may have been started with others.
    assert!(inheritable().contains(&files[0].as_raw_fd()));

    let script = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let programs = broken_programs(&script);
    for (name, contents, errno) in programs {
        let path = match contents {
            Some(contents) => {
                fs::write(&script, contents).unwrap();
                script.to_str().unwrap()
            }
            None => name,
        };
        let mut program = Program::new(path);
        let error = update
            .handover(|handover| {
                let mut departure = Departure::new(&handover, &mut program)?;
                departure.program().arg("--help");
                let Err(error) = departure.jump();
                Ok::<JumpError, Anything>(error)
            })
            .unwrap();
        assert_eq!(error.errno().code(), errno, "{name}: {error}");
        assert!(error.to_string().contains(path), "{name}: {error}");
        assert_eq!(update.state(), State::Frozen);
        assert_eq!(descriptors(), open, "open descriptors and their flags");
        assert_eq!(signals(false), (1, SIG_IGN));
        let command = program.command();
        let told = command
            .get_envs()
            .find(|(name, _)| *name == HANDOVER_VARIABLE);
        assert!(told.is_none_or(|(_, value)| value.is_none()));
        assert!(std::env::var_os(HANDOVER_VARIABLE).is_none());
    }

    assert_eq!(update.unfreeze().unwrap(), []);
    // The workload goes on: into the file and back.
    files[0].seek(SeekFrom::Start(0)).unwrap();
    files[0].write_all(b"changed").unwrap();
    files[0].seek(SeekFrom::Start(0)).unwrap();
    files[0].write_all(&(0..7).collect::<Vec<u8>>()).unwrap();
    update.freeze().unwrap();
    jump(&update, "cross");
}

/// Programs that cannot run, beside those of `tests/broken_programs.rs`: a path, or a name and the
/// contents for `path`, and the error number.
fn broken_programs(path: &std::path::Path) -> Vec<(&'static str, Option<Vec<u8>>, i32)> {
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, executable).unwrap();
    let this = fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut bad_interpreter = this.clone();
    let interpreter = b"/lib";
    let place = this.windows(4).position(|bytes| bytes == interpreter);
    bad_interpreter[place.unwrap() + 1] = b'L';
    vec![
        ("/dev/null", None, libc::EACCES),
        ("text", Some(b"exit 3\n".to_vec()), libc::ENOEXEC),
        (
            "without its interpreter",
            Some(bad_interpreter),
            libc::ENOENT,
        ),
        (
            "a script without its interpreter",
            Some(b"#!/missing/sh\n".to_vec()),
            libc::ENOENT,
        ),
    ]
}

/// Where a side without standard streams writes.
const OUTPUT: &str = "LUO_TEST_OUTPUT";

#[test]
fn a_program_without_standard_streams_crosses() {
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut command = this_program("old_side", "without streams").command();
    command.env(OUTPUT, output.path());
    command.output().unwrap();
    let text = fs::read_to_string(&output).unwrap();
    assert_eq!(text, "everything is here");
}

fn close_streams_and_jump() {
    for stream in 0..3 {
        // SAFETY: nothing of this test uses the streams from here on; what std prints is lost.
        drop(unsafe { OwnedFd::from_raw_fd(stream) });
    }
    // The memfds of the workload take their place, and so would the handover.
    let files = workload();
    assert!(files.iter().all(|file| file.as_raw_fd() < 3));
    jump(&update_of(&files), "without streams");
}

fn everything_is_in_a_file() {
    let new = arrived(Arc::new(Registry::linked().unwrap()));
    let files = [0, 1, 2].map(|token| {
        let file = new.retrieve(Token(token)).unwrap();
        File::from(file.try_clone().unwrap())
    });
    assert_is_workload(files);
    fs::write(std::env::var_os(OUTPUT).unwrap(), "everything is here").unwrap();
}

#[test]
fn sockets_of_systemd_are_not_promised_to_the_new_program() {
    cross("sockets of systemd");
}

fn jump_with_listen_variables() {
    // As systemd starts a service; the process id is the same after the exec.
    std::env::set_var("LISTEN_PID", std::process::id().to_string());
    std::env::set_var("LISTEN_FDS", "4");
    std::env::set_var("LISTEN_FDNAMES", "a:b:c:d");
    jump(&update_of(&workload()), "sockets of systemd");
}

fn there_are_no_sockets() {
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        assert_eq!(std::env::var_os(name), None, "{name}");
    }
    everything_is_here();
}

#[test]
fn children_that_start_during_a_jump_inherit_nothing_of_it() {
    run(this_program("old_side", "children").command());
}

fn start_children_while_jumping() {
    let update = update_of(&workload());
    let list = || {
        let output = Command::new("sh")
            .args(["-c", "for file in /proc/self/fd/*; do readlink $file; done"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("/memfd:"), "{text}");
    };
    let jumps = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        let children = scope.spawn(|| {
            while jumps.load(std::sync::atomic::Ordering::SeqCst) < 300 {
                list();
            }
        });
        // The file can run, but the kernel refuses so many arguments after all was made ready.
        let mut program = Program::new(std::env::current_exe().unwrap());
        program.arg("x".repeat(1 << 20));
        while jumps.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 300 {
            let error = update
                .handover(|handover| {
                    let Err(error) = Departure::new(&handover, &mut program)?.jump();
                    Ok::<JumpError, Anything>(error)
                })
                .unwrap();
            assert_eq!(error.errno().code(), libc::E2BIG);
        }
        children.join().unwrap();
    });
}

#[test]
fn a_variable_that_was_left_behind_takes_no_descriptors() {
    run(this_program("new_side", "stale variable").command());
}

/// As a program in C may have them: its own descriptors are inheritable, and an earlier handover
/// left its variable.
fn a_stale_variable_takes_nothing() {
    let own = [sealed(b"a"), sealed(b"b"), sealed(b"c")];
    own.iter().for_each(set_inheritable);
    let names = own.each_ref().map(|file| {
        let stat = fstat(file).unwrap();
        format!(
            "{}.{}.{}",
            file.as_raw_fd(),
            stat.st_dev,
            stat.st_ino + 1000
        )
    });
    std::env::set_var(HANDOVER_VARIABLE, names.join(":"));
    assert!(matches!(arrive(), Err(ArriveError::Variable(_))));
    assert_eq!(own.map(contents), [b"a", b"b", b"c"]);
}

#[test]
fn a_program_that_lacks_the_handler_passes_everything_on() {
    cross("pass on");
}

/// A program that cannot use what arrived, and starts another one that can.
fn pass_everything_on() {
    let new = arrived(Arc::new(Registry::new()));
    new.retrieve(Token(0)).unwrap_err();
    let mut program = this_program("new_side", "passed on");
    let failed = new.pass_on(|handover| {
        let departure = Departure::new(&handover, &mut program)?;
        Ok::<_, Anything>(departure.jump())
    });
    panic!("the exec failed: {failed:?}");
}

/// What the new side says of a variable that is not what the transport sets.
fn hostile(value: &OsStr) -> String {
    let mut program = this_program("new_side", "hostile");
    program.env(HANDOVER_VARIABLE, value);
    run(program.command())
}

fn tell_why_not() {
    match arrive() {
        Err(error @ ArriveError::Variable(_)) => println!("variable: {error}"),
        Err(error @ ArriveError::Unreadable(..)) => println!("unreadable: {error}"),
        Err(error @ ArriveError::Memory(_)) => println!("memory: {error}"),
        Ok(Some(arrival)) => {
            let new = Orchestrator::arrived(Arc::default(), arrival);
            println!("arrived: {}", new.files().unwrap_err());
        }
        Ok(None) => println!("nothing"),
    }
    assert!(std::env::var_os(HANDOVER_VARIABLE).is_none());
    // This process may have been started with other descriptors, which are none of its business.
    let left = inheritable().into_iter().map(path_of);
    assert_eq!(left.filter(|path| path.starts_with("/memfd:")).count(), 0);
    // The standard streams are still open.
    for fd in 0..3 {
        // SAFETY: looked at for the length of one call.
        fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).unwrap();
    }
}

#[test]
fn a_variable_that_names_no_inherited_descriptors_is_one_clear_error() {
    let values = [
        "",
        ":",
        "::",
        "a:b:c",
        "3",
        "3:4",
        "0:1:2",
        "2:3:4",
        "-1:-2:-3",
        "700:701:702",
        "7 :8:9",
        "3:4:5:6",
        "99999999999:3:4",
        "3:4:5\n",
        "0x3:4:5",
        "3.1.1:4.1.1:5.1.1",
        "0.1.1:1.1.1:2.1.1",
        "-1.1.1:4.1.1:5.1.1",
        "3.1:4.1:5.1",
    ];
    for value in values {
        let text = hostile(OsStr::new(value));
        assert!(text.contains("variable: "), "{value:?}: {text}");
        let told = text.contains(&format!("{HANDOVER_VARIABLE}={value:?}"));
        assert!(told && text.contains("three inherited memfds"), "{text}");
    }
    assert!(hostile(OsStr::from_bytes(b"\xff:4:5")).contains("variable: "));
}

#[test]
fn a_program_that_was_started_otherwise_has_no_handover() {
    assert!(run(this_program("new_side", "hostile").command()).contains("nothing"));
}

#[test]
fn descriptors_that_the_process_opened_itself_are_not_taken() {
    run(this_program("new_side", "own descriptors").command());
}

fn own_descriptors_stay() {
    let own = [memfd(b"a"), memfd(b"b"), memfd(b"c")];
    // By their right names, but the process did not inherit them.
    let numbers = own.each_ref().map(name_of);
    std::env::set_var(HANDOVER_VARIABLE, numbers.join(":"));
    assert!(matches!(arrive(), Err(ArriveError::Variable(_))));
    assert_eq!(own.map(contents), [b"a", b"b", b"c"]);
}

/// As the transport names a descriptor that is inherited.
fn name_of(file: &impl AsFd) -> String {
    let stat = fstat(file).unwrap();
    let number = file.as_fd().as_raw_fd();
    format!("{number}.{}.{}", stat.st_dev, stat.st_ino)
}

fn sealed(bytes: &[u8]) -> OwnedFd {
    let file = memfd(bytes);
    fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )
    .unwrap();
    file.into()
}

/// Becomes a new side that inherits these three as its handover, and `others`.
fn exec_with(three: [OwnedFd; 3], others: &[File], task: &str) {
    others.iter().for_each(set_inheritable);
    three.iter().for_each(set_inheritable);
    let numbers = three.each_ref().map(name_of);
    let mut command = this_program("new_side", task).command();
    command.env(HANDOVER_VARIABLE, OsString::from(numbers.join(":")));
    panic!("the exec failed: {}", command.exec());
}

/// The three parts of a handover, and `handle device inode` of its files.
fn parts(update: &Orchestrator) -> ([Vec<u8>; 2], Vec<[u64; 3]>) {
    let Crossing { devicetree, memory } = Crossing::of(update);
    let mut files = Vec::new();
    update
        .handover(|handover: Handover<'_>| {
            handover.outgoing.each_file(|held, file| {
                let stat = fstat(file).map_err(io::Error::from)?;
                files.push([held.handle, stat.st_dev, stat.st_ino]);
                Ok::<_, Anything>(())
            })
        })
        .unwrap();
    ([devicetree, memory], files)
}

#[test]
fn inherited_descriptors_that_hold_something_else_are_one_clear_error() {
    let cases = [
        ("unsealed", "unreadable: ", "devicetree"),
        ("zero", "unreadable: ", "devicetree"),
        ("pipe as list", "unreadable: ", "list of files"),
        ("pipe as memory", "unreadable: ", "memory file"),
        ("empty", "memory: ", "not a memory file"),
        ("another memory", "memory: ", "not a memory file"),
        ("truncated memory", "memory: ", "truncated"),
        ("another devicetree", "arrived: ", "cannot be read"),
    ];
    for (what, kind, told) in cases {
        let text = cross(&format!("hand over: {what}"));
        let line = text.lines().find(|line| line.contains(kind));
        assert!(
            line.is_some_and(|line| line.contains(told)),
            "{what}: {text}"
        );
    }
}

fn hand_over_something_else(what: &str) {
    let ([devicetree, memory], _) = parts(&update_of(&workload()));
    let (pipe, _writer) = io::pipe().unwrap();
    set_inheritable(&_writer);
    let nothing = || sealed(b"");
    let three = match what {
        "unsealed" => [
            memfd(&devicetree).into(),
            memfd(&memory).into(),
            memfd(b"").into(),
        ],
        "zero" => [
            File::open("/dev/zero").unwrap().into(),
            sealed(&memory),
            nothing(),
        ],
        "pipe as list" => [sealed(&devicetree), sealed(&memory), pipe.into()],
        "pipe as memory" => [sealed(&devicetree), pipe.into(), nothing()],
        "empty" => [nothing(), nothing(), nothing()],
        "another memory" => [sealed(&devicetree), sealed(&devicetree), nothing()],
        "truncated memory" => [
            sealed(&devicetree),
            sealed(&memory[..memory.len() - 1]),
            nothing(),
        ],
        "another devicetree" => [sealed(&memory), sealed(&memory), nothing()],
        _ => panic!("{what}"),
    };
    let writer = File::from(OwnedFd::from(_writer));
    exec_with(three, &[writer], "hostile");
}

#[test]
fn a_list_that_names_other_descriptors_brings_no_files() {
    for what in [
        "empty",
        "cut off",
        "stdin",
        "closed",
        "another file",
        "the handover",
    ] {
        cross(&format!("list: {what}"));
    }
}

fn list_something_else(what: &str) {
    let files = workload();
    let ([devicetree, memory], listed) = parts(&update_of(&files));
    let devicetree = sealed(&devicetree);
    let mut list = Vec::new();
    for ([handle, device, inode], file) in listed.into_iter().zip(&files) {
        let descriptor = match what {
            "stdin" => 0,
            "closed" => 900 + handle,
            "the handover" => devicetree.as_raw_fd() as u64,
            _ => file.as_raw_fd() as u64,
        };
        let inode = match what {
            "another file" => inode + 100_000,
            _ => inode,
        };
        for number in [handle, descriptor, device, inode, 0, 0] {
            list.extend_from_slice(&number.to_le_bytes());
        }
    }
    match what {
        "empty" => list.clear(),
        "cut off" => list.truncate(47),
        _ => {}
    }
    let three = [devicetree, sealed(&memory), sealed(&list)];
    exec_with(three, &files, "nothing in the list");
}

fn nothing_is_here() {
    let new = arrived(Arc::new(Registry::linked().unwrap()));
    assert_eq!(new.files().unwrap().len(), 3);
    for token in 0..3 {
        assert_eq!(errno(new.retrieve(Token(token))), Errno::ENOENT);
    }
    assert_eq!(new.finish().unwrap(), []);
    // SAFETY: looked at for the length of one call.
    fcntl_getfd(unsafe { BorrowedFd::borrow_raw(0) }).unwrap();
}
