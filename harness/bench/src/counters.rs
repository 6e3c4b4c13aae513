// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the kernel module reports of its handlers in debugfs: how often each phase was called, and
//! how it went.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const DIRECTORY: &str = "/sys/kernel/debug/luo_handlers";
/// Bytes held for the next kernel beside the files' contents; a file beside those of the handlers.
const PRESERVED_BYTES: &str = "preserved_bytes";
/// Bytes that prepare moved to other memory, in kernels whose handlers count them.
const MOVED_BYTES: &str = "moved_bytes";
/// The file of a handler begins with the name of its first column.
const FIRST_COLUMN: &str = "phase";
/// Has entries of the kernel's own wherever debugfs is mounted.
const DEBUGFS: &str = "/sys/kernel/debug";

/// Why this kernel reports nothing of our handlers; `None` if it does.
pub fn obstacle() -> Option<String> {
    if Path::new(DIRECTORY).exists() {
        return None;
    }
    let mounted = fs::read_dir(DEBUGFS).is_ok_and(|mut entries| entries.next().is_some());
    Some(match mounted {
        true => "this kernel is built without our handlers; `luo integrate` puts them in".into(),
        false => {
            format!("our handlers report in debugfs: mount -t debugfs debugfs {DEBUGFS}")
        }
    })
}

/// The counters of a handler, or of several together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, Calls>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Calls {
    count: u64,
    errors: u64,
}

/// How many files our handlers took in this kernel, and gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Files that were prepared.
    pub prepared: u64,
    /// Files that were retrieved.
    pub retrieved: u64,
}

/// Shares by the names of handlers.
pub type Shares = BTreeMap<String, Share>;

/// The shares of the handlers in this kernel; empty if it has none of ours.
///
/// # Errors
///
/// Those of reading debugfs.
pub fn shares() -> Result<Shares> {
    let each = each()?.into_iter();
    Ok(each
        .map(|(name, counters)| (name, counters.share()))
        .collect())
}

/// The counters of each handler, by its name.
fn each() -> Result<BTreeMap<String, Counters>> {
    let mut each = BTreeMap::new();
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return Ok(each);
    };
    for entry in entries {
        let entry = entry.context("listing the handlers' counters")?;
        let (name, path) = (entry.file_name(), entry.path());
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if text.starts_with(FIRST_COLUMN) {
            each.insert(name.to_string_lossy().into_owned(), Counters::parse(&text));
        }
    }
    Ok(each)
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.prepared += other.prepared;
        self.retrieved += other.retrieved;
    }
}

/// All of them together.
pub fn sum(shares: &Shares) -> Share {
    let mut sum = Share::default();
    shares.values().for_each(|share| sum += *share);
    sum
}

impl Counters {
    /// Those of all handlers together; zero if this kernel has none of ours.
    ///
    /// # Errors
    ///
    /// Those of reading debugfs.
    pub fn read() -> Result<Self> {
        let mut sum = Self::default();
        each()?.into_values().for_each(|counters| sum += counters);
        Ok(sum)
    }

    /// A line that names the columns, and one line a phase: name, calls, errors, nanoseconds.
    fn parse(text: &str) -> Self {
        let phase = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            let mut number = || words.next()?.parse().ok();
            let (count, errors) = (number()?, number()?);
            Some((name, Calls { count, errors }))
        };
        Self(text.lines().skip(1).filter_map(phase).collect())
    }

    fn phase(&self, name: &str) -> Calls {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Calls of a phase that failed.
    pub fn errors(&self, phase: &str) -> u64 {
        self.phase(phase).errors
    }

    /// Calls of a phase that went well.
    pub fn successes(&self, phase: &str) -> u64 {
        let Calls { count, errors } = self.phase(phase);
        count.saturating_sub(errors)
    }

    /// Files that were taken and given back.
    pub fn share(&self) -> Share {
        Share {
            prepared: self.successes("prepare"),
            retrieved: self.successes("retrieve"),
        }
    }
}

/// Bytes that our handlers hold for the next kernel beside the files' contents.
///
/// # Errors
///
/// Those of reading debugfs.
pub fn preserved_bytes() -> Result<u64> {
    read_number(&Path::new(DIRECTORY).join(PRESERVED_BYTES))
}

/// Bytes that our handlers moved to other memory since boot; 0 if this kernel does not count them.
///
/// # Errors
///
/// Those of reading debugfs.
pub fn moved_bytes() -> Result<u64> {
    let path = Path::new(DIRECTORY).join(MOVED_BYTES);
    match path.exists() {
        true => read_number(&path),
        false => Ok(0),
    }
}

fn read_number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let number = text.trim().parse();
    number.with_context(|| format!("{} contains {text:?}", path.display()))
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        for (name, Calls { count, errors }) in other.0 {
            let phase = self.0.entry(name).or_default();
            phase.count += count;
            phase.errors += errors;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_found_by_name_and_summed() {
        let text = "phase count errors nanoseconds\nprepare 5 2 901\nretrieve 1 0 17\ngarbled\n";
        let mut counters = Counters::parse(text);
        counters += Counters::parse(text);
        assert_eq!(counters.successes("prepare"), 6);
        assert_eq!(counters.errors("prepare"), 4);
        assert_eq!(counters.errors("freeze"), 0);
        assert_eq!(
            counters.share(),
            Share {
                prepared: 6,
                retrieved: 2
            }
        );
    }
}
