// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the lab stores on the host: a directory of steps, each done once for its inputs.

pub mod directory;
pub(crate) mod files;
pub(crate) mod key;
pub(crate) mod progress;
pub mod removal;
pub(crate) mod runs;
pub(crate) mod steps;
