// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where single pages lie together in memory, whatever their order in the file.
//!
//! Pages of a file that was filled in no order are scattered over the file, but in memory they fill
//! whole stretches. KHO preserves pieces of 2^n aligned pages, and each piece costs at preserve, in
//! the next kernel's early boot, and when it is restored. So the frames of a file are noted, a bit
//! for each, and preserved as the longest runs.

use luo_handler_api::Errno;

use crate::extent::Run;

/// Frames of a block; no run reaches beyond one.
pub const BLOCK_FRAMES: u64 = 512;

const WORD_BITS: u64 = u64::BITS as u64;
const WORDS: usize = (BLOCK_FRAMES / WORD_BITS) as usize;

/// Blocks that there is room for at first, a power of two.
const SLOTS_MIN: usize = 8;

/// Which frames of a block the file has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Block {
    /// One more than the number of the block; 0 in a slot that is free.
    tag: u64,
    frames: [u64; WORDS],
}

impl Block {
    fn first_frame(&self) -> u64 {
        (self.tag - 1) * BLOCK_FRAMES
    }

    /// Adds `count` frames from the block's frame `first` on, or none if it has one of them.
    fn add(&mut self, first: u64, count: u64) -> Result<(), Errno> {
        if count == 1 {
            // The usual case where pages are in no order.
            let (word, bit) = (
                &mut self.frames[(first / WORD_BITS) as usize],
                first % WORD_BITS,
            );
            let is_new = *word >> bit & 1 == 0;
            *word |= 1 << bit;
            return if is_new { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let masks = |at: usize| {
            let begin = at as u64 * WORD_BITS;
            let low = first.clamp(begin, begin + WORD_BITS) - begin;
            let high = (first + count).clamp(begin, begin + WORD_BITS) - begin;
            ones_below(high) & !ones_below(low)
        };
        let words = first / WORD_BITS..(first + count).div_ceil(WORD_BITS);
        let words = words.start as usize..words.end as usize;
        if words.clone().any(|at| self.frames[at] & masks(at) != 0) {
            return Err(Errno::EINVAL);
        }
        for at in words {
            self.frames[at] |= masks(at);
        }
        Ok(())
    }

    /// The first run that begins at the block's frame `from` or after it: its first frame in the
    /// block, and the one after its last.
    fn next_run(&self, from: u64) -> Option<(u64, u64)> {
        let first = self.find(from, |word| word)?;
        let end = self.find(first, |word| !word).unwrap_or(BLOCK_FRAMES);
        Some((first, end))
    }

    /// The first frame from `from` on whose bit is set in the words that `view` returns.
    fn find(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let mut low = from % WORD_BITS;
        for at in (from / WORD_BITS) as usize..WORDS {
            let word = view(self.frames[at]) & !ones_below(low);
            if word != 0 {
                return Some(at as u64 * WORD_BITS + u64::from(word.trailing_zeros()));
            }
            low = 0;
        }
        None
    }
}

/// The lowest `count` bits, at most 64.
fn ones_below(count: u64) -> u64 {
    1u64.checked_shl(count as u32).unwrap_or(0).wrapping_sub(1)
}

/// Memory for a table of blocks; by default for none.
pub trait Slots: AsRef<[Block]> + AsMut<[Block]> + Default {
    /// Room for `count` blocks, all of them [`Block::default`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn with_room(count: usize) -> Result<Self, Errno>;
}

/// The single pages of a file, by their frames: a hash table of blocks.
#[derive(Debug, Default)]
pub struct Pieces<S> {
    /// A power of two, or none at all.
    slots: S,
    used: usize,
    /// The slot that was looked for last: pages come in runs.
    recent: usize,
}

impl<S: Slots> Pieces<S> {
    /// Adds the frames of `run`, which lie in one block: all of them or, on an error, none.
    ///
    /// # Errors
    ///
    /// `EINVAL` if one of them is there already, or they lie in several blocks; `ENOMEM`.
    #[inline]
    pub fn add(&mut self, run: &Run) -> Result<(), Errno> {
        let first = run.frame() % BLOCK_FRAMES;
        if run.length() > BLOCK_FRAMES - first {
            return Err(Errno::EINVAL);
        }
        let tag = run.frame() / BLOCK_FRAMES + 1;
        let block = self.slots.as_mut().get_mut(self.recent);
        match block.filter(|block| block.tag == tag) {
            Some(block) => block.add(first, run.length()),
            None => self.look_up(tag)?.add(first, run.length()),
        }
    }

    fn look_up(&mut self, tag: u64) -> Result<&mut Block, Errno> {
        // At most three quarters full, so that a free slot is always near.
        if 4 * (self.used + 1) > 3 * self.slots.as_ref().len() {
            self.grow()?;
        }
        self.recent = find_slot(self.slots.as_ref(), tag);
        let block = &mut self.slots.as_mut()[self.recent];
        if block.tag == 0 {
            block.tag = tag;
            self.used += 1;
        }
        Ok(block)
    }

    fn grow(&mut self) -> Result<(), Errno> {
        let room = SLOTS_MIN.max(2 * self.slots.as_ref().len());
        let mut slots = S::with_room(room)?;
        for block in self.slots.as_ref().iter().filter(|block| block.tag != 0) {
            let place = find_slot(slots.as_ref(), block.tag);
            slots.as_mut()[place] = *block;
        }
        self.slots = slots;
        Ok(())
    }

    /// The longest runs of frames within a block, in no order: the first frame of each, and its
    /// length. The same ones in the same order until a frame is added.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let blocks = self.slots.as_ref().iter().filter(|block| block.tag != 0);
        blocks.flat_map(|block| {
            let mut from = 0;
            core::iter::from_fn(move || {
                let (first, end) = block.next_run(from)?;
                from = end;
                Some((block.first_frame() + first, end - first))
            })
        })
    }
}

/// The slot of a block, or where it goes. There is a free one.
fn find_slot(slots: &[Block], tag: u64) -> usize {
    let last = slots.len() - 1;
    // Fibonacci hashing: blocks that follow each other are spread evenly.
    let mut place = (tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & last;
    while slots[place].tag != 0 && slots[place].tag != tag {
        place = (place + 1) & last;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    impl Slots for Vec<Block> {
        fn with_room(count: usize) -> Result<Self, Errno> {
            Ok(vec![Block::default(); count])
        }
    }

    fn run(frame: u64, length: u64) -> Run {
        Run::new(0, frame, length, 0).unwrap()
    }

    fn pieces() -> Pieces<Vec<Block>> {
        Pieces::default()
    }

    fn runs_of(pieces: &Pieces<Vec<Block>>) -> Vec<(u64, u64)> {
        let mut runs: Vec<_> = pieces.runs().collect();
        runs.sort_unstable();
        runs
    }

    #[test]
    fn a_file_in_no_order_is_few_runs() {
        let mut pieces = pieces();
        // 401 is prime: every frame of 2000 once, never two in a row.
        for page in 0..2000 {
            pieces.add(&run(300 + page * 401 % 2000, 1)).unwrap();
        }
        let expected = [
            (300, 212),
            (512, 512),
            (1024, 512),
            (1536, 512),
            (2048, 252),
        ];
        assert_eq!(runs_of(&pieces), expected);
    }

    #[test]
    fn no_memory_is_taken_for_nothing() {
        let pieces = pieces();
        assert!(pieces.slots.is_empty());
        assert_eq!(pieces.runs().count(), 0);
    }

    #[test]
    fn frames_that_are_there_are_refused_and_nothing_changes() {
        let mut pieces = pieces();
        pieces.add(&run(1000, 10)).unwrap();
        for again in [run(1009, 2), run(990, 11), run(900, 124), run(1003, 1)] {
            assert_eq!(pieces.add(&again), Err(Errno::EINVAL));
        }
        assert_eq!(pieces.add(&run(1020, 5)), Err(Errno::EINVAL), "two blocks");
        assert_eq!(runs_of(&pieces), [(1000, 10)]);
    }

    #[test]
    fn the_last_frames_have_a_block() {
        let mut pieces = pieces();
        let last = crate::extent::FRAME_END - 1;
        pieces.add(&run(last, 1)).unwrap();
        pieces.add(&run(1, 1)).unwrap();
        assert_eq!(runs_of(&pieces), [(1, 1), (last, 1)]);
    }

    proptest! {
        #[test]
        fn runs_are_the_frames_and_as_long_as_can_be(
            added in prop::collection::vec((0u64..40, 0u64..512, 1u64..=512), 0..120),
        ) {
            let (mut pieces, mut frames) = (pieces(), BTreeSet::new());
            for (block, first, length) in added {
                let first = block * BLOCK_FRAMES + first;
                let end = (first + length).min((block + 1) * BLOCK_FRAMES);
                let Some(run) = Run::new(0, first, end - first, 0) else { continue };
                let is_new = (first..end).all(|frame| !frames.contains(&frame));
                prop_assert_eq!(pieces.add(&run).is_ok(), is_new);
                frames.extend((first..end).filter(|_| is_new));
            }
            let runs = runs_of(&pieces);
            let listed = runs.iter().flat_map(|&(first, length)| first..first + length);
            prop_assert!(listed.eq(frames.iter().copied()));
            for (first, length) in runs {
                let end = first + length;
                prop_assert_eq!(first / BLOCK_FRAMES, (end - 1) / BLOCK_FRAMES);
                prop_assert!(first % BLOCK_FRAMES == 0 || !frames.contains(&(first - 1)));
                prop_assert!(end % BLOCK_FRAMES == 0 || !frames.contains(&end));
            }
        }
    }
}
