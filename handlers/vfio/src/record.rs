// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The bytes that cross, and the checks they pass before they are used.
//!
//! ```text
//! data ──► RecordBytes     560 bytes: address, the header with the ids, regions, interrupts
//!            file ───────► the open file       (hosted)
//! ```
//!
//! Every arrow is a handle of the host. The layout belongs to the compatible
//! `luo-handlers,vfio-v1`: a new layout needs a new compatible.

use luo_handler_api::{record, status, Errno, Host};

use crate::{
    description::{
        Address, Description, Irq, List, Opened, Region, FLAGS_PCI, HEADER_LENGTH, IRQS_MAX,
        REGIONS_MAX,
    },
    wire::{
        little_endian::{U32, U64},
        FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    },
};

/// What a record begins with.
pub const MAGIC: [u8; 8] = *b"vfio-v1\0";

/// How a file crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Crossing {
    /// The host passes the open file on, and with it the device as it runs.
    OpenFile = 1,
    /// Not at all: the next kernel opens the device again.
    Reopened = 2,
}

/// The record of one device file, as the host preserves it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RecordBytes {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of the record.
    pub length: U32,
    /// CRC-32C of the record with this field as zero.
    pub checksum: U32,
    /// [`Address::segment`].
    pub segment: U32,
    /// [`Address::bus`].
    pub bus: u8,
    /// [`Address::devfn`].
    pub devfn: u8,
    /// [`Opened`].
    pub opened: u8,
    /// [`Crossing`].
    pub crossing: u8,
    /// Handle of the file, where the host passes it on; 0 elsewhere.
    pub file: U64,
    /// [`Description::status`].
    pub status: U32,
    /// [`Description::flags`].
    pub flags: U32,
    /// Number of regions, at most [`REGIONS_MAX`].
    pub regions: U32,
    /// Number of interrupt indexes, at most [`IRQS_MAX`].
    pub irqs: U32,
    /// [`Description::header`].
    pub header: [u8; HEADER_LENGTH],
    /// The regions; zero after the last one.
    pub region: [RegionBytes; REGIONS_MAX],
    /// The interrupt indexes; zero after the last one.
    pub irq: [IrqBytes; IRQS_MAX],
}

const _: () = assert!(size_of::<RecordBytes>() == 560);

/// A [`Region`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RegionBytes {
    /// [`Region::offset`].
    pub offset: U64,
    /// [`Region::size`].
    pub size: U64,
    /// [`Region::flags`].
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
}

/// An [`Irq`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct IrqBytes {
    /// [`Irq::flags`].
    pub flags: U32,
    /// [`Irq::count`].
    pub count: U32,
}

/// A record that was checked.
///
/// # Errors
///
/// What [`read`](Self::read) returns; the previous side is not trusted:
///
/// | errno | what is wrong |
/// |---|---|
/// | `ENOENT` | the host has nothing under that handle |
/// | `EBADMSG` | the checksum |
/// | `EINVAL` | anything else that is malformed: length, magic, counts, what should be zero, … |
/// | `EOPNOTSUPP` | a status flag that this version does not know, or a device that is not PCI |
///
/// Whether there is such a device, and whether it is the same one, is not checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// The device and how it was opened.
    pub description: Description,
    /// How the file crosses.
    pub crossing: Crossing,
    /// Its handle, where the host passes it on; 0 elsewhere.
    pub file: u64,
}

impl DeviceRecord {
    /// Reads the record that the host has under `handle`.
    ///
    /// # Errors
    ///
    /// As listed above, and those of the host.
    pub fn read(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let record = Self::read_any(host, handle)?;
        let Description { status, flags, .. } = record.description;
        if !status::is_possible(status) || flags & FLAGS_PCI == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(record)
    }

    /// Reads a record that may hold flags of a later version: what has to be released is named all
    /// the same.
    pub(crate) fn read_any(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let mut bytes = RecordBytes::new_zeroed();
        record::load(host, handle, &MAGIC, bytes.as_mut_bytes())?;
        bytes.parse().ok_or(Errno::EINVAL)
    }

    /// Has the host preserve the record; yields its handle.
    ///
    /// # Errors
    ///
    /// Those of the host.
    pub(crate) fn preserve(&self, host: Host<'_>) -> Result<u64, Errno> {
        record::keep(host, self.to_bytes().as_mut_bytes())
    }

    fn to_bytes(self) -> RecordBytes {
        let Description {
            address,
            opened,
            status,
            flags,
            header,
            regions,
            irqs,
        } = self.description;
        let mut bytes = RecordBytes {
            magic: MAGIC,
            segment: U32::new(address.segment),
            bus: address.bus,
            devfn: address.devfn(),
            opened: opened as u8,
            crossing: self.crossing as u8,
            file: U64::new(self.file),
            status: U32::new(status),
            flags: U32::new(flags),
            regions: U32::new(regions.len() as u32),
            irqs: U32::new(irqs.len() as u32),
            header,
            ..RecordBytes::new_zeroed()
        };
        for (bytes, region) in bytes.region.iter_mut().zip(regions.iter()) {
            bytes.offset = U64::new(region.offset);
            bytes.size = U64::new(region.size);
            bytes.flags = U32::new(region.flags);
        }
        for (bytes, irq) in bytes.irq.iter_mut().zip(irqs.iter()) {
            bytes.flags = U32::new(irq.flags);
            bytes.count = U32::new(irq.count);
        }
        bytes
    }
}

