// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy: what happens to a port file in each phase, on any host.

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Pairs, Prepared,
    Preserved,
};

use crate::{
    backend::PortBackend,
    record::{PortRecord, PORTS},
};

/// Preserves open port devices across a live update, through the backend `B`.
#[derive(Debug)]
pub struct IoportHandler<B>(pub B);

impl<B: PortBackend> IoportHandler<B> {
    /// The file as it is now.
    fn record(&self, file: FileRef<'_>, host: Host<'_>) -> Result<u64, Errno> {
        let record = self.0.look(file)?;
        if !record.is_possible() {
            let PortRecord { position, status } = record;
            return Err(host.refuse(
                Errno::EOPNOTSUPP,
                format_args!(
                    "position {position:#x}, status {status:#o}: there are {PORTS:#x} ports"
                ),
            ));
        }
        Ok(record.to_u64())
    }
}

impl<B: PortBackend> FileHandler for IoportHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("luo-handlers,ioport-v1");
    const HOSTS: Hosts = Hosts::Both;
    type Private = ();

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.is_port(file)
    }

    /// # Errors
    ///
    /// `EOPNOTSUPP` for a position beyond the last port.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<()>, Errno> {
        Ok(Prepared {
            data: self.record(file, host)?,
            private: (),
        })
    }

    /// The position may have moved since prepare.
    fn freeze(&self, file: Preserved<'_, ()>) -> Result<u64, Errno> {
        self.record(file.file, file.host)
    }

    fn cancel(&self, _: Preserved<'_, ()>) {}

    /// # Errors
    ///
    /// As [`PortRecord`] and [`PortBackend::open`] list them.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = PortRecord::from_u64(data)
            .map_err(|errno| host.refuse(errno, format_args!("{data:#x} is not a port file")))?;
        self.0.open(record)
    }

    fn finish(&self, _: Crossed<'_>) {}

    /// The position, and the status flags with the values of `include/uapi/asm-generic/fcntl.h`.
    fn describe(&self, data: u64, _: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        let record = PortRecord::from_u64(data)?;
        pairs.put("position", record.position);
        pairs.put("status", record.status);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use luo_handler_api::{
        status,
        testing::{conformance, Rehearsal},
    };
    use rustix::fs::{fstat, memfd_create, MemfdFlags};
    use std::{
        collections::BTreeMap,
        os::fd::{AsFd, OwnedFd},
        sync::Mutex,
    };

    /// Port files in memory: each is a memfd, and what it looks like is by its inode.
    #[derive(Default)]
    struct FakePorts(Mutex<BTreeMap<u64, PortRecord>>);

    fn inode(file: FileRef<'_>) -> u64 {
        fstat(file.as_fd()).unwrap().st_ino
    }

    impl FakePorts {
        fn file(&self, record: PortRecord) -> OwnedFd {
            let file = memfd_create("port", MemfdFlags::CLOEXEC).unwrap();
            self.set(file.as_fd().into(), record);
            file
        }

        fn set(&self, file: FileRef<'_>, record: PortRecord) {
            self.0.lock().unwrap().insert(inode(file), record);
        }
    }

    impl PortBackend for FakePorts {
        fn is_port(&self, file: FileRef<'_>) -> bool {
            self.look(file).is_ok()
        }
        fn look(&self, file: FileRef<'_>) -> Result<PortRecord, Errno> {
            let records = self.0.lock().unwrap();
            records.get(&inode(file)).copied().ok_or(Errno::EBADF)
        }
        fn open(&self, record: PortRecord) -> Result<OwnedFile, Errno> {
            Ok(self.file(record).into())
        }
    }

    fn rehearsal(position: u64, status: u32) -> Rehearsal<IoportHandler<FakePorts>> {
        let ports = FakePorts::default();
        let file = ports.file(PortRecord { position, status });
        Rehearsal::new(IoportHandler(ports), file)
    }

    #[test]
    fn it_conforms() {
        static PORTS: IoportHandler<FakePorts> =
            IoportHandler(FakePorts(Mutex::new(BTreeMap::new())));
        let record = |position, status| PortRecord { position, status };
        conformance(
            &PORTS,
            || PORTS.0.file(record(0x70, 2)),
            |file| PORTS.0.set(file.into(), record(0x71, status::APPEND)),
            |file| PORTS.0.look(file.into()),
        );
    }

    #[test]
    fn a_position_beyond_the_last_port_is_refused_with_a_reason() {
        let update = rehearsal(0x1_0001, 0);
        assert_eq!(update.prepare().unwrap_err(), Errno::EOPNOTSUPP);
        assert!(update.host.reason().contains("0x10001"));
    }

    #[test]
    fn what_crosses_is_described() {
        let update = rehearsal(0x70, 2 | status::NONBLOCK);
        let data = update.frozen();
        let described = |data| {
            let mut found = Vec::new();
            let mut sink = |key: &str, value: &str| found.push(format!("{key} {value}"));
            let mut pairs = Pairs::new(&mut sink);
            let end = update
                .handler
                .describe(data, update.host.lend(), &mut pairs);
            (found, end)
        };
        let expected = ["position 112", "status 2050"].map(String::from);
        assert_eq!(described(data), (expected.to_vec(), Ok(())));
        assert_eq!(described(0), (Vec::new(), Err(Errno::EOPNOTSUPP)));
    }

    #[test]
    fn a_forged_number_is_refused_with_a_reason() {
        let update = rehearsal(0, 0);
        for data in [0, 3 << 32 | 1 << 56, u64::MAX] {
            assert!(update.retrieve(data).is_err());
            assert!(!update.host.reason().is_empty());
        }
    }
}
