// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Runs of pages, the builder that merges them, and the 16 bytes that an extent of them crosses in.

use core::fmt;
use luo_handler_api::Errno;

use crate::wire::{little_endian::U64, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bits of a page's index in its file: with pages of 4 KiB, files of up to 8 EiB.
pub const INDEX_BITS: u32 = 51;

/// Bits of a frame number: with pages of 4 KiB, memory of up to 4 PiB.
pub const FRAME_BITS: u32 = 40;

/// Bits of an extent's length in pages.
pub const LENGTH_BITS: u32 = 32;

/// Bits of the order of an extent's folios.
pub const ORDER_BITS: u32 = 5;

/// The largest order of a folio: with pages of 4 KiB, 1 GiB.
pub const ORDER_MAX: u8 = 18;

/// Where the contents of a memfd are while they cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Contents {
    /// In a file that the host preserves; there are no extents.
    File = 1,
    /// In the frames that the extents name.
    Frames = 2,
}

const INDEX_END: u64 = 1 << INDEX_BITS;
/// Frames are below this number.
pub const FRAME_END: u64 = 1 << FRAME_BITS;
const LENGTH_MAX: u64 = (1 << LENGTH_BITS) - 1;

/// Bits of the length that share a word with the frame; the others share one with the index.
const LENGTH_LOW_BITS: u32 = 64 - FRAME_BITS;
const LENGTH_HIGH_BITS: u32 = LENGTH_BITS - LENGTH_LOW_BITS;
const LENGTH_LOW_MASK: u64 = (1 << LENGTH_LOW_BITS) - 1;
const LENGTH_HIGH_MASK: u64 = (1 << LENGTH_HIGH_BITS) - 1;
const INDEX_SHIFT: u32 = 64 - INDEX_BITS;
const ORDER_MASK: u64 = (1 << ORDER_BITS) - 1;

const _: () = assert!(INDEX_SHIFT == ORDER_BITS + LENGTH_HIGH_BITS);
const _: () = assert!(ORDER_MAX as u64 <= ORDER_MASK);

/// A run of pages with consecutive indices and consecutive frames, in 16 bytes.
///
/// The pages belong to folios of 2^order pages, all of the same order; index, frame and length are
/// multiples of that. Indices, frames and lengths are in units of base pages, in two little-endian
/// words:
///
/// ```text
///          63            24 23   13 12     8 7          0
/// word 0  |      index 51 bits     | order  | length 31…24 |
/// word 1  |  frame 40 bits  |     length 23…0              |
/// ```
///
/// Any 16 bytes are an `Extent`; those that came from elsewhere are used only after
/// [`is_valid`](Self::is_valid) said yes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Extent([U64; 2]);

impl Extent {
    /// The extent of `length` single pages at `index` of the file, in memory from `frame` on.
    /// `None` unless it is at least one page and ends within 2^51 pages and 2^40 frames, and is
    /// shorter than 2^32 pages; `None` also for frame 0, which is never page cache.
    #[inline]
    pub fn new(index: u64, frame: u64, length: u64) -> Option<Self> {
        Self::of_folios(index, frame, length, 0)
    }

    /// The same of pages in folios of 2^`order` pages; `None` also if the folios are not whole, not
    /// aligned or larger than [`ORDER_MAX`].
    #[inline]
    pub fn of_folios(index: u64, frame: u64, length: u64, order: u8) -> Option<Self> {
        let run = Run::new(index, frame, length, order)?;
        (length <= LENGTH_MAX).then(|| Self::pack(run))
    }

    #[inline]
    fn pack(run: Run) -> Self {
        Self([
            U64::new(
                run.index << INDEX_SHIFT
                    | u64::from(run.order) << LENGTH_HIGH_BITS
                    | run.length >> LENGTH_LOW_BITS,
            ),
            U64::new(run.frame << LENGTH_LOW_BITS | run.length & LENGTH_LOW_MASK),
        ])
    }

    /// Index of the first page in the file, below 2^51.
    #[inline]
    pub fn index(self) -> u64 {
        self.0[0].get() >> INDEX_SHIFT
    }

    /// Binary logarithm of the pages of each of its folios.
    #[inline]
    pub fn order(self) -> u8 {
        (self.0[0].get() >> LENGTH_HIGH_BITS & ORDER_MASK) as u8
    }

    /// Frame number of the first page, below 2^40.
    #[inline]
    pub fn frame(self) -> u64 {
        self.0[1].get() >> LENGTH_LOW_BITS
    }

