// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The virtual machine: its board, its accelerator, one bounded run of a guest.

pub(crate) mod accel;
pub mod machine;
pub mod options;
pub(crate) mod probe;
pub(crate) mod qemu;
