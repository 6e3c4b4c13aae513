// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What extents cross as: words, one for a single page.
//!
//! Pages that follow each other in the file need no index, so a file whose pages are scattered in
//! memory costs 4 bytes a page. Each word is little-endian, and begins with what it means:
//!
//! ```text
//! 0  frame 31           a run of pages at the next place of the file, from this frame on
//! 10 number 30          so many places before it are a hole
//! 11 number 30          it is so many pages long, not one
//! 11 ones               the next four words are an Extent
//! ```
//!
//! An extent crosses whole, in the last form, if it is of large folios or a number is too large for
//! the others.

use luo_handler_api::Errno;

use crate::{
    extent::{Extent, Run},
    wire::{little_endian::U32, FromBytes, IntoBytes},
};

const KIND_SHIFT: u32 = 30;
const HOLE: u32 = 0b10 << KIND_SHIFT;
const RUN: u32 = 0b11 << KIND_SHIFT;
const WHOLE: u32 = u32::MAX;
const NUMBER_MAX: u64 = (1 << KIND_SHIFT) - 1;

/// With pages of 4 KiB, memory of up to 8 TiB.
const FRAME_MAX: u64 = HOLE as u64 - 1;

/// Words of an [`Extent`].
const WORDS_OF_EXTENT: usize = size_of::<Extent>() / size_of::<U32>();

/// The words of one extent.
#[derive(Debug)]
pub(crate) struct Words {
    words: [U32; 1 + WORDS_OF_EXTENT],
    count: usize,
}

impl Words {
    /// Those of `extent`, where `place` is the one after the extent before it.
    pub(crate) fn new(extent: Extent, place: u64) -> Self {
        let mut words = Self {
            words: [U32::ZERO; 1 + WORDS_OF_EXTENT],
            count: 0,
        };
        words.describe(extent, place).unwrap_or_else(|| {
            let (tag, whole) = words.words.split_at_mut(1);
            tag.fill(U32::new(WHOLE));
            whole.as_mut_bytes().copy_from_slice(extent.as_bytes());
            words.count = 1 + WORDS_OF_EXTENT;
        });
        words
    }

    /// In the short forms, if it can be.
    fn describe(&mut self, extent: Extent, place: u64) -> Option<()> {
        let hole = extent.index().checked_sub(place)?;
        let (length, frame) = (extent.length(), extent.frame());
        let is_short = extent.order() == 0
            && hole <= NUMBER_MAX
            // The largest number is that of an extent.
            && length < NUMBER_MAX
            && frame <= FRAME_MAX;
        if !is_short {
            return None;
        }
        if hole > 0 {
            self.push(HOLE | hole as u32);
        }
        if length > 1 {
            self.push(RUN | length as u32);
        }
        self.push(frame as u32);
        Some(())
    }

    fn push(&mut self, word: u32) {
        self.words[self.count] = U32::new(word);
        self.count += 1;
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.words[..self.count].as_bytes()
    }
}

/// The word of a single page, if it is at `place`, and one is enough.
#[inline]
pub(crate) fn of_next_page(run: &Run, place: u64) -> Option<u32> {
    let is_next = run.index() == place && run.length() == 1 && run.order() == 0;
    (is_next && run.frame() <= FRAME_MAX).then_some(run.frame() as u32)
}

/// Reads words one by one. Any words are valid extents or an error; whether they overlap, or where
/// they lie, is for the caller to look at.
#[derive(Debug)]
pub struct Decoder {
    /// Where the next extent begins.
    place: u64,
    /// Its length, if it was told.
    length: Option<u64>,
    /// Whether something is missing to it.
    open: bool,
    /// Words of an extent that comes whole; how many of them are missing.
    whole: [U32; WORDS_OF_EXTENT],
    missing: usize,
    /// Whether all of them come whole, without a word before each.
    all_whole: bool,
}

impl Decoder {
    /// For words of which the first extent begins at the place `place`.
    pub fn new(place: u64) -> Self {
        Self {
            place,
            length: None,
            open: false,
            whole: [U32::ZERO; WORDS_OF_EXTENT],
            missing: 0,
            all_whole: false,
        }
    }