    /// Number of pages, below 2^32.
    #[inline]
    pub fn length(self) -> u64 {
        (self.0[0].get() & LENGTH_HIGH_MASK) << LENGTH_LOW_BITS | self.0[1].get() & LENGTH_LOW_MASK
    }

    /// Index of the page after the last one; at most 2^51 + 2^32.
    #[inline]
    pub fn end(self) -> u64 {
        self.index() + self.length()
    }

    /// The run of pages that it stands for, unless it is malformed.
    #[inline]
    pub fn run(self) -> Option<Run> {
        Run::new(self.index(), self.frame(), self.length(), self.order())
    }

    /// Whether [`of_folios`](Self::of_folios) would make it.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.run().is_some()
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent")
            .field("index", &self.index())
            .field("frame", &self.frame())
            .field("length", &self.length())
            .field("order", &self.order())
            .finish()
    }
}

/// A run of pages: consecutive places of a file in consecutive frames, in folios of one order.
///
/// This is what a page cache is walked in, and what a record's extents are read as.
///
/// # Invariants
///
/// At least one page; ends within the bits of index and frame; whole and aligned folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    index: u64,
    frame: u64,
    length: u64,
    order: u8,
}

impl Run {
    /// The run of `length` pages from `index` of the file on, which lie in memory from `frame` on,
    /// in folios of 2^`order` pages, 0 for single pages. `None` if [`Extent::of_folios`] would not
    /// make it, whatever its length.
    #[inline]
    pub fn new(index: u64, frame: u64, length: u64, order: u8) -> Option<Self> {
        let in_file = index.checked_add(length)? <= INDEX_END;
        let in_memory = frame > 0 && frame.checked_add(length)? <= FRAME_END;
        let whole =
            order <= ORDER_MAX && (index | frame | length).trailing_zeros() >= u32::from(order);
        (length > 0 && in_file && in_memory && whole).then_some(Self {
            index,
            frame,
            length,
            order,
        })
    }

    /// Index of the first page in the file.
    #[inline]
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Frame of the first page.
    #[inline]
    pub const fn frame(&self) -> u64 {
        self.frame
    }

    /// Number of pages.
    #[inline]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Binary logarithm of the pages of each folio.
    #[inline]
    pub const fn order(&self) -> u8 {
        self.order
    }

    /// Index of the page after the last one.
    #[inline]
    pub const fn end(&self) -> u64 {
        self.index + self.length
    }

    /// Takes `next` in if it continues the run; returns whether it does.
    #[inline]
    pub fn join(&mut self, next: Self) -> bool {
        let continues = next.index == self.end()
            && next.frame == self.frame + self.length
            && next.order == self.order;
        if continues {
            self.length += next.length;
        }
        continues
    }

    /// The fewest extents that it is.
    pub fn extents(self) -> impl Iterator<Item = Extent> {
        let mut left = Some(self);
        core::iter::from_fn(move || {
            let (first, rest) = left?.split();
            left = rest;
            Some(first)
        })
    }

    /// Splits off the longest extent at the beginning.
    fn split(self) -> (Extent, Option<Self>) {
        if self.length <= LENGTH_MAX {
            return (Extent::pack(self), None);
        }
        // A folio is never split, and the longest extent has room for the largest one.
        let length = self.length.min(LENGTH_MAX >> self.order << self.order);
        let first = Extent::pack(Self { length, ..self });
        let (index, frame) = (self.index + length, self.frame + length);
        let rest = Self::new(index, frame, self.length - length, self.order);
        (first, rest)
    }
}

/// Merges runs of pages and hands each to `sink` as soon as it cannot grow any more.
///
/// It holds one run and allocates nothing, so a file of any size is walked in the same memory.
///
/// ```
/// use luo_handler_memfd::{Run, RunBuilder};
///
/// let mut runs = Vec::new();
/// let mut builder = RunBuilder::new(|run| {
///     runs.push(run);
///     Ok(())
/// });
/// let page = |index, frame| Run::new(index, frame, 1, 0).expect("a page");
/// builder.push(page(0, 100))?; // page 0 of the file lies in frame 100,
/// builder.push(page(1, 101))?; // page 1 in the next one:
/// builder.push(page(2, 200))?; // one run; page 2 lies elsewhere.
/// builder.finish()?;
/// assert_eq!(runs, [Run::new(0, 100, 2, 0).unwrap(), page(2, 200)]);
/// # Ok::<(), luo_handler_api::Errno>(())
/// ```
#[derive(Debug)]
pub struct RunBuilder<S> {
    run: Option<Run>,
    sink: S,
}

impl<S: FnMut(Run) -> Result<(), Errno>> RunBuilder<S> {
    /// A builder that hands its runs to `sink`, in ascending order.
    pub const fn new(sink: S) -> Self {
        Self { run: None, sink }
    }

