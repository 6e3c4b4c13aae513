// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The policy: what happens to a device file in each phase, whoever its host is.

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, OwnedFile, Prepared, Preserved,
};

use crate::{
    backend::VfioBackend,
    description::{Address, Description},
    record::Record,
};

/// Keeps VFIO PCI device files alive across a live update, with the hands of `B`.
#[derive(Debug)]
pub struct VfioHandler<B>(pub B);

/// What has to be undone if a prepared device does not cross after all.
#[derive(Debug)]
pub struct Private<P> {
    /// Where the device is.
    address: Address,
    /// Handle of the record: what prepare or the last freeze yielded.
    record: u64,
    /// Handle of the file, where the host keeps it.
    file: u64,
    /// What the backend holds.
    pin: P,
}

impl<B: VfioBackend> VfioHandler<B> {
    fn describe(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Description, Errno> {
        self.0.describe(file).map_err(|errno| {
            let why = match errno {
                Errno::EOPNOTSUPP => "has more regions or interrupts than a record has room for",
                _ => "does not say what it is",
            };
            host.refuse(errno, format_args!("the device {why}"))
        })
    }

    /// Has the host keep a record of the device as it is now.
    fn keep_record(&self, file: FileRef<'_>, handle: u64, host: Host<'_>) -> Result<u64, Errno> {
        let record = Record {
            description: self.describe(file, host)?,
            kept: self.0.kept(),
            file: handle,
        };
        record.keep(host)
    }

    /// Reads a record that this host can do something with.
    fn read_record(&self, data: u64, host: Host<'_>) -> Result<Record, Errno> {
        let record = Record::read(host, data)
            .map_err(|errno| host.refuse(errno, format_args!("record {data:#x} is unsound")))?;
        if record.kept != self.0.kept() {
            return Err(host.refuse(
                Errno::EOPNOTSUPP,
                format_args!("the record comes from a host of another kind"),
            ));
        }
        Ok(record)
    }
}

impl<B: VfioBackend> FileHandler for VfioHandler<B> {
    const COMPATIBLE: Compatible = Compatible::new("vfio-v1");
    const HOSTS: Hosts = Hosts::Both;
    type Private = Private<B::Pin>;

    /// All files of VFIO, so that those that cannot be kept are refused with a reason.
    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0.kind(file) != crate::Kind::Other
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        self.0.file_id(file)
    }

