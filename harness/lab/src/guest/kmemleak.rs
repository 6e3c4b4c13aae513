// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memory that the kernel allocated and lost, found by its own detector.

use std::fs;
use std::io::ErrorKind;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{bail, Context, Result};

const DETECTOR: &str = "/sys/kernel/debug/kmemleak";
/// What is younger than five seconds is never reported.
const AGE: Duration = Duration::from_secs(6);
/// Only what was the same in two scans is.
const SCANS: usize = 2;
/// What the functions of our crates and of the shim have in their names.
const OURS: [&str; 2] = ["luo_handler", "luo_shim"];

/// Refuses memory that our handlers lost. A kernel without the detector is not asked.
pub(crate) fn check() -> Result<()> {
    if let Err(error) = fs::metadata(DETECTOR) {
        return match error.kind() {
            ErrorKind::NotFound => Ok(()),
            _ => Err(error).context(DETECTOR),
        };
    }
    sleep(AGE);
    for _ in 0..SCANS {
        fs::write(DETECTOR, "scan").context("having kmemleak scan")?;
    }
    let reports = fs::read_to_string(DETECTOR).context("reading what kmemleak found")?;
    match of_ours(&reports) {
        None => Ok(()),
        Some(report) => bail!("our handlers lost memory: {report}"),
    }
}

/// The first report of an allocation that our code made.
fn of_ours(reports: &str) -> Option<&str> {
    const BEGINNING: &str = "unreferenced object";
    let mut reports = reports.split(BEGINNING).skip(1);
    let report = reports.find(|report| OURS.iter().any(|name| report.contains(name)))?;
    Some(report.trim())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn only_allocations_of_our_own_count() {
        let others = "unreferenced object 0xffff888004a1d2c0 (size 64):\n  comm \"luo\", pid 1\n  \
                      backtrace (crc 0):\n    \
                      luo_session_create+0x10/0x20\n";
        let ours = "unreferenced object 0xffff888004a1d300 (size 32):\n  backtrace (crc 1):\n    \
                    _RNvNtCs1_17luo_handler_memfd7handler+0x1/0x2\n";
        assert_eq!(of_ours(""), None);
        assert_eq!(of_ours(others), None);
        let report = of_ours(&format!("{others}{ours}"))
            .map(str::to_owned)
            .unwrap();
        assert!(report.starts_with("0xffff888004a1d300"), "{report}");
    }
}
