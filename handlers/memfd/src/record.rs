// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The bytes that cross, and the checks they pass before they are used.
//!
//! ```text
//! data ──► RecordHeader            368 bytes: attributes, name, counts, checksum
//!            contents ───────────► the preserved file       (hosted)
//!            chain ──────────────► BlockHeader, words…      the end of the file
//!                                    previous ──► BlockHeader, words…
//!                                                   previous = 0: the beginning of the file
//!            late ───────────────► the same                 what came between prepare and freeze
//! ```
//!
//! Every arrow is a handle of the host. What prepare wrote stays as it is: freeze writes at most
//! the record again and what came late. No extent of one chain overlaps one of the other.
//!
//! Where the contents cross as a file there are no chains: its pages stay where they are, and
//! whoever copies them looks for holes then. Records of earlier versions have one all the same. It
//! is not looked at, only released, and such a version finds nothing amiss in a record without.
//!
//! The digit at the end of the magic counts the layouts: whoever changes one changes the other.

use luo_handler_api::{record, status, Errno, Host};

pub use crate::extent::Contents;
use crate::{
    chain::{Chain, Extents},
    extent::{FRAME_END, ORDER_MAX},
    name::Name,
    wire::{
        little_endian::{U32, U64},
        FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    },
};

/// The layout of the record, by name.
pub const LAYOUT: &str = "memfd-r3";

/// An earlier layout, which is still read: its extents cross whole, in 16 bytes each.
pub const EARLIER_LAYOUT: &str = "memfd-r2";

/// What a record begins with.
pub const MAGIC: [u8; 8] = *LAYOUT.as_bytes().first_chunk().unwrap();

/// The same of the earlier layout.
pub const EARLIER_MAGIC: [u8; 8] = *EARLIER_LAYOUT.as_bytes().first_chunk().unwrap();

/// `F_SEAL_SEAL` of `include/uapi/linux/fcntl.h`: no more seals.
pub const SEAL_SEAL: u32 = 0x01;
/// `F_SEAL_SHRINK`: the file cannot shrink.
pub const SEAL_SHRINK: u32 = 0x02;
/// `F_SEAL_GROW`: the file cannot grow.
pub const SEAL_GROW: u32 = 0x04;
/// `F_SEAL_WRITE`: no writes.
pub const SEAL_WRITE: u32 = 0x08;
/// `F_SEAL_FUTURE_WRITE`: no writes but through mappings that are there.
pub const SEAL_FUTURE_WRITE: u32 = 0x10;
/// `F_SEAL_EXEC`: the execute bits stay as they are.
pub const SEAL_EXEC: u32 = 0x20;

/// The seals that this version keeps.
pub const ALL_SEALS: u32 =
    SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE | SEAL_EXEC;

/// Permission bits, with the sticky bit. Set-uid and set-gid bits never cross.
pub const ALL_MODE: u32 = 0o1777;

/// Base pages are between 4 KiB and 256 KiB.
const PAGE_SHIFTS: core::ops::RangeInclusive<u8> = 12..=18;

/// Huge pages are at most 16 GiB.
const HUGE_PAGE_SHIFT_MAX: u8 = 34;

/// What a memfd is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Pages of shmem.
    Shmem = 1,
    /// Huge pages of hugetlbfs.
    Hugetlb = 2,
}

/// What makes a memfd besides its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Size in bytes, at most `i64::MAX`.
    pub size: u64,
    /// File position in bytes, at most `i64::MAX`; it may lie beyond the end.
    pub position: u64,
    /// Seals, a subset of [`ALL_SEALS`].
    pub seals: u32,
    /// Access mode and status flags, as [`status`] keeps them.
    pub status: u32,
    /// Permission bits, a subset of [`ALL_MODE`].
    pub mode: u32,
    /// User that owns it, not `u32::MAX`; in the kernel as the initial user namespace has it.
    pub uid: u32,
    /// Group that owns it, likewise.
    pub gid: u32,
    /// What it is made of.
    pub kind: Kind,
    /// Binary logarithm of the size of its own pages in bytes: the base page's for shmem.
    pub file_page_shift: u8,
}

