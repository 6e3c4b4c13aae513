// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The machine's VFIO devices: which there are, how one is opened by its own file, and how they
//! differ.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use iommufd_ioctls::IommuFd;
use rustix::fs::{fstat, major, minor};
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vfio_ioctls::{VfioDevice, VfioIommufd};

const DRIVER: &str = "/sys/bus/pci/drivers/vfio-pci";
const DEVICES: &str = "/sys/bus/pci/devices";

/// What sysfs reports of a device: the file, and where the configuration has the same, and its
/// length in bytes.
const IDS: [(&str, usize, usize); 6] = [
    ("vendor", 0x00, 2),
    ("device", 0x02, 2),
    ("revision", 0x08, 1),
    ("class", 0x09, 3),
    ("subsystem_vendor", 0x2c, 2),
    ("subsystem_device", 0x2e, 2),
];
/// All of the ids are in the standard header.
const HEADER_LENGTH: usize = 64;

/// A device's directory, by its address: segment, bus, device and function.
pub fn directory(address: &str) -> PathBuf {
    Path::new(DEVICES).join(address)
}

/// The addresses of the devices that are bound to vfio-pci, in their order.
pub fn bound_devices() -> Vec<String> {
    // Without the driver there is no directory.
    let entries = fs::read_dir(DRIVER).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut addresses: Vec<String> = names.filter(|name| directory(name).exists()).collect();
    // All parts have a fixed number of digits, but for segments beyond the fourth digit.
    addresses.sort_unstable_by_key(|address| (address.len(), address.clone()));
    addresses
}

/// The address of the device that is the so-manyth among them, counted from 0.
///
/// # Errors
///
/// If there are not so many, with how to bind one.
pub fn device(index: usize) -> Result<String> {
    let devices = bound_devices();
    let device = devices.get(index).cloned();
    device.with_context(|| too_few_devices(index + 1, devices.len()))
}

/// What to do if more devices are needed than there are.
pub fn too_few_devices(needed: usize, found: usize) -> String {
    format!(
        "devices bound to vfio-pci: {found}, needed: {needed}; to bind one, as root: \
         modprobe vfio-pci; cd {DEVICES}/ADDRESS; echo vfio-pci > driver_override; \
         echo ADDRESS > driver/unbind; echo ADDRESS > /sys/bus/pci/drivers_probe"
    )
}

/// Opens a device's own file, bound to nothing.
///
/// # Errors
///
/// Those of `open(2)`.
pub fn open_cdev(address: &str) -> Result<File> {
    let cdev = VfioDevice::open_cdev(&directory(address));
    cdev.with_context(|| format!("opening the device file of {address}"))
}

/// Opens a device's own file and binds it.
///
/// # Errors
///
/// Those of the device.
pub fn make(address: &str) -> Result<File> {
    let cdev = open_cdev(address)?;
    bind(cdev.try_clone()?)?;
    Ok(cdev)
}

/// A cdev answers once it is bound to an iommufd. The binding belongs to the open file, also after
/// what is returned has gone.
///
/// # Errors
///
/// Those of the device and of `/dev/iommu`.
pub fn bind(cdev: File) -> Result<VfioDevice> {
    let device = VfioDevice::new_from_fd(cdev, address_space()?, true);
    device.context("binding a device to an iommufd")
}

fn address_space() -> Result<Arc<VfioIommufd>> {
    let iommufd = IommuFd::new().context("opening /dev/iommu")?;
    let iommufd = VfioIommufd::new(Arc::new(iommufd), None, None);
    iommufd.map(Arc::new).context("making an I/O address space")
}

/// The device of a file, bound: an exec leaves it so; after a kexec the file is a new one.
fn bound(file: BorrowedFd<'_>) -> Result<VfioDevice> {
    let cdev = || file.try_clone_to_owned().map(File::from);
    match VfioDevice::new_from_bound_fd(cdev()?, address_space()?, false) {
        Ok(device) => Ok(device),
        // It answers nothing, so it is not bound; if that was not the reason, this fails as well.
        Err(_) => bind(cdev()?),
    }
}

/// Refuses a file that stands for another device than the one at `address`, or that does not
/// answer as sysfs does.
///
/// # Errors
///
/// What differs.
pub fn verify(file: BorrowedFd<'_>, address: &str) -> Result<()> {
    let found = address_of(file)?;
    ensure!(
        found == address,
        "the device is {found} instead of {address}"
    );
    let header = read_header(file).context("reading its configuration")?;
    verify_ids(&header, &directory(address)).context(found)
}

/// The address of the device that a file stands for.
fn address_of(file: BorrowedFd<'_>) -> Result<String> {
    let device = match reported_device(file) {
        Some(device) => device,
        None => {
            let number = fstat(file)?.st_rdev;
            let link = format!("/sys/dev/char/{}:{}/device", major(number), minor(number));
            fs::canonicalize(&link).with_context(|| format!("looking at {link}"))?
        }
    };
    let name = device.file_name().and_then(|name| name.to_str());
    let name = name.map(str::to_owned);
    name.with_context(|| format!("{} is not a device", device.display()))
}

/// The device's directory in sysfs as the kernel reports it, since 6.18; a device that a kexec
/// brought here has no number of its own.
fn reported_device(file: BorrowedFd<'_>) -> Option<PathBuf> {
    let info = format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd());
    let info = fs::read_to_string(info).ok()?;
    let device = |line: &str| Some(line.strip_prefix("vfio-device-syspath:")?.trim().into());
    info.lines().find_map(device)
}

fn verify_ids(header: &[u8; HEADER_LENGTH], directory: &Path) -> Result<()> {
    for (name, offset, length) in IDS {
        let bytes = header[offset..offset + length].iter().rev();
        let found = bytes.fold(0, |value, byte| value << 8 | u32::from(*byte));
        let expected = read_id(&directory.join(name))?;
        ensure!(
            found == expected,
            "{name} is {found:#x} instead of {expected:#x}"
        );
    }
    Ok(())
}

fn read_header(file: BorrowedFd<'_>) -> Result<[u8; HEADER_LENGTH]> {
    let offset = bound(file)?.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX);
    let mut header = [0; HEADER_LENGTH];
    File::from(file.try_clone_to_owned()?).read_exact_at(&mut header, offset)?;
    Ok(header)
}

fn read_id(path: &Path) -> Result<u32> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).with_context(|| format!("{} contains {text:?}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_device_differs_in_an_id() {
        let sysfs = tempfile::tempdir().unwrap();
        let ids = ["0x1234", "0x11e8", "0x10", "0x00ff00", "0x1af4", "0x1100"];
        for ((name, ..), id) in IDS.iter().zip(ids) {
            fs::write(sysfs.path().join(name), format!("{id}\n")).unwrap();
        }
        let mut header = [0; HEADER_LENGTH];
        header[..12].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11, 6, 0, 16, 0, 0x10, 0, 0xff, 0]);
        header[0x2c..0x30].copy_from_slice(&[0xf4, 0x1a, 0x00, 0x11]);
        verify_ids(&header, sysfs.path()).unwrap();

        for (name, offset, length) in IDS {
            for place in offset..offset + length {
                let mut other = header;
                other[place] ^= 0x80;
                let error = verify_ids(&other, sysfs.path()).unwrap_err().to_string();
                assert!(error.starts_with(&format!("{name} is ")), "{error}");
            }
        }
    }
}
