// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The number under which a file crosses.

use core::{fmt, str::FromStr};

/// Chosen by the program that offers a file: the name under which it is asked for after the jump.
///
/// Prints as its devicetree node is called: `0x` and hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Token(pub u64);

/// A text that is not a [`Token`]: not `0x` and 1 to 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(name: &str) -> Result<Self, InvalidToken> {
        let digits = name.strip_prefix("0x").ok_or(InvalidToken)?;
        if !(1..=16).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidToken);
        }
        u64::from_str_radix(digits, 16)
            .map(Self)
            .map_err(|_| InvalidToken)
    }
}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a token: expected `0x` and 1 to 16 hexadecimal digits")
    }
}

impl core::error::Error for InvalidToken {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_a_token() {
        for name in [
            "",
            "0x",
            "1",
            "x1",
            "0x+1",
            "0x 1",
            "0xg",
            "0x00000000000000001",
        ] {
            assert_eq!(name.parse::<Token>(), Err(InvalidToken), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_token_reads_back(token: u64) {
            prop_assert_eq!(Token(token).to_string().parse(), Ok(Token(token)));
        }

        #[test]
        fn arbitrary_text_never_panics(name: String) {
            let _ = name.parse::<Token>();
        }
    }
}
