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
    use crate::testing::FakeHost;
    use proptest::prelude::*;

    const MAGIC: &[u8; 8] = b"tests-v1";

    /// A host that keeps a record, and its handle.
    fn kept(said: &[u8]) -> (FakeHost, u64) {
        let host = FakeHost::default();
        let mut record = [MAGIC.as_slice(), &[0; 8], said].concat();
        let handle = keep(host.lend(), &mut record).unwrap();
        (host, handle)
    }

    fn load_from(
        (host, handle): &(FakeHost, u64),
        magic: &[u8; 8],
        length: usize,
    ) -> Result<Vec<u8>, Errno> {
        let mut record = vec![0; length];
        load(host.lend(), *handle, magic, &mut record).map(|()| record)
    }

    #[test]
    fn what_is_too_short_to_be_a_record_is_none() {
        let host = FakeHost::default();
        assert_eq!(keep(host.lend(), &mut [0; 15]), Err(Errno::EINVAL));
        let handle = host.lend().preserve_bytes(MAGIC).unwrap();
        let short = (host, handle);
        assert_eq!(load_from(&short, MAGIC, 8), Err(Errno::EINVAL));
    }

    proptest! {
        #[test]
        fn a_record_comes_back_and_one_that_was_changed_does_not(
            said in proptest::collection::vec(any::<u8>(), 0..200),
            place in any::<proptest::sample::Index>(),
            change in 1..=u8::MAX,
        ) {
            let kept = kept(&said);
            let length = PREFIX + said.len();
            let record = load_from(&kept, MAGIC, length).unwrap();
            prop_assert_eq!(&record[PREFIX..], &said[..]);
            prop_assert_eq!(load_from(&kept, b"tests-v2", length), Err(Errno::EINVAL));
            prop_assert_eq!(load_from(&kept, MAGIC, length + 1), Err(Errno::EINVAL));

            let place = place.index(length);
            let mut bytes = record;
            bytes[place] ^= change;
            kept.0.replace(kept.1, &bytes);
            let expected = if place < CHECKSUM.start { Errno::EINVAL } else { Errno::EBADMSG };
            prop_assert_eq!(load_from(&kept, MAGIC, length), Err(expected));
        }
    }
}
