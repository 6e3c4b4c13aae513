// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Text of a bounded length, without an allocation.

use core::fmt::{self, Write as _};

/// Up to `MAX` bytes of UTF-8; what does not fit is cut off between two characters.
///
/// # Invariants
///
/// The first `len` bytes are UTF-8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// No text.
    pub const EMPTY: Self = Self {
        bytes: [0; MAX],
        len: 0,
    };

    /// The beginning of what `arguments` print.
    pub fn of(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self::EMPTY;
        // An error means that the rest is cut off.
        let _ = text.write_fmt(arguments);
        text
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let text = self.bytes.get(..self.len).unwrap_or_default();
        core::str::from_utf8(text).unwrap_or_default()
    }
}

impl<const MAX: usize> fmt::Write for Text<MAX> {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = MAX - self.len;
        let fits = (0..=room.min(more.len()))
            .rev()
            .find(|&end| more.is_char_boundary(end))
            .unwrap_or(0);
        if let Some(place) = self.bytes.get_mut(self.len..self.len + fits) {
            place.copy_from_slice(&more.as_bytes()[..fits]);
            self.len += fits;
        }
        match fits == more.len() {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_text_is_cut_off_between_characters(
            pieces in proptest::collection::vec(".{0,60}", 0..6),
        ) {
            let mut text = Text::<160>::EMPTY;
            let _ = pieces.iter().try_for_each(|piece| text.write_str(piece));
            let whole = pieces.concat();
            prop_assert!(whole.starts_with(text.as_str()));
            let cut = text.as_str().len();
            prop_assert!(cut == whole.len() || cut + 4 > 160);
        }
    }
}