/// A [`Chain`] in a record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChainBytes {
    /// Number of extents.
    pub extents: U64,
    /// Number of pages in all extents.
    pub pages: U64,
    /// Handle of the block with the last extents; 0 if there are none.
    pub last_block: U64,
}

/// The record of one memfd, as it is preserved by the host.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RecordHeader {
    /// [`MAGIC`] or [`EARLIER_MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of the record: 368.
    pub length: U32,
    /// CRC-32C of the record with this field as zero.
    pub checksum: U32,
    /// [`Attributes::size`].
    pub size: U64,
    /// [`Attributes::position`].
    pub position: U64,
    /// [`Attributes::seals`].
    pub seals: U32,
    /// [`Attributes::status`].
    pub status: U32,
    /// [`Attributes::mode`].
    pub mode: U32,
    /// Unit of the extents: binary logarithm of the base page in bytes.
    pub page_shift: u8,
    /// [`Attributes::file_page_shift`].
    pub file_page_shift: u8,
    /// [`Kind`].
    pub kind: u8,
    /// [`Contents`].
    pub contents_in: u8,
    /// [`Attributes::uid`].
    pub uid: U32,
    /// [`Attributes::gid`].
    pub gid: U32,
    /// Handle of the contents, where they are in a preserved file.
    pub contents: U64,
    /// [`Record::chain`].
    pub chain: ChainBytes,
    /// [`Record::late`].
    pub late: ChainBytes,
    /// [`Record::name`], with zeros after it.
    pub name: [u8; Name::ROOM],
}

const _: () = assert!(size_of::<RecordHeader>() == 368);

/// A record that was checked.
///
/// # Errors
///
/// What [`read`](Self::read) returns: the previous side is not trusted.
///
/// | errno | what is wrong |
/// |---|---|
/// | `ENOENT` | the host keeps nothing under that handle |
/// | `EBADMSG` | the checksum |
/// | `EFBIG` | the size is above `i64::MAX` |
/// | `EINVAL` | anything else that is malformed: length, magic, position, counts, page sizes, … |
/// | `EOPNOTSUPP` | a seal or a status flag that this version does not know |
///
/// # Invariants
///
/// The attributes are within their ranges, `page_shift` is that of a possible base page, there are
/// no more extents than pages and no more pages than the size has room for, and nothing comes late
/// in a preserved file. The extents themselves are checked as they are read: see [`Extents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What makes the memfd besides its contents.
    pub attributes: Attributes,
    /// Binary logarithm of the base page in bytes, the unit of the extents.
    pub page_shift: u8,
    /// Where the contents are.
    pub contents_in: Contents,
    /// Handle of the contents, where they are in a preserved file.
    pub contents: u64,
    /// The extents that were there at prepare; those of contents in a file mean nothing.
    pub chain: Chain,
    /// Those that came between prepare and freeze.
    pub late: Chain,
    /// The name that was given to `memfd_create`, in the kernel; a process leaves it empty.
    pub name: Name,
}

impl Attributes {
    /// Whether a file of base pages of 2^`page_shift` bytes can have them, and whether all of them
    /// are known.
    ///
    /// # Errors
    ///
    /// As [`Record`] lists them.
    pub fn check(&self, page_shift: u8) -> Result<(), Errno> {
        self.check_ranges(page_shift)?;
        self.check_known()
    }

