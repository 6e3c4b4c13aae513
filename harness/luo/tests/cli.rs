// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The `luo` command, run as a user runs it.

use std::collections::BTreeSet;
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

/// What the command prints on stderr when it fails with this exit code.
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
        assert_eq!(row["handler"], "luo-handlers,memfd-v1");
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
        let samples = |spread: &Value| spread["samples"].as_array().unwrap().len();
        assert_eq!(samples(&row["downtime_ns"]), 2);
        assert_eq!(samples(&row["phases"]["retrieve_ns"]), 2);
        let downtime = ["freeze_ns", "handover_ns", "blackout_ns", "retrieve_ns"];
        let sum = |run: usize| -> u64 {
            let phase = |name: &&str| row["phases"][name]["samples"][run].as_u64().unwrap();
            downtime.iter().map(phase).sum()
        };
        assert_eq!(row["downtime_ns"]["samples"][1], sum(1));
        assert_eq!(
            (&row["moved_bytes"], &row["huge_page_bytes"]),
            (&0.into(), &0.into())
        );
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
fn collapsed_cases_are_measured_beside_their_plain_ones() {
    let arguments = [
        "bench",
        "--transport",
        "exec",
        "--size",
        "8M",
        "--fill",
        "dense",
    ];
    let output = luo(&arguments)
        .args(["--runs", "1", "--collapse", "--json", "-"])
        .assert()
        .success()
        .get_output()
        .clone();
    let report = json(&output.stdout);
    let rows = report["results"].as_array().unwrap();
    assert!(rows[0]["collapse"].is_null(), "{}", rows[0]);
    let Some(row) = rows.get(1) else {
        // A host without transparent huge pages, or that forbids them for shmem.
        let reason = report["skipped"][0]["reason"].as_str().unwrap();
        return assert!(reason.contains("huge pages"), "{reason}");
    };
    assert_eq!(
        (&row["pages"], &row["verified"]),
        (&"collapsed".into(), &true.into())
    );
    let collapse = &row["collapse"];
    assert!(collapse["collapse_ns"]["median"].as_u64() > Some(0));
    assert_eq!(collapse["asked_bytes"], 8 << 20);
    let bytes = |value: &Value| value.as_u64().unwrap();
    let refused = collapse["refused"].as_array().unwrap().iter();
    let refused: u64 = refused.map(|it| bytes(&it["bytes"])).sum();
    assert_eq!(bytes(&collapse["collapsed_bytes"]) + refused, 8 << 20);
    assert_eq!(row["huge_page_bytes"], collapse["collapsed_bytes"]);
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
    assert!(row["unrehearsed"].is_null(), "{row}");
    let data = row["data_bytes"].as_u64().unwrap();
    assert!((1 << 20..16 << 20).contains(&data), "{data}");
    // Nothing for what the file holds.
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
        let is_memfd = row["handler"] == "luo-handlers,memfd-v1";
        assert!(
            is_memfd || row["handler"] == "luo-handlers,ioport-v1",
            "{row}"
        );
        assert_eq!(row["verified"], true, "{row}");
        assert_eq!(row["size_bytes"], if is_memfd { 4096 } else { 0 });
        for field in ["pages", "fill"] {
            assert_eq!(row[field].is_null(), !is_memfd, "{row}");
        }
    }
    let skipped = report["skipped"].as_array().unwrap();
    // One case for each transport: sizes and fills are those of memfds.
    assert_eq!(results.len() + skipped.len(), 6);
    let reason = |handler: &str, transport: &str| {
        let mut cases = skipped.iter();
        let case = cases.find(|case| case["handler"] == handler && case["transport"] == transport);
        case.map(|case| case["reason"].as_str().unwrap())
    };
    assert!(reason("luo-handlers,vfio-v1", "exec")
        .unwrap()
        .contains("needed: 1000; to bind one"));
    assert!(reason("luo-handlers,vfio-v1", "image")
        .unwrap()
        .contains("an image holds contents"));
    if !Path::new("/dev/port").exists() {
        assert!(reason("luo-handlers,ioport-v1", "image")
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
        (
            &["bench", "--transport", "kexec", "--plugin", "x.so"],
            "lab test --handler",
        ),
        (
            &["bench", "--fill", "half"],
            "dense, shuffled and sparse:P%",
        ),
        (
            &["bench", "--size", "64M", "--fill", "sparse:0.001%"],
            "comes to no page",
        ),
        (&["bench", "--pages", "hugetlb:3M"], "power of two"),
        (&["bench", "--threshold", "5"], "--against"),
        (&["bench", "--pages", "2M"], "thp and hugetlb"),
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

/// Those that its manifest names: the linker drops one that its main file does not name as well.
#[test]
fn the_handlers_that_belong_into_the_program_are_there() {
    let manifest = include_str!("../Cargo.toml");
    let (_, rest) = manifest.split_once("\n[dependencies]\n").unwrap();
    let (dependencies, _) = rest.split_once("\n[").unwrap();
    let names = dependencies.lines().filter_map(|line| {
        let name = line.split(['.', ' ', '=']).next()?;
        let is_handler = name.starts_with("luo-handler-") && name != "luo-handler-api";
        is_handler.then(|| name.replace('-', "_"))
    });
    let names: BTreeSet<String> = names.collect();
    let output = luo(&["handlers", "--json"])
        .assert()
        .success()
        .get_output()
        .clone();
    let listed = json(&output.stdout);
    let listed = listed.as_array().unwrap();
    let origin = |row: &Value| row["origin"].as_str().unwrap().to_owned();
    assert_eq!(listed.iter().map(origin).collect::<BTreeSet<_>>(), names);
    let memfd = serde_json::json!({
        "compatible": "luo-handlers,memfd-v1",
        "kind": "handler",
        "origin": "luo_handler_memfd",
        "hosts": ["hosted", "kernel"],
        "abi_version": luo_handler_api::ABI_VERSION,
    });
    assert!(listed.contains(&memfd), "{listed:?}");
    luo(&["handlers"]).assert().success();
}

#[test]
fn inspecting_what_is_no_handover_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("something");
    fs::write(&file, "something").unwrap();
    let message = failure(&["inspect", file.to_str().unwrap()], 1);
    assert!(
        message.contains("not a handover of a live update"),
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

/// A small bench, into a report of this name.
fn small_bench(directory: &Path, name: &str) -> std::path::PathBuf {
    let file = directory.join(name);
    let arguments = ["bench", "--transport", "exec", "--size", "1M"];
    luo(&arguments)
        .args(["--fill", "dense", "--runs", "3", "--json"])
        .arg(&file)
        .assert()
        .success();
    file
}

#[test]
fn a_report_is_compared_with_an_older_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = small_bench(directory.path(), "old.json");
    let mut old = json(&fs::read(&file).unwrap());
    let mut against = |factor: f64| {
        for name in ["min", "median", "max"] {
            let value = &mut old["results"][0]["downtime_ns"][name];
            *value = ((value.as_f64().unwrap() * factor) as u64).into();
        }
        for sample in old["results"][0]["downtime_ns"]["samples"]
            .as_array_mut()
            .unwrap()
        {
            *sample = ((sample.as_f64().unwrap() * factor) as u64).into();
        }
        fs::write(&file, old.to_string()).unwrap();
        let arguments = ["bench", "--transport", "exec", "--size", "1M"];
        let output = luo(&arguments)
            .args(["--fill", "dense", "--runs", "3", "--against"])
            .arg(&file)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    // Far beyond any noise: the older report was a thousand times slower, and then as much faster.
    let (code, text) = against(1e3);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(": faster"), "{text}");
    let (code, text) = against(1e-6);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(": SLOWER"), "{text}");

    let message = failure(&["bench", "--against", "/nonexistent"], 1);
    assert!(message.contains("cannot read /nonexistent"), "{message}");
    fs::write(&file, "{\"schema\":1}").unwrap();
    let message = failure(&["bench", "--against", file.to_str().unwrap()], 1);
    assert!(message.contains("measure again"), "{message}");
}

#[test]
fn the_table_fits_the_terminal_and_begins_with_the_downtime() {
    for columns in [80, 100, 120] {
        let arguments = ["bench", "--size", "1M", "--runs", "1"];
        let output = luo(&arguments)
            .env("COLUMNS", columns.to_string())
            .assert()
            .success()
            .get_output()
            .clone();
        let text = String::from_utf8(output.stdout).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= columns, "{columns}: {line}");
        }
        let headings: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(headings[..2], ["measured", "downtime"]);
        assert!(text.contains("Verified: after each jump"), "{text}");
    }
}