    /// For extents in the layout of [`Extent`], one after the other.
    pub fn of_whole_extents() -> Self {
        Self {
            missing: WORDS_OF_EXTENT,
            all_whole: true,
            ..Self::new(0)
        }
    }

    /// Takes a word; returns the extent that ends with it, if one does.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is not an extent.
    #[inline]
    pub fn push(&mut self, word: u32) -> Result<Option<Run>, Errno> {
        if self.missing > 0 || word >= HOLE {
            return self.push_other(word);
        }
        let length = self.length.take().unwrap_or(1);
        let run = Run::new(self.place, word.into(), length, 0).ok_or(Errno::EINVAL)?;
        (self.place, self.open) = (run.end(), false);
        Ok(Some(run))
    }

    /// Takes a word that is not a frame.
    fn push_other(&mut self, word: u32) -> Result<Option<Run>, Errno> {
        if self.missing > 0 {
            return self.push_whole(word);
        }
        let number = u64::from(word) & NUMBER_MAX;
        match word {
            WHOLE => self.missing = WORDS_OF_EXTENT,
            RUN.. if self.length.is_none() => self.length = Some(number),
            RUN.. => return Err(Errno::EINVAL),
            _ => self.place = self.place.checked_add(number).ok_or(Errno::EINVAL)?,
        }
        self.open = true;
        Ok(None)
    }

    fn push_whole(&mut self, word: u32) -> Result<Option<Run>, Errno> {
        self.whole[WORDS_OF_EXTENT - self.missing] = U32::new(word);
        self.missing -= 1;
        self.open = self.missing > 0;
        if self.open {
            return Ok(None);
        }
        // A length that was told was that of another extent.
        if self.length.is_some() {
            return Err(Errno::EINVAL);
        }
        if self.all_whole {
            self.missing = WORDS_OF_EXTENT;
        }
        let extent = Extent::read_from_bytes(self.whole.as_bytes()).ok();
        let run = extent.and_then(Extent::run).ok_or(Errno::EINVAL)?;
        self.place = run.end();
        Ok(Some(run))
    }

