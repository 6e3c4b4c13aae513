// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench` with a plugin in C, and with files of a type that no handler of this program knows.

#[path = "../../../luo-handler-api/tests/c/mod.rs"]
mod c;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The plugin of the api's tests: it takes pipes.
fn plugin(directory: &Path) -> PathBuf {
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../luo-handler-api");
    c::compile(&api, directory, &[])
}

fn program(directory: &Path, verify: &str) -> PathBuf {
    let program = directory.join("pipes.sh");
    let text = format!(
        "#!/bin/sh\n\
         case $1 in\n\
         make) mkfifo \"$0.$2\"; exec 3<>\"$0.$2\"; rm \"$0.$2\"\n\
               echo \"pipe $2\" >&3; echo ready; cat ;;\n\
         verify) {verify} ;;\n\
         esac\n"
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    program
}

fn bench(plugin: &Path, more: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_luo"))
        .args(["bench", "--runs", "2", "--json", "-", "--plugin"])
        .arg(plugin)
        .args(more)
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, report)
}

#[test]
fn files_of_a_program_cross_with_the_handler_of_a_plugin() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = plugin(directory.path());
    let program = program(
        directory.path(),
        "read -r line <&3; test \"$line\" = \"pipe $2\"",
    );
    let program = program.to_str().unwrap();
    let more = ["--program", program, "--files", "3"];
    let (output, report) = bench(&plugin, &more);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let [row] = &report["results"].as_array().unwrap()[..] else {
        panic!("{report}");
    };
    assert_eq!(row["verified"], true, "{row}");
    assert_eq!(row["handler"], "c-pipe-v1");
    assert!(row["unrehearsed"].is_null(), "{row}");
    assert_eq!(
        (&row["program"], &row["files"]),
        (&"pipes.sh".into(), &3.into())
    );
    assert_eq!(report["skipped"][0]["transport"], "image");
    assert!(errors.contains("skipped: image pipes.sh x3"), "{errors}");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        2,
        "no pipe is left"
    );
}

#[test]
fn what_a_program_does_not_find_again_is_not_verified() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = plugin(directory.path());
    let program = program(directory.path(), "test \"$2\" != 2");
    let program = program.to_str().unwrap();
    let more = ["--transport", "exec", "--program", program, "--files", "2"];
    let (output, report) = bench(&plugin, &more);
    assert_eq!(output.status.code(), Some(1));
    let row = &report["results"][0];
    assert_eq!(row["verified"], false, "{row}");
    let mismatch = row["mismatch"].as_str().unwrap();
    assert!(
        mismatch.contains("verify 2 ended with exit status: 1"),
        "{mismatch}"
    );
}

#[test]
fn a_plugin_joins_the_handlers_that_are_built_in() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = plugin(directory.path());
    let memfds = [
        "--transport",
        "exec,image",
        "--size",
        "1M",
        "--fill",
        "dense",
    ];
    let (output, report) = bench(&plugin, &memfds);
    assert!(output.status.success(), "{output:?}");
    for row in report["results"].as_array().unwrap() {
        assert_eq!(
            (&row["verified"], &row["handler"]),
            (&true.into(), &"luo-handlers,memfd-v1".into())
        );
    }
    // Without the plugin nobody takes a pipe, and of what is no plugin nothing is measured.
    let program = program(directory.path(), "true");
    let arguments = [
        "bench",
        "--transport",
        "exec",
        "--program",
        program.to_str().unwrap(),
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_luo"))
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no handler takes"), "{errors}");
    let (output, _) = bench(&program, &memfds);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("cannot use the plugin"), "{errors}");
}