    /// # Errors
    ///
    /// `EOPNOTSUPP` for a file of VFIO that is no PCI device or cannot be kept, `EINVAL` for a device
    /// that is not bound to an iommufd, `EBUSY` if another file of the device is kept already.
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Self::Private>, Errno> {
        if let Some((errno, reason)) = self.0.kind(file).objection() {
            return Err(host.refuse(errno, format_args!("{reason}")));
        }
        let address = self.describe(file, host)?.address;
        let (handle, mut pin) = self.0.pin(file, host).map_err(|errno| {
            let why = match errno {
                Errno::EBUSY => "is kept already",
                Errno::ENODEV => "is on its way out",
                _ => "cannot be held",
            };
            host.refuse(errno, format_args!("{address} {why}"))
        })?;
        let record = self.keep_record(file, handle, host);
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

    /// The device stands still from here on, and is recorded as it is then.
    ///
    /// # Errors
    ///
    /// `EINVAL` while interrupts are enabled, where that matters.
    fn freeze(&self, prepared: Preserved<'_, Self::Private>) -> Result<u64, Errno> {
        let (file, host) = (prepared.file, prepared.host);
        let private = prepared.private;
        self.0.quiesce(file, &mut private.pin).map_err(|errno| {
            let address = private.address;
            let why = match errno {
                Errno::EINVAL => "has interrupts enabled: disable them first",
                _ => "cannot be made to stand still",
            };
            host.refuse(errno, format_args!("{address} {why}"))
        })?;
        let record = self.keep_record(file, private.file, host);
        let record = record.inspect_err(|_| self.0.resume(file, &mut private.pin))?;
        host.release_bytes(private.record);
        private.record = record;
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
    /// As [`Record`] lists them; `EOPNOTSUPP` for a record of a host of another kind; `ENODEV` if the
    /// device is missing, is another one, or has changed.
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let record = self.read_record(data, host)?;
        let found = self.0.find(&record, host)?;
        let was = &record.description;
        let address = was.address;
        let refuse = |errno, why| host.refuse(errno, format_args!("{address} {why}"));
        let now = self.0.describe_found(&found);
        let now = now.map_err(|errno| refuse(errno, "does not say what it is"))?;
        if let Some(difference) = was.difference(&now, self.0.compared()) {
            return Err(host.refuse(
                Errno::ENODEV,
                format_args!("{address} is not the device that was preserved: {difference}"),
            ));
        }
        let opened = self.0.open(found, &record);
        opened.map_err(|errno| refuse(errno, "cannot be opened"))
    }

    /// Not before somebody asked for the device: a set that is finished without it gives it up.
    fn can_finish(&self, file: Crossed<'_>) -> bool {
        file.retrieved.was_asked()
    }

    /// Of a record that cannot be read only the record itself is released: what it names might be
    /// anybody's.
    fn finish(&self, file: Crossed<'_>) {
        let record = Record::read_any(file.host, file.data).ok();
        let record = record.filter(|record| record.kept == self.0.kept());
        self.0.finish(record.as_ref(), file.retrieved, file.host);
        file.host.release_bytes(file.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::Kind,
        description::{Compared, Opened},
        fake::{FakeBackend, FakeDevice},
        imagined::edu,
        record::Kept,
    };
    use luo_handler_api::{testing::Rehearsal, Retrieved};
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
        fn new(kept: Kept, compared: Compared) -> Self {
            let backend = FakeBackend::new(kept, compared);
            Self(Rehearsal::with_any_file(VfioHandler(backend)))
        }

        fn device(&self) -> MutexGuard<'_, FakeDevice> {
            self.handler.0.device.lock().unwrap()
        }

        fn assert_nothing_is_kept(&self) {
            assert!(self.host.is_empty());
            assert_eq!(self.device().pins, 0);
        }
    }

    const BOTH: [(Kept, Compared); 2] = [
        (Kept::File, Compared::Everything),
        (Kept::Anew, Compared::Identity),
    ];

    #[test]
    fn a_device_crosses_and_is_finished_only_when_it_was_asked_for() {
        for (kept, compared) in BOTH {
            let bench = Bench::new(kept, compared);
            let data = bench.frozen();
            assert!(!bench.can_finish(data, Retrieved::NotAsked));
            let file = bench.retrieve(data).unwrap();
            let retrieved = Retrieved::File(file.as_fd().into());
            assert!(bench.can_finish(data, retrieved));
            bench.finish(data, retrieved);
            assert!(bench.host.is_empty());
            assert_eq!(bench.device().opened, 0);
        }
    }

    #[test]
    fn a_failed_retrieve_does_not_keep_a_set_from_its_end() {
        let bench = Bench::new(Kept::File, Compared::Everything);
        let data = bench.frozen();
        let failed = Retrieved::Failed(Errno::ENODEV);
        assert!(bench.can_finish(data, failed));
        bench.finish(data, failed);
        assert!(bench.host.is_empty());
    }

    #[test]
    fn cancel_leaves_nothing() {
        for (kept, compared) in BOTH {
            for frozen in [false, true] {
                let bench = Bench::new(kept, compared);
                let mut file = bench.prepare().unwrap();
                assert_eq!(bench.device().pins, 1);
                if frozen {
                    bench.freeze(&mut file).unwrap();
                    assert!(bench.device().quiet);
                    bench.unfreeze(&mut file);
                }
                assert!(!bench.device().quiet);
                bench.cancel(file);
                bench.assert_nothing_is_kept();
            }
        }
    }

