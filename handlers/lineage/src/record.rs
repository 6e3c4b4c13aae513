// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The `u64` that crosses.
//!
//! ```text
//!  63      56 55     48 47     40 39     32 31              0
//! |  version |  major  |  minor  |  patch  |  live updates   |
//! ```
//!
//! The layout belongs to the compatible: a new layout needs a new compatible.

use core::fmt;

use luo_handler_api::Errno;

const VERSION: u8 = 1;

/// The version of a kernel, as `LINUX_VERSION_CODE` has it: a patch level above 255 is 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// 7 of 7.3.4.
    pub major: u8,
    /// 3 of 7.3.4.
    pub minor: u8,
    /// 4 of 7.3.4.
    pub patch: u8,
}

/// What crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineageRecord {
    /// The kernel that preserved the files.
    pub release: Release,
    /// How many live updates there were, this one included.
    pub live_updates: u32,
}

impl LineageRecord {
    /// What crosses of it.
    pub const fn to_u64(self) -> u64 {
        let Release {
            major,
            minor,
            patch,
        } = self.release;
        let [a, b, c, d] = self.live_updates.to_be_bytes();
        u64::from_be_bytes([VERSION, major, minor, patch, a, b, c, d])
    }

    /// Reads what crossed.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for another version. All other values are possible.
    pub const fn from_u64(data: u64) -> Result<Self, Errno> {
        let [version, major, minor, patch, a, b, c, d] = data.to_be_bytes();
        if version != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(Self {
            release: Release {
                major,
                minor,
                patch,
            },
            live_updates: u32::from_be_bytes([a, b, c, d]),
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_number_reads_as_what_it_is_not(data: u64) {
            match LineageRecord::from_u64(data) {
                Ok(record) => prop_assert_eq!(record.to_u64(), data),
                Err(errno) => {
                    prop_assert_eq!(errno, Errno::EOPNOTSUPP);
                    prop_assert!(data >> 56 != 1);
                }
            }
        }

        #[test]
        fn what_is_recorded_is_read_back(numbers: [u8; 3], live_updates: u32) {
            let [major, minor, patch] = numbers;
            let release = Release { major, minor, patch };
            let record = LineageRecord { release, live_updates };
            prop_assert_eq!(LineageRecord::from_u64(record.to_u64()), Ok(record));
        }
    }
}
