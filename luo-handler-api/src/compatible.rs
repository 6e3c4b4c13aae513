// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The name of a serialized format.

use core::fmt;

/// Bytes of a compatible in its C form, the terminating NUL included:
/// `LIVEUPDATE_HNDL_COMPAT_LENGTH` of `include/linux/kho/abi/luo.h`.
pub const COMPATIBLE_LENGTH: usize = 48;

/// What our compatibles begin with.
const VENDOR: &[u8] = b"luo-handlers,";

/// Names the format of what a handler writes, such as `memfd-v1`; a new layout gets a new name.
///
/// One to 47 bytes of ASCII letters, digits and `,` `.` `_` `+` `-`, as the Devicetree
/// Specification has them, padded with NUL.
///
/// # Invariants
///
/// The bytes follow that syntax and at least one NUL follows them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Compatible([u8; COMPATIBLE_LENGTH]);

/// Why a name is not a [`Compatible`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidCompatible {
    /// Nothing before the first NUL.
    Empty,
    /// More than 47 bytes, or no NUL among the 48.
    TooLong,
    /// A byte other than a letter, a digit or one of `,._+-`; its place counts from 0.
    BadByte {
        /// Where it stands.
        position: usize,
        /// The byte.
        byte: u8,
    },
}

impl Compatible {
    /// The compatible called `name`.
    ///
    /// # Panics
    ///
    /// On a name that [`Compatible::parse`] refuses: in a const, that is a compile error.
    ///
    /// ```
    /// use luo_handler_api::Compatible;
    /// const MEMFD: Compatible = Compatible::new("memfd-v1");
    /// assert_eq!(MEMFD.as_str(), "memfd-v1");
    /// ```
    ///
    /// ```compile_fail
    /// use luo_handler_api::Compatible;
    /// const SPACED: Compatible = Compatible::new("memfd v1");
    /// ```
    pub const fn new(name: &str) -> Self {
        match Self::parse(name.as_bytes()) {
            Ok(compatible) => compatible,
            Err(InvalidCompatible::Empty) => panic!("compatible is empty"),
            Err(InvalidCompatible::TooLong) => panic!("compatible is longer than 47 bytes"),
            Err(InvalidCompatible::BadByte { .. }) => {
                panic!("compatible has a byte other than letters, digits and ,._+-")
            }
        }
    }

    /// Reads a name, up to its end or its first NUL.
    ///
    /// # Errors
    ///
    /// [`InvalidCompatible`], for anything outside the syntax; nothing but NUL may follow a NUL.
    pub const fn parse(name: &[u8]) -> Result<Self, InvalidCompatible> {
        let mut bytes = [0; COMPATIBLE_LENGTH];
        let mut length = 0;
        while length < name.len() && name[length] != 0 {
            let byte = name[length];
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b',' | b'.' | b'_' | b'+' | b'-')) {
                return Err(InvalidCompatible::BadByte {
                    position: length,
                    byte,
                });
            }
            if length + 1 >= COMPATIBLE_LENGTH {
                return Err(InvalidCompatible::TooLong);
            }
            bytes[length] = byte;
            length += 1;
        }
        if length == 0 {
            return Err(InvalidCompatible::Empty);
        }
        let mut rest = length;
        while rest < name.len() {
            if name[rest] != 0 {
                return Err(InvalidCompatible::BadByte {
                    position: rest,
                    byte: name[rest],
                });
            }
            rest += 1;
        }
        Ok(Self(bytes))
    }

    /// The present name of one of our formats that was written before they had a vendor:
    /// `luo-handlers,memfd-v1` of `memfd-v1`. Other formats may have had the same name, so a reader
    /// looks at the record before it believes this. `None` for a name with a vendor, and for one
    /// that is too long.
    pub fn with_vendor(&self) -> Option<Self> {
        let (name, mut bytes) = (self.as_str().as_bytes(), [0; COMPATIBLE_LENGTH]);
        if name.contains(&b',') {
            return None;
        }
        bytes.get_mut(..VENDOR.len())?.copy_from_slice(VENDOR);
        bytes
            .get_mut(VENDOR.len()..VENDOR.len() + name.len())?
            .copy_from_slice(name);
        Self::parse(&bytes).ok()
    }

    /// The name without its padding.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(0);
        core::str::from_utf8(&self.0[..length]).unwrap_or("")
    }

    /// The C form: the name, padded with NUL.
    pub const fn as_bytes(&self) -> &[u8; COMPATIBLE_LENGTH] {
        &self.0
    }
}

impl fmt::Display for Compatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Compatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for InvalidCompatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the compatible is empty"),
            Self::TooLong => f.write_str("the compatible is longer than 47 bytes"),
            Self::BadByte { position, byte } => write!(
                f,
                "byte {position} of the compatible is {:?}; letters, digits and ,._+- are allowed",
                char::from(*byte)
            ),
        }
    }
}

impl core::error::Error for InvalidCompatible {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_name_has_47_bytes() {
        assert!(Compatible::parse(&[b'a'; 47]).is_ok());
        assert_eq!(
            Compatible::parse(&[b'a'; 48]),
            Err(InvalidCompatible::TooLong)
        );
        assert_eq!(Compatible::parse(b""), Err(InvalidCompatible::Empty));
        assert_eq!(Compatible::parse(&[0; 48]), Err(InvalidCompatible::Empty));
    }

    #[test]
    fn nothing_hides_after_the_nul() {
        assert!(Compatible::parse(b"memfd-v1\0\0").is_ok());
        assert!(Compatible::parse(b"memfd-v1\0x").is_err());
    }

    #[test]
    fn former_names_get_their_vendor() {
        let present = |name: &str| {
            let present = Compatible::new(name).with_vendor();
            present.map(|name| String::from(name.as_str()))
        };
        assert_eq!(
            present("memfd-v1").as_deref(),
            Some("luo-handlers,memfd-v1")
        );
        assert_eq!(present("x,memfd-v1"), None);
        assert!(present(&"a".repeat(34)).is_some());
        assert_eq!(present(&"a".repeat(35)), None);
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_it_was(name in "[a-zA-Z0-9,._+-]{1,47}") {
            let compatible = Compatible::parse(name.as_bytes()).unwrap();
            prop_assert_eq!(compatible.as_str(), name);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(compatible) = Compatible::parse(&bytes) {
                prop_assert_eq!(Compatible::parse(compatible.as_bytes()), Ok(compatible));
            }
        }
    }
}
