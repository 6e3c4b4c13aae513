// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The running kernel: what is preserved in it now, what it writes, and what room there is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::facts::{short_name, Facts};

const NOTES: &str = "sys/kernel/notes";
const COUNTERS: &str = "sys/kernel/debug/luo_handlers";
/// What all sessions hold, also the files of the kernel's own handlers.
const SESSIONS: &str = "sys/kernel/debug/luo_handlers/sessions";
const SCRATCH: &str = "sys/kernel/debug/kho/out/scratch_len";
const MEMORY: &str = "proc/meminfo";

/// What the update starts from.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    /// What this kernel's notes report; `None` if they are missing or not from kmod.
    pub facts: Option<Facts>,
    /// How many files are preserved, by compatible.
    pub preserved: BTreeMap<String, u64>,
    /// Whether that could be read.
    pub is_preserved_known: bool,
    /// The largest piece of scratch memory, in bytes; the next kernel starts in it.
    pub scratch: Option<u64>,
    /// The memory that can be had without swapping, in bytes.
    pub available_memory: Option<u64>,
}

impl Machine {
    /// The machine that this runs on, as far as may be read: debugfs is for root.
    pub fn read() -> Self {
        Self::read_below(Path::new("/"))
    }

    fn read_below(root: &Path) -> Self {
        let notes = fs::read(root.join(NOTES)).ok();
        let facts = notes.and_then(|notes| Facts::from_notes(&notes).ok().flatten());
        let text = |file| fs::read_to_string(root.join(file)).ok();
        let shown = text(SESSIONS).and_then(|text| shown(&text));
        let counted = || {
            let counters = counters(&root.join(COUNTERS))?;
            Some(by_compatible(counters, facts.as_ref()))
        };
        let preserved = shown.or_else(counted);
        Self {
            is_preserved_known: preserved.is_some(),
            preserved: preserved.unwrap_or_default(),
            facts,
            scratch: text(SCRATCH).and_then(|text| largest(&text)),
            available_memory: text(MEMORY).and_then(|text| available(&text)),
        }
    }

    /// A machine that runs the kernel with these facts, and may have files of all of its handlers.
    pub fn of_kernel(facts: Facts) -> Self {
        let handlers = facts.handlers.iter().chain(&facts.own_handlers);
        Self {
            preserved: handlers.map(|compatible| (compatible.clone(), 0)).collect(),
            facts: Some(facts),
            ..Self::default()
        }
    }
}

/// Files that go to the next kernel, by compatible; `None` if a session is at work and does not
/// show its own.
fn shown(sessions: &str) -> Option<BTreeMap<String, u64>> {
    let mut preserved = BTreeMap::new();
    for line in sessions.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["session", "outgoing", "busy", ..] => return None,
            ["file", _, "preserved", compatible, ..] => {
                *preserved.entry(compatible.to_owned()).or_default() += 1;
            }
            _ => {}
        }
    }
    Some(preserved)
}

/// Files that each handler holds for the next kernel, by its name in debugfs.
fn counters(directory: &Path) -> Option<BTreeMap<String, u64>> {
    let mut held = BTreeMap::new();
    for entry in fs::read_dir(directory).ok()? {
        let entry = entry.ok()?;
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some(files) = held_files(&text) {
            held.insert(entry.file_name().to_string_lossy().into_owned(), files);
        }
    }
    Some(held)
}

/// Of a table with a line for each phase: name, calls, errors, time. `None` if it is not one.
fn held_files(table: &str) -> Option<u64> {
    let successes = |phase: &str| {
        let line = table
            .lines()
            .find(|line| line.split_whitespace().next() == Some(phase))?;
        let mut numbers = line
            .split_whitespace()
            .skip(1)
            .map(|word| word.parse::<u64>().ok());
        Some(numbers.next()??.saturating_sub(numbers.next()??))
    };
    Some(successes("prepare")?.saturating_sub(successes("cancel")?))
}

/// The compatible that a handler writes, where the kernel's notes name it; otherwise its name.
fn by_compatible(held: BTreeMap<String, u64>, facts: Option<&Facts>) -> BTreeMap<String, u64> {
    let compatible = |name: &str| {
        let mut known = facts.iter().flat_map(|facts| &facts.handlers);
        let mut named: Vec<&String> = known
            .by_ref()
            .filter(|compatible| short_name(compatible) == name)
            .collect();
        // Those with a vendor are written; the same without one are only read.
        named.sort_by_key(|compatible| !compatible.contains(','));
        named
            .first()
            .map_or(name, |compatible| compatible.as_str())
            .to_owned()
    };
    let held = held.into_iter().filter(|(_, files)| *files > 0);
    held.map(|(name, files)| (compatible(&name), files))
        .collect()
}

/// The largest of a list of numbers, decimal or with `0x`.
fn largest(text: &str) -> Option<u64> {
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    };
    text.split_whitespace().filter_map(number).max()
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::notes;

    #[test]
    fn what_is_preserved_comes_from_the_counters() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, contents: &[u8]| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, contents).unwrap();
        };
        write(
            NOTES,
            &notes("luo-v5", &["memfd-v1", "luo-handlers,memfd-v1", "vfio-v1"]),
        );
        let table = "phase count errors nanoseconds\nprepare 9 2 5\ncancel 3 0 5\nretrieve 8 0 1\n";
        write("sys/kernel/debug/luo_handlers/memfd", table.as_bytes());
        write(
            "sys/kernel/debug/luo_handlers/vfio",
            b"phase\nprepare 0 0 0\ncancel 0 0 0\n",
        );
        write("sys/kernel/debug/luo_handlers/preserved_bytes", b"4096\n");
        write(SCRATCH, b"0x100000\n0x4000000\n");
        write(MEMORY, b"MemTotal: 9 kB\nMemAvailable:   2048 kB\n");
        let machine = Machine::read_below(root.path());
        assert!(machine.is_preserved_known);
        let preserved = BTreeMap::from([("luo-handlers,memfd-v1".to_owned(), 4)]);
        assert_eq!(machine.preserved, preserved);
        assert_eq!(machine.scratch, Some(64 << 20));
        assert_eq!(machine.available_memory, Some(2 << 20));
    }

    #[test]
    fn what_sessions_show_counts_before_the_counters() {
        let text = "session outgoing held a\nfile 0x1 preserved memfd-v2 data=0x1\n\
                    file 0x2 preserved memfd-v2 data=0x2\nfile 0x3 preserved x,b-v1 data=0x3\n\
                    session incoming busy b\nfile 0x3 waiting c-v1 data=0x3\n";
        let counts = [("memfd-v2".to_owned(), 2), ("x,b-v1".to_owned(), 1)];
        assert_eq!(shown(text), Some(BTreeMap::from(counts)));
        assert_eq!(shown(&text.replace("held", "busy")), None);
        assert_eq!(shown(""), Some(BTreeMap::new()));
    }

    #[test]
    fn a_machine_without_any_of_it_is_read() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::read_below(root.path());
        assert!(!machine.is_preserved_known && machine.facts.is_none());
    }
}
