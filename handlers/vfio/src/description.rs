// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What is known of a device: where it is, what it is, how it was opened, and how two of these
//! differ.

use core::{fmt, ops::Deref, str::FromStr};

use luo_handler_api::Pairs;

/// Bytes of the standard configuration header: *PCI Local Bus Specification* 3.0, section 6.1.
pub const HEADER_LENGTH: usize = 64;

/// Regions that a record has room for. VFIO has nine of its own, and a few devices some more.
pub const REGIONS_MAX: usize = 16;

/// Interrupt indexes that a record has room for; VFIO has five.
pub const IRQS_MAX: usize = 8;

// Of include/uapi/linux/vfio.h, for which the kernel's Rust has no bindings; a test compares them.

/// `VFIO_DEVICE_FLAGS_RESET`: it can be reset.
pub const FLAGS_RESET: u32 = 1 << 0;

/// `VFIO_DEVICE_FLAGS_PCI`.
pub const FLAGS_PCI: u32 = 1 << 1;

/// The ROM, `VFIO_PCI_ROM_REGION_INDEX`.
const ROM_REGION: usize = 6;

/// The region with the configuration space, `VFIO_PCI_CONFIG_REGION_INDEX`; those before it are the
/// BARs and the ROM.
pub(crate) const CONFIG_REGION: usize = 7;

/// A PCI segment and a BDF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Segment, which Linux calls domain; one of a host bridge that is not firmware's has more than
    /// 16 bits.
    pub segment: u32,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

/// How the file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opened {
    /// From the device's own character device, and bound to an iommufd.
    Cdev = 1,
    /// From a group.
    Group = 2,
}

/// A region, as `struct vfio_region_info` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Where it is in the file, in bytes.
    pub offset: u64,
    /// Bytes; 0 if the device does not have it.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
}

/// An interrupt index, as `struct vfio_irq_info` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Irq {
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
    /// Interrupts of that index.
    pub count: u32,
}

/// Up to `N` of something, without an allocation.
///
/// # Invariants
///
/// `len` is at most `N`.
#[derive(Clone, Copy, Debug)]
pub struct List<T, const N: usize> {
    items: [T; N],
    len: usize,
}

/// A device and an open file of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Where it is.
    pub address: Address,
    /// How the file was opened.
    pub opened: Opened,
    /// Access mode and status flags, as [`luo_handler_api::status`] has them.
    pub status: u32,
    /// `VFIO_DEVICE_FLAGS_*`: among them whether it can be reset.
    pub flags: u32,
    /// The standard configuration header; ids, class and revision are in it.
    pub header: [u8; HEADER_LENGTH],
    /// What it has of memory and ports.
    pub regions: List<Region, REGIONS_MAX>,
    /// How it can interrupt.
    pub irqs: List<Irq, IRQS_MAX>,
}

/// How much of two descriptions is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// What makes a device the same one: ids, class, revision, the kind of its header, sizes of its
    /// BARs and its configuration space. All that a kernel knows of a device that nobody has
    /// opened.
    Identity,
    /// All that does not change by itself.
    Everything,
}

