// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What several runs have in common: the middle, and how far they are apart.

use serde::{Deserialize, Serialize};

/// Values of several runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: u64,
    /// The one in the middle; of two, the lower.
    pub median: u64,
    /// The greatest.
    pub max: u64,
    /// All of them, in the order of the runs.
    pub samples: Vec<u64>,
}

impl Spread {
    /// The spread of `values`; zero without values.
    pub fn of(values: impl IntoIterator<Item = u64>) -> Self {
        let samples: Vec<u64> = values.into_iter().collect();
        let mut sorted = samples.clone();
        sorted.sort_unstable();
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        Self {
            min,
            median: sorted[(sorted.len() - 1) / 2],
            max,
            samples,
        }
    }

    /// How many times `other` it is: by the medians, and between the runs that make that least and
    /// greatest. `None` if a run of the other took no time.
    pub fn times(&self, other: &Self) -> Option<[f64; 3]> {
        let ratio = |own: u64, other: u64| own as f64 / other as f64;
        (other.min > 0).then(|| {
            [
                ratio(self.median, other.median),
                ratio(self.min, other.max),
                ratio(self.max, other.min),
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_spread_is_in_order(values in prop::collection::vec(any::<u64>(), 1..20)) {
            let spread = Spread::of(values.clone());
            prop_assert!(spread.min <= spread.median && spread.median <= spread.max);
            prop_assert!(values.contains(&spread.median));
            prop_assert_eq!(spread.samples, values);
        }
    }
}
