// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A stick that measures live updates on any x86-64 machine with UEFI.
//!
//! ```text
//! GPT   one partition, FAT:
//!   EFI/BOOT/BOOTX64.EFI    the kernel, which the firmware starts
//!   luo/initrd              luo, busybox, and the partition's GUID
//!   luo/plan.json           what is measured
//!   reports/N/report.*      of the Nth time that it was booted or repeated
//! ```
//!
//! On the host: `image` writes and reads such an image, `make` builds what is in it, `test` boots
//! it. On the machine: `boot` is its init, `partition` finds the stick and nothing else, `screen`
//! has the consoles, `warnings` what the kernel complains of. Both know the `plan`.

pub mod boot;
pub(crate) mod image;
pub mod make;
pub(crate) mod partition;
pub mod plan;
pub(crate) mod screen;
pub mod test;
pub(crate) mod warnings;

/// Where the machine's firmware looks for a program to start.
const KERNEL: &str = "EFI/BOOT/BOOTX64.EFI";
/// As the kernel's own command line names it.
const INITRD: &str = "luo/initrd";
const PLAN: &str = "luo/plan.json";
const REPORTS: &str = "reports";
/// In the initrd: the GUID of the partition that it lies on.
const GUID: &str = "stick-guid";
