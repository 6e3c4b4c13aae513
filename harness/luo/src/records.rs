// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The records that this program can read, as key and value. Goes once handlers describe
//! themselves.

use bytesize::ByteSize;
use luo_handler_api::{Compatible, Errno, Host};
use luo_orchestrator::inspection::Description;

type Pairs = Vec<(String, String)>;

/// Describes the record of a format that is known here.
pub fn describe(compatible: &Compatible, data: u64, host: Host<'_>) -> Option<Description> {
    let described = match compatible.as_str() {
        "memfd-v1" => memfd(data, host),
        "vfio-v1" => vfio(data, host),
        "ioport-v1" => ioport(data),
        _ => return None,
    };
    Some(match described {
        Ok(pairs) => (pairs, Ok(())),
        Err(errno) => (Pairs::new(), Err(errno)),
    })
}

fn pairs<const N: usize>(pairs: [(&str, String); N]) -> Pairs {
    let pairs = pairs.into_iter();
    pairs.map(|(key, value)| (key.to_owned(), value)).collect()
}

fn memfd(data: u64, host: Host<'_>) -> Result<Pairs, Errno> {
    let summary = luo_handler_memfd::inspect(data, host)?;
    let seals: Vec<_> = summary.seal_names().collect();
    Ok(pairs([
        ("kind", summary.kind.to_string()),
        ("size", summary.size.to_string()),
        ("data", summary.data_bytes.min(summary.size).to_string()),
        ("extents", summary.extents.to_string()),
        ("position", summary.position.to_string()),
        ("seals", format!("[{}]", seals.join(" "))),
        ("metadata", summary.metadata_bytes.to_string()),
    ]))
}

fn vfio(data: u64, host: Host<'_>) -> Result<Pairs, Errno> {
    use luo_handler_vfio::description::{Opened, FLAGS_RESET};
    let device = luo_handler_vfio::DeviceRecord::read(host, data)?.description;
    let opened = match device.opened {
        Opened::Cdev => "cdev",
        Opened::Group => "group",
    };
    let subsystem = (device.subsystem_vendor(), device.subsystem());
    let regions = device.regions.iter().filter(|region| region.size > 0);
    let bytes = device.regions.iter().map(|region| region.size).sum();
    let interrupts: Vec<_> = device
        .irqs
        .iter()
        .map(|irq| irq.count.to_string())
        .collect();
    Ok(pairs([
        ("address", device.address.to_string()),
        (
            "device",
            format!("{:04x}:{:04x}", device.vendor(), device.device()),
        ),
        (
            "subsystem",
            format!("{:04x}:{:04x}", subsystem.0, subsystem.1),
        ),
        ("class", format!("{:06x}", device.class())),
        ("revision", device.revision().to_string()),
        ("opened", opened.to_owned()),
        ("reset", (device.flags & FLAGS_RESET != 0).to_string()),
        (
            "regions",
            format!("{} with {}", regions.count(), ByteSize(bytes)),
        ),
        ("interrupts", interrupts.join(" ")),
    ]))
}

fn ioport(data: u64) -> Result<Pairs, Errno> {
    let record = luo_handler_ioport::Record::from_u64(data)?;
    Ok(pairs([
        ("port", format!("{:#x}", record.position)),
        ("status", format!("{:#o}", record.status)),
    ]))
}
