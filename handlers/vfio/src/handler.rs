// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy: what happens to a device file in each phase, on any host.

use core::mem::replace;

use luo_handler_api::{
    record, Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Pairs,
    Prepared, Preserved,
};

use crate::{
    backend::{Kind, VfioBackend},
    description::Address,
    record::{DeviceRecord, MAGIC},
};

const LOW_POWER: &str = "is in low power, and waking it is up to its owner: leave low power first";

/// Preserves VFIO PCI device files across a live update, by means of `B`.
#[derive(Debug)]
pub struct VfioHandler<B>(pub B);

/// What has to be undone if a prepared device does not cross after all.
#[derive(Debug)]
pub struct Private<P> {
    /// Where the device is.
    address: Address,
    /// Handle of the record: what prepare or the last freeze yielded.
    record: u64,
    /// Handle of the file, where the host holds it.
    file: u64,
    /// What the backend holds.
    pin: P,
}

impl<B: VfioBackend> VfioHandler<B> {
    /// Has the host preserve a record of the device as it is now.
    fn preserve_record(
        &self,
        file: FileRef<'_>,
        address: Address,
        handle: u64,
        host: Host<'_>,
    ) -> Result<u64, Errno> {
        let description = self.0.describe(file).map_err(|errno| {
            let why = match errno {
                Errno::EOPNOTSUPP => "has more regions or interrupts than a record has room for",
                Errno::EBUSY => LOW_POWER,
                _ => "does not answer",
            };
            host.refuse(errno, format_args!("{address} {why}"))
        })?;
        let record = DeviceRecord {
            description,
            crossing: self.0.crossing(),
            file: handle,
        };
        record.preserve(host)
    }

    /// Reads a record that this host can do something with.
    fn read_record(&self, data: u64, host: Host<'_>) -> Result<DeviceRecord, Errno> {
        let record = DeviceRecord::read(host, data)
            .map_err(|errno| host.refuse(errno, format_args!("record {data:#x} is malformed")))?;
        if record.crossing != self.0.crossing() {
            return Err(host.refuse(
                Errno::EOPNOTSUPP,
                format_args!("the record comes from a host of another kind"),
            ));
        }
        Ok(record)
    }
}

