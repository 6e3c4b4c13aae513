// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The bytes that cross, and the checks they pass before they are used.
//!
//! ```text
//! data ──► RecordBytes     160 bytes: kind, state, local address
//!            file ───────► the open socket
//! ```
//!
//! Every arrow is a handle of the host. The layout belongs to the compatible
//! `luo-handlers,socket-v1`: a new layout needs a new compatible.

use std::net::{Ipv4Addr, Ipv6Addr};

use luo_handler_api::{record, Errno, Host};
use zerocopy::{
    little_endian::{U16, U32, U64},
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
};

use crate::description::{Address, Description, Kind, NAME_MAX};

/// What a record begins with; the digit is the version of the layout.
pub const MAGIC: [u8; 8] = *b"socket-1";

/// The record of one socket, as the host holds it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RecordBytes {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of the record.
    pub length: U32,
    /// CRC-32C of the record with this field as zero.
    pub checksum: U32,
    /// Handle of the open socket.
    pub file: U64,
    /// [`Description::cookie`].
    pub cookie: U64,
    /// [`Kind`].
    pub kind: u8,
    /// 1 for a socket that listens, 0 for others.
    pub listening: u8,
    /// [`AddressKind`].
    pub address: u8,
    /// Bytes of the name that are used.
    pub name_length: u8,
    /// Port of an internet address; zero for others.
    pub port: U16,
    /// Zero.
    pub reserved: U16,
    /// Scope of an IPv6 address; zero for others.
    pub scope: U32,
    /// Name of a Unix socket, or the bytes of an internet address; zero after its end.
    pub name: [u8; NAME_MAX],
    /// Zero.
    pub padding: U64,
}

const _: () = assert!(size_of::<RecordBytes>() == 160);

/// Which [`Address`] a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AddressKind {
    /// [`Address::Unnamed`].
    Unnamed = 1,
    /// [`Address::Path`].
    Path = 2,
    /// [`Address::Abstract`].
    Abstract = 3,
    /// [`Address::V4`].
    V4 = 4,
    /// [`Address::V6`].
    V6 = 5,
}

/// A record that was checked.
///
/// # Errors
///
/// What [`read`](Self::read) returns for a record of a previous side that is not trusted:
///
/// | errno | what is wrong |
/// |---|---|
/// | `ENOENT` | the host holds nothing under that handle |
/// | `EBADMSG` | the checksum |
/// | `EINVAL` | anything else that is malformed: length, magic, kind, address, … |
///
/// Whether the socket is the one that the record describes is not checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    /// What the socket is.
    pub description: Description,
    /// The handle of the open socket.
    pub file: u64,
}

impl SocketRecord {
    /// Reads the record that the host holds under `handle`.
    ///
    /// # Errors
    ///
    /// As listed above, and those of the host.
    pub fn read(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let mut bytes = RecordBytes::new_zeroed();
        record::load(host, handle, &MAGIC, bytes.as_mut_bytes())?;
        let record = bytes.parse().ok_or(Errno::EINVAL)?;
        // One record has one form: what should be zero is.
        let mut again = record.to_bytes();
        (again.length, again.checksum) = (bytes.length, bytes.checksum);
        let sound = record.description.is_possible() && again.as_bytes() == bytes.as_bytes();
        sound.then_some(record).ok_or(Errno::EINVAL)
    }

    /// Has the host hold the record; returns its handle.
    ///
    /// # Errors
    ///
    /// Those of the host.
    pub(crate) fn keep(&self, host: Host<'_>) -> Result<u64, Errno> {
        record::keep(host, self.to_bytes().as_mut_bytes())
    }

    fn to_bytes(&self) -> RecordBytes {
        let Description {
            kind,
            listening,
            cookie,
            address,
        } = &self.description;
        let mut bytes = RecordBytes {
            magic: MAGIC,
            file: U64::new(self.file),
            cookie: U64::new(*cookie),
            kind: *kind as u8,
            listening: u8::from(*listening),
            ..RecordBytes::new_zeroed()
        };
        match address {
            Address::Unnamed => bytes.set_address(AddressKind::Unnamed, &[]),
            Address::Path(name) => bytes.set_address(AddressKind::Path, name),
            Address::Abstract(name) => bytes.set_address(AddressKind::Abstract, name),
            Address::V4(address) => {
                bytes.set_address(AddressKind::V4, &address.ip().octets());
                bytes.port = U16::new(address.port());
            }
            Address::V6(address) => {
                bytes.set_address(AddressKind::V6, &address.ip().octets());
                bytes.port = U16::new(address.port());
                bytes.scope = U32::new(address.scope_id());
            }
        }
        bytes
    }
}

impl RecordBytes {
    fn set_address(&mut self, kind: AddressKind, name: &[u8]) {
        let length = name.len().min(NAME_MAX);
        self.address = kind as u8;
        self.name_length = length as u8;
        self.name[..length].copy_from_slice(&name[..length]);
    }

