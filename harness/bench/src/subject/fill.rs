// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which pages of a memfd are filled, and in which order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which pages are filled, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Fill {
    /// All, from the first to the last.
    Dense,
    /// A part of all, chosen as if at random; the others are holes.
    Sparse(Share),
    /// All, as if at random: their frames are in another order than their offsets.
    Shuffled,
}

/// A part of a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// In parts of [`WHOLE`].
    parts: u64,
}

/// Fine enough to name one page of the largest memfd.
const WHOLE: u64 = 1_000_000_000_000;
/// Digits after the point of a percentage.
const DECIMALS: usize = 10;

impl Share {
    /// In percent: the digits before and after the point.
    fn parse(percent: &str) -> Option<Self> {
        let (whole, decimals) = percent.split_once('.').unwrap_or((percent, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(decimals) || decimals.len() > DECIMALS {
            return None;
        }
        if whole.is_empty() && decimals.is_empty() {
            return None;
        }
        let digits = format!("{whole}{decimals:0<DECIMALS$}");
        let parts: u64 = digits.parse().ok()?;
        (parts <= WHOLE).then_some(Self { parts })
    }

    /// As many of `count` as come nearest to it.
    pub fn of(self, count: u64) -> u64 {
        let whole = u128::from(WHOLE);
        let share = u128::from(count) * u128::from(self.parts);
        ((share + whole / 2) / whole) as u64
    }
}

impl fmt::Display for Share {
    /// In percent, exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = WHOLE / 100;
        let (whole, rest) = (self.parts / percent, self.parts % percent);
        let decimals = format!("{rest:0DECIMALS$}");
        match decimals.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            decimals => write!(f, "{whole}.{decimals}"),
        }
    }
}

impl Fill {
    /// A part of the pages, in hundredths of a percent.
    pub const fn sparse(hundredths: u32) -> Self {
        Self::Sparse(Share {
            parts: hundredths as u64 * (WHOLE / 10_000),
        })
    }

    /// How many of `pages` are filled.
    pub fn count(self, pages: u64) -> u64 {
        match self {
            Self::Dense | Self::Shuffled => pages,
            Self::Sparse(share) => share.of(pages),
        }
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.pad("dense"),
            Self::Shuffled => f.pad("shuffled"),
            Self::Sparse(share) => f.pad(&format!("sparse:{share}%")),
        }
    }
}

impl FromStr for Fill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const USAGE: &str = "fills are dense, shuffled and sparse:P% with P from 0 to 100, \
             with up to 10 decimals";
        match text {
            "dense" => return Ok(Self::Dense),
            "shuffled" => return Ok(Self::Shuffled),
            "sparse" => return Ok(Self::sparse(500)),
            _ => {}
        }
        let percent = text.strip_prefix("sparse:").ok_or(USAGE)?;
        let percent = percent.strip_suffix('%').unwrap_or(percent);
        Ok(Self::Sparse(Share::parse(percent).ok_or(USAGE)?))
    }
}

impl From<Fill> for String {
    fn from(fill: Fill) -> Self {
        fill.to_string()
    }
}

impl TryFrom<String> for Fill {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_read_back_as_they_print() {
        for text in [
            "dense",
            "shuffled",
            "sparse:5%",
            "sparse:0.25%",
            "sparse:0.0000000233%",
            "sparse:100%",
        ] {
            assert_eq!(text.parse::<Fill>().unwrap().to_string(), text);
        }
        assert_eq!("sparse".parse(), Ok(Fill::sparse(500)));
        assert_eq!("sparse:.5".parse(), Ok(Fill::sparse(50)));
        for text in [
            "",
            "sparse:",
            "sparse:.",
            "sparse:101%",
            "sparse:100.0000000001%",
            "sparse:-1%",
            "sparse:+1%",
            "sparse:nan%",
            "sparse:0.00000000001%",
            "Dense",
        ] {
            assert!(text.parse::<Fill>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_exact_down_to_one_page() {
        let count = |text: &str, pages| text.parse::<Fill>().unwrap().count(pages);
        assert_eq!(count("sparse:0.001%", 1 << 28), 2684);
        assert_eq!(count("sparse:0.0000000233%", 1 << 32), 1);
        assert_eq!(count("sparse:5%", 20), 1);
        assert_eq!(count("sparse:1%", 20), 0);
        assert_eq!(count("sparse:99.9999999999%", 1 << 20), 1 << 20);
        assert_eq!(count("shuffled", 7), 7);
    }
}
