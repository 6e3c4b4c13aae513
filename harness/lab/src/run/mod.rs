// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the host does with guests: tests, a command, a shell, a series of measurements, a soak.

pub mod bench;
pub mod command;
mod crossed;
pub(crate) mod guest;
pub mod soak;
pub mod systemd;
pub mod tests;
pub mod timeline;
pub(crate) mod verdict;
