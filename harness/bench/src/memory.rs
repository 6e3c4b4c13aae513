// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! How much memory is free, exactly: pages that wait in a processor's own list are free as well.

use std::fs;

use anyhow::{Context, Result};

/// Bytes that nobody uses, once caches are dropped and each processor's counters are added up.
pub fn free_bytes() -> Result<u64> {
    write("/proc/sys/vm/drop_caches", "3")?;
    shrink_slabs();
    write("/proc/sys/vm/stat_refresh", "1")?;
    let zones = fs::read_to_string("/proc/zoneinfo").context("reading /proc/zoneinfo")?;
    Ok(free_pages(&zones) * rustix::param::page_size() as u64)
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("writing to {path}"))
}

/// Gives back slabs that are empty, and what KASAN still holds back after it was freed, to see whether somebody uses it.
/// A kernel without these switches has neither.
fn shrink_slabs() {
    let Ok(slabs) = fs::read_dir("/sys/kernel/slab") else {
        return;
    };
    for slab in slabs.flatten() {
        let _ = fs::write(slab.path().join("shrink"), "1");
    }
}

/// Free pages of all zones, and those in the lists of all processors.
fn free_pages(zones: &str) -> u64 {
    let number =
        |line: &str, name: &str| line.trim().strip_prefix(name)?.trim().parse::<u64>().ok();
    zones
        .lines()
        .filter_map(|line| number(line, "pages free").or_else(|| number(line, "count:")))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pages_are_those_of_zones_and_processors() {
        let zones = "Node 0, zone    DMA\n  per-node stats\n      nr_inactive_anon 0\n  pages free     3840\n        boost    0\n  \
                     pagesets\n    cpu: 0\n              count:    5\n              high:     8\n    cpu: 1\n              count:    7\n";
        assert_eq!(free_pages(zones), 3852);
    }
}
