// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Private state may be dropped by another thread than made it.

use luo_handler_api::*;

struct Handler;

impl FileHandler for Handler {
    const COMPATIBLE: Compatible = Compatible::new("not-send-v1");
    type Private = *const u8;

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        false
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<*const u8>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn cancel(&self, _: Preserved<'_, *const u8>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

register_handler!(HANDLER: Handler = Handler);

fn main() {}