impl<B: VfioBackend> FileHandler for VfioHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("luo-handlers,vfio-v1");
    const HOSTS: Hosts = Hosts::Both;
    type Private = Private<B::Pin>;

    /// All files of VFIO, so that those that cannot be preserved are refused with a reason.
    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.kind(file) != Kind::Other
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        self.0.file_id(file)
    }

    /// # Errors
    ///
    /// `EOPNOTSUPP` for a file of VFIO that is not a PCI device's or cannot be preserved, `EINVAL`
    /// for a device that is not bound to an iommufd, `EBUSY` if another file of the device is
    /// preserved already or the device is in low power.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno> {
        if let Some((errno, reason)) = self.0.kind(file).objection() {
            return Err(host.refuse(errno, format_args!("{reason}")));
        }
        let address = self.0.address(file).map_err(|errno| {
            host.refuse(
                errno,
                format_args!("the device has no address on a PCI bus"),
            )
        })?;
        let (handle, mut pin) = self.0.pin(file, host).map_err(|errno| {
            let why = match errno {
                Errno::EBUSY => "is preserved already",
                Errno::ENODEV => "is about to be unbound",
                Errno::ENOSPC => "is one too many: the list of devices is full",
                _ => "cannot be held",
            };
            host.refuse(errno, format_args!("{address} {why}"))
        })?;
        let record = self.preserve_record(file, address, handle, host);
        let record = record.inspect_err(|_| self.0.unpin(file, handle, &mut pin, host))?;
        Ok(Prepared {
            data: record,
            private: Private {
                address,
                record,
                file: handle,
                pin,
            },
        })
    }

    /// The device is recorded as it is now, and stands still from here on.
    ///
    /// # Errors
    ///
    /// Where it has to stand still: `EINVAL` while interrupts are enabled, `EBUSY` in low power,
    /// `EAGAIN` while it is reset, bound or unbound.
    fn freeze(&self, prepared: Preserved<'_, Self::Private>) -> Result<u64, Errno> {
        let (file, host) = (prepared.file, prepared.host);
        let private = prepared.private;
        let address = private.address;
        let record = self.preserve_record(file, address, private.file, host)?;
        self.0.quiesce(file, &mut private.pin).map_err(|errno| {
            host.release_bytes(record);
            let why = match errno {
                Errno::EINVAL => "has interrupts enabled: disable them first",
                Errno::EBUSY => LOW_POWER,
                Errno::EAGAIN => "is being reset, bound or unbound",
                _ => "cannot be stopped",
            };
            host.refuse(errno, format_args!("{address} {why}"))
        })?;
        host.release_bytes(replace(&mut private.record, record));
        Ok(record)
    }

    fn unfreeze(&self, file: Preserved<'_, Self::Private>) {
        self.0.resume(file.file, &mut file.private.pin);
    }

    fn cancel(&self, file: Preserved<'_, Self::Private>) {
        let private = file.private;
        file.host.release_bytes(private.record);
        self.0
            .unpin(file.file, private.file, &mut private.pin, file.host);
    }

    /// # Errors
    ///
    /// As [`DeviceRecord`] lists them; `EOPNOTSUPP` for a record of a host of another kind;
    /// `ENODEV` if the device is missing, is another one, or has changed.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = self.read_record(data, host)?;
        let found = self.0.find(&record, host)?;
        let was = &record.description;
        let address = was.address;
        let refuse = |errno, why| host.refuse(errno, format_args!("{address} {why}"));
        let now = self.0.describe_found(&found);
        let now = now.map_err(|errno| refuse(errno, "does not answer"))?;
        if let Some(difference) = was.difference(&now, self.0.compared()) {
            return Err(host.refuse(
                Errno::ENODEV,
                format_args!("{address} is not the device that was preserved: {difference}"),
            ));
        }
        let opened = self.0.open(found, &record);
        opened.map_err(|errno| refuse(errno, "cannot be opened"))
    }

    /// If the record cannot be read, only the record itself is released: the device that it names
    /// may be somebody else's.
    fn finish(&self, file: Crossed<'_>) {
        let record = DeviceRecord::read_any(file.host, file.data).ok();
        let record = record.filter(|record| record.crossing == self.0.crossing());
        self.0.finish(record.as_ref(), file.retrieved, file.host);
        record::release(file.host, file.data, &MAGIC);
    }

    /// # Errors
    ///
    /// As [`DeviceRecord`] lists them.
    fn describe(&self, data: u64, host: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        DeviceRecord::read(host, data)?.description.report(pairs);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        description::{Compared, Description, Opened},
        fake::{FakeBackend, FakeDevice},
        imagined::edu,
        record::Crossing,
    };
    use luo_handler_api::{
        testing::{conformance, Rehearsal},
        Retrieved,
    };
    use std::{ops::Deref, os::fd::AsFd, sync::MutexGuard};

    /// A live update of a device of a fake backend.
    struct Bench(Rehearsal<VfioHandler<FakeBackend>>);

    impl Deref for Bench {
        type Target = Rehearsal<VfioHandler<FakeBackend>>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl Bench {
        fn new(crossing: Crossing, compared: Compared) -> Self {
            let backend = FakeBackend::new(crossing, compared);
            let file = backend.file();
            Self(Rehearsal::new(VfioHandler(backend), file))
        }

        fn device(&self) -> MutexGuard<'_, FakeDevice> {
            self.handler.0.device(self.file())
        }

        fn assert_nothing_is_held(&self) {
            assert!(self.host.is_empty());
            assert!(!self.device().is_pinned);
        }
    }

    const BOTH: [(Crossing, Compared); 2] = [
        (Crossing::OpenFile, Compared::Everything),
        (Crossing::Reopened, Compared::Identity),
    ];

    #[test]
    fn it_conforms() {
        for (crossing, compared) in BOTH {
            let handler = Box::leak(Box::new(VfioHandler(FakeBackend::new(crossing, compared))));
            let backend = &handler.0;
            conformance(
                handler,
                || backend.file(),
                |file| backend.device(file.into()).description.header[0x10] ^= 1,
                |file| {
                    let device = backend.device(file.into());
                    (device.description, device.quiet)
                },
            );
        }
    }

    #[test]
    fn a_device_that_was_not_retrieved_is_released_by_finish() {
        for (crossing, compared) in BOTH {
            for retrieved in [Retrieved::NotAsked, Retrieved::Failed(Errno::ENODEV)] {
                let bench = Bench::new(crossing, compared);
                let data = bench.frozen();
                assert!(bench.can_finish(data, retrieved));
                bench.finish(data, retrieved);
                assert!(bench.host.is_empty());
                assert!(!bench.device().reserved);
            }
        }
    }

    #[test]
    fn a_device_with_interrupts_does_not_freeze() {
        let bench = Bench::new(Crossing::Reopened, Compared::Identity);
        let mut file = bench.prepare().unwrap();
        bench.device().interrupts = true;
        assert_eq!(bench.freeze(&mut file), Err(Errno::EINVAL));
        assert!(bench.host.reason().contains("0000:00:04.0"));
        assert!(!bench.device().quiet);
        assert_eq!(bench.host.all_bytes().len(), 1, "the record of prepare");
        bench.device().interrupts = false;
        bench.freeze(&mut file).unwrap();
    }

    #[test]
    fn a_device_in_low_power_is_neither_prepared_nor_frozen() {
        let bench = Bench::new(Crossing::Reopened, Compared::Identity);
        bench.device().low_power = true;
        assert_eq!(bench.prepare().unwrap_err(), Errno::EBUSY);
        assert!(bench.host.reason().contains("low power"));
        bench.assert_nothing_is_held();
        bench.device().low_power = false;
        let mut file = bench.prepare().unwrap();
        bench.device().low_power = true;
        assert_eq!(bench.freeze(&mut file), Err(Errno::EBUSY));
        assert!(!bench.device().quiet);
    }

    #[test]
    fn a_file_that_cannot_be_preserved_is_refused_with_a_reason() {
        for (kind, errno, part) in [
            (Kind::Unbound, Errno::EINVAL, "iommufd"),
            (Kind::Group, Errno::EOPNOTSUPP, "group"),
            (Kind::Container, Errno::EOPNOTSUPP, "container"),
            (Kind::Foreign, Errno::EOPNOTSUPP, "vfio-pci"),
            (Kind::VirtualFunction, Errno::EOPNOTSUPP, "virtual function"),
        ] {
            let bench = Bench::new(Crossing::Reopened, Compared::Identity);
            bench.device().kind = kind;
            assert!(bench.handler.can_preserve(bench.file()));
            assert_eq!(bench.prepare().unwrap_err(), errno);
            assert!(bench.host.reason().contains(part), "{kind:?}");
            bench.assert_nothing_is_held();
        }
        let bench = Bench::new(Crossing::Reopened, Compared::Identity);
        bench.device().kind = Kind::Other;
        assert!(!bench.handler.can_preserve(bench.file()));
    }

    #[test]
    fn another_device_is_not_opened_and_the_reason_names_the_field() {
        type Change = fn(&mut Description);
        let changes: [(Change, &str); 4] = [
            (|d| d.header[0] = 0x86, "vendor id"),
            (|d| d.header[8] += 1, "revision"),
            (|d| d.header[0x2e] += 1, "subsystem id"),
            (|d| d.header[9] = 1, "class code"),
        ];
        for (crossing, compared) in BOTH {
            for (change, field) in changes {
                let bench = Bench::new(crossing, compared);
                let data = bench.frozen();
                change(&mut bench.device().description);
                assert_eq!(bench.retrieve(data).unwrap_err(), Errno::ENODEV);
                let reason = bench.host.reason();
                assert!(reason.contains("0000:00:04.0"), "{reason}");
                assert!(reason.contains(field), "{reason}");
                assert_eq!(bench.device().opened, 0);
            }
        }
    }

    #[test]
    fn a_device_that_went_away_is_an_error() {
        let bench = Bench::new(Crossing::Reopened, Compared::Identity);
        let data = bench.frozen();
        bench.device().is_missing = true;
        assert_eq!(bench.retrieve(data).unwrap_err(), Errno::ENODEV);
    }

    #[test]
    fn two_records_of_one_device_open_it_once() {
        let bench = Bench::new(Crossing::Reopened, Compared::Identity);
        let data = bench.frozen();
        let forged = bench.host.lend().preserve_bytes(&bench.host.bytes(data));
        bench.retrieve(data).unwrap();
        assert_eq!(bench.retrieve(forged.unwrap()).unwrap_err(), Errno::EBUSY);
    }

    #[test]
    fn one_record_under_two_tokens_leaves_the_device_free() {
        let bench = Bench::new(Crossing::Reopened, Compared::Identity);
        let data = bench.frozen();
        let file = bench.retrieve(data).unwrap();
        assert_eq!(bench.retrieve(data).unwrap_err(), Errno::EBUSY);
        // The one that failed is finished first, and takes the record along.
        bench.finish(data, Retrieved::Failed(Errno::EBUSY));
        bench.finish(data, Retrieved::File(file.as_fd().into()));
        assert_eq!(bench.device().opened, 0);
    }

    #[test]
    fn a_record_of_another_host_is_refused() {
        let there = Bench::new(Crossing::OpenFile, Compared::Everything);
        let data = there.frozen();
        let here = Bench::new(Crossing::Reopened, Compared::Identity);
        let foreign = here
            .host
            .lend()
            .preserve_bytes(&there.host.bytes(data))
            .unwrap();
        assert_eq!(here.retrieve(foreign).unwrap_err(), Errno::EOPNOTSUPP);
        here.finish(foreign, Retrieved::NotAsked);
        assert!(here.host.is_empty());
    }

    #[test]
    fn what_crosses_is_described() {
        let bench = Bench::new(Crossing::Reopened, Compared::Identity);
        let data = bench.frozen();
        let described = |data| {
            let mut found = Vec::new();
            let mut sink = |key: &str, value: &str| found.push(format!("{key} {value}"));
            let mut pairs = Pairs::new(&mut sink);
            let host = bench.host.lend();
            bench
                .handler
                .describe(data, host, &mut pairs)
                .map(|()| found)
        };
        let found = described(data).unwrap();
        let expected = [
            "address 0000:00:04.0",
            "id 1234:11e8",
            "subsystem_id 1af4:1100",
            "class 00ff00",
            "revision 16",
            "opened cdev",
            "can_reset true",
            "region_bytes[] 1048576",
        ];
        assert_eq!(found[..expected.len()], expected);
        assert_eq!(described(!data), Err(Errno::ENOENT));
    }

    #[test]
    fn the_way_of_opening_is_recorded() {
        for opened in [Opened::Cdev, Opened::Group] {
            let bench = Bench::new(Crossing::Reopened, Compared::Identity);
            bench.device().description.opened = opened;
            let record = DeviceRecord::read(bench.host.lend(), bench.frozen()).unwrap();
            let expected = Description { opened, ..edu() };
            assert_eq!(record.description, expected);
        }
    }
}