    /// Whether the last word has ended an extent.
    pub fn is_complete(&self) -> bool {
        !self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{FRAME_BITS, INDEX_BITS, LENGTH_BITS, ORDER_MAX};
    use proptest::prelude::*;

    fn extent(index: u64, frame: u64, length: u64) -> Extent {
        Extent::new(index, frame, length).unwrap()
    }

    fn words_of(extent: Extent, place: u64) -> Vec<u32> {
        let words = Words::new(extent, place);
        let words = words.as_bytes().chunks_exact(4);
        words
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }

    fn decode(decoder: &mut Decoder, words: &[u32]) -> Result<Vec<Extent>, Errno> {
        let runs = words
            .iter()
            .filter_map(|&word| decoder.push(word).transpose());
        runs.map(|run| run.map(|run| run.extents().next().unwrap()))
            .collect()
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        assert_eq!(words_of(extent(7, 9, 1), 7), [9]);
        assert_eq!(words_of(extent(7, 9, 1), 4), [2 << 30 | 3, 9]);
        assert_eq!(words_of(extent(7, 9, 5), 7), [3 << 30 | 5, 9]);
        assert_eq!(words_of(extent(7, 9, 5), 4), [2 << 30 | 3, 3 << 30 | 5, 9]);
        let folio = Extent::of_folios(512, 1024, 512, 9).unwrap();
        let halves = [512u64 << 13 | 9 << 8, 1024 << 24 | 512];
        let halves = halves.map(|half| [half as u32, (half >> 32) as u32]);
        assert_eq!(
            words_of(folio, 0),
            [&[u32::MAX], halves.as_flattened()].concat()
        );
    }

    #[test]
    fn a_word_is_enough_for_the_next_page_alone() {
        for (index, frame, length, order) in [
            (7, 9, 1, 0),
            (8, 9, 1, 0),
            (7, 9, 2, 0),
            (7, FRAME_MAX, 1, 0),
            (7, FRAME_MAX + 1, 1, 0),
            (8, 8, 2, 1),
        ] {
            let run = Run::new(index, frame, length, order).unwrap();
            let words = words_of(run.extents().next().unwrap(), 7);
            let one = (words.len() == 1).then(|| words[0]);
            assert_eq!(of_next_page(&run, 7), one, "{run:?}");
        }
    }

    #[test]
    fn numbers_that_are_too_large_come_whole() {
        let most = NUMBER_MAX;
        for (at, place, count) in [
            (extent(most, 1, 1), 0, 2),
            (extent(most + 1, 1, 1), 0, 5),
            (extent(0, 1, most - 1), 0, 2),
            (extent(0, 1, most), 0, 5),
            (extent(0, FRAME_MAX, 9), 0, 2),
            (extent(0, FRAME_MAX + 1, 9), 0, 5),
            // Before where it may be: the reader refuses it.
            (extent(3, 1, 1), 4, 5),
        ] {
            let words = words_of(at, place);
            assert_eq!(words.len(), count, "{at:?}");
            assert_eq!(decode(&mut Decoder::new(place), &words), Ok(vec![at]));
        }
    }

    #[test]
    fn what_is_not_an_extent_is_refused() {
        for words in [
            // Frame 0; no pages; two lengths; a length of an extent that has its own
            &[0][..],
            &[RUN, 1],
            &[RUN | 2, RUN | 2, 1],
            &[RUN | 2, WHOLE, 0, 0, 1 << 24 | 1, 0],
        ] {
            let mut decoder = Decoder::new(0);
            assert_eq!(
                decode(&mut decoder, words),
                Err(Errno::EINVAL),
                "{words:x?}"
            );
        }
        for words in [
            &[HOLE | 1][..],
            &[RUN | 2],
            &[WHOLE],
            &[WHOLE, 0, 0, 0],
            &[5, HOLE | 1],
        ] {
            let mut decoder = Decoder::new(0);
            decode(&mut decoder, words).unwrap();
            assert!(!decoder.is_complete(), "{words:x?}");
        }
        let mut decoder = Decoder::new(u64::MAX);
        assert_eq!(decoder.push(HOLE | 1), Err(Errno::EINVAL));
        assert_eq!(Decoder::new(1 << INDEX_BITS).push(1), Err(Errno::EINVAL));
    }

    prop_compose! {
        fn runs()(
            hole in prop_oneof![Just(0), 0u64..4, 0u64..1 << 32],
            frame in prop_oneof![1u64..1 << 20, 1u64..1 << FRAME_BITS],
            length in prop_oneof![Just(1), 1u64..600, 1u64..1 << LENGTH_BITS],
            order in prop_oneof![Just(0), 0..=ORDER_MAX],
        ) -> (u64, u64, u64, u8) {
            (hole, frame, length, order)
        }
    }

    proptest! {
        #[test]
        fn extents_come_back(runs in prop::collection::vec(runs(), 0..50)) {
            let (mut place, mut words, mut extents) = (0, Vec::new(), Vec::new());
            for (hole, frame, length, order) in runs {
                let whole = |number: u64| number.next_multiple_of(1 << order);
                let (index, frame, length) = (whole(place + hole), whole(frame), whole(length));
                let Some(extent) = Extent::of_folios(index, frame, length, order) else { continue };
                words.extend(words_of(extent, place));
                extents.push(extent);
                place = extent.end();
            }
            let mut decoder = Decoder::new(0);
            prop_assert_eq!(decode(&mut decoder, &words), Ok(extents));
            prop_assert!(decoder.is_complete());
        }

        #[test]
        fn any_words_are_extents_or_an_error(
            place: u64, all_whole: bool,
            words in prop::collection::vec(
                prop_oneof![any::<u32>(), Just(WHOLE), (0u32..9).prop_map(|n| RUN | n), 0u32..9],
                0..60,
            ),
        ) {
            let mut decoder = Decoder::new(place);
            if all_whole {
                decoder = Decoder::of_whole_extents();
            }
            for word in words {
                let Ok(run) = decoder.push(word) else { break };
                prop_assert!(run.is_none_or(|run| run.extents().count() == 1));
            }
        }
    }
}