/// The first field in which two descriptions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    field: Field,
    was: u64,
    is: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Named(&'static str),
    Region(usize, &'static str),
    Irq(usize, &'static str),
}

/// A field of the header: name, offset, bytes, and whether it belongs to the identity. Status and
/// BIST are missing: they change by themselves.
type HeaderField = (&'static str, usize, usize, bool);

const VENDOR: HeaderField = ("vendor id", 0x00, 2, true);
const DEVICE: HeaderField = ("device id", 0x02, 2, true);
const REVISION: HeaderField = ("revision", 0x08, 1, true);
const CLASS: HeaderField = ("class code", 0x09, 3, true);
const SUBSYSTEM_VENDOR: HeaderField = ("subsystem vendor id", 0x2c, 2, true);
const SUBSYSTEM: HeaderField = ("subsystem id", 0x2e, 2, true);

const HEADER_FIELDS: [HeaderField; 22] = [
    VENDOR,
    DEVICE,
    ("command", 0x04, 2, false),
    REVISION,
    CLASS,
    ("cache line size", 0x0c, 1, false),
    ("latency timer", 0x0d, 1, false),
    ("header type", 0x0e, 1, true),
    ("BAR 0", 0x10, 4, false),
    ("BAR 1", 0x14, 4, false),
    ("BAR 2", 0x18, 4, false),
    ("BAR 3", 0x1c, 4, false),
    ("BAR 4", 0x20, 4, false),
    ("BAR 5", 0x24, 4, false),
    ("CardBus CIS pointer", 0x28, 4, false),
    SUBSYSTEM_VENDOR,
    SUBSYSTEM,
    ("expansion ROM base", 0x30, 4, false),
    ("capabilities pointer", 0x34, 1, false),
    ("interrupt line", 0x3c, 1, false),
    ("interrupt pin", 0x3d, 1, false),
    ("grant and latency", 0x3e, 2, false),
];

impl Address {
    /// Device and function in one byte, as `PCI_DEVFN()` has them.
    pub const fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }

    /// The address of a device and function in one byte.
    pub const fn new(segment: u32, bus: u8, devfn: u8) -> Self {
        Self {
            segment,
            bus,
            device: devfn >> 3,
            function: devfn & 7,
        }
    }

    /// The reverse of [`to_u64`](Self::to_u64).
    pub const fn from_u64(number: u64) -> Self {
        Self::new((number >> 16) as u32, (number >> 8) as u8, number as u8)
    }

    /// As one number.
    pub const fn to_u64(self) -> u64 {
        (self.segment as u64) << 16 | (self.bus as u64) << 8 | self.devfn() as u64
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// The text is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAddress;

/// As sysfs writes it: `0000:00:04.0`.
impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let number = |digits: &str, most: u32| {
            let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let number = u32::from_str_radix(digits, 16).map_err(|_| NotAnAddress)?;
            (plain && number <= most)
                .then_some(number)
                .ok_or(NotAnAddress)
        };
        let (segment, rest) = text.split_once(':').ok_or(NotAnAddress)?;
        let (bus, rest) = rest.split_once(':').ok_or(NotAnAddress)?;
        let (device, function) = rest.split_once('.').ok_or(NotAnAddress)?;
        Ok(Self {
            segment: number(segment, u32::MAX)?,
            bus: number(bus, 0xff)? as u8,
            device: number(device, 31)? as u8,
            function: number(function, 7)? as u8,
        })
    }
}

impl<T: Copy + Default, const N: usize> List<T, N> {
    /// All of `items`; `None` if they are more than `N`.
    pub fn of(items: impl IntoIterator<Item = T>) -> Option<Self> {
        let mut list = Self::default();
        for item in items {
            *list.items.get_mut(list.len)? = item;
            list.len += 1;
        }
        Some(list)
    }
}

impl<T: Copy + Default, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self {
            items: [T::default(); N],
            len: 0,
        }
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or_default()
    }
}

impl<T: PartialEq, const N: usize> PartialEq for List<T, N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq, const N: usize> Eq for List<T, N> {}

