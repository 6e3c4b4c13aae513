// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Bytes that depend on their place: no two pages of any two memfds are alike.

const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64: neighbouring numbers become unrelated ones.
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(GOLDEN_RATIO);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Fills `bytes` with what stands from `offset` on, a multiple of 8, in the file with this seed.
pub fn pattern(seed: u64, offset: u64, bytes: &mut [u8]) {
    let base = mix(seed).wrapping_add(offset / 8);
    for (index, word) in bytes.chunks_mut(8).enumerate() {
        let value = base.wrapping_add(index as u64).wrapping_mul(GOLDEN_RATIO);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pages_never_look_alike() {
        const PAGE: usize = 4096;
        let mut contents = vec![0; 64 * PAGE];
        pattern(3, 0, &mut contents);
        let distinct: std::collections::HashSet<_> = contents.chunks(PAGE).collect();
        assert_eq!(distinct.len(), 64);
    }
}
