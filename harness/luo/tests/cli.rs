// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The `luo` command, run as a user runs it.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

fn luo(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("luo").unwrap();
    command.args(arguments);
    command
}

fn json(output: &[u8]) -> Value {
    serde_json::from_slice(output).unwrap()
}

/// What the command says on stderr when it fails with this exit code.
fn failure(arguments: &[&str], code: i32) -> String {
    let output = luo(arguments).assert().code(code).get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

fn entries(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_combination_crosses_verified_and_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let (figures, page) = (
        directory.path().join("out.json"),
        directory.path().join("out.html"),
    );
    let images = tempfile::tempdir().unwrap();
    luo(&[
        "bench",
        "--size",
        "1M,20M",
        "--fill",
        "dense,sparse:5%,shuffled",
        "--runs",
        "2",
    ])
    .args([
        "--files",
        "2",
        "--image-dir",
        images.path().to_str().unwrap(),
    ])
    .args([
        "--json",
        figures.to_str().unwrap(),
        "--html",
        page.to_str().unwrap(),
    ])
    .assert()
    .success();

    let report = json(&fs::read(figures).unwrap());
    assert_eq!(report["schema"], 2);
    for field in ["kernel", "cpu", "cpus", "page_size", "accel", "luo_version"] {
        assert!(!report["environment"][field].is_null(), "{field}");
    }
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 12);
    for row in results {
        assert_eq!(row["verified"], true, "{row}");
        assert_eq!((&row["runs"], &row["files"]), (&2.into(), &2.into()));
        assert_eq!(row["handler"], "memfd-v1");
        for phase in [
            "prepare_ns",
            "freeze_ns",
            "blackout_ns",
            "retrieve_ns",
            "finish_ns",
        ] {
            let spread = &row["phases"][phase];
            let [min, median, max] =
                ["min", "median", "max"].map(|name| spread[name].as_u64().unwrap());
            assert!(
                0 < min && min <= median && median <= max,
                "{phase}: {spread}"
            );
        }
        let sparse = row["fill"] == "sparse:5%";
        let data = row["data_bytes"].as_u64().unwrap();
        let size = 2 * row["size_bytes"].as_u64().unwrap();
        assert_eq!(sparse, data < size);
        assert!(row["metadata_bytes"].as_u64().unwrap() > 0);
    }
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && !page.contains("http-equiv") && !page.contains("src="));
    assert_eq!(
        entries(images.path()),
        [""; 0],
        "what the bench made is removed"
    );
}

#[test]
fn a_sparse_memfd_of_64_gib_costs_what_its_data_costs() {
    let output = luo(&[
        "bench",
        "--transport",
        "exec",
        "--size",
        "64G",
        "--fill",
        "sparse:0.01%",
    ])
    .args(["--runs", "1", "--json", "-"])
    .assert()
    .success()
    .get_output()
    .clone();
    let row = &json(&output.stdout)["results"][0];
    assert_eq!(row["verified"], true);
    let data = row["data_bytes"].as_u64().unwrap();
    assert!((1 << 20..16 << 20).contains(&data), "{data}");
    // 16 bytes an extent and no more extents than pages.
    assert!(
        row["metadata_bytes"].as_u64().unwrap() < data / 100,
        "{row}"
    );
    assert!(
        row["extra_memory_bytes"].as_u64().unwrap() < data / 100,
        "{row}"
    );
}

#[test]
fn pages_that_the_machine_cannot_give_are_said_and_skipped() {
    // More memory, and more huge pages, than any machine has.
    let arguments = [
        "bench",
        "--transport",
        "exec",
        "--size",
        "1M,16T",
        "--pages",
        "4k,hugetlb",
    ];
    let output = luo(&arguments)
        .args(["--fill", "dense", "--runs", "1", "--json", "-"])
        .assert()
        .success()
        .get_output()
        .clone();
    let report = json(&output.stdout);
    let skipped = report["skipped"].as_array().unwrap();
    assert!(!skipped.is_empty());
    for case in skipped {
        let reason = case["reason"].as_str().unwrap();
        assert!(
            reason.contains("needed") || reason.contains("needs"),
            "{reason}"
        );
    }
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("skipped: exec"), "{stderr}");
}

