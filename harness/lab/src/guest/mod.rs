// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What our code in a guest needs of its machine.

pub(crate) mod kmemleak;
pub(crate) mod mounts;
pub(crate) mod next_kernel;
pub(crate) mod ports;
pub(crate) mod programs;
pub(crate) mod reporter;
