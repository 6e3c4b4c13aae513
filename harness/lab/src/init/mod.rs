// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The init process of a guest: it does one job, jumps from kernel to kernel if that takes it, and
//! ends the machine.

pub(crate) mod commands;
pub mod entry;
pub(crate) mod series;
pub(crate) mod soak;
pub(crate) mod stages;
