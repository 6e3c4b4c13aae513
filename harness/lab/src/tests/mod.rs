// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel tests. What each kernel of a test does runs in the guest; the table is read by both
//! sides.

mod attributes;
mod both_ways;
pub(crate) mod case;
mod devices;
mod expect;
pub(crate) mod failing_freeze;
mod far_apart;
mod folios;
mod forged;
mod forged_bytes;
mod freeze;
pub(crate) mod held_open;
mod host_settings;
mod hugetlb;
mod hugetlb_forged;
mod hugetlb_freeze;
mod hugetlb_limit;
mod hugetlb_scratch;
mod hugetlb_sizes;
mod incoming;
mod killed_waiter;
mod late_writes;
mod limit;
mod luo_bench;
mod memfd_cases;
mod memfd_twice;
mod memfds;
mod missing;
mod moved;
mod numa;
mod parts;
mod pci;
mod physical_memory;
mod ports;
mod quiet;
mod records;
mod reserved;
mod session_shell;
mod subsystems;
mod swap;
mod switched_off;
pub mod table;
pub(crate) mod test;
mod two_sessions;
pub(crate) mod vfio_client;