impl Description {
    /// A field of the header.
    fn header_field(&self, (_, offset, length, _): HeaderField) -> u64 {
        let bytes = self.header.get(offset..offset + length).unwrap_or_default();
        let little_endian = bytes.iter().rev();
        little_endian.fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// The vendor's id.
    pub fn vendor(&self) -> u16 {
        self.header_field(VENDOR) as u16
    }

    /// The id that the vendor gave it.
    pub fn device(&self) -> u16 {
        self.header_field(DEVICE) as u16
    }

    /// The id of the subsystem's vendor.
    pub fn subsystem_vendor(&self) -> u16 {
        self.header_field(SUBSYSTEM_VENDOR) as u16
    }

    /// The id that the subsystem's vendor gave it.
    pub fn subsystem(&self) -> u16 {
        self.header_field(SUBSYSTEM) as u16
    }

    /// Base class, sub-class and programming interface: 24 bits.
    pub fn class(&self) -> u32 {
        self.header_field(CLASS) as u32
    }

    /// Its revision.
    pub fn revision(&self) -> u8 {
        self.header_field(REVISION) as u8
    }

    /// Reports it, for people and for programs.
    pub(crate) fn report(&self, pairs: &mut Pairs<'_>) {
        let (vendor, device) = (self.vendor(), self.device());
        pairs.put("address", self.address);
        pairs.put("id", format_args!("{vendor:04x}:{device:04x}"));
        let (vendor, device) = (self.subsystem_vendor(), self.subsystem());
        pairs.put("subsystem_id", format_args!("{vendor:04x}:{device:04x}"));
        pairs.put("class", format_args!("{:06x}", self.class()));
        pairs.put("revision", self.revision());
        pairs.put(
            "opened",
            match self.opened {
                Opened::Cdev => "cdev",
                Opened::Group => "group",
            },
        );
        pairs.put("can_reset", self.flags & FLAGS_RESET != 0);
        for region in self.regions.iter() {
            pairs.put("region_bytes[]", region.size);
        }
        for irq in self.irqs.iter() {
            pairs.put("interrupts[]", irq.count);
        }
    }

    /// The field in which `now` differs, if it is another device or has changed.
    pub fn difference(&self, now: &Self, compared: Compared) -> Option<Difference> {
        let everything = compared == Compared::Everything;
        let whole = || {
            self.plain_difference(now)
                .or_else(|| self.list_difference(now))
        };
        self.header_difference(now, everything)
            .or_else(|| self.size_difference(now))
            .or_else(|| whole().filter(|_| everything))
    }

    fn header_difference(&self, now: &Self, everything: bool) -> Option<Difference> {
        let fields = HEADER_FIELDS
            .iter()
            .filter(|(.., identity)| everything || *identity);
        first(fields.map(|&field| {
            let (was, is) = (self.header_field(field), now.header_field(field));
            (Field::Named(field.0), was, is)
        }))
    }

    /// Sizes of the BARs and the configuration space. That of the ROM depends on what is in it.
    fn size_difference(&self, now: &Self) -> Option<Difference> {
        let size = |regions: &[Region], index: usize| regions.get(index).map_or(0, |it| it.size);
        let known = (0..=CONFIG_REGION).filter(|&index| index != ROM_REGION);
        first(known.map(|index| {
            let (was, is) = (size(&self.regions, index), size(&now.regions, index));
            (Field::Region(index, "size"), was, is)
        }))
    }

    fn plain_difference(&self, now: &Self) -> Option<Difference> {
        let counts = |one: usize, other: usize| (one as u64, other as u64);
        let regions = counts(self.regions.len(), now.regions.len());
        let irqs = counts(self.irqs.len(), now.irqs.len());
        first(
            [
                ("address", (self.address.to_u64(), now.address.to_u64())),
                ("way of opening", (self.opened as u64, now.opened as u64)),
                ("status flags", (self.status.into(), now.status.into())),
                ("device flags", (self.flags.into(), now.flags.into())),
                ("number of regions", regions),
                ("number of interrupt indexes", irqs),
            ]
            .map(|(name, (was, is))| (Field::Named(name), was, is)),
        )
    }

    fn list_difference(&self, now: &Self) -> Option<Difference> {
        let regions = self.regions.iter().zip(now.regions.iter()).enumerate();
        let irqs = self.irqs.iter().zip(now.irqs.iter()).enumerate();
        first(regions.flat_map(|(index, (was, is))| {
            [
                (Field::Region(index, "size"), was.size, is.size),
                (Field::Region(index, "offset"), was.offset, is.offset),
                (
                    Field::Region(index, "flags"),
                    was.flags.into(),
                    is.flags.into(),
                ),
            ]
        }))
        .or_else(|| {
            first(irqs.flat_map(|(index, (was, is))| {
                [
                    (
                        Field::Irq(index, "count"),
                        was.count.into(),
                        is.count.into(),
                    ),
                    (
                        Field::Irq(index, "flags"),
                        was.flags.into(),
                        is.flags.into(),
                    ),
                ]
            }))
        })
    }
}

/// The first field whose value has changed.
fn first(fields: impl IntoIterator<Item = (Field, u64, u64)>) -> Option<Difference> {
    let mut fields = fields.into_iter();
    let (field, was, is) = fields.find(|(_, was, is)| was != is)?;
    Some(Difference { field, was, is })
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            Field::Named(name) => f.write_str(name)?,
            Field::Region(index, name) => write!(f, "{name} of region {index}")?,
            Field::Irq(index, name) => write!(f, "{name} of interrupt index {index}")?,
        }
        write!(f, " was {:#x}, is {:#x}", self.was, self.is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imagined::edu;
    use proptest::prelude::*;

    #[test]
    fn constants_are_those_of_the_header() {
        use vfio_bindings::bindings::vfio;
        assert_eq!(FLAGS_RESET, vfio::VFIO_DEVICE_FLAGS_RESET);
        assert_eq!(FLAGS_PCI, vfio::VFIO_DEVICE_FLAGS_PCI);
        assert_eq!(ROM_REGION, vfio::VFIO_PCI_ROM_REGION_INDEX as usize);
        assert_eq!(CONFIG_REGION, vfio::VFIO_PCI_CONFIG_REGION_INDEX as usize);
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let edu = edu();
        assert_eq!((edu.vendor(), edu.device()), (0x1234, 0x11e8));
        assert_eq!((edu.subsystem_vendor(), edu.subsystem()), (0x1af4, 0x1100));
        assert_eq!((edu.class(), edu.revision()), (0x00ff00, 0x10));
    }

    fn difference(change: impl FnOnce(&mut Description), compared: Compared) -> Option<String> {
        let mut now = edu();
        change(&mut now);
        edu().difference(&now, compared).map(|it| it.to_string())
    }

    #[test]
    fn a_difference_is_named() {
        use Compared::{Everything, Identity};
        let named = |change: fn(&mut Description), name: &str| {
            let found = difference(change, Everything).unwrap();
            assert!(found.starts_with(name), "{found}");
        };
        named(
            |now| now.header[2] = 0xe9,
            "device id was 0x11e8, is 0x11e9",
        );
        named(|now| now.header[0x13] = 1, "BAR 0 was");
        named(|now| now.status = 0, "status flags was 0x2, is 0x0");
        named(|now| now.opened = Opened::Group, "way of opening");
        named(|now| now.flags = 2, "device flags");
        named(|now| now.regions.items[0].size = 1, "size of region 0");
        named(|now| now.regions.items[8].flags = 1, "flags of region 8");
        named(
            |now| now.irqs.items[1].count = 32,
            "count of interrupt index 1",
        );
        named(|now| now.irqs.len -= 1, "number of interrupt indexes");
        assert_eq!(difference(|_| (), Everything), None);

        let same: [fn(&mut Description); 5] = [
            |now| now.header[0x13] = 1,
            |now| now.status = 0,
            |now| now.opened = Opened::Group,
            |now| now.irqs = List::default(),
            |now| now.regions.items[6].size = 1,
        ];
        for change in same {
            assert_eq!(difference(change, Identity), None);
        }
        let other: [fn(&mut Description); 3] = [
            |now| now.header[0] = 0,
            |now| now.header[0x2f] = 0,
            |now| now.regions.items[0].size = 1,
        ];
        for change in other {
            assert!(difference(change, Identity).is_some());
        }
    }

    #[test]
    fn every_byte_of_the_header_but_status_and_bist_is_compared() {
        for byte in 0..HEADER_LENGTH {
            let found = difference(|now| now.header[byte] ^= 0x80, Compared::Everything);
            let changes_by_itself = matches!(byte, 0x06 | 0x07 | 0x0f);
            let reserved = (0x35..0x3c).contains(&byte);
            assert_eq!(found.is_none(), changes_by_itself || reserved, "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn an_address_reads_back(segment: u32, bus: u8, devfn: u8) {
            let address = Address::new(segment, bus, devfn);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(address.devfn(), devfn);
            prop_assert_eq!(Address::from_u64(address.to_u64()), address);
        }

        #[test]
        fn an_address_is_written_as_it_was_read(text in "[0-9a-fA-F:.+-]{0,16}|\\PC{0,16}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }

    #[test]
    fn a_text_that_is_not_an_address_is_refused() {
        for text in [
            "",
            "0000:00:04",
            "0000:00:20.0",
            "0000:00:04.8",
            "0000:100:04.0",
            "+000:00:04.0",
            "a:b",
        ] {
            assert_eq!(text.parse::<Address>(), Err(NotAnAddress), "{text}");
        }
    }
}
