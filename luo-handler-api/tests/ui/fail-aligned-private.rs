// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! No allocator of the kernel aligns private state to 32 bytes.

use luo_handler_api::*;

#[repr(align(32))]
struct Private([u8; 32]);

struct Handler;

impl FileHandler for Handler {
    const COMPATIBLE: Compatible = Compatible::new("aligned-v1");
    type Private = Private;

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        false
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<Private>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn cancel(&self, _: Preserved<'_, Private>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

register_handler!(HANDLER: Handler = Handler);

fn main() {}
