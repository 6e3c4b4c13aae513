// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The records of handlers that do not describe them yet, as key and value.

use luo_handler_api::{Compatible, Errno, Host};
use luo_orchestrator::inspection::Description;

type Pairs = Vec<(String, String)>;

/// Describes the record of a format that is known here.
pub fn describe(compatible: &Compatible, data: u64, host: Host<'_>) -> Option<Description> {
    let described = match compatible.as_str() {
        "memfd-v1" => memfd(data, host),
        "vfio-v1" => vfio(data, host),
        _ => return None,
    };
    Some(match described {
        Ok(pairs) => (pairs, Ok(())),
        Err(errno) => (Pairs::new(), Err(errno)),
    })
}

fn pair(key: &str, value: impl ToString) -> (String, String) {
    (key.to_owned(), value.to_string())
}

fn memfd(data: u64, host: Host<'_>) -> Result<Pairs, Errno> {
    let summary = luo_handler_memfd::inspect(data, host)?;
    let data_bytes = summary.data_bytes.min(summary.size);
    let mut pairs = vec![
        pair("kind", summary.kind),
        pair("size_bytes", summary.size),
        pair("data_bytes", data_bytes),
        pair("extents", summary.extents),
        pair("position", summary.position),
        pair("metadata_bytes", summary.metadata_bytes),
    ];
    pairs.extend(summary.seal_names().map(|seal| pair("seals[]", seal)));
    Ok(pairs)
}

fn vfio(data: u64, host: Host<'_>) -> Result<Pairs, Errno> {
    use luo_handler_vfio::description::{Opened, FLAGS_RESET};
    let device = luo_handler_vfio::DeviceRecord::read(host, data)?.description;
    let id = |vendor: u16, device: u16| format!("{vendor:04x}:{device:04x}");
    let subsystem_id = id(device.subsystem_vendor(), device.subsystem());
    let opened = match device.opened {
        Opened::Cdev => "cdev",
        Opened::Group => "group",
    };
    let mut pairs = vec![
        pair("address", device.address),
        pair("id", id(device.vendor(), device.device())),
        pair("subsystem_id", subsystem_id),
        pair("class", format_args!("{:06x}", device.class())),
        pair("revision", device.revision()),
        pair("opened", opened),
        pair("can_reset", device.flags & FLAGS_RESET != 0),
    ];
    let regions = device.regions.iter();
    pairs.extend(regions.map(|region| pair("region_bytes[]", region.size)));
    pairs.extend(
        device
            .irqs
            .iter()
            .map(|irq| pair("interrupts[]", irq.count)),
    );
    Ok(pairs)
}