    fn check_ranges(&self, page_shift: u8) -> Result<(), Errno> {
        let largest = i64::MAX as u64;
        if self.size > largest {
            return Err(Errno::EFBIG);
        }
        let own_pages = match self.kind {
            Kind::Shmem => self.file_page_shift == page_shift,
            Kind::Hugetlb => (page_shift..=HUGE_PAGE_SHIFT_MAX).contains(&self.file_page_shift),
        };
        let sound = PAGE_SHIFTS.contains(&page_shift)
            && own_pages
            && self.position <= largest
            && self.status & status::ACCESS != status::ACCESS
            && self.mode & !ALL_MODE == 0
            && self.uid != u32::MAX
            && self.gid != u32::MAX;
        if sound {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn check_known(&self) -> Result<(), Errno> {
        if self.seals & !ALL_SEALS == 0 && self.status & !status::ALL == 0 {
            Ok(())
        } else {
            Err(Errno::EOPNOTSUPP)
        }
    }
}

impl RecordHeader {
    /// Bytes of a record.
    pub const LENGTH: usize = size_of::<Self>();

    /// Reads the record of `handle` and checks that it is one and arrived whole.
    fn load(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let mut header = Self::new_zeroed();
        let mut load = |magic| record::load(host, handle, magic, header.as_mut_bytes());
        match load(&MAGIC) {
            Err(Errno::EINVAL) => load(&EARLIER_MAGIC)?,
            loaded => loaded?,
        }
        Ok(header)
    }

    fn kind(&self) -> Option<Kind> {
        [Kind::Shmem, Kind::Hugetlb]
            .into_iter()
            .find(|&kind| kind as u8 == self.kind)
    }

    fn contents_in(&self) -> Option<Contents> {
        [Contents::File, Contents::Frames]
            .into_iter()
            .find(|&contents| contents as u8 == self.contents_in)
    }

    fn parse(&self) -> Option<Record> {
        Some(Record {
            attributes: Attributes {
                size: self.size.get(),
                position: self.position.get(),
                seals: self.seals.get(),
                status: self.status.get(),
                mode: self.mode.get(),
                uid: self.uid.get(),
                gid: self.gid.get(),
                kind: self.kind()?,
                file_page_shift: self.file_page_shift,
            },
            page_shift: self.page_shift,
            contents_in: self.contents_in()?,
            contents: self.contents.get(),
            chain: self.chain.parse(),
            late: self.late.parse(),
            name: Name::new(self.name)?,
        })
    }
}

impl ChainBytes {
    const fn new(chain: Chain) -> Self {
        Self {
            extents: U64::new(chain.extents),
            pages: U64::new(chain.pages),
            last_block: U64::new(chain.last_block),
        }
    }

    const fn parse(&self) -> Chain {
        Chain {
            extents: self.extents.get(),
            pages: self.pages.get(),
            last_block: self.last_block.get(),
        }
    }
}

impl Record {
    /// Reads the record that the host keeps under `handle` and checks all of it but the extents.
    ///
    /// # Errors
    ///
    /// As listed above, and those of the host.
    pub fn read(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let record = Self::read_any(host, handle)?;
        record.attributes.check_known()?;
        Ok(record)
    }

    /// Reads a record that may hold seals and status flags of a later version: what has to be
    /// released is named all the same.
    pub(crate) fn read_any(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let header = RecordHeader::load(host, handle)?;
        let record = header.parse().ok_or(Errno::EINVAL)?;
        record.attributes.check_ranges(record.page_shift)?;
        if record.has_possible_chains() {
            Ok(record)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Gives a record back that cannot be read, of either layout. What is none stays.
    pub(crate) fn release(host: Host<'_>, handle: u64) {
        record::release(host, handle, &MAGIC);
        record::release(host, handle, &EARLIER_MAGIC);
    }

    /// The layout of a record: [`LAYOUT`] or [`EARLIER_LAYOUT`].
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn layout(host: Host<'_>, handle: u64) -> Result<&'static str, Errno> {
        match RecordHeader::load(host, handle)?.magic {
            MAGIC => Ok(LAYOUT),
            _ => Ok(EARLIER_LAYOUT),
        }
    }

    /// Has the host preserve the record; returns its handle.
    ///
    /// # Errors
    ///
    /// Those of the host.
    pub(crate) fn keep(&self, host: Host<'_>) -> Result<u64, Errno> {
        let mut header = RecordHeader {
            magic: MAGIC,
            length: U32::ZERO,
            checksum: U32::ZERO,
            size: U64::new(self.attributes.size),
            position: U64::new(self.attributes.position),
            seals: U32::new(self.attributes.seals),
            status: U32::new(self.attributes.status),
            mode: U32::new(self.attributes.mode),
            page_shift: self.page_shift,
            file_page_shift: self.attributes.file_page_shift,
            kind: self.attributes.kind as u8,
            contents_in: self.contents_in as u8,
            uid: U32::new(self.attributes.uid),
            gid: U32::new(self.attributes.gid),
            contents: U64::new(self.contents),
            chain: ChainBytes::new(self.chain),
            late: ChainBytes::new(self.late),
            name: self.name.to_bytes(),
        };
        record::keep(host, header.as_mut_bytes())
    }

    /// Size of the file in base pages, the last one counted as a whole.
    pub fn size_in_pages(&self) -> u64 {
        self.attributes.size.div_ceil(1 << self.page_shift)
    }

    /// Pages that the file has at most: its last one may be the first of a large folio.
    fn most_pages(&self) -> u64 {
        match self.contents_in {
            Contents::File => self.size_in_pages(),
            Contents::Frames => self.size_in_pages().next_multiple_of(1 << ORDER_MAX),
        }
    }

    fn has_possible_chains(&self) -> bool {
        let most = self.most_pages();
        let most_late = match self.contents_in {
            Contents::File => 0,
            Contents::Frames => most.saturating_sub(self.chain.pages),
        };
        self.chain.is_possible(most) && self.late.is_possible(most_late)
    }

    /// Number of pages in all extents.
    pub const fn pages(&self) -> u64 {
        // No more than the size has room for, by the type's invariant.
        self.chain.pages + self.late.pages
    }

    /// The extents that were there at prepare, as they are preserved by `host`.
    pub fn extents<'h>(&self, host: Host<'h>) -> Extents<'h> {
        self.extents_of(self.chain, host)
    }

    /// Both chains, on a machine whose frames end before `frame_end`.
    pub fn chains<'h>(&self, frame_end: u64, host: Host<'h>) -> [Extents<'h>; 2] {
        [self.chain, self.late].map(|chain| self.extents_of(chain, host).within(frame_end))
    }

    fn extents_of<'h>(&self, chain: Chain, host: Host<'h>) -> Extents<'h> {
        Extents {
            host,
            chain,
            size_in_pages: self.size_in_pages(),
            unit: 1 << (self.attributes.file_page_shift - self.page_shift),
            frame_end: FRAME_END,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::name;
    use luo_handler_api::{crc32c, testing::FakeHost};
    use proptest::prelude::*;

    fn sample() -> Record {
        Record {
            attributes: Attributes {
                size: 10 << 12,
                position: 5,
                seals: SEAL_GROW,
                status: 2 | status::APPEND,
                mode: 0o644,
                uid: 1000,
                gid: 0,
                kind: Kind::Shmem,
                file_page_shift: 12,
            },
            page_shift: 12,
            contents_in: Contents::Frames,
            contents: 7,
            chain: Chain {
                last_block: 3,
                extents: 2,
                pages: 4,
            },
            late: Chain {
                last_block: 5,
                extents: 1,
                pages: 2,
            },
            name: name("sample"),
        }
    }

    /// Keeps the sample with one thing changed and its checksum right, and reads it.
    fn read_changed(change: impl FnOnce(&mut RecordHeader)) -> Result<Record, Errno> {
        let host = FakeHost::default();
        let handle = sample().keep(host.lend()).unwrap();
        let mut header = RecordHeader::read_from_bytes(&host.bytes(handle)).unwrap();
        change(&mut header);
        header.checksum = U32::ZERO;
        header.checksum = U32::new(crc32c(0, header.as_bytes()));
        host.replace(handle, header.as_bytes());
        Record::read(host.lend(), handle)
    }

    #[test]
    fn a_record_reads_back() {
        assert_eq!(read_changed(|_| ()), Ok(sample()));
    }

    /// One field of the sample, changed, and what must come of it.
    macro_rules! hostile {
        ($($name:ident: $change:expr => $errno:ident;)*) => {
            $(#[test]
            fn $name() {
                assert_eq!(read_changed($change), Err(Errno::$errno));
            })*
        };
    }

    hostile! {
        hostile_magic: |h| h.magic[7] = b'1' => EINVAL;
        hostile_length: |h| h.length = U32::new(367) => EINVAL;
        hostile_length_of_all_ones: |h| h.length = U32::MAX_VALUE => EINVAL;
        hostile_size: |h| h.size = U64::new(1 << 63) => EFBIG;
        hostile_size_of_all_ones: |h| h.size = U64::MAX_VALUE => EFBIG;
        hostile_position: |h| h.position = U64::new(1 << 63) => EINVAL;
        hostile_position_of_all_ones: |h| h.position = U64::MAX_VALUE => EINVAL;
        hostile_seals: |h| h.seals = U32::new(0x40) => EOPNOTSUPP;
        hostile_status: |h| h.status = U32::new(0o100) => EOPNOTSUPP;
        hostile_access_mode: |h| h.status = U32::new(3) => EINVAL;
        hostile_mode: |h| h.mode = U32::new(0o10_644) => EINVAL;
        hostile_page_shift_of_nothing: |h| (h.page_shift, h.file_page_shift) = (0, 0) => EINVAL;
        hostile_page_shift_beyond_64: |h| (h.page_shift, h.file_page_shift) = (200, 200) => EINVAL;
        hostile_file_page_shift: |h| h.file_page_shift = 21 => EINVAL;
        hostile_huge_page_shift:
            |h| (h.kind, h.file_page_shift, h.size) = (2, 35, U64::ZERO) => EINVAL;
        hostile_huge_page_below_the_base_page: |h| (h.kind, h.file_page_shift) = (2, 11) => EINVAL;
        hostile_kind: |h| h.kind = 3 => EINVAL;
        hostile_kind_of_nothing: |h| h.kind = 0 => EINVAL;
        hostile_contents: |h| h.contents_in = 3 => EINVAL;
        hostile_extents_without_pages: |h| h.chain.pages = U64::ZERO => EINVAL;
        hostile_pages_without_extents:
            |h| (h.chain.extents, h.chain.last_block) = (U64::ZERO, U64::ZERO) => EINVAL;
        hostile_block_without_extents:
            |h| (h.chain.extents, h.chain.pages) = (U64::ZERO, U64::ZERO) => EINVAL;
        hostile_extents: |h| h.chain.extents = U64::MAX_VALUE => EINVAL;
        hostile_more_extents_than_pages: |h| h.chain.extents = U64::new(5) => EINVAL;
        hostile_pages: |h| h.chain.pages = U64::MAX_VALUE => EINVAL;
        hostile_more_pages_than_size: |h| h.chain.pages = U64::new((1 << 18) + 1) => EINVAL;
        hostile_late_extents: |h| h.late.extents = U64::new(3) => EINVAL;
        hostile_late_pages: |h| h.late.pages = U64::MAX_VALUE => EINVAL;
        hostile_late_pages_in_a_file: |h| h.contents_in = 1 => EINVAL;
        hostile_more_pages_in_all_than_size: |h| h.late.pages = U64::new((1 << 18) - 3) => EINVAL;
        hostile_set_uid_bit: |h| h.mode = U32::new(0o4755) => EINVAL;
        hostile_owner: |h| h.uid = U32::MAX_VALUE => EINVAL;
        hostile_group: |h| h.gid = U32::MAX_VALUE => EINVAL;
        hostile_name_without_an_end: |h| h.name = [b'x'; 256] => EINVAL;
        hostile_name_with_something_after_it: |h| h.name[255] = 1 => EINVAL;
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let host = FakeHost::default();
        let handle = sample().keep(host.lend()).unwrap();
        let whole = host.bytes(handle);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            host.replace(handle, &bytes);
            let errno = Record::read(host.lend(), handle).unwrap_err();
            assert!(
                [Errno::EBADMSG, Errno::EINVAL].contains(&errno),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_record_of_another_length_is_malformed() {
        let host = FakeHost::default();
        let handle = sample().keep(host.lend()).unwrap();
        let whole = host.bytes(handle);
        for length in (0..whole.len()).chain([whole.len() + 1]) {
            let mut bytes = whole.clone();
            bytes.resize(length, 0);
            host.replace(handle, &bytes);
            assert_eq!(Record::read(host.lend(), handle), Err(Errno::EINVAL));
        }
        assert_eq!(Record::read(host.lend(), 99), Err(Errno::ENOENT));
    }

    #[test]
    fn a_record_says_how_many_pages_come_together() {
        let record = Record {
            attributes: Attributes {
                size: 1 << 30,
                position: 0,
                seals: 0,
                status: 2,
                mode: 0,
                uid: 0,
                gid: 0,
                kind: Kind::Hugetlb,
                file_page_shift: 21,
            },
            page_shift: 12,
            contents_in: Contents::File,
            contents: 0,
            chain: Chain::default(),
            late: Chain::default(),
            name: Name::EMPTY,
        };
        let host = FakeHost::default();
        let extents = record.extents(host.lend());
        assert_eq!((extents.unit, extents.size_in_pages), (512, 1 << 18));
        assert_eq!(extents.verify(), Ok(()));
    }

    #[test]
    fn the_position_may_lie_beyond_the_end() {
        assert!(read_changed(|h| h.position = U64::new(i64::MAX as u64)).is_ok());
    }

    prop_compose! {
        fn records()(
            size in 0..=i64::MAX as u64, position in 0..=i64::MAX as u64,
            seals in 0..=ALL_SEALS, status: u32, access in 0u32..3, mode in 0..=ALL_MODE,
            contents: u64, hugetlb: bool, last_block: u64, counts: (u64, u64),
            owner in (0..u32::MAX, 0..u32::MAX), named in "[a-z]{0,80}",
        ) -> Record {
            let (kind, file_page_shift) =
                if hugetlb { (Kind::Hugetlb, 21) } else { (Kind::Shmem, 12) };
            let pages = counts.0 % (size.div_ceil(4096) + 1);
            let extents = if pages == 0 { 0 } else { 1 + counts.1 % pages };
            Record {
                attributes: Attributes {
                    size, position, seals, mode, kind, file_page_shift,
                    uid: owner.0, gid: owner.1,
                    status: status & status::ALL & !status::ACCESS | access,
                },
                page_shift: 12,
                contents_in: if hugetlb { Contents::Frames } else { Contents::File },
                contents,
                chain: Chain {
                    last_block: if pages == 0 { 0 } else { last_block },
                    extents,
                    pages,
                },
                late: Chain::default(),
                name: name(&named),
            }
        }
    }

    proptest! {
        #[test]
        fn every_record_reads_back(record in records()) {
            let host = FakeHost::default();
            let handle = record.keep(host.lend()).unwrap();
            prop_assert_eq!(Record::read(host.lend(), handle), Ok(record));
        }

        #[test]
        fn arbitrary_fields_never_panic(bytes: [u8; 112], keep_magic: bool) {
            let read = read_changed(|header| {
                header.as_mut_bytes()[..112].copy_from_slice(&bytes);
                if keep_magic {
                    header.magic = MAGIC;
                    header.length = U32::new(368);
                }
            });
            if let Ok(record) = read {
                prop_assert!(record.attributes.check(record.page_shift).is_ok());
                prop_assert!(record.pages() <= record.most_pages());
            }
        }
    }
}
