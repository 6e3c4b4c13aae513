// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The subsystem, the same in a process and in the kernel.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use luo_handler_api::{Compatible, Errno, Host, Hosts, NeededBy, Pairs, Prepared, Subsystem};

use crate::record::{LineageRecord, Release};

/// Records which kernel preserved the files and how many live updates they have crossed.
#[derive(Debug)]
pub struct Lineage {
    release: fn() -> Release,
    /// The live updates before this kernel.
    before: AtomicU32,
}

impl Lineage {
    /// One that has seen no live update, of a kernel that `release` names.
    pub const fn new(release: fn() -> Release) -> Self {
        Self {
            release,
            before: AtomicU32::new(0),
        }
    }
}

impl Subsystem for Lineage {
    const COMPATIBLE: Compatible = Compatible::new("luo-handlers,lineage-v1");
    const HOSTS: Hosts = Hosts::Both;
    /// Part of the format: a kernel that counted other files would count wrong.
    const NEEDED_BY: NeededBy = NeededBy::Every;
    type Private = ();

    fn prepare(&self, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        let record = LineageRecord {
            release: (self.release)(),
            live_updates: self.before.load(Relaxed).saturating_add(1),
        };
        Ok(Prepared {
            data: record.to_u64(),
            private: (),
        })
    }

    fn cancel(&self, _: u64, (): &mut (), _: Host<'_>) {}

    /// # Errors
    ///
    /// `EOPNOTSUPP` for a record of another version.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<(), Errno> {
        let record = LineageRecord::from_u64(data).map_err(|errno| {
            host.refuse(
                errno,
                format_args!("{data:#x} is a record of another version"),
            )
        })?;
        self.before.store(record.live_updates, Relaxed);
        Ok(())
    }

    fn finish(&self, _: u64, _: bool, _: Host<'_>) {}

    fn describe(&self, data: u64, _: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let record = LineageRecord::from_u64(data)?;
        pairs.put("preserved_by", record.release);
        pairs.put("live_updates", record.live_updates);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use luo_handler_api::testing::FakeHost;

    fn release() -> Release {
        Release {
            major: 7,
            minor: 3,
            patch: 4,
        }
    }

    #[test]
    fn every_update_is_counted_once() {
        let host = FakeHost::default();
        let old = Lineage::new(release);
        let first = old.prepare(host.lend()).unwrap();
        old.cancel(first.data, &mut (), host.lend());
        let again = old.prepare(host.lend()).unwrap();
        assert_eq!(
            again.data, first.data,
            "an update that was given up counts for nothing"
        );

        let new = Lineage::new(release);
        new.retrieve(again.data, host.lend()).unwrap();
        let second = new.prepare(host.lend()).unwrap().data;
        let expected = LineageRecord {
            release: release(),
            live_updates: 2,
        };
        assert_eq!(LineageRecord::from_u64(second), Ok(expected));
        new.finish(again.data, true, host.lend());
        assert!(host.is_empty());
    }

    #[test]
    fn a_record_of_another_version_changes_nothing() {
        let host = FakeHost::default();
        let new = Lineage::new(release);
        assert_eq!(new.retrieve(7, host.lend()), Err(Errno::EOPNOTSUPP));
        assert!(host.reason().contains("0x7"));
        let next = LineageRecord::from_u64(new.prepare(host.lend()).unwrap().data).unwrap();
        assert_eq!(next.live_updates, 1);
    }

    #[test]
    fn a_count_at_its_end_stays_there() {
        let host = FakeHost::default();
        let new = Lineage::new(release);
        let last = LineageRecord {
            release: release(),
            live_updates: u32::MAX,
        };
        new.retrieve(last.to_u64(), host.lend()).unwrap();
        assert_eq!(new.prepare(host.lend()).unwrap().data, last.to_u64());
    }
}
