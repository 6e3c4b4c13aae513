// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The author's hour: `luo new`, and a handler of pipes made from what it writes, outside of the
//! workspace. Its own files are in `fixtures/pipe`; `make test-lab` takes it across kexecs.

#[path = "../../orchestrator/tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::{pipe, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use assert_cmd::cargo::cargo_bin;
use luo_handler_api::Token;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::plugin;
use luo_orchestrator::registry::Registry;
use support::Crossing;

/// What an author may have to write beyond what `luo new` wrote.
const OWN_LINES_MAX: usize = 150;

fn luo(arguments: &[&str]) -> Output {
    let output = Command::new(cargo_bin("luo")).args(arguments).output();
    output.unwrap()
}

fn succeed(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{errors}");
    printed
}

/// What is printed on stderr by a command that fails with this exit code.
fn failure(arguments: &[&str], code: i32) -> String {
    let output = luo(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    errors
}

fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs cargo for the crate of an author, in this workspace's target directory: what is there does
/// not have to be built again.
fn cargo(directory: &Path, arguments: &[&str]) -> String {
    let target = cargo_bin("luo").ancestors().nth(2).unwrap().to_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .arg("--offline")
        .arg("--target-dir")
        .arg(target)
        .current_dir(directory)
        .output()
        .unwrap();
    succeed(&output)
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pipe")
}

/// The files below a directory, by their names there.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => files.push(path.strip_prefix(directory).unwrap().to_owned()),
            }
        }
    }
    files
}

/// Puts the author's files over those of `luo new`; returns how many lines are the author's own.
fn change(new: &Path) -> usize {
    let mut own = 0;
    for name in files_below(&fixture()) {
        let before = fs::read_to_string(new.join(&name)).unwrap();
        let after = fs::read_to_string(fixture().join(&name)).unwrap();
        let patch = diffy::create_patch(&before, &after);
        let lines = patch.hunks().iter().flat_map(|hunk| hunk.lines());
        own += lines
            .filter(|line| matches!(line, diffy::Line::Insert(_)))
            .count();
        fs::write(new.join(&name), after).unwrap();
    }
    own
}

#[test]
fn a_new_crate_works_and_so_does_what_an_author_makes_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let new = directory.path().join("pipe");
    let place = new.to_str().unwrap();
    let printed = succeed(&luo(&["new", "pipe", "--path", place]));
    let next = printed.split_once("Next:\n").unwrap().1;
    assert_eq!(next.lines().count(), 3, "{printed}");
    assert!(next.contains("lab test --handler "), "{printed}");

    let passed = |printed: &str| {
        for test in ["it_conforms ... ok", "a_file_crosses_an_exec ... ok"] {
            assert!(printed.contains(test), "{printed}");
        }
    };
    passed(&cargo(&new, &["test"]));
    let own = change(&new);
    println!("the handler of pipes has {own} lines beyond what luo new wrote");
    assert!(own <= OWN_LINES_MAX, "{own} lines");
    passed(&cargo(&new, &["test"]));

    let plugin = ["--lib", "--crate-type", "cdylib", "--features", "plugin"];
    cargo(&new, &[&["rustc"], &plugin[..]].concat());
    let plugin = cargo_bin("luo").with_file_name("libluo_handler_pipe.so");
    is_shown_as_a_plugin(&plugin, directory.path());
}

fn is_shown_as_a_plugin(plugin: &Path, directory: &Path) {
    let name = plugin.to_str().unwrap();
    let listed = succeed(&luo(&["handlers", "--json", "--plugin", name]));
    assert!(listed.contains("\"vendor,pipe-v1\""), "{listed}");

    let registry = Arc::new(Registry::new());
    plugin::load(plugin, &registry).unwrap();
    let update = Orchestrator::new(registry);
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(b"in the pipe").unwrap();
    update.preserve(Token(7), &reader).unwrap();
    update.prepare().unwrap();
    update.freeze().unwrap();
    let crossing = Crossing::of(&update);
    let devicetree = directory.join("devicetree.dtb");
    fs::write(&devicetree, crossing.devicetree).unwrap();
    fs::write(directory.join("memory"), crossing.memory).unwrap();
    let inspect = ["inspect", devicetree.to_str().unwrap()];
    let shown = succeed(&luo(&[&inspect[..], &["--plugin", name]].concat()));
    assert!(shown.contains("0x7: vendor,pipe-v1"), "{shown}");
    assert!(shown.contains("status 0"), "{shown}");
    let without = succeed(&luo(&inspect));
    assert!(without.contains("unclaimed"), "{without}");
    update.depart();
}

