// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The machine's VFIO devices: which there are, how one is opened by its own file, and what tells it from another.

use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use iommufd_ioctls::IommuFd;
use luo_handler_vfio::ioctls::{System, VfioFiles};
use luo_handler_vfio::{Address, Kind};
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vfio_ioctls::{VfioDevice, VfioIommufd};

const DRIVER: &str = "/sys/bus/pci/drivers/vfio-pci";
const DEVICES: &str = "/sys/bus/pci/devices";

/// What sysfs says of a device: the file, and where the configuration has the same, and its bytes.
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
    let mut addresses: Vec<Address> = names.filter_map(|name| name.parse().ok()).collect();
    addresses.sort_unstable_by_key(|address| address.to_u64());
    addresses.iter().map(Address::to_string).collect()
}

/// Opens a device's own file, bound to nothing.
pub fn open_cdev(address: &str) -> Result<File> {
    let cdev = VfioDevice::open_cdev(&directory(address));
    cdev.with_context(|| format!("opening the device file of {address}"))
}

/// A cdev answers once it is bound to an iommufd. The binding belongs to the open file, also after what is returned
/// has gone.
pub fn bind(cdev: File) -> Result<VfioDevice> {
    let iommufd = IommuFd::new().context("opening /dev/iommu")?;
    let iommufd =
        VfioIommufd::new(Arc::new(iommufd), None, None).context("making an I/O address space")?;
    let device = VfioDevice::new_from_fd(cdev, Arc::new(iommufd), true);
    device.context("binding a device to an iommufd")
}

/// Refuses a file that stands for another device than the one at `address`, or that does not answer as sysfs says.
pub fn verify(file: BorrowedFd<'_>, address: &str) -> Result<()> {
    let found = System.address(file)?.to_string();
    ensure!(
        found == address,
        "the device is {found} instead of {address}"
    );
    // An exec leaves it bound; behind a kexec the file is a fresh one.
    if System.kind(file) == Kind::Unbound {
        bind(file.try_clone_to_owned()?.into())?;
    }
    let header = read_header(file).context("reading its configuration")?;
    verify_ids(&header, &directory(address)).context(found)
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
    let region = System.region_info(file, VFIO_PCI_CONFIG_REGION_INDEX);
    let mut header = [0; HEADER_LENGTH];
    let read = region.and_then(|region| System.read(file, region.offset, &mut header));
    read?;
    Ok(header)
}

fn read_id(path: &Path) -> Result<u32> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).with_context(|| format!("{} says {text:?}", path.display()))
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
