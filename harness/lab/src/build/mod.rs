// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! From nothing to a kernel that boots: Debian's toolchain and kernel source, the handlers of a
//! checkout, and the initramfs of the guests.

pub(crate) mod apt;
pub mod built;
pub mod checkout;
pub(crate) mod config;
pub(crate) mod firmware;
pub(crate) mod guest_binary;
pub(crate) mod initramfs;
pub(crate) mod kernel_image;
pub mod options;
pub mod pipeline;
pub mod profile;
pub(crate) mod programs;
pub(crate) mod requirements;
pub(crate) mod selftests;
pub(crate) mod source;
pub(crate) mod systemd;
pub(crate) mod toolchain;
pub(crate) mod trees;
pub mod variant;
