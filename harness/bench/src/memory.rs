// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! How much memory there is: free exactly, free enough to use, and taken by a file.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::fstat;

/// The unit of `st_blocks`, on every file system.
const STAT_BLOCK: u64 = 512;
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";
/// The value with which the kernel promises no more memory than there is.
const OVERCOMMIT_NEVER: &str = "2";

/// Bytes that nobody uses, once caches are dropped and each processor's counters are added up:
/// pages that wait in a processor's own list are free as well.
///
/// # Errors
///
/// Those of writing to `/proc/sys/vm`, which takes root.
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

/// Gives back slabs that are empty, and what KASAN still holds back after it was freed, to see
/// whether somebody uses it. A kernel without these switches has neither.
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

/// Bytes that this process can use before the machine swaps, its memory cgroup kills, or a strict
/// kernel refuses; `None` if nothing reports it.
pub fn available_bytes() -> Option<u64> {
    let available = match meminfo("MemAvailable:") {
        Some(available) => available,
        // Without /proc, what is free is known, and what could be freed is not.
        None => {
            let info = rustix::system::sysinfo();
            (info.freeram as u64).checked_mul(u64::from(info.mem_unit))?
        }
    };
    let limits = [promised_bytes(), cgroup_bytes()];
    limits.into_iter().flatten().chain([available]).min()
}

/// What a kernel that never overcommits still promises.
fn promised_bytes() -> Option<u64> {
    let mode = fs::read_to_string(OVERCOMMIT).ok()?;
    if mode.trim() != OVERCOMMIT_NEVER {
        return None;
    }
    Some(meminfo("CommitLimit:")?.saturating_sub(meminfo("Committed_AS:")?))
}

/// What the memory cgroups of this process still allow, by either version's files.
fn cgroup_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let rooms = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        match controllers {
            "" => cgroup_room(
                Path::new("/sys/fs/cgroup"),
                group,
                ["memory.max", "memory.current"],
            ),
            _ if controllers.split(',').any(|name| name == "memory") => cgroup_room(
                Path::new("/sys/fs/cgroup/memory"),
                group,
                ["memory.limit_in_bytes", "memory.usage_in_bytes"],
            ),
            _ => None,
        }
    });
    rooms.min()
}

/// The least that a group and those above it allow. A container sees its own group as the root.
fn cgroup_room(root: &Path, group: &str, [limit, usage]: [&str; 2]) -> Option<u64> {
    let group = root.join(group.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|path| path.starts_with(root));
    let number = |path: &Path, name| -> Option<u64> {
        let text = fs::read_to_string(path.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let rooms = groups.filter_map(|path| {
        let used = number(path, usage)?.saturating_sub(cached(path));
        Some(number(path, limit)?.saturating_sub(used))
    });
    rooms.min()
}

/// Bytes that a group has in caches of files and that the kernel takes back first.
fn cached(group: &Path) -> u64 {
    let stat = fs::read_to_string(group.join("memory.stat"));
    stat.ok()
        .and_then(|stat| field(&stat, "inactive_file "))
        .unwrap_or(0)
}

/// A line of `/proc/meminfo`: bytes where it has a unit, else a number.
pub fn meminfo(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

/// The same on a kernel that has such a line.
///
/// # Errors
///
/// If it has none.
pub fn expect_meminfo(name: &str) -> Result<u64> {
    meminfo(name).with_context(|| format!("/proc/meminfo has no {name}"))
}

/// The first line of a `/proc` file that begins with `name`: bytes where it has a unit, else a
/// number.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let mut words = line[name.len()..].split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    Some(match words.next() {
        Some("kB") => number << 10,
        _ => number,
    })
}

/// Bytes of memory that a file takes, `st_blocks` of `stat(2)`.
///
/// # Errors
///
/// Those of `fstat(2)`.
pub fn allocated_bytes(file: impl AsFd) -> io::Result<u64> {
    Ok(fstat(file)?.st_blocks as u64 * STAT_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pages_are_those_of_zones_and_processors() {
        let zones = "Node 0, zone    DMA\n  per-node stats\n      nr_inactive_anon 0\n  \
                     pages free     3840\n        boost    0\n  pagesets\n    cpu: 0\n      \
                     count:    5\n      high:     8\n    cpu: 1\n      count:    7\n";
        assert_eq!(free_pages(zones), 3852);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("outer/inner");
        fs::create_dir_all(&inner).unwrap();
        let files = ["memory.max", "memory.current"];
        let room = || cgroup_room(root.path(), "/outer/inner", files);
        assert_eq!(room(), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(inner.join("memory.current"), "10\n").unwrap();
        assert_eq!(room(), None);
        fs::write(root.path().join("outer/memory.max"), "100\n").unwrap();
        fs::write(root.path().join("outer/memory.current"), "30\n").unwrap();
        assert_eq!(room(), Some(70));
        fs::write(inner.join("memory.max"), "50\n").unwrap();
        assert_eq!(room(), Some(40));
        fs::write(inner.join("memory.stat"), "anon 1\ninactive_file 7\n").unwrap();
        assert_eq!(room(), Some(47));
        assert_eq!(cgroup_room(root.path(), "/gone/away", files), None);
    }
}