    /// Adds a run.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it comes before the end of what was added last; those of `sink`.
    #[inline]
    pub fn push(&mut self, next: Run) -> Result<(), Errno> {
        if let Some(run) = &mut self.run {
            if run.join(next) {
                return Ok(());
            }
            if next.index < run.end() {
                return Err(Errno::EINVAL);
            }
        }
        match self.run.replace(next) {
            Some(done) => (self.sink)(done),
            None => Ok(()),
        }
    }

    /// Hands over the last run.
    ///
    /// # Errors
    ///
    /// Those of `sink`.
    pub fn finish(mut self) -> Result<(), Errno> {
        match self.run.take() {
            Some(done) => (self.sink)(done),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Page = (u64, u64);

    fn run(index: u64, frame: u64, length: u64, order: u8) -> Run {
        Run::new(index, frame, length, order).unwrap()
    }

    fn build(pages: &[Page]) -> Result<Vec<Extent>, Errno> {
        let mut extents = Vec::new();
        let mut builder = RunBuilder::new(|run| {
            extents.extend(run.extents());
            Ok(())
        });
        for &(index, frame) in pages {
            builder.push(run(index, frame, 1, 0))?;
        }
        builder.finish()?;
        Ok(extents)
    }

    fn expand(extents: &[Extent]) -> Vec<Page> {
        extents
            .iter()
            .flat_map(|extent| {
                (0..extent.length()).map(move |page| (extent.index() + page, extent.frame() + page))
            })
            .collect()
    }

    /// No two extents could have been one.
    fn is_minimal(extents: &[Extent]) -> bool {
        extents.windows(2).all(|pair| {
            pair[0].end() != pair[1].index()
                || pair[0].frame() + pair[0].length() != pair[1].frame()
        })
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let extent =
            Extent::of_folios(0x0005_a5a5_a5a5_a5a0, 0xc3_c3c3_c3c0, 0x5555_5550, 4).unwrap();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(0x0005_a5a5_a5a5_a5a0u64 << 13 | 4 << 8 | 0x55).to_le_bytes());
        bytes[8..].copy_from_slice(&(0xc3_c3c3_c3c0u64 << 24 | 0x55_5550).to_le_bytes());
        assert_eq!(extent.as_bytes(), bytes);
    }

    #[test]
    fn the_limits_are_those_of_the_bits() {
        assert!(Extent::new(INDEX_END - 1, FRAME_END - 1, 1).is_some());
        assert!(Extent::new(INDEX_END, 1, 1).is_none());
        assert!(Extent::new(INDEX_END - 1, 1, 2).is_none());
        assert!(Extent::new(0, FRAME_END, 1).is_none());
        assert!(Extent::new(0, FRAME_END - 1, 2).is_none());
        assert!(Extent::new(0, 1, 0).is_none());
        assert!(Extent::new(0, 1, LENGTH_MAX).is_some());
        assert!(Extent::new(0, 1, LENGTH_MAX + 1).is_none());
        assert!(Extent::new(0, 0, 1).is_none());
        assert!(Extent::new(u64::MAX, 1, 1).is_none());
        assert!(Extent::new(0, u64::MAX, 1).is_none());
        assert!(Extent::new(0, 1, u64::MAX).is_none());
    }

    #[test]
    fn folios_are_whole_and_aligned() {
        assert!(Extent::of_folios(512, 1024, 1536, 9).is_some());
        assert!(Extent::of_folios(511, 1024, 512, 9).is_none());
        assert!(Extent::of_folios(512, 1025, 512, 9).is_none());
        assert!(Extent::of_folios(512, 1024, 513, 9).is_none());
        assert!(Extent::of_folios(512, 0, 512, 9).is_none());
        assert!(Extent::of_folios(0, 1 << 18, 1 << 18, ORDER_MAX).is_some());
        assert!(Extent::of_folios(0, 1 << 19, 1 << 19, ORDER_MAX + 1).is_none());
    }

    #[test]
    fn folios_of_another_order_are_another_extent() {
        let mut extents = Vec::new();
        let mut builder = RunBuilder::new(|run| {
            extents.extend(run.extents());
            Ok(())
        });
        builder.push(run(0, 1024, 512, 9)).unwrap();
        builder.push(run(512, 1536, 512, 9)).unwrap();
        builder.push(run(1024, 2048, 1, 0)).unwrap();
        builder.finish().unwrap();
        let expected = [
            Extent::of_folios(0, 1024, 1024, 9).unwrap(),
            Extent::new(1024, 2048, 1).unwrap(),
        ];
        assert_eq!(extents, expected);
    }

    #[test]
    fn a_folio_is_never_split() {
        let mut extents = Vec::new();
        let mut builder = RunBuilder::new(|run| {
            extents.extend(run.extents());
            Ok(())
        });
        builder.push(run(0, 512, 1 << 33, 9)).unwrap();
        builder.finish().unwrap();
        assert!(extents
            .iter()
            .all(|extent| extent.is_valid() && extent.order() == 9));
        assert_eq!(
            extents.iter().map(|extent| extent.length()).sum::<u64>(),
            1 << 33
        );
    }

    #[test]
    fn pages_that_go_back_are_refused() {
        assert_eq!(build(&[(5, 1), (5, 2)]), Err(Errno::EINVAL));
        assert_eq!(build(&[(5, 1), (4, 2)]), Err(Errno::EINVAL));
    }

    #[test]
    fn a_run_longer_than_an_extent_is_split() {
        let mut extents = Vec::new();
        let mut builder = RunBuilder::new(|run| {
            extents.extend(run.extents());
            Ok(())
        });
        builder.push(run(3, 9, 2 * LENGTH_MAX, 0)).unwrap();
        builder
            .push(run(3 + 2 * LENGTH_MAX, 9 + 2 * LENGTH_MAX, 7, 0))
            .unwrap();
        builder.finish().unwrap();
        let expected = [
            Extent::new(3, 9, LENGTH_MAX).unwrap(),
            Extent::new(3 + LENGTH_MAX, 9 + LENGTH_MAX, LENGTH_MAX).unwrap(),
            Extent::new(3 + 2 * LENGTH_MAX, 9 + 2 * LENGTH_MAX, 7).unwrap(),
        ];
        assert_eq!(extents, expected);
    }

    #[test]
    fn what_the_sink_says_is_told() {
        let mut builder = RunBuilder::new(|_| Err(Errno::ENOSPC));
        builder.push(run(0, 1, 1, 0)).unwrap();
        assert_eq!(builder.push(run(9, 1, 1, 0)), Err(Errno::ENOSPC));
    }

    #[test]
    fn a_dense_map_is_one_extent() {
        let pages: Vec<Page> = (0..10_000).map(|page| (page, 77 + page)).collect();
        assert_eq!(
            build(&pages).unwrap(),
            [Extent::new(0, 77, 10_000).unwrap()]
        );
    }

    prop_compose! {
        /// Ascending indices with holes, in frames that lie in order or anywhere.
        fn sparse_pages()(
            steps in prop::collection::vec((1u64..4, 1u64..40, any::<bool>()), 0..200)
        ) -> Vec<Page> {
            let (mut index, mut frame) = (0, 1);
            steps
                .into_iter()
                .map(|(step, elsewhere, in_order)| {
                    index += step;
                    frame = if in_order { frame + 1 } else { elsewhere };
                    (index, frame)
                })
                .collect()
        }
    }

    proptest! {
        #[test]
        fn an_extent_reads_back(
            index in 0..INDEX_END, frame in 0..FRAME_END, length in 0..=LENGTH_MAX
        ) {
            let fits = length > 0
                && index + length <= INDEX_END
                && frame > 0
                && frame + length <= FRAME_END;
            let extent = Extent::new(index, frame, length);
            prop_assert_eq!(extent.is_some(), fits);
            if let Some(extent) = extent {
                let found = (extent.index(), extent.frame(), extent.length());
                prop_assert_eq!(found, (index, frame, length));
                prop_assert!(extent.is_valid());
            }
        }

        #[test]
        fn any_bytes_are_an_extent_or_invalid(bytes: [u8; 16]) {
            let extent = Extent::read_from_bytes(&bytes).unwrap();
            let again = Extent::of_folios(
                extent.index(), extent.frame(), extent.length(), extent.order(),
            );
            prop_assert_eq!(extent.is_valid(), again.is_some());
            prop_assert!(again.is_none_or(|again| again == extent));
        }

        #[test]
        fn extents_expand_to_the_pages_they_were_built_from(pages in sparse_pages()) {
            let extents = build(&pages).unwrap();
            prop_assert!(is_minimal(&extents));
            prop_assert_eq!(expand(&extents), pages);
        }

        #[test]
        fn shuffled_frames_expand_as_well(
            frames in Just((1u64..300).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let pages: Vec<Page> = (0..).zip(frames).collect();
            let extents = build(&pages).unwrap();
            prop_assert!(is_minimal(&extents));
            prop_assert_eq!(expand(&extents), pages);
        }
    }
}
