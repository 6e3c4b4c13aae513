// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The guest's PCI devices, through sysfs: how one goes missing or makes room for another.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

use luo_bench::vfio::directory;

const BUS: &str = "/sys/bus/pci";
/// In a bridge's configuration: the numbers of the first and the last bus below it.
const BUS_NUMBERS: u64 = 0x19;

/// The device file of the group that the IOMMU puts a device into.
pub(crate) fn group_file(address: &str) -> Result<PathBuf> {
    let link = directory(address).join("iommu_group");
    let group = fs::read_link(&link).with_context(|| format!("following {}", link.display()))?;
    let number = group.file_name().context("the group has no number")?;
    Ok(Path::new("/dev/vfio").join(number))
}

/// Makes the kernel forget a device.
pub(crate) fn remove(address: &str) -> Result<()> {
    write(&directory(address).join("remove"), "1")
}

/// Takes a device from its driver.
pub(crate) fn unbind(address: &str) -> Result<()> {
    let driver = directory(address).join("driver");
    write(&driver.join("unbind"), address)?;
    ensure!(!driver.exists(), "{address} is still bound to its driver");
    Ok(())
}

/// Makes what is below each of two bridges appear where what is below the other was: their buses
/// swap numbers. What was removed before comes back as well.
pub(crate) fn swap(bridges: [&str; 2], below: [&str; 2]) -> Result<()> {
    // With the devices removed, nobody talks to the wrong one.
    below.into_iter().try_for_each(remove)?;
    let [one, other] = bridges.map(configuration);
    let (one, other) = (one?, other?);
    let (mut first, mut second) = ([0; 2], [0; 2]);
    one.read_exact_at(&mut first, BUS_NUMBERS)?;
    other.read_exact_at(&mut second, BUS_NUMBERS)?;
    one.write_all_at(&second, BUS_NUMBERS)?;
    other.write_all_at(&first, BUS_NUMBERS)?;
    bridges.into_iter().try_for_each(remove)?;
    write(&Path::new(BUS).join("rescan"), "1")
}

fn configuration(address: &str) -> Result<File> {
    let path = directory(address).join("config");
    let open = File::options().read(true).write(true).open(&path);
    open.with_context(|| format!("opening {}", path.display()))
}

fn write(path: &Path, word: &str) -> Result<()> {
    fs::write(path, word).with_context(|| format!("writing {word} to {}", path.display()))
}
