// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Records of a fixed length: how handlers keep the bytes that cross, and know them again.
//!
//! Every record begins alike; the numbers are little-endian:
//!
//! ```text
//!  0        magic: names the format, as the compatible does
//!  8        bytes of the record
//! 12        CRC-32C of the record with this field as zero
//! 16        what the format says
//! ```
//!
//! A checksum is no signature: who can write a record can say anything in it. Whoever reads one
//! checks what it says.

use crate::{crc32c, Errno, Host};

/// Bytes of what every record begins with.
pub const PREFIX: usize = 16;

const LENGTH: core::ops::Range<usize> = 8..12;
const CHECKSUM: core::ops::Range<usize> = 12..PREFIX;

/// Has the host keep `record`, once its length and checksum are filled in; yields its handle.
///
/// # Errors
///
/// Those of the host; `EINVAL` for less than a [`PREFIX`].
pub fn keep(host: Host<'_>, record: &mut [u8]) -> Result<u64, Errno> {
    let length = u32::try_from(record.len()).map_err(|_| Errno::EFBIG)?;
    put(record, LENGTH, length)?;
    let sum = checksum(record)?;
    put(record, CHECKSUM, sum)?;
    host.preserve_bytes(record)
}

/// Fills `record` with the one that the host keeps under `handle`.
///
/// # Errors
///
/// `EINVAL` if that has another length or another magic, `EBADMSG` for its checksum, and those of
/// the host.
pub fn load(host: Host<'_>, handle: u64, magic: &[u8; 8], record: &mut [u8]) -> Result<(), Errno> {
    if host.bytes_len(handle)? != record.len() as u64 {
        return Err(Errno::EINVAL);
    }
    host.read_bytes(handle, 0, record)?;
    if !record.starts_with(magic) || get(record, LENGTH)? as usize != record.len() {
        return Err(Errno::EINVAL);
    }
    let said = get(record, CHECKSUM)?;
    if said != checksum(record)? {
        return Err(Errno::EBADMSG);
    }
    put(record, CHECKSUM, said)
}

/// The checksum of a record; its field is zero afterwards.
fn checksum(record: &mut [u8]) -> Result<u32, Errno> {
    put(record, CHECKSUM, 0)?;
    Ok(crc32c(0, record))
}

fn put(record: &mut [u8], field: core::ops::Range<usize>, value: u32) -> Result<(), Errno> {
    let field = record.get_mut(field).ok_or(Errno::EINVAL)?;
    field.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

fn get(record: &[u8], field: core::ops::Range<usize>) -> Result<u32, Errno> {
    let field = record.get(field).and_then(|field| field.try_into().ok());
    field.map(u32::from_le_bytes).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileRef, HostServices, OwnedFile};
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// Keeps the last bytes under the handle 1.
    #[derive(Default)]
    struct Shelf(Mutex<Vec<u8>>);

    impl HostServices for Shelf {
        fn preserve_bytes(&self, bytes: &[u8]) -> Result<u64, Errno> {
            *self.0.lock().unwrap() = bytes.to_vec();
            Ok(1)
        }
        fn bytes_len(&self, _: u64) -> Result<u64, Errno> {
            Ok(self.0.lock().unwrap().len() as u64)
        }
        fn read_bytes(&self, _: u64, _: u64, buffer: &mut [u8]) -> Result<(), Errno> {
            buffer.copy_from_slice(&self.0.lock().unwrap());
            Ok(())
        }
        fn release_bytes(&self, _: u64) {}
        fn preserve_file(&self, _: FileRef<'_>) -> Result<u64, Errno> {
            Err(Errno::EOPNOTSUPP)
        }
        fn take_file(&self, _: u64) -> Result<OwnedFile, Errno> {
            Err(Errno::EOPNOTSUPP)
        }
        fn release_file(&self, _: u64) {}
    }

    const MAGIC: &[u8; 8] = b"tests-v1";

    fn kept(said: &[u8]) -> Shelf {
        let shelf = Shelf::default();
        let mut record = [MAGIC.as_slice(), &[0; 8], said].concat();
        keep(Host::new(&shelf), &mut record).unwrap();
        shelf
    }

    fn load_from(shelf: &Shelf, magic: &[u8; 8], length: usize) -> Result<Vec<u8>, Errno> {
        let mut record = vec![0; length];
        load(Host::new(shelf), 1, magic, &mut record).map(|()| record)
    }

    #[test]
    fn what_is_too_short_to_be_a_record_is_none() {
        let shelf = Shelf::default();
        assert_eq!(keep(Host::new(&shelf), &mut [0; 15]), Err(Errno::EINVAL));
        shelf.0.lock().unwrap().extend(MAGIC);
        assert_eq!(load_from(&shelf, MAGIC, 8), Err(Errno::EINVAL));
    }

    proptest! {
        #[test]
        fn a_record_comes_back_and_one_that_was_changed_does_not(
            said in proptest::collection::vec(any::<u8>(), 0..200),
            place in any::<proptest::sample::Index>(),
            change in 1..=u8::MAX,
        ) {
            let shelf = kept(&said);
            let length = PREFIX + said.len();
            let record = load_from(&shelf, MAGIC, length).unwrap();
            prop_assert_eq!(&record, &*shelf.0.lock().unwrap());
            prop_assert_eq!(&record[PREFIX..], &said[..]);
            prop_assert_eq!(load_from(&shelf, b"tests-v2", length), Err(Errno::EINVAL));
            prop_assert_eq!(load_from(&shelf, MAGIC, length + 1), Err(Errno::EINVAL));

            let place = place.index(length);
            shelf.0.lock().unwrap()[place] ^= change;
            let expected = if place < CHECKSUM.start { Errno::EINVAL } else { Errno::EBADMSG };
            prop_assert_eq!(load_from(&shelf, MAGIC, length), Err(expected));
        }
    }
}
