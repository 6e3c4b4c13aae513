// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The name that was given to `memfd_create`.

use core::fmt;

/// A name: at most [`Name::MAX`] bytes, none of them 0.
///
/// # Invariants
///
/// What follows the first 0 is 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name([u8; Self::ROOM]);

impl Name {
    /// Bytes of the longest name that `memfd_create` takes.
    pub const MAX: usize = 249;

    /// Bytes of a name in a record, with zeros after it.
    pub const ROOM: usize = 256;

    /// No name.
    pub const EMPTY: Self = Self([0; Self::ROOM]);

    /// The name in a record; `None` if it is too long, or if anything comes after its end.
    pub fn new(bytes: [u8; Self::ROOM]) -> Option<Self> {
        let name = Self(bytes);
        let rest = bytes.get(name.as_bytes().len()..)?;
        (name.as_bytes().len() <= Self::MAX && rest.iter().all(|&byte| byte == 0)).then_some(name)
    }

    /// Its bytes, without zeros.
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0);
        self.0.get(..end.unwrap_or(Self::ROOM)).unwrap_or_default()
    }

    /// The bytes of a record; a C string, too.
    pub const fn to_bytes(self) -> [u8; Self::ROOM] {
        self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
pub(crate) fn name(text: &str) -> Name {
    let mut bytes = [0; Name::ROOM];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Name::new(bytes).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_at_its_first_zero_and_nothing_comes_after() {
        assert_eq!(name("guest memory").as_bytes(), b"guest memory");
        assert_eq!(name("").as_bytes(), b"");
        assert_eq!(Name::EMPTY, name(""));
        let mut bytes = name("ab").to_bytes();
        bytes[3] = b'c';
        assert_eq!(Name::new(bytes), None);
        bytes[255] = 1;
        assert_eq!(Name::new(bytes), None);
    }

    #[test]
    fn a_name_is_at_most_as_long_as_memfd_create_allows() {
        let mut bytes = [b'x'; Name::ROOM];
        assert_eq!(Name::new(bytes), None);
        bytes[249..].fill(0);
        assert_eq!(Name::new(bytes).unwrap().as_bytes().len(), Name::MAX);
        bytes[249] = b'x';
        assert_eq!(Name::new(bytes), None);
    }

    #[test]
    fn what_is_not_text_is_escaped() {
        assert_eq!(name("a\nb\u{e9}").to_string(), "a\\nb\\xc3\\xa9");
    }
}
