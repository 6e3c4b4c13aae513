// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the kernel has warned of. Its messages do not go to the screen, which they would scroll
//! away and slow down.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::run::verdict::kernel_report;

/// The kernel's messages, one a read.
const MESSAGES: &str = "/dev/kmsg";
/// More than the longest of them.
const MESSAGE_MAX: usize = 8 << 10;

/// The first of its messages since boot with which the kernel complains.
pub(crate) fn first() -> Result<Option<String>> {
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let mut messages = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(MESSAGES)
        .with_context(|| format!("opening {MESSAGES}"))?;
    let mut record = vec![0; MESSAGE_MAX];
    loop {
        let length = match messages.read(&mut record) {
            Ok(length) => length,
            // The oldest were overwritten meanwhile.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PIPE) => continue,
            Err(_) => return Ok(None),
        };
        let text = String::from_utf8_lossy(&record[..length]);
        if let Some(line) = text_of(&text).and_then(kernel_report) {
            return Ok(Some(line.to_owned()));
        }
    }
}

/// A record without its level, number and time.
fn text_of(record: &str) -> Option<&str> {
    Some(record.split_once(';')?.1)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_complaint_is_found_behind_its_number_and_time() {
        let complaint = "4,312,1234,-;WARNING: CPU: 0 PID: 1 at mm/x.c:1 y+0x1/0x2\n";
        let found = text_of(complaint).and_then(kernel_report);
        assert_eq!(found, Some("WARNING: CPU: 0 PID: 1 at mm/x.c:1 y+0x1/0x2"));
        let harmless = "6,1,0,-;Linux version 7.3; x\n";
        assert_eq!(text_of(harmless).and_then(kernel_report), None);
    }
}
