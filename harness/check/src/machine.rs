// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The running kernel: what is preserved in it now, what it writes, and what room there is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use luo_liveupdate::sessions::{self, Direction, ShownSession};
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
    /// Those of them that are known one by one.
    pub files: Vec<PreservedFile>,
    /// Sessions that are at work, whose files are not shown meanwhile.
    pub busy_sessions: Vec<String>,
    /// Whether that could be read.
    pub is_preserved_known: bool,
    /// The largest piece of scratch memory, in bytes; the next kernel starts in it.
    pub scratch: Option<u64>,
    /// The memory that can be had without swapping, in bytes.
    pub available_memory: Option<u64>,
}

/// A file that goes to the next kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreservedFile {
    /// The session that holds it.
    pub session: String,
    /// Its token in there, as `0x1`.
    pub token: String,
    /// What the kernel calls the open file.
    pub name: Option<String>,
    /// The format, which names the handler.
    pub compatible: String,
    /// What its handler has to be able to read: the layout of its record, the kind of file.
    pub needs: Vec<String>,
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
        let mut machine = Self {
            scratch: text(SCRATCH).and_then(|text| largest(&text)),
            available_memory: text(MEMORY).and_then(|text| available(&text)),
            ..Self::default()
        };
        let shown = text(SESSIONS).map(|text| machine.add_shown(sessions::parse(&text)));
        // They count what a session at work does not show, but not what the kernel's own hold.
        if shown.is_none() || !machine.busy_sessions.is_empty() {
            if let Some(counters) = counters(&root.join(COUNTERS)) {
                machine.is_preserved_known = true;
                for (compatible, count) in by_compatible(counters, facts.as_ref()) {
                    let preserved = machine.preserved.entry(compatible).or_default();
                    *preserved = count.max(*preserved);
                }
            }
        }
        machine.facts = facts;
        machine
    }

    /// What sessions hold for the next kernel.
    fn add_shown(&mut self, sessions: Vec<ShownSession>) {
        self.is_preserved_known = true;
        let outgoing = |session: &ShownSession| session.direction == Direction::Outgoing;
        for session in sessions.into_iter().filter(outgoing) {
            if session.state == "busy" {
                self.busy_sessions.push(session.name);
                continue;
            }
            for file in session.files {
                let name = file.value("name").map(str::to_owned);
                let needs = file.values("needs[]").map(str::to_owned).collect();
                *self.preserved.entry(file.compatible.clone()).or_default() += 1;
                self.files.push(PreservedFile {
                    session: session.name.clone(),
                    token: file.token.to_string(),
                    name,
                    compatible: file.compatible,
                    needs,
                });
            }
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

    /// Takes files of these formats into account as well.
    pub fn needs<'a>(&mut self, compatibles: impl IntoIterator<Item = &'a str>) {
        for compatible in compatibles {
            self.preserved.entry(compatible.to_owned()).or_default();
        }
    }
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

    const SHOWN: &str = "session outgoing held a\\x20b\n\
        file 0x1 preserved memfd-v2 data=0x1 name=memfd:x inode=7\n\
        file 0x2 preserved luo-handlers,memfd-v1 data=0x2 needs[]=memfd-r3 needs[]=shmem\n\
        session outgoing busy c\n\
        session incoming waiting d\nfile 0x3 waiting e-v1 data=0x3\n";

    #[test]
    fn what_sessions_show_is_known_file_by_file() {
        let mut machine = Machine::default();
        machine.add_shown(sessions::parse(SHOWN));
        let file =
            |token: &str, name: Option<&str>, compatible: &str, needs: &[&str]| PreservedFile {
                session: "a b".into(),
                token: token.into(),
                name: name.map(str::to_owned),
                compatible: compatible.into(),
                needs: needs.iter().copied().map(str::to_owned).collect(),
            };
        let files = [
            file("0x1", Some("memfd:x"), "memfd-v2", &[]),
            file("0x2", None, "luo-handlers,memfd-v1", &["memfd-r3", "shmem"]),
        ];
        assert_eq!(machine.files, files);
        assert_eq!(machine.busy_sessions, ["c"]);
        assert!(machine.preserved.values().eq(&[1, 1]));
    }

    #[test]
    fn a_session_at_work_shows_in_the_counters() {
        let root = tempfile::tempdir().unwrap();
        let counters = root.path().join(COUNTERS);
        fs::create_dir_all(&counters).unwrap();
        fs::write(counters.join("other"), "prepare 3 0 5\ncancel 1 0 5\n").unwrap();
        let preserved = |text: &str| {
            fs::write(root.path().join(SESSIONS), text).unwrap();
            Machine::read_below(root.path()).preserved
        };
        assert_eq!(preserved(SHOWN)["other"], 2);
        assert!(!preserved(&SHOWN.replace("busy", "held")).contains_key("other"));
    }

    #[test]
    fn a_machine_without_any_of_it_is_read() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::read_below(root.path());
        assert!(!machine.is_preserved_known && machine.facts.is_none());
    }
}
