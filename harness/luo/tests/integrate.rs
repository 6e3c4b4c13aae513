// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo integrate` as a command: killed at random moments, on a full disk, with a configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Kills of each of four kinds.
const KILLS: u32 = 60;
const MEMFD: &[&str] = &["--handlers", "memfd"];
const REMOVE: &[&str] = &["--remove"];

/// What a kernel tree has to have.
const TREE: [(&str, &str); 5] = [
    (
        "drivers/Kconfig",
        "menu \"Device Drivers\"\n\nsource \"drivers/amba/Kconfig\"\n\nendmenu\n",
    ),
    ("drivers/Makefile", "obj-y\t+= amba/\n"),
    (
        "include/asm-generic/vmlinux.lds.h",
        "\tBOUNDED_SECTION_BY(__dyndbg_classes, ___dyndbg_classes)\t\\\n",
    ),
    ("rust/kernel/lib.rs", ""),
    (
        "rust/bindings/bindings_helper.h",
        "#include <linux/kref.h>\n#include <linux/mdio.h>\n",
    ),
];

/// The files that the patches of the module and its handlers change, as far as the patches show
/// them.
fn patched_files() -> BTreeMap<String, String> {
    let checkout = Path::new(checkout());
    let handlers = fs::read_dir(checkout.join("handlers")).unwrap();
    let handlers = handlers.map(|handler| handler.unwrap().path());
    let patches = [checkout.to_path_buf()]
        .into_iter()
        .chain(handlers)
        .flat_map(|part| fs::read_dir(part.join("kmod")).into_iter().flatten())
        .map(|file| file.unwrap().path())
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "patch")
        });
    let mut files = BTreeMap::<String, String>::new();
    for patch in patches {
        let mut name = String::new();
        for line in fs::read_to_string(patch).unwrap().lines() {
            if let Some(file) = line.strip_prefix("--- a/") {
                name = file.to_owned();
            } else if let (Some(text), false) = (line.strip_prefix([' ', '-']), name.is_empty()) {
                *files.entry(name.clone()).or_default() += &format!("{text}\n");
            }
        }
    }
    for file in ["mm/shmem.c", "kernel/liveupdate/luo_session.c"] {
        assert!(files.contains_key(file));
    }
    files
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (name, text) in TREE {
            let file = tree.0.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        for part in include_str!("../../../kmod/kernel.interface")
            .split("=== ")
            .skip(1)
        {
            let (name, text) = part.split_once('\n').unwrap();
            let file = tree.0.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        for (name, text) in patched_files() {
            let file = tree.0.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        tree
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_luo"));
        command
            .args(["integrate", "--checkout", checkout(), "--kernel"])
            .arg(self.0.path());
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Runs it to its end.
    fn integrate(&self, arguments: &[&str]) {
        let output = output(self.command(arguments));
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }

    /// Everything in the tree, directories as well.
    fn files(&self) -> Files {
        let mut files = Files::new();
        let mut pending = vec![self.0.path().to_path_buf()];
        while let Some(path) = pending.pop() {
            let name = path.strip_prefix(self.0.path()).unwrap().to_path_buf();
            if path.is_dir() {
                pending.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                files.insert(name.join(""), Vec::new());
            } else {
                files.insert(name, fs::read(&path).unwrap());
            }
        }
        files
    }

    /// Kills it after a time, unless it has ended by then.
    fn kill(&self, arguments: &[&str], after: Duration) {
        let mut child = self.command(arguments).spawn().unwrap();
        thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn checkout() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../..")
}

fn output(mut command: Command) -> Output {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Each file of the kernel is as one of the whole trees has it, never empty or cut off.
fn assert_kernel_is_whole(found: &Files, whole: [&Files; 2], what: &str) {
    for (name, _) in TREE {
        let contents = found.get(Path::new(name));
        let is_whole = whole
            .iter()
            .any(|files| contents == files.get(Path::new(name)));
        assert!(is_whole, "{what}: {name}: {contents:?}");
    }
}

#[test]
fn killed_at_any_moment_it_can_be_repeated_and_undone() {
    let tree = Tree::new();
    let untouched = tree.files();
    let started = Instant::now();
    tree.integrate(&[]);
    let usual = started.elapsed();
    let all = tree.files();
    tree.integrate(MEMFD);
    let memfd = tree.files();
    tree.integrate(REMOVE);
    assert_eq!(tree.files(), untouched);

    let seed = fastrand::get_seed();
    // Where it starts, what is killed, and how it goes on: to the same end, or back.
    let cases: [(&[&str], &[&str]); 4] = [(REMOVE, &[]), (&[], REMOVE), (&[], MEMFD), (MEMFD, &[])];
    let mut stopped_on_its_way = 0;
    for (start, killed) in cases {
        for round in 0..KILLS {
            let after = usual.mul_f64(fastrand::f64() * 1.2);
            let what = format!("{start:?}, {killed:?} killed after {after:?}, seed {seed}");
            tree.integrate(start);
            let before = tree.files();
            tree.kill(killed, after);
            let found = tree.files();
            assert_kernel_is_whole(&found, [&untouched, &all], &what);
            let next = if round % 2 == 0 { killed } else { start };
            tree.integrate(next);
            let whole = match next {
                [] => &all,
                next if next == MEMFD => &memfd,
                _ => &untouched,
            };
            let (files, is_ended) = (tree.files(), found == before || found == *whole);
            assert!(
                files == *whole,
                "{what}, then {next:?}: {:?}",
                different(&files, whole)
            );
            stopped_on_its_way += u32::from(!is_ended);
        }
    }
    // Otherwise the kills came too early or too late to show anything.
    assert!(
        stopped_on_its_way > 0,
        "no kill hit it at work; it takes {usual:?}"
    );
}

fn different<'a>(one: &'a Files, other: &'a Files) -> Vec<&'a PathBuf> {
    let names = one.keys().chain(other.keys());
    names
        .filter(|&name| one.get(name) != other.get(name))
        .collect()
}

#[test]
fn a_full_disk_changes_nothing() {
    let tree = Tree::new();
    let before = tree.files();
    // No file may grow beyond four blocks of 512 bytes, which stands in for a disk that is full.
    let limited = |arguments: &[&str]| {
        let command = tree.command(arguments);
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh"]);
        limited.arg(command.get_program()).args(command.get_args());
        output(limited)
    };
    let failed = limited(&[]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        stderr(&failed).contains("nothing was changed"),
        "{}",
        stderr(&failed)
    );
    assert_eq!(tree.files(), before);

    tree.integrate(MEMFD);
    let present = tree.files();
    let failed = limited(&[]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(present == tree.files());
}

#[test]
fn removing_reports_what_it_did() {
    let tree = Tree::new();
    let remove = || String::from_utf8(output(tree.command(REMOVE)).stdout).unwrap();
    assert!(remove().contains("there was nothing of ours"));
    tree.integrate(&[]);
    fs::write(tree.0.path().join("drivers/luo_handlers/notes.txt"), "mine").unwrap();
    let report = remove();
    for line in [
        "what is ours out of drivers/Kconfig",
        "what is ours out of mm/shmem.c",
        "removed ",
        "left alone",
        "notes.txt",
    ] {
        assert!(report.contains(line), "{report}");
    }
    let kconfig = tree.0.path().join("drivers/Kconfig");
    fs::write(
        &kconfig,
        "source \"drivers/luo_handlers/Kconfig\"\n\nendmenu\n",
    )
    .unwrap();
    assert_eq!(
        remove().lines().next(),
        Some("took what is ours out of drivers/Kconfig")
    );
}

#[test]
fn a_configuration_is_checked_and_what_is_missing_written() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    let fragment = directory.path().join("fragment");
    // As distributions have it.
    fs::write(
        &config,
        "CONFIG_SHMEM=y\nCONFIG_VFIO_PCI=m\n# CONFIG_KEXEC_HANDOVER is not set\n",
    )
    .unwrap();
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_luo"));
        command
            .args(["integrate", "--checkout", checkout(), "--config"])
            .arg(&config);
        command.args(arguments);
        output(command)
    };
    let found = check(&[]);
    assert_eq!(found.status.code(), Some(1));
    let missing = String::from_utf8(found.stdout.clone()).unwrap();
    for line in [
        "CONFIG_KEXEC_HANDOVER=y",
        "CONFIG_VFIO_PCI=y",
        "CONFIG_LUO_HANDLER_MEMFD=y",
    ] {
        assert!(missing.contains(line), "{missing}");
    }
    assert!(!missing.contains("CONFIG_SHMEM="), "{missing}");
    assert!(
        stderr(&found).contains("CONFIG_VFIO_PCI is m"),
        "{}",
        stderr(&found)
    );
    let written = check(&["--fragment", fragment.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&fragment).unwrap(), missing);
    assert!(stderr(&written).contains("merge_config.sh"));
    // As merge_config.sh does it: the last line counts.
    let lines = fs::read_to_string(&config).unwrap();
    let left = lines
        .lines()
        .filter(|line| !line.contains("VFIO_PCI") && !line.contains("not set"));
    fs::write(
        &config,
        left.collect::<Vec<_>>().join("\n") + "\n" + &missing,
    )
    .unwrap();
    assert_eq!(check(&[]).status.code(), Some(0));
    let without = missing
        .replace("CONFIG_LUO_HANDLER_IOPORT=y\n", "")
        .replace("CONFIG_DEVPORT=y", "");
    fs::write(&config, format!("CONFIG_SHMEM=y\n{without}")).unwrap();
    let dropped = stderr(&check(&[]));
    let reason = "Kconfig drops LUO_HANDLER_IOPORT: it depends on DEVPORT, and DEVPORT is n";
    assert!(dropped.contains(reason), "{dropped}");
}
