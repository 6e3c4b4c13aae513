// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! An order of numbers that looks random, takes no memory and can be asked both ways.

use super::pattern::mix;

const ROUNDS: u64 = 4;

/// A permutation of the numbers below `length`: a Feistel network over the least even number of
/// bits that holds them, walked until it comes to one of them.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    length: u64,
    half: u32,
    key: u64,
}

impl Permutation {
    /// The one of `length` numbers that belongs to `seed`.
    pub fn new(length: u64, seed: u64) -> Self {
        let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
        Self {
            length,
            half: bits.div_ceil(2).max(1),
            key: mix(seed),
        }
    }

    /// The number in this place.
    pub fn at(&self, place: u64) -> u64 {
        self.walk(place, |number| {
            (0..ROUNDS).fold(number, |number, round| {
                let (left, right) = self.halves(number);
                self.join(right, left ^ self.scramble(right, round))
            })
        })
    }

    /// The place of a number: the reverse of [`at`](Self::at).
    pub fn place_of(&self, number: u64) -> u64 {
        self.walk(number, |number| {
            (0..ROUNDS).rev().fold(number, |number, round| {
                let (left, right) = self.halves(number);
                self.join(right ^ self.scramble(left, round), left)
            })
        })
    }

    fn walk(&self, start: u64, step: impl Fn(u64) -> u64) -> u64 {
        let mut number = step(start);
        while number >= self.length {
            number = step(number);
        }
        number
    }

    fn halves(&self, number: u64) -> (u64, u64) {
        (number >> self.half, number & self.mask())
    }

    fn join(&self, left: u64, right: u64) -> u64 {
        left << self.half | right
    }

    fn scramble(&self, half: u64, round: u64) -> u64 {
        mix(half ^ mix(self.key ^ round)) & self.mask()
    }

    fn mask(&self) -> u64 {
        (1 << self.half) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_has_one_place(length in 1u64..5000, seed: u64) {
            let permutation = Permutation::new(length, seed);
            let mut numbers: Vec<u64> = (0..length).map(|place| permutation.at(place)).collect();
            for (place, &number) in numbers.iter().enumerate() {
                prop_assert_eq!(permutation.place_of(number), place as u64);
            }
            numbers.sort_unstable();
            prop_assert!(numbers.into_iter().eq(0..length));
        }

        #[test]
        fn large_ones_are_reversed_too(length in 1u64..1 << 40, seed: u64, place: u64) {
            let (permutation, place) = (Permutation::new(length, seed), place % length);
            prop_assert_eq!(permutation.place_of(permutation.at(place)), place);
        }
    }
}