impl RecordBytes {
    fn opened(&self) -> Option<Opened> {
        [Opened::Cdev, Opened::Group]
            .into_iter()
            .find(|&opened| opened as u8 == self.opened)
    }

    fn crossing(&self) -> Option<Crossing> {
        [Crossing::OpenFile, Crossing::Reopened]
            .into_iter()
            .find(|&crossing| crossing as u8 == self.crossing)
    }

    fn parse(&self) -> Option<DeviceRecord> {
        let regions = used(&self.region, self.regions, RegionBytes::new_zeroed())?;
        let irqs = used(&self.irq, self.irqs, IrqBytes::new_zeroed())?;
        let crossing = self.crossing()?;
        let sound = regions.iter().all(|region| region.reserved.get() == 0)
            && (crossing == Crossing::OpenFile || self.file.get() == 0);
        if !sound {
            return None;
        }
        Some(DeviceRecord {
            description: Description {
                address: Address::new(self.segment.get(), self.bus, self.devfn),
                opened: self.opened()?,
                status: self.status.get(),
                flags: self.flags.get(),
                header: self.header,
                regions: List::of(regions.iter().map(|region| Region {
                    offset: region.offset.get(),
                    size: region.size.get(),
                    flags: region.flags.get(),
                }))?,
                irqs: List::of(irqs.iter().map(|irq| Irq {
                    flags: irq.flags.get(),
                    count: irq.count.get(),
                }))?,
            },
            crossing,
            file: self.file.get(),
        })
    }
}

/// The first `count` of `all`; `None` if there are not so many, or the others are not zero.
fn used<T: PartialEq>(all: &[T], count: U32, zero: T) -> Option<&[T]> {
    let (used, unused) = all.split_at_checked(count.get() as usize)?;
    unused.iter().all(|item| *item == zero).then_some(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imagined::edu;
    use luo_handler_api::{crc32c, testing::FakeHost};
    use proptest::prelude::*;

    fn sample() -> DeviceRecord {
        DeviceRecord {
            description: edu(),
            crossing: Crossing::OpenFile,
            file: 7,
        }
    }

    /// Preserves the sample with one thing changed and its checksum right, and reads it.
    fn read_changed(change: impl FnOnce(&mut RecordBytes)) -> Result<DeviceRecord, Errno> {
        let host = FakeHost::default();
        let handle = sample().preserve(host.lend()).unwrap();
        let mut bytes = RecordBytes::read_from_bytes(&host.bytes(handle)).unwrap();
        change(&mut bytes);
        bytes.checksum = U32::ZERO;
        bytes.checksum = U32::new(crc32c(0, bytes.as_bytes()));
        host.replace(handle, bytes.as_bytes());
        DeviceRecord::read(host.lend(), handle)
    }

    #[test]
    fn a_record_reads_back() {
        assert_eq!(read_changed(|_| ()), Ok(sample()));
    }

    #[test]
    fn hostile_records_are_refused() {
        type Change = fn(&mut RecordBytes);
        let hostile: [(&str, Change, Errno); 14] = [
            ("magic", |r| r.magic[7] = 1, Errno::EINVAL),
            ("length", |r| r.length = U32::new(559), Errno::EINVAL),
            ("opened", |r| r.opened = 0, Errno::EINVAL),
            ("opened", |r| r.opened = 3, Errno::EINVAL),
            ("crossing", |r| r.crossing = 0, Errno::EINVAL),
            (
                "a file that does not cross",
                |r| r.crossing = 2,
                Errno::EINVAL,
            ),
            ("regions", |r| r.regions = U32::new(17), Errno::EINVAL),
            ("regions", |r| r.regions = U32::MAX_VALUE, Errno::EINVAL),
            ("fewer regions", |r| r.regions = U32::new(2), Errno::EINVAL),
            ("irqs", |r| r.irqs = U32::new(9), Errno::EINVAL),
            (
                "reserved",
                |r| r.region[0].reserved = U32::new(1),
                Errno::EINVAL,
            ),
            ("access mode", |r| r.status = U32::new(3), Errno::EOPNOTSUPP),
            ("status", |r| r.status = U32::MAX_VALUE, Errno::EOPNOTSUPP),
            (
                "no PCI device",
                |r| r.flags = U32::new(5),
                Errno::EOPNOTSUPP,
            ),
        ];
        for (name, change, errno) in hostile {
            assert_eq!(read_changed(change), Err(errno), "{name}");
        }
    }

    proptest! {
        #[test]
        fn bytes_that_can_be_read_are_written_as_they_were(
            mut bytes in proptest::collection::vec(any::<u8>(), 560),
            tame: bool,
        ) {
            bytes[..8].copy_from_slice(&MAGIC);
            if tame {
                bytes[22] = 1 + bytes[22] % 2;
                bytes[23] = 1;
                bytes[40] %= 17;
                bytes[41..44].fill(0);
                bytes[44] %= 9;
                bytes[45..48].fill(0);
                let regions = 112 + bytes[40] as usize * 24;
                bytes[regions..496].fill(0);
                (0..16).for_each(|region| bytes[112 + region * 24 + 20..][..4].fill(0));
                let irqs = 496 + bytes[44] as usize * 8;
                bytes[irqs..].fill(0);
            }
            let host = FakeHost::default();
            let handle = record::keep(host.lend(), &mut bytes).unwrap();
            let record = DeviceRecord::read_any(host.lend(), handle);
            prop_assert!(record.is_ok() || !tame);
            if let Ok(record) = record {
                let again = record.preserve(host.lend()).unwrap();
                prop_assert_eq!(host.bytes(handle), host.bytes(again));
            }
        }
    }
}
