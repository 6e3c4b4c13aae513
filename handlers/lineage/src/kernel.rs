// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which kernel this is.

use luo_handler_api::register_subsystem;

use crate::{lineage::Lineage, record::Release};

register_subsystem!(
    /// The subsystem of this kernel.
    pub LINEAGE: Lineage = Lineage::new(this_kernel)
);

extern "C" {
    /// In `luo_shim_lineage.c`.
    fn luo_lineage_version() -> u32;
}

fn this_kernel() -> Release {
    // SAFETY: the function returns a constant.
    let [_, major, minor, patch] = unsafe { luo_lineage_version() }.to_be_bytes();
    Release {
        major,
        minor,
        patch,
    }
}
