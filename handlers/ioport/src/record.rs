// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The `u64` that crosses, and the checks it passes before it is used.
//!
//! ```text
//!  63      56 55          32 31              0
//! |  version |    status    |    position     |
//! ```
//!
//! The layout belongs to the compatible `luo-handlers,ioport-v1`: a new layout needs a new
//! compatible.

use luo_handler_api::{status, Errno};

/// The number of ports, and so the position after the last one.
pub const PORTS: u64 = 1 << 16;

const VERSION: u64 = 1;
const VERSION_SHIFT: u32 = 56;
const STATUS_SHIFT: u32 = 32;
const STATUS_MASK: u64 = 0xff_ffff;
const POSITION_MASK: u64 = 0xffff_ffff;

/// What makes an open `/dev/port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRecord {
    /// The port that is read or written next, at most [`PORTS`].
    pub position: u64,
    /// Access mode and status flags, as [`luo_handler_api::status`] has them.
    pub status: u32,
}

impl PortRecord {
    /// Whether a port file can be like this.
    pub const fn is_possible(&self) -> bool {
        self.position <= PORTS && status::is_possible(self.status)
    }

    /// What crosses of a record that is possible.
    pub const fn to_u64(self) -> u64 {
        VERSION << VERSION_SHIFT | (self.status as u64) << STATUS_SHIFT | self.position
    }

    /// Reads what crossed.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for another version, `EINVAL` for a record that is not possible.
    pub fn from_u64(data: u64) -> Result<Self, Errno> {
        if data >> VERSION_SHIFT != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        let record = Self {
            position: data & POSITION_MASK,
            status: (data >> STATUS_SHIFT & STATUS_MASK) as u32,
        };
        record.is_possible().then_some(record).ok_or(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_recorded_is_read_back(position in 0..=PORTS, flags: u32, access in 0u32..3) {
            let status = flags & status::ALL & !status::ACCESS | access;
            let record = PortRecord { position, status };
            prop_assert!(record.is_possible());
            prop_assert_eq!(PortRecord::from_u64(record.to_u64()), Ok(record));
        }

        #[test]
        fn no_number_reads_as_what_it_is_not(data: u64) {
            if let Ok(record) = PortRecord::from_u64(data) {
                prop_assert_eq!(record.to_u64(), data);
                prop_assert!(record.is_possible());
            }
        }
    }

    #[test]
    fn hostile_numbers_are_refused() {
        let status = 2 | status::NONBLOCK;
        let position = 0x71;
        let true_one = PortRecord { position, status }.to_u64();
        for (data, errno) in [
            (0, Errno::EOPNOTSUPP),
            (u64::MAX, Errno::EOPNOTSUPP),
            (2 << 56 | true_one & !(0xff << 56), Errno::EOPNOTSUPP),
            (true_one & !POSITION_MASK | (PORTS + 1), Errno::EINVAL),
            (true_one | POSITION_MASK, Errno::EINVAL),
            (true_one | 3 << STATUS_SHIFT, Errno::EINVAL),
            (true_one | 1 << 55, Errno::EINVAL),
        ] {
            assert_eq!(PortRecord::from_u64(data), Err(errno), "{data:#x}");
        }
    }
}
