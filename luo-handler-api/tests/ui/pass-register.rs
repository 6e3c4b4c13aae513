// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A handler with a private state as aligned as one may be.

use luo_handler_api::*;

#[repr(align(16))]
struct Private([u8; 16]);

struct Handler;

impl FileHandler for Handler {
    const COMPATIBLE: Compatible =
        Compatible::new("a-name-of-47-bytes-is-the-longest-that-fits-v01");
    type Private = Private;

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        false
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<Private>, Errno> {
        Ok(Prepared {
            data: 0,
            private: Private([0; 16]),
        })
    }
    fn cancel(&self, file: Preserved<'_, Private>) {
        let _ = file.private.0;
    }
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

register_handler!(HANDLER: Handler = Handler);

fn main() {}
