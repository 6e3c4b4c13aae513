// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The guest's PCI devices, through sysfs: how one goes missing or makes room for another.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

use luo_bench::subject::vfio::directory;

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

/// In a device's configuration.
const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
pub(crate) const BUS_MASTER: u16 = 1 << 2;
pub(crate) const INTX_DISABLE: u16 = 1 << 10;
const INTX_ASSERTED: u16 = 1 << 3;

/// A device's command register, also of one that nobody has open.
pub(crate) fn command(address: &str) -> Result<u16> {
    read_word(address, COMMAND)
}

/// Whether a device raises its pin, or would if the pin were not disabled.
pub(crate) fn asserts_intx(address: &str) -> Result<bool> {
    Ok(read_word(address, STATUS)? & INTX_ASSERTED != 0)
}

/// Writes to a device's command register past its owner, as root may.
pub(crate) fn set_command(configuration: &File, command: u16) -> Result<()> {
    configuration
        .write_all_at(&command.to_le_bytes(), COMMAND)
        .context("writing a command register")
}

fn read_word(address: &str, at: u64) -> Result<u16> {
    let mut bytes = [0; 2];
    configuration(address)?.read_exact_at(&mut bytes, at)?;
    Ok(u16::from_le_bytes(bytes))
}

/// Resets a device, which takes its lock.
pub(crate) fn reset(address: &str) -> Result<()> {
    write(&directory(address).join("reset"), "1")
}

/// Whether a device sleeps: `suspended` or `active`.
pub(crate) fn runtime_status(address: &str) -> Result<String> {
    let status = fs::read_to_string(directory(address).join("power/runtime_status"))?;
    Ok(status.trim().to_owned())
}

/// Wakes a device that sleeps, as something outside of it might, and lets it sleep again.
pub(crate) fn wake(address: &str) -> Result<()> {
    let control = directory(address).join("power/control");
    write(&control, "on")?;
    write(&control, "auto")
}

/// The file that a device is opened by.
pub(crate) fn device_file(address: &str) -> Result<PathBuf> {
    let devices = directory(address).join("vfio-dev");
    let entry = fs::read_dir(&devices)
        .with_context(|| format!("reading {}", devices.display()))?
        .next();
    let entry = entry.with_context(|| format!("{address} has no device file"))??;
    Ok(Path::new("/dev/vfio/devices").join(entry.file_name()))
}

/// Makes the kernel forget a device.
pub(crate) fn remove(address: &str) -> Result<()> {
    write(&directory(address).join("remove"), "1")
}

/// Gives a device with any ids to vfio-pci.
pub(crate) fn bind(address: &str) -> Result<()> {
    write(&directory(address).join("driver_override"), "vfio-pci")?;
    write(&Path::new(BUS).join("drivers/vfio-pci/bind"), address)
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

pub(crate) fn configuration(address: &str) -> Result<File> {
    let path = directory(address).join("config");
    let open = File::options().read(true).write(true).open(&path);
    open.with_context(|| format!("opening {}", path.display()))
}

fn write(path: &Path, word: &str) -> Result<()> {
    fs::write(path, word).with_context(|| format!("writing {word} to {}", path.display()))
}
