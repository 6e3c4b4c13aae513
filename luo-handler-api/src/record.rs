// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Records of a fixed length: how handlers preserve the bytes that cross, and recognize them.
//!
//! Every record begins alike; the numbers are little-endian:
//!
//! ```text
//!  0        magic: names the format, as the compatible does
//!  8        bytes of the record
//! 12        CRC-32C of the record with this field as zero
//! 16        what the format defines
//! ```
//!
//! A checksum is not a signature: anyone who can write a record can put anything into it. The
//! reader of a record checks its contents.

use crate::{crc32c, Errno, Host};

/// Bytes of what every record begins with.
pub const PREFIX: usize = 16;

const LENGTH: core::ops::Range<usize> = 8..12;
const CHECKSUM: core::ops::Range<usize> = 12..PREFIX;

/// Fills in the length and the checksum of `record` and has the host preserve it; returns its
/// handle.
///
/// # Errors
///
/// Those of the host; `EINVAL` for less than a [`PREFIX`].
pub fn keep(host: Host<'_>, record: &mut [u8]) -> Result<u64, Errno> {
    sign(record)?;
    host.preserve_bytes(record)
}

/// Gives the record back that crossed under `handle`, sound or not, if it begins with `magic`.
/// Anything else stays: a handle that comes from the previous side may lead to memory of another
/// handler, or to the kernel's own list of the files. On the old side a handle is the handler's
/// own: [`Host::release_bytes`].
pub fn release(host: Host<'_>, handle: u64, magic: &[u8; 8]) {
    let mut found = [0; 8];
    if host.read_bytes(handle, 0, &mut found).is_ok() && found == *magic {
        host.release_bytes(handle);
    }
}

/// Fills in the length and the checksum of `record`.
///
/// # Errors
///
/// `EINVAL` for less than a [`PREFIX`], `EFBIG` for more than a length can count.
pub fn sign(record: &mut [u8]) -> Result<(), Errno> {
    let length = u32::try_from(record.len()).map_err(|_| Errno::EFBIG)?;
    put(record, LENGTH, length)?;
    let sum = checksum(record)?;
    put(record, CHECKSUM, sum)
}

/// Fills `record` with the one that the host holds under `handle`.
///
/// # Errors
///
/// `EINVAL` if that has another length or another magic, `EBADMSG` for its checksum, and those of
/// the host.
pub fn load(host: Host<'_>, handle: u64, magic: &[u8; 8], record: &mut [u8]) -> Result<(), Errno> {
    // Of other errors the host knows the reason.
    let found = host.bytes_len(handle).map_err(|errno| match errno {
        Errno::ENOENT => host.refuse(
            errno,
            format_args!("nothing is preserved where its record should be"),
        ),
        _ => errno,
    })?;
    let is_as_long = found == record.len() as u64;
    if is_as_long {
        host.read_bytes(handle, 0, record)?;
    }
    if !is_as_long || !record.starts_with(magic) {
        return Err(host.refuse(
            Errno::EINVAL,
            format_args!("its record is not one of ours, or of another version"),
        ));
    }
    if get(record, LENGTH)? as usize != record.len() {
        return Err(Errno::EINVAL);
    }
    let stored = get(record, CHECKSUM)?;
    if stored != checksum(record)? {
        return Err(Errno::EBADMSG);
    }
    put(record, CHECKSUM, stored)
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

    /// A host that holds a record with these contents, and its handle.
    fn held(contents: &[u8]) -> (FakeHost, u64) {
        let host = FakeHost::default();
        let mut record = [MAGIC.as_slice(), &[0; 8], contents].concat();
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
    fn what_is_too_short_is_not_a_record() {
        let host = FakeHost::default();
        assert_eq!(keep(host.lend(), &mut [0; 15]), Err(Errno::EINVAL));
        let handle = host.lend().preserve_bytes(MAGIC).unwrap();
        let short = (host, handle);
        assert_eq!(load_from(&short, MAGIC, 8), Err(Errno::EINVAL));
    }

    #[test]
    fn what_does_not_begin_with_the_magic_is_not_released() {
        let host = FakeHost::default();
        for bytes in [b"another-".as_slice(), b"tests", b"tests-v2 and more"] {
            let handle = host.lend().preserve_bytes(bytes).unwrap();
            release(host.lend(), handle, MAGIC);
            assert_eq!(host.bytes(handle), bytes);
        }
        let (host, handle) = held(b"contents");
        release(host.lend(), handle ^ 1 << 20, MAGIC);
        host.replace(handle, b"tests-v1, and no checksum");
        release(host.lend(), handle, MAGIC);
        assert_eq!(host.lend().bytes_len(handle), Err(Errno::ENOENT));
    }

    proptest! {
        #[test]
        fn a_record_comes_back_and_one_that_was_changed_does_not(
            contents in proptest::collection::vec(any::<u8>(), 0..200),
            place in any::<proptest::sample::Index>(),
            change in 1..=u8::MAX,
        ) {
            let held = held(&contents);
            let length = PREFIX + contents.len();
            let record = load_from(&held, MAGIC, length).unwrap();
            prop_assert_eq!(&record[PREFIX..], &contents[..]);
            prop_assert_eq!(load_from(&held, b"tests-v2", length), Err(Errno::EINVAL));
            prop_assert_eq!(load_from(&held, MAGIC, length + 1), Err(Errno::EINVAL));

            let place = place.index(length);
            let mut bytes = record;
            bytes[place] ^= change;
            held.0.replace(held.1, &bytes);
            let expected = if place < CHECKSUM.start { Errno::EINVAL } else { Errno::EBADMSG };
            prop_assert_eq!(load_from(&held, MAGIC, length), Err(expected));
        }
    }
}