/// A checkout with what `luo new` looks at.
fn checkout(directory: &Path, members: &str) -> PathBuf {
    let checkout = directory.join("checkout");
    for place in ["luo-handler-api", "handlers/memfd", "fuzz"] {
        fs::create_dir_all(checkout.join(place)).unwrap();
    }
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        fs::write(checkout.join(lock), "").unwrap();
    }
    let manifest = format!("[workspace]\nmembers = [\n{members}]\n");
    fs::write(checkout.join("Cargo.toml"), manifest).unwrap();
    checkout
}

#[test]
fn a_handler_in_the_tree_is_its_crate_and_one_line_of_the_workspace() {
    let directory = tempfile::tempdir().unwrap();
    let checkout = checkout(directory.path(), "    \"handlers/memfd\",\n");
    let arguments = ["new", "my_device", "--checkout", checkout.to_str().unwrap()];
    let printed = succeed(&luo(&arguments));
    assert!(!printed.contains("--handler "), "{printed}");
    let manifest = fs::read_to_string(checkout.join("Cargo.toml")).unwrap();
    let expected = "members = [\n    \"handlers/memfd\",\n    \"handlers/my_device\",\n]\n";
    assert!(manifest.ends_with(expected), "{manifest}");
    assert_eq!(entries(&checkout.join("handlers")), ["memfd", "my_device"]);
    let handler = checkout.join("handlers/my_device");
    let text = |name: &str| fs::read_to_string(handler.join(name)).unwrap();
    assert!(text("src/handler.rs").contains("\"luo-handlers,my_device-v1\""));
    assert!(text("Cargo.toml").contains("version.workspace = true"));

    let before = files_below(&handler);
    let message = failure(&arguments, 1);
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(files_below(&handler), before);
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let checkout = checkout(directory.path(), "");
    let checkout_name = checkout.to_str().unwrap();
    let place = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(place("file"), "").unwrap();

    for name in ["Pipe", "my-device", "../x", "api", ""] {
        failure(&["new", "--path", &place("new"), "--", name], 2);
    }
    for (name, path, advice) in [
        ("pipe", place("file"), "exists already"),
        ("pipe", place("checkout"), "exists already"),
        ("pipe", place("nowhere/pipe"), "cannot make a directory in"),
        ("pipe", place("file/pipe"), "cannot make a directory in"),
        (
            "pipe",
            "/proc/pipe".to_owned(),
            "cannot make a directory in",
        ),
        ("memfd", place("memfd"), "has a handler memfd"),
    ] {
        let arguments = ["new", name, "--path", &path, "--checkout", checkout_name];
        let message = failure(&arguments, 1);
        assert!(message.contains(advice), "{path}: {message}");
    }
    // Without a line that names a handler there is no place for another one.
    let message = failure(&["new", "pipe", "--checkout", checkout_name], 1);
    assert!(message.contains("no line of members"), "{message}");
    let message = failure(&["new", "pipe", "--checkout", &place("file")], 1);
    assert!(message.contains("not a checkout"), "{message}");
    assert_eq!(entries(directory.path()), ["checkout", "file"]);
    assert_eq!(entries(&checkout.join("handlers")), ["memfd"]);

    // A full disk, or whatever else stops it half-way.
    fs::remove_file(checkout.join("fuzz/Cargo.lock")).unwrap();
    let arguments = [
        "new",
        "pipe",
        "--path",
        &place("pipe"),
        "--checkout",
        checkout_name,
    ];
    let message = failure(&arguments, 1);
    assert!(message.contains("copying"), "{message}");
    assert_eq!(entries(directory.path()), ["checkout", "file"]);
}
