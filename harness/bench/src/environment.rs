// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The machine that was measured.

use std::fs;
use std::path::Path;

use rustix::fs::statfs;
use serde::{Deserialize, Serialize};

use crate::memory::meminfo;

/// `include/uapi/linux/magic.h`; the libc crate lacks the number of ramfs.
const FILE_SYSTEMS: [(libc::c_long, &str); 6] = [
    (libc::TMPFS_MAGIC, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (libc::EXT4_SUPER_MAGIC, "ext4"),
    (libc::XFS_SUPER_MAGIC, "xfs"),
    (libc::BTRFS_SUPER_MAGIC, "btrfs"),
    (libc::OVERLAYFS_SUPER_MAGIC, "overlayfs"),
];

/// What a result depends on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// Release and version of the running kernel.
    pub kernel: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors that may be used.
    pub cpus: usize,
    /// The base page, in bytes.
    pub page_size: usize,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// `none` on hardware or where that is not known; else the hypervisor's name.
    pub accel: String,
    /// The file system that images were written to.
    pub image_file_system: String,
    /// Version of this program.
    pub luo_version: String,
}

impl Environment {
    /// Looks at this machine.
    pub fn of_this_machine(image_directory: &Path) -> Self {
        let uname = rustix::system::uname();
        Self {
            kernel: format!(
                "{} {}",
                uname.release().to_string_lossy(),
                uname.version().to_string_lossy()
            ),
            cpu: cpuinfo("model name").unwrap_or_else(|| uname.machine().to_string_lossy().into()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            page_size: rustix::param::page_size(),
            memory_bytes: meminfo("MemTotal:").unwrap_or(0),
            accel: hypervisor(),
            image_file_system: file_system(image_directory),
            luo_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What the kernel reports of the first processor under this name, such as `model name`.
pub fn cpuinfo(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What DMI calls the machine, if the processor reports that it is a virtual one.
fn hypervisor() -> String {
    let virtual_machine = cpuinfo("flags")
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
    if !virtual_machine {
        return "none".to_owned();
    }
    fs::read_to_string("/sys/class/dmi/id/sys_vendor").map_or_else(
        |_| "of unknown name".to_owned(),
        |vendor| vendor.trim().to_owned(),
    )
}

/// The name of the file system that a directory is on, or its magic number, or why that is not
/// known.
pub fn file_system(directory: &Path) -> String {
    let magic = match statfs(directory) {
        Ok(found) => found.f_type as u64,
        Err(error) => return error.to_string(),
    };
    let known = FILE_SYSTEMS
        .iter()
        .find(|(known, _)| *known as u64 == magic);
    known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned())
}
