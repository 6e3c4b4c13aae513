// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! For the tests of handlers: files over a real exec, by this crate's own transport.

use std::any::type_name_of_val;
use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use luo_handler_api::Token;

use crate::error::Error;
use crate::orchestrator::Orchestrator;
use crate::registry::Registry;
use crate::transport::exec::{arrive, Departure, HANDOVER_VARIABLE};
use crate::transport::program::Program;

/// Which side of the exec a process is; not set in the one that the test was started in.
const SIDE: &str = "LUO_CROSS_EXEC";
/// What the new side prints at its end.
const THROUGH: &str = "the new side of the exec is through";

/// Takes files over a real exec: the last thing that a test does.
///
/// ```no_run
/// # use luo_handler_memfd as _;
/// # use std::io::{Seek, Write};
/// luo_orchestrator::testing::cross_exec(
///     || {
///         let mut memfd = memfd::MemfdOptions::new().create("a name").unwrap().into_file();
///         memfd.write_all(b"contents").unwrap();
///         [memfd]
///     },
///     |[memfd]| {
///         let mut memfd = std::fs::File::from(memfd);
///         assert_eq!(memfd.stream_position().unwrap(), 8);
///     },
/// );
/// ```
///
/// It starts the test program once more with nothing but this test. There `old` makes the files.
/// They are preserved by the handlers that are linked into the program, prepared and frozen; the
/// process replaces itself by the program; there the files are retrieved and finished, and `new`
/// gets them, in the same order.
///
/// What a test does before this call is done by all three processes. The process id is the same on
/// both sides of the exec: good for names that both need. A test in `tests/` names the crate of its
/// handler, `use my_handler as _;`, or the linker leaves it out.
///
/// # Panics
///
/// If a side fails: the message has what it printed.
pub fn cross_exec<F: AsFd, const N: usize>(
    old: impl FnOnce() -> [F; N],
    new: impl FnOnce([OwnedFd; N]),
) {
    match env::var(SIDE).as_deref() {
        Ok("old") => depart(&test_name(&old), &old()),
        Ok("new") => {
            new(arrived());
            println!("\n{THROUGH}");
        }
        _ => start(&test_name(&old)),
    }
}

fn this_program(test: &str, side: &str) -> Program {
    let mut program = Program::new(env::current_exe().expect("the path of this program"));
    let alone = [
        "--exact",
        "--include-ignored",
        "--nocapture",
        "--test-threads=1",
    ];
    program.arg(test).args(alone).env(SIDE, side);
    program
}

/// The path of the test that runs. A test harness names the thread after it, unless it runs on the
/// main thread; the closure is named after the function that it stands in.
fn test_name<C>(closure: &C) -> String {
    let thread = thread::current();
    if let Some(name) = thread.name().filter(|name| *name != "main") {
        return name.to_owned();
    }
    let (_, path) = type_name_of_val(closure)
        .split_once("::")
        .unwrap_or_default();
    path.trim_end_matches("::{{closure}}").to_owned()
}

/// Runs both sides to their end.
fn start(test: &str) {
    let mut command = this_program(test, "old").command();
    command.env_remove(HANDOVER_VARIABLE).stdin(Stdio::null());
    let output = command.output().expect("starting this program again");
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && printed.contains(THROUGH),
        "test {test} over an exec: {}\n{printed}\n{errors}",
        output.status
    );
}

fn registry() -> Arc<Registry> {
    Arc::new(Registry::linked().expect("the handlers of this program"))
}

/// The old side: becomes the new one.
fn depart<F: AsFd>(test: &str, files: &[F]) {
    let update = Orchestrator::new(registry());
    for (file, token) in files.iter().zip(0..) {
        let taken = update.preserve(Token(token), file);
        let handler = taken.unwrap_or_else(|error| panic!("preserving file {token}: {error}"));
        println!("file {token} is preserved by {handler}");
    }
    update.prepare().unwrap_or_else(|error| panic!("{error}"));
    update.freeze().unwrap_or_else(|error| panic!("{error}"));
    let mut program = this_program(test, "new");
    let failed = update.handover(|handover| {
        let departure = Departure::new(&handover, &mut program);
        Ok::<_, Error>(departure.map(Departure::jump))
    });
    panic!("the exec failed: {failed:?}");
}

/// The new side: what the old one preserved, finished.
fn arrived<const N: usize>() -> [OwnedFd; N] {
    let arrival = arrive().unwrap_or_else(|error| panic!("{error}"));
    let new = Orchestrator::arrived(registry(), arrival.expect("a handover"));
    let bad = new.bad_entries().unwrap_or_else(|error| panic!("{error}"));
    assert!(bad.is_empty(), "bad entries: {bad:?}");
    let files = std::array::from_fn(|place| {
        let file = new.retrieve(Token(place as u64));
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        file.try_clone().expect("a descriptor")
    });
    let complaints = new.finish().unwrap_or_else(|error| panic!("{error}"));
    assert!(complaints.is_empty(), "finish: {complaints:?}");
    files
}
