// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A name of 48 bytes leaves no room for its NUL.

use luo_handler_api::*;

struct Handler;

impl FileHandler for Handler {
    const COMPATIBLE: Compatible =
        Compatible::new("a-name-of-48-bytes-is-longer-than-the-kernel-has");
    type Private = ();

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        false
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn cancel(&self, _: Preserved<'_, ()>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

register_handler!(HANDLER: Handler = Handler);

fn main() {}