    fn parse(&self) -> Option<SocketRecord> {
        let kind = Kind::ALL
            .into_iter()
            .find(|&kind| kind as u8 == self.kind)?;
        Some(SocketRecord {
            description: Description {
                kind,
                listening: self.listening == 1,
                cookie: self.cookie.get(),
                address: self.parse_address()?,
            },
            file: self.file.get(),
        })
    }

    fn parse_address(&self) -> Option<Address> {
        let name = self.name.get(..usize::from(self.name_length))?;
        let port = self.port.get();
        let is = |kind: AddressKind| self.address == kind as u8;
        Some(if is(AddressKind::Unnamed) {
            Address::Unnamed
        } else if is(AddressKind::Path) {
            Address::Path(name.into())
        } else if is(AddressKind::Abstract) {
            Address::Abstract(name.into())
        } else if is(AddressKind::V4) {
            let ip: [u8; 4] = name.try_into().ok()?;
            (Ipv4Addr::from(ip), port).into()
        } else if is(AddressKind::V6) {
            let ip: [u8; 16] = name.try_into().ok()?;
            (Ipv6Addr::from(ip), port, self.scope.get()).into()
        } else {
            return None;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::{listener, possible};
    use luo_handler_api::testing::FakeHost;
    use proptest::prelude::*;

    fn sample() -> SocketRecord {
        SocketRecord {
            description: listener(),
            file: 7,
        }
    }

    /// Preserves the sample with one thing changed and its checksum right, and reads it.
    fn read_changed(change: impl FnOnce(&mut RecordBytes)) -> Result<SocketRecord, Errno> {
        let host = FakeHost::default();
        let mut bytes = sample().to_bytes();
        change(&mut bytes);
        let handle = record::keep(host.lend(), bytes.as_mut_bytes()).unwrap();
        SocketRecord::read(host.lend(), handle)
    }

    #[test]
    fn a_record_reads_back() {
        assert_eq!(read_changed(|_| ()), Ok(sample()));
    }

    #[test]
    fn hostile_records_are_refused() {
        type Change = fn(&mut RecordBytes);
        let hostile: [(&str, Change); 15] = [
            ("magic", |r| r.magic[7] = b'2'),
            ("kind", |r| r.kind = 0),
            ("kind", |r| r.kind = 8),
            ("a datagram socket that listens", |r| r.kind = 6),
            ("another family", |r| r.kind = 5),
            ("listening", |r| r.listening = 2),
            ("address", |r| r.address = 0),
            ("address", |r| r.address = 6),
            ("a Unix address", |r| r.address = 1),
            ("a short address", |r| r.name_length = 3),
            ("a name that is too long", |r| r.name_length = 109),
            ("bytes after the name", |r| r.name[4] = 1),
            ("scope", |r| r.scope = U32::new(1)),
            ("reserved", |r| r.reserved = U16::new(1)),
            ("padding", |r| r.padding = U64::new(1)),
        ];
        for (name, change) in hostile {
            assert_eq!(read_changed(change), Err(Errno::EINVAL), "{name}");
        }
    }

    #[test]
    fn a_flipped_bit_is_a_wrong_checksum() {
        let host = FakeHost::default();
        let handle = sample().keep(host.lend()).unwrap();
        let mut bytes = host.bytes(handle);
        bytes[24] ^= 1;
        host.replace(handle, &bytes);
        assert_eq!(SocketRecord::read(host.lend(), handle), Err(Errno::EBADMSG));
        assert_eq!(
            SocketRecord::read(host.lend(), handle + 1),
            Err(Errno::ENOENT)
        );
    }

    proptest! {
        #[test]
        fn what_is_recorded_is_read_back(description in possible(), file: u64) {
            let host = FakeHost::default();
            let record = SocketRecord { description, file };
            let handle = record.keep(host.lend()).unwrap();
            prop_assert_eq!(SocketRecord::read(host.lend(), handle), Ok(record));
        }

        #[test]
        fn no_bytes_read_as_what_they_are_not(
            description in possible(),
            changes in prop::collection::vec((16..160usize, any::<u8>()), 0..4),
        ) {
            let host = FakeHost::default();
            let mut bytes = SocketRecord { description, file: 1 }.to_bytes();
            for (place, byte) in changes {
                bytes.as_mut_bytes()[place] = byte;
            }
            let handle = record::keep(host.lend(), bytes.as_mut_bytes()).unwrap();
            if let Ok(record) = SocketRecord::read(host.lend(), handle) {
                prop_assert!(record.description.is_possible());
                let again = record.keep(host.lend()).unwrap();
                prop_assert_eq!(host.bytes(handle), host.bytes(again));
            }
        }
    }
}
