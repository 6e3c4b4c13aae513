// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What may be asked of a soak.

use std::str::FromStr;

use anyhow::{Context, Error, Result};

/// A chain of live updates. The same values always make the same files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoakOptions {
    /// How many kexecs.
    pub jumps: usize,
    /// Everything random comes from it.
    pub seed: u64,
    /// Whether somebody writes to a memfd while the kernel freezes and jumps.
    pub writes_during_freeze: bool,
}

impl SoakOptions {
    /// A seed that nobody has chosen.
    pub fn random_seed() -> u64 {
        // Short enough to be typed again.
        fastrand::u64(..1_000_000)
    }

    /// As one word of a kernel's command line.
    pub(crate) fn word(&self) -> String {
        let Self {
            jumps,
            seed,
            writes_during_freeze,
        } = self;
        format!("{jumps},{seed},{}", u8::from(*writes_during_freeze))
    }
}

impl FromStr for SoakOptions {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let numbers: Option<Vec<u64>> = word.split(',').map(|digits| digits.parse().ok()).collect();
        let options = match numbers.as_deref() {
            Some([jumps, seed, writes @ (0 | 1)]) => {
                usize::try_from(*jumps).ok().map(|jumps| Self {
                    jumps,
                    seed: *seed,
                    writes_during_freeze: *writes == 1,
                })
            }
            _ => None,
        };
        options.with_context(|| format!("{word} is not a soak"))
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn options_cross_the_command_line() {
        let options = SoakOptions {
            jumps: 200,
            seed: u64::MAX,
            writes_during_freeze: true,
        };
        assert_eq!(options.word().parse::<SoakOptions>().unwrap(), options);
        for word in ["", "1,2", "1,2,3", "x,1,0", "1,2,0,0"] {
            assert!(word.parse::<SoakOptions>().is_err(), "{word}");
        }
    }
}
