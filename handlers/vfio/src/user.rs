// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The backend in a process: the host passes the open file on, and the device runs on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_handler_api::{register_handler, status, Errno, FileRef, Host, OwnedFile, Retrieved};

use crate::{
    backend::{Kind, VfioBackend},
    description::{
        Address, Compared, Description, List, Region, CONFIG_REGION, HEADER_LENGTH, REGIONS_MAX,
    },
    handler::VfioHandler,
    ioctls::{System, VfioFiles},
    record::{Crossing, DeviceRecord},
};

register_handler!(
    /// The handler of this process.
    pub VFIO: VfioHandler<UserBackend<System>> = VfioHandler(UserBackend(System))
);

/// A process, with a host that passes files on, and its way to ask devices.
#[derive(Clone, Copy, Debug)]
pub struct UserBackend<F>(pub F);

impl<F: VfioFiles> UserBackend<F> {
    fn description(&self, file: BorrowedFd<'_>) -> Result<Description, Errno> {
        let Kind::Device(opened) = self.0.kind(file) else {
            return Err(Errno::ENODEV);
        };
        let info = self.0.device_info(file)?;
        let regions: List<Region, REGIONS_MAX> = collect(info.regions, |index| {
            if_any(self.0.region_info(file, index))
        })?;
        let config = regions.get(CONFIG_REGION).ok_or(Errno::EOPNOTSUPP)?;
        let mut header = [0; HEADER_LENGTH];
        self.0.read(file, config.offset, &mut header)?;
        Ok(Description {
            address: self.0.address(file)?,
            opened,
            status: status::from_flags(self.0.flags(file)?.bits()),
            flags: info.flags,
            header,
            regions,
            irqs: collect(info.irqs, |index| if_any(self.0.irq_info(file, index)))?,
        })
    }
}

/// Zero for what this kind of device does not have: a region of VGA, for example, or on older
/// kernels the interrupt index of a PCIe error.
fn if_any<T: Default>(answer: Result<T, Errno>) -> Result<T, Errno> {
    match answer {
        Err(Errno::EINVAL) => Ok(T::default()),
        other => other,
    }
}

/// `count` answers; `EOPNOTSUPP` if that is more than there is room for.
fn collect<T: Copy + Default, const N: usize>(
    count: u32,
    mut ask: impl FnMut(u32) -> Result<T, Errno>,
) -> Result<List<T, N>, Errno> {
    if count as usize > N {
        return Err(Errno::EOPNOTSUPP);
    }
    let all = (0..count).map(&mut ask).collect::<Result<Vec<_>, _>>()?;
    List::of(all).ok_or(Errno::EOPNOTSUPP)
}

impl<F: VfioFiles> VfioBackend for UserBackend<F> {
    type Pin = ();
    type Found = OwnedFd;

    fn crossing(&self) -> Crossing {
        Crossing::OpenFile
    }

    fn compared(&self) -> Compared {
        Compared::Everything
    }

    fn kind(&self, file: FileRef<'_>) -> Kind {
        self.0.kind(file.as_fd())
    }

    fn address(&self, file: FileRef<'_>) -> Result<Address, Errno> {
        self.0.address(file.as_fd())
    }

    /// The device: all files from groups share one inode.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        Some(self.address(file).ok()?.to_u64())
    }

    fn pin(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, ()), Errno> {
        Ok((host.preserve_file(file)?, ()))
    }

    fn unpin(&self, _: FileRef<'_>, handle: u64, (): &mut (), host: Host<'_>) {
        host.release_file(handle);
    }

    fn describe(&self, file: FileRef<'_>) -> Result<Description, Errno> {
        self.description(file.as_fd())
    }

    /// Nothing: the device runs on while the process replaces itself.
    fn quiesce(&self, _: FileRef<'_>, (): &mut ()) -> Result<(), Errno> {
        Ok(())
    }

    fn resume(&self, _: FileRef<'_>, (): &mut ()) {}

    fn find(&self, record: &DeviceRecord, host: Host<'_>) -> Result<OwnedFd, Errno> {
        let file = OwnedFd::from(host.take_file(record.file)?);
        match self.0.kind(file.as_fd()) {
            Kind::Device(_) => Ok(file),
            _ => {
                let address = record.description.address;
                Err(host.refuse(
                    Errno::ENODEV,
                    format_args!("{address}: the file that crossed is not a device's any more"),
                ))
            }
        }
    }

    fn describe_found(&self, found: &OwnedFd) -> Result<Description, Errno> {
        self.description(found.as_fd())
    }

    fn open(&self, found: OwnedFd, _: &DeviceRecord) -> Result<OwnedFile, Errno> {
        Ok(found.into())
    }

    fn finish(&self, record: Option<&DeviceRecord>, retrieved: Retrieved<'_>, host: Host<'_>) {
        if let (None, Some(record)) = (retrieved.file(), record) {
            host.release_file(record.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imagined::{edu, Imagined};
    use luo_handler_api::{testing::Rehearsal, FileHandler};

    type Bench = Rehearsal<VfioHandler<UserBackend<Imagined>>>;

    fn bench() -> Bench {
        Rehearsal::with_any_file(VfioHandler(UserBackend(Imagined::new(edu()))))
    }

    fn device(bench: &Bench) -> &Imagined {
        &bench.handler.0 .0
    }

    #[test]
    fn all_that_the_device_reports_is_recorded() {
        let bench = bench();
        let record = DeviceRecord::read(bench.host.lend(), bench.frozen()).unwrap();
        assert_eq!(record.description, edu());
    }

    #[test]
    fn a_device_that_changed_is_an_error_that_names_the_field() {
        type Change = fn(&mut Description);
        let changes: [(Change, &str); 5] = [
            (|d| d.header[4] ^= 4, "command"),
            (|d| d.header[0x3c] = 9, "interrupt line"),
            (|d| d.flags ^= 1, "device flags"),
            (|d| d.irqs = List::default(), "number of interrupt indexes"),
            (|d| d.address.device = 5, "address"),
        ];
        for (change, field) in changes {
            let bench = bench();
            let data = bench.frozen();
            device(&bench).change(change);
            assert_eq!(bench.retrieve(data).unwrap_err(), Errno::ENODEV);
            assert!(bench.host.reason().contains(field), "{field}");
            bench.finish(data, Retrieved::Failed(Errno::ENODEV));
            assert!(bench.host.is_empty());
        }
    }

    #[test]
    fn a_device_that_went_away_is_an_error() {
        let bench = bench();
        let data = bench.frozen();
        device(&bench).take_away();
        assert_eq!(bench.retrieve(data).unwrap_err(), Errno::ENODEV);
        assert!(bench.host.reason().contains("0000:00:04.0"));
    }

    #[test]
    fn more_regions_than_a_record_has_room_for_are_refused() {
        let regions = |count| collect::<Region, REGIONS_MAX>(count, |_| Ok(Region::default()));
        assert_eq!(regions(17), Err(Errno::EOPNOTSUPP));
        assert!(regions(16).is_ok());
    }

    #[test]
    fn the_handler_is_registered() {
        let found = luo_handler_api::registry::registered_handlers()
            .filter(|ops| ops.origin() == "luo_handler_vfio")
            .map(|ops| ops.compatible().unwrap())
            .collect::<Vec<_>>();
        assert_eq!(found, [VfioHandler::<UserBackend<System>>::COMPATIBLE]);
    }
}