    #[test]
    fn a_call_that_fails_leaves_what_was() {
        for call in 0..2 {
            let bench = Bench::new(Kept::File, Compared::Everything);
            bench.host.fail_at(call);
            assert_eq!(bench.prepare().unwrap_err(), Errno::ENOSPC);
            bench.assert_nothing_is_kept();
        }
        let bench = Bench::new(Kept::File, Compared::Everything);
        let mut file = bench.prepare().unwrap();
        bench.host.fail_at(0);
        assert_eq!(bench.freeze(&mut file), Err(Errno::ENOSPC));
        assert!(!bench.device().quiet, "it runs on");
        bench.freeze(&mut file).unwrap();
        bench.unfreeze(&mut file);
        bench.cancel(file);
        bench.assert_nothing_is_kept();
    }

    #[test]
    fn a_device_with_interrupts_does_not_freeze() {
        let bench = Bench::new(Kept::Anew, Compared::Identity);
        let mut file = bench.prepare().unwrap();
        bench.device().interrupts = true;
        assert_eq!(bench.freeze(&mut file), Err(Errno::EINVAL));
        assert!(bench.host.reason().contains("0000:00:04.0"));
        assert!(!bench.device().quiet);
        bench.device().interrupts = false;
        bench.freeze(&mut file).unwrap();
    }

    #[test]
    fn freeze_records_what_changed_since_prepare() {
        let bench = Bench::new(Kept::File, Compared::Everything);
        let mut file = bench.prepare().unwrap();
        bench.device().description.header[0x10] ^= 1;
        bench.freeze(&mut file).unwrap();
        assert!(bench.retrieve(file.data).is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_kept_is_refused_with_a_reason() {
        for (kind, errno, part) in [
            (Kind::Unbound, Errno::EINVAL, "iommufd"),
            (Kind::Group, Errno::EOPNOTSUPP, "group"),
            (Kind::Container, Errno::EOPNOTSUPP, "container"),
            (Kind::Foreign, Errno::EOPNOTSUPP, "vfio-pci"),
            (Kind::VirtualFunction, Errno::EOPNOTSUPP, "virtual function"),
        ] {
            let bench = Bench::new(Kept::Anew, Compared::Identity);
            bench.device().kind = kind;
            assert!(bench.handler.can_preserve(bench.file()));
            assert_eq!(bench.prepare().unwrap_err(), errno);
            assert!(bench.host.reason().contains(part), "{kind:?}");
            bench.assert_nothing_is_kept();
        }
        let bench = Bench::new(Kept::Anew, Compared::Identity);
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
        for (kept, compared) in BOTH {
            for (change, field) in changes {
                let bench = Bench::new(kept, compared);
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
        let bench = Bench::new(Kept::Anew, Compared::Identity);
        let data = bench.frozen();
        bench.device().is_missing = true;
        assert_eq!(bench.retrieve(data).unwrap_err(), Errno::ENODEV);
    }

    #[test]
    fn two_records_of_one_device_open_it_once() {
        let bench = Bench::new(Kept::Anew, Compared::Identity);
        let data = bench.frozen();
        let forged = bench.host.lend().preserve_bytes(&bench.host.bytes(data));
        bench.retrieve(data).unwrap();
        assert_eq!(bench.retrieve(forged.unwrap()).unwrap_err(), Errno::EBUSY);
    }

    #[test]
    fn one_record_under_two_tokens_leaves_the_device_free() {
        let bench = Bench::new(Kept::Anew, Compared::Identity);
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
        let there = Bench::new(Kept::File, Compared::Everything);
        let data = there.frozen();
        let here = Bench::new(Kept::Anew, Compared::Identity);
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
    fn the_way_of_opening_is_recorded() {
        for opened in [Opened::Cdev, Opened::Group] {
            let bench = Bench::new(Kept::Anew, Compared::Identity);
            bench.device().description.opened = opened;
            let record = Record::read(bench.host.lend(), bench.frozen()).unwrap();
            let expected = Description { opened, ..edu() };
            assert_eq!(record.description, expected);
        }
    }
}
