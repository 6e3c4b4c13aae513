// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The examples do what they promise.

use std::path::PathBuf;
use std::process::Command;

/// An example that cargo built, with this test or now.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap().join("examples").join(name);
    if !built.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = ["build", "--package", "luo-orchestrator", "--example", name];
        assert!(Command::new(cargo).args(build).status().unwrap().success());
    }
    built
}

#[test]
fn a_memfd_goes_through_the_execs_of_its_program() {
    let output = Command::new(example("exec")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let (_, process) = lines[0].split_once(", ").unwrap();
    for (line, generation) in lines.iter().zip(1..) {
        let expected = format!("generation {generation} was here, {process}");
        assert_eq!(*line, expected, "the same process");
    }
}