#[test]
fn man_pages_and_completions_are_made_for_every_command() {
    let share = tempfile::tempdir().unwrap();
    luo(&["manual", share.path().to_str().unwrap()])
        .assert()
        .success();
    let read = |file: &str| fs::read_to_string(share.path().join(file)).unwrap();
    let bench = read("man/man1/luo-bench.1");
    assert!(
        bench.contains("against") && bench.contains("image"),
        "{bench}"
    );
    for file in [
        "bash-completion/completions/luo",
        "zsh/site-functions/_luo",
        "fish/vendor_completions.d/luo.fish",
    ] {
        assert!(read(file).contains("threshold"), "{file}");
    }
    assert!(read("man/man1/luo-lab-bench.1").contains("compare"));
}

#[test]
fn the_bench_names_handlers_as_they_are_registered() {
    use luo_bench::subject::{fill::Fill, pages::Pages, Subject};
    let memfd = Subject::Memfd {
        size: 1,
        pages: Pages::Base,
        fill: Fill::Dense,
    };
    let output = luo(&["handlers", "--json"])
        .assert()
        .success()
        .get_output()
        .clone();
    let listed = json(&output.stdout);
    for subject in [memfd, Subject::Vfio, Subject::Ioport] {
        let mut handlers = listed.as_array().unwrap().iter();
        let is_it = |handler: &Value| handler["compatible"] == subject.compatible();
        assert!(handlers.any(is_it), "{subject}: {listed}");
    }
}