#[test]
fn devices_and_ports_that_the_machine_does_not_have_are_said_and_skipped() {
    // No machine has so many devices to bind.
    let files = ["--files", "1000", "--runs", "1", "--json", "-"];
    let output = luo(&["bench", "--handler", "ioport,vfio,memfd", "--size", "4k"])
        .args(["--fill", "dense"])
        .args(files)
        .assert()
        .success()
        .get_output()
        .clone();
    let report = json(&output.stdout);
    let results = report["results"].as_array().unwrap();
    for row in results {
        let is_memfd = row["handler"] == "memfd-v1";
        assert!(is_memfd || row["handler"] == "ioport-v1", "{row}");
        assert_eq!(row["verified"], true, "{row}");
        assert_eq!(row["size_bytes"], if is_memfd { 4096 } else { 0 });
        for field in ["pages", "fill"] {
            assert_eq!(row[field].is_null(), !is_memfd, "{row}");
        }
    }
    let skipped = report["skipped"].as_array().unwrap();
    // One case a transport, whatever sizes and fills there are of memfds.
    assert_eq!(results.len() + skipped.len(), 6);
    let reason = |handler: &str, transport: &str| {
        let mut cases = skipped.iter();
        let case = cases.find(|case| case["handler"] == handler && case["transport"] == transport);
        case.map(|case| case["reason"].as_str().unwrap())
    };
    assert!(reason("vfio-v1", "exec")
        .unwrap()
        .contains("needed: 1000; to bind one"));
    assert!(reason("vfio-v1", "image")
        .unwrap()
        .contains("an image holds contents"));
    if !Path::new("/dev/port").exists() {
        assert!(reason("ioport-v1", "image")
            .unwrap()
            .contains("CONFIG_DEVPORT"));
    }

    let alone = ["bench", "--handler", "vfio", "--files", "1000"];
    let message = failure(&alone, 1);
    assert!(message.contains("needed: 1000; to bind one"), "{message}");
    assert!(
        message.contains("nothing of what was asked for"),
        "{message}"
    );
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_right() {
    for (arguments, advice) in [
        (&["bench", "--size", "many"][..], "64M, 4G or 1.5GiB"),
        (&["bench", "--size", "0"], "from 1 byte to 16.0 TiB"),
        (&["bench", "--size", "17T"], "from 1 byte to 16.0 TiB"),
        (&["bench", "--plugin", "x.so"], "--plugin"),
        (
            &["bench", "--fill", "half"],
            "dense, shuffled and sparse:P%",
        ),
        (&["bench", "--pages", "2M"], "4k, thp and hugetlb"),
        (&["bench", "--transport", "pigeon"], "exec"),
        (&["bench", "--runs", "0"], "--runs"),
        (
            &["bench", "--transport", "exec,kexec"],
            "it is measured alone",
        ),
        (&["bench", "--yes"], "--transport kexec"),
        (&["bench", "--handler", "tape"], "memfd, vfio, ioport"),
        (
            &[
                "lab",
                "bench",
                "--handler",
                "memfd,vfio",
                "--compare",
                "mainline-c",
            ],
            "--handler memfd",
        ),
        (&["bench", "--continue", "--yes"], "--continue"),
        (&["fly"], "Usage"),
    ] {
        let message = failure(arguments, 2);
        assert!(message.contains(advice), "{arguments:?}: {message}");
    }
}

#[test]
fn what_cannot_be_written_is_said_before_the_work() {
    let message = failure(&["bench", "--json", "/nonexistent/out.json"], 1);
    assert!(
        message.contains("cannot write /nonexistent/out.json"),
        "{message}"
    );
    let message = failure(&["bench", "--image-dir", "/nonexistent"], 1);
    assert!(message.contains("--image-dir"), "{message}");
}

#[test]
fn a_machine_that_cannot_jump_says_why_and_one_that_did_not_has_nothing_to_continue() {
    let figures = tempfile::tempdir().unwrap().path().join("out.json");
    let arguments = ["bench", "--transport", "kexec", "--kernel", "/nonexistent"];
    let output = luo(&arguments)
        .args(["--json", figures.to_str().unwrap()])
        .assert()
        .code(1)
        .get_output()
        .clone();
    assert!(!output.stderr.is_empty());
    assert!(!figures.exists());
    let unit = luo(&["bench", "--print-unit"]).assert().success();
    let unit = String::from_utf8(unit.get_output().stdout.clone()).unwrap();
    assert!(unit.contains("/luo bench --continue\n"), "{unit}");
    if !Path::new("/dev/liveupdate").exists() {
        luo(&["bench", "--continue"])
            .assert()
            .success()
            .stdout("There is nothing to continue: this kernel has no /dev/liveupdate.\n");
    }
}

#[test]
fn the_handlers_that_belong_into_the_program_are_there() {
    let output = luo(&["handlers", "--json"])
        .assert()
        .success()
        .get_output()
        .clone();
    let listed = json(&output.stdout);
    let expected = ["ioport", "memfd", "vfio"].map(|name| {
        serde_json::json!({
            "compatible": format!("{name}-v1"),
            "kind": "handler",
            "origin": format!("luo_handler_{name}"),
            "hosts": ["hosted", "kernel"],
            "abi_version": 2,
        })
    });
    assert_eq!(listed, Value::from(expected.to_vec()));
    luo(&["handlers"]).assert().success();
}

#[test]
fn inspecting_what_is_no_handover_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("something");
    fs::write(&file, "something").unwrap();
    let message = failure(&["inspect", file.to_str().unwrap()], 1);
    assert!(
        message.contains("no handover of a live update"),
        "{message}"
    );
    let message = failure(&["inspect", "/nonexistent"], 1);
    assert!(message.contains("cannot read /nonexistent"), "{message}");
}

#[test]
fn an_interrupted_bench_leaves_nothing_behind() {
    use rustix::process::{kill_process, Pid, Signal};
    use std::io::{BufRead, BufReader};

    let images = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("luo"))
        .args([
            "bench",
            "--transport",
            "image",
            "--size",
            "16M",
            "--fill",
            "dense",
            "--runs",
            "10000",
        ])
        .args(["--image-dir", images.path().to_str().unwrap()])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    stderr.read_line(&mut first).unwrap();
    assert!(first.contains("verified"), "{first}");
    assert_eq!(entries(images.path()).len(), 1);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    std::io::copy(&mut stderr, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(entries(images.path()), [""; 0]);
}
