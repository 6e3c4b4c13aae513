// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The stick's partition, on a machine that has other disks: found by its GUID, which no other
//! partition has. The kernel reads the partition tables of all disks; this opens no other disk, and
//! mounts nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rustix::mount::{mount, mount_remount, unmount, MountFlags, UnmountFlags};

use crate::stick::GUID;

/// Where it is mounted.
pub(crate) const MOUNT_POINT: &str = "/stick";
const BLOCK_DEVICES: &str = "/sys/class/block";
/// USB devices appear some seconds after the kernel has started.
const PATIENCE: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_millis(100);
/// A stick that is pulled out loses no file that was written before.
const WRITABLE: MountFlags = MountFlags::SYNCHRONOUS.union(MountFlags::NOATIME);

/// The stick's partition, mounted so that it can be written.
#[derive(Debug)]
pub(crate) struct Partition {
    /// The device.
    pub(crate) device: PathBuf,
}

impl Partition {
    /// Waits for the partition and mounts it.
    pub(crate) fn mount() -> Result<Self> {
        let guid = fs::read_to_string(Path::new("/").join(GUID)).context("which stick is it?")?;
        let device = wait_for(guid.trim())?;
        fs::create_dir_all(MOUNT_POINT).context("making the mount point")?;
        mount(&device, MOUNT_POINT, c"vfat", WRITABLE, None)
            .with_context(|| format!("mounting {}", device.display()))?;
        Ok(Self { device })
    }

    /// Has it writable again, after a jump that was refused.
    pub(crate) fn make_writable(&self) -> Result<()> {
        mount_remount(MOUNT_POINT, WRITABLE, "").context("making the stick writable")
    }

    /// Writes what is left and ends it.
    pub(crate) fn unmount(self) -> Result<()> {
        unmount(MOUNT_POINT, UnmountFlags::empty()).context("unmounting the stick")
    }
}

/// Has the partition clean before a jump, which unmounts nothing.
pub(crate) fn settle() {
    // At worst the next kernel finds it marked as used.
    let _ = mount_remount(MOUNT_POINT, WRITABLE | MountFlags::RDONLY, "");
    rustix::fs::sync();
}

fn wait_for(guid: &str) -> Result<PathBuf> {
    let started = Instant::now();
    loop {
        match &find(Path::new(BLOCK_DEVICES), guid)?[..] {
            [name] => return Ok(Path::new("/dev").join(name)),
            [] if started.elapsed() < PATIENCE => sleep(INTERVAL),
            [] => bail!(
                "no disk has a partition with the GUID {guid}: is the stick still in, and is its \
                 port one of USB, SATA or NVMe?"
            ),
            several => bail!(
                "{} disks hold this image: {}; leave one of them in",
                several.len(),
                several.join(", ")
            ),
        }
    }
}

/// The names of the partitions with this GUID, as the kernel read them from the tables.
fn find(devices: &Path, guid: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(devices).with_context(|| devices.display().to_string())? {
        // A device that has just been pulled out has no file any more.
        let Ok(text) = fs::read_to_string(entry?.path().join("uevent")) else {
            continue;
        };
        let value = |name| text.lines().find_map(|line: &str| line.strip_prefix(name));
        if value("PARTUUID=").is_some_and(|found| found.eq_ignore_ascii_case(guid)) {
            found.extend(value("DEVNAME=").map(str::to_owned));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_partition_is_found_by_its_guid_alone() {
        let devices = tempfile::tempdir().unwrap();
        let device = |name: &str, uevent: &str| {
            fs::create_dir(devices.path().join(name)).unwrap();
            fs::write(devices.path().join(name).join("uevent"), uevent).unwrap();
        };
        device("sda", "DEVNAME=sda\nDEVTYPE=disk\n");
        device("sda1", "DEVNAME=sda1\nPARTNAME=luo-bench\nPARTUUID=aa-1\n");
        device("sdb1", "DEVNAME=sdb1\nPARTNAME=luo-bench\nPARTUUID=aa-12\n");
        fs::create_dir(devices.path().join("gone")).unwrap();
        let find = |guid| find(devices.path(), guid).unwrap();
        assert_eq!(find("AA-1"), ["sda1"]);
        assert!(find("aa").is_empty());
        device("sdc1", "DEVNAME=sdc1\nPARTUUID=aa-1\n");
        assert_eq!(find("aa-1"), ["sda1", "sdc1"]);
    }
}
