// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The examples do what they promise.

use std::process::Command;

#[path = "../examples/server/load.rs"]
mod load;
mod support;

use support::example;

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

fn downgrade(versions: &[&str]) -> (bool, String) {
    let output = Command::new(example("downgrade"))
        .args(versions)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn a_program_goes_to_its_next_version_and_back() {
    let (succeeded, text) = downgrade(&["1", "2", "1", "2", "3"]);
    assert!(succeeded, "{text}");
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("version"))
        .collect();
    let expected = [
        "version 1: First { count: 1 }",
        "version 2: Second { count: 2, last: Some(\"version 2\") }",
        "version 1: First { count: 3 }",
        "version 2: Second { count: 4, last: Some(\"version 2\") }",
        "version 3: Third { counts: {\"before\": 4, \"version 3\": 1} }",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_version_that_cannot_read_the_state_refuses_it_with_a_reason() {
    let (succeeded, text) = downgrade(&["2", "3", "1"]);
    assert!(!succeeded, "{text}");
    assert!(
        text.contains("TooNew") && text.contains("oldest_reader: 3"),
        "{text}"
    );
}

/// The server under load: updates lose nothing, and leave nothing behind.
fn survives_updates(by: &'static str) {
    let plan = load::Plan {
        by,
        bytes: 4 << 20,
        updates: 50,
        clients: 8,
        idle: 300,
    };
    let outcome = load::run(&plan, Command::new(example("server"))).unwrap();
    println!("{outcome}");
    assert_eq!(
        (outcome.lost, outcome.errors, outcome.reconnects),
        (0, 0, 0),
        "{outcome:?}"
    );
    assert_eq!(outcome.stalls.len(), plan.updates);
    assert!(outcome.writes > plan.updates as u64, "{outcome:?}");
    assert_eq!(outcome.left_behind, 0, "{outcome:?}");
    let [first, last] = outcome.descriptors;
    assert_eq!(first, last, "{outcome:?}");
    let [first, last] = outcome.memory;
    assert!(last < first + 4096, "{outcome:?}");
}

#[test]
fn fifty_updates_by_exec_lose_nothing() {
    survives_updates("exec");
}

#[test]
fn fifty_updates_by_spawn_lose_nothing() {
    survives_updates("spawn");
}
