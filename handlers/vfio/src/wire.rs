// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! zerocopy with its derives: one crate to cargo, two to the kernel.

pub(crate) use zerocopy::*;
#[cfg(luo_kernel)]
pub(crate) use zerocopy_derive::*;
