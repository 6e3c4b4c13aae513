// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Blocks of extents, written while a file is walked and read back from the last to the first.

use luo_handler_api::{crc32c, Errno, Host};

use crate::{
    extent::{Extent, Run, INDEX_BITS},
    wire::{
        little_endian::{U32, U64},
        FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    },
    words::{self, Decoder, Words},
};

/// Bytes of a full block: no more than a page. For several that lie together the kernel would end
/// processes, where memory is fragmented, rather than give up.
pub const BLOCK_LENGTH: usize = 4 << 10;

/// Bytes of the longest block that is read: that of earlier versions.
const LONGEST_BLOCK: usize = 32 << 10;

/// Words of a full block.
pub const BLOCK_WORDS: u32 = ((BLOCK_LENGTH - HEADER_LENGTH) / WORD_LENGTH) as u32;

/// What a block of [`words`] begins with.
pub const BLOCK_MAGIC: [u8; 4] = *b"mfdw";

/// What a block of extents in 16 bytes each begins with, as in records of an earlier layout.
pub const WHOLE_BLOCK_MAGIC: [u8; 4] = *b"mfdx";

const HEADER_LENGTH: usize = size_of::<BlockHeader>();
const EXTENT_LENGTH: usize = size_of::<Extent>();
const WORD_LENGTH: usize = size_of::<U32>();

/// Words that are read at once: 1 KiB, which a kernel stack has room for, so that reading and
/// releasing a chain needs no memory that it could fail to get.
const READ_AT_ONCE: usize = 256;

/// The beginning of a block; its extents follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockHeader {
    /// [`BLOCK_MAGIC`] or [`WHOLE_BLOCK_MAGIC`].
    pub magic: [u8; 4],
    /// CRC-32C of this header with this field as zero.
    pub checksum: U32,
    /// Number of extents, at least 1.
    pub count: U32,
    /// CRC-32C of what follows the header.
    pub extents_checksum: U32,
    /// Handle of the block with the extents before these; 0 in the first block.
    pub previous: U64,
    /// Index of the first page; 0 in a block of whole extents, which have their own.
    pub first: U64,
}

const _: () = assert!(HEADER_LENGTH == 32 && BLOCK_WORDS == 1016);

/// Extents as a record names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Handle of the block with the last extents; 0 if there are none.
    pub last_block: u64,
    /// Number of extents.
    pub extents: u64,
    /// Number of pages in all of them.
    pub pages: u64,
}

/// Fills blocks and has the host preserve each as soon as it is full.
pub(crate) struct ChainWriter<'a, B> {
    host: Host<'a>,
    /// Makes room for a block, its header included.
    make_buffer: &'a dyn Fn() -> Result<B, Errno>,
    /// Made for the first extent: a chain without any takes no memory.
    buffer: Option<B>,
    /// What is in the block so far: extents, words, and the index of the first page.
    count: u32,
    words: u32,
    first: u64,
    /// The place after the last extent.
    place: u64,
    /// What the host preserves.
    written: Chain,
}

/// The extents of a record, read from the host and checked one by one.
///
/// # Errors
///
/// `EBADMSG` for a checksum, `ENOENT` for a block that is not there, other errors of the host, and
/// `EINVAL` for anything else: a block of another length, an extent that is malformed, overlaps
/// another, is out of order, reaches beyond the size or the machine's memory, or splits a huge
/// page; counts that are not those of the record; a chain that goes in a circle.
#[derive(Clone, Copy, Debug)]
pub struct Extents<'h> {
    pub(crate) host: Host<'h>,
    pub(crate) chain: Chain,
    /// Size of the file in pages; no extent reaches beyond, but for the rest of a large folio.
    pub(crate) size_in_pages: u64,
    /// Pages that come together, a power of two: those of a huge page. 1 for base pages, which may
    /// come in folios of any order.
    pub(crate) unit: u64,
    /// Frames are below this number.
    pub(crate) frame_end: u64,
}

impl Chain {
    /// Whether a file with at most `most_pages` can have it, as far as its counts tell.
    pub(crate) const fn is_possible(&self, most_pages: u64) -> bool {
        let none = self.extents == 0 && self.pages == 0 && self.last_block == 0;
        let some = self.extents > 0 && self.extents <= self.pages && self.pages <= most_pages;
        none || some
    }

    /// Gives all blocks back. Stops at the first that is none or more than there should be: what
    /// follows is not known to belong to this chain.
    pub(crate) fn release(&self, host: Host<'_>) {
        for block in self.blocks(host).map_while(Result::ok) {
            host.release_bytes(block.handle);
        }
    }

    fn blocks<'h>(&self, host: Host<'h>) -> Blocks<'h> {
        Blocks {
            host,
            handle: self.last_block,
            left: self.extents,
        }
    }
}

/// A block whose header was checked.
struct Block {
    handle: u64,
    header: BlockHeader,
    words: u32,
}

/// Walks the blocks of a chain, from the last to the first. No chain is longer than its number of
/// extents, so one that goes in a circle ends.
struct Blocks<'h> {
    host: Host<'h>,
    /// Of the next block; 0 after the first one of the file.
    handle: u64,
    /// Extents that the next blocks have.
    left: u64,
}

impl Iterator for Blocks<'_> {
    type Item = Result<Block, Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let handle = self.handle;
        let block = Block::load(self.host, handle, self.left);
        (self.left, self.handle) = match &block {
            Ok(block) => (
                self.left - u64::from(block.header.count),
                block.header.previous.get(),
            ),
            Err(_) => (0, handle),
        };
        Some(block)
    }
}

impl Block {
    /// Reads the header of a block that has at most `left` extents.
    fn load(host: Host<'_>, handle: u64, left: u64) -> Result<Self, Errno> {
        let mut header = BlockHeader::new_zeroed();
        let length = host.bytes_len(handle)?;
        if length < HEADER_LENGTH as u64 {
            return Err(Errno::EINVAL);
        }
        host.read_bytes(handle, 0, header.as_mut_bytes())?;
        if ![BLOCK_MAGIC, WHOLE_BLOCK_MAGIC].contains(&header.magic) {
            return Err(Errno::EINVAL);
        }
        if header.checksum.get() != header.sum() {
            return Err(Errno::EBADMSG);
        }
        let words = (length - HEADER_LENGTH as u64) / WORD_LENGTH as u64;
        let count = u64::from(header.count);
        let has_room = match header.magic {
            BLOCK_MAGIC => count <= words && header.first.get() >> INDEX_BITS == 0,
            _ => words == count * (EXTENT_LENGTH / WORD_LENGTH) as u64 && header.first == U64::ZERO,
        };
        let sound = has_room
            && length % WORD_LENGTH as u64 == 0
            && length <= LONGEST_BLOCK as u64
            && (1..=left).contains(&count);
        if sound {
            Ok(Self {
                handle,
                header,
                words: words as u32,
            })
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn decoder(&self) -> Decoder {
        match self.header.magic {
            BLOCK_MAGIC => Decoder::new(self.header.first.get()),
            _ => Decoder::of_whole_extents(),
        }
    }
}

impl BlockHeader {
    /// Its checksum, whatever the field contains.
    fn sum(mut self) -> u32 {
        self.checksum = U32::ZERO;
        crc32c(0, self.as_bytes())
    }
}

/// Bytes of a block with `words` words.
const fn block_length(words: u32) -> usize {
    HEADER_LENGTH + words as usize * WORD_LENGTH
}

impl<'a, B: AsMut<[u8]>> ChainWriter<'a, B> {
    /// A writer for blocks in a buffer of [`BLOCK_LENGTH`] bytes.
    pub(crate) fn new(host: Host<'a>, make_buffer: &'a dyn Fn() -> Result<B, Errno>) -> Self {
        Self {
            host,
            make_buffer,
            buffer: None,
            count: 0,
            words: 0,
            first: 0,
            place: 0,
            written: Chain::default(),
        }
    }

    /// Adds `run`, which comes after all others.
    ///
    /// # Errors
    ///
    /// Those of the host and of the buffer, `EINVAL` if that is not as long as a block; the writer
    /// is of no use then but for [`abandon`](Self::abandon).
    #[inline]
    pub(crate) fn push(&mut self, run: Run) -> Result<(), Errno> {
        // The usual case where pages are scattered: a word, in a block that has room for it.
        let word = words::of_next_page(&run, self.place).filter(|_| self.count > 0);
        if word.is_some_and(|word| self.write_words(&word.to_le_bytes(), 1)) {
            return Ok(());
        }
        run.extents()
            .try_for_each(|extent| self.push_extent(extent))
    }

    fn push_extent(&mut self, extent: Extent) -> Result<(), Errno> {
        if self.count > 0 && !self.write(extent)? {
            self.flush()?;
        }
        if self.count == 0 {
            (self.first, self.place) = (extent.index(), extent.index());
            if !self.write(extent)? {
                return Err(Errno::EINVAL);
            }
        }
        Ok(())
    }

    /// Adds it to the block, if there is room.
    fn write(&mut self, extent: Extent) -> Result<bool, Errno> {
        if self.buffer.is_none() {
            self.buffer = Some((self.make_buffer)()?);
        }
        let words = Words::new(extent, self.place);
        self.place = extent.index();
        Ok(self.write_words(words.as_bytes(), extent.length()))
    }

    /// Adds the words of an extent of so many pages, if there is room.
    #[inline]
    fn write_words(&mut self, words: &[u8], pages: u64) -> bool {
        let place = block_length(self.words);
        let buffer = self.buffer.as_mut().map(AsMut::as_mut);
        let Some(room) = buffer.and_then(|buffer| buffer.get_mut(place..place + words.len()))
        else {
            return false;
        };
        room.copy_from_slice(words);
        self.count += 1;
        self.words += (words.len() / WORD_LENGTH) as u32;
        self.place += pages;
        self.written.pages += pages;
        true
    }

    /// Has the host preserve what is left.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub(crate) fn finish(&mut self) -> Result<Chain, Errno> {
        self.flush()?;
        Ok(self.written)
    }

    /// Gives back what the host preserves.
    pub(crate) fn abandon(self) {
        self.written.release(self.host);
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let Some(buffer) = self.buffer.as_mut().filter(|_| self.count > 0) else {
            return Ok(());
        };
        let block = &mut buffer.as_mut()[..block_length(self.words)];
        let (head, words) = block.split_at_mut(HEADER_LENGTH);
        let mut header = BlockHeader {
            magic: BLOCK_MAGIC,
            checksum: U32::ZERO,
            count: U32::new(self.count),
            extents_checksum: U32::new(crc32c(0, words)),
            previous: U64::new(self.written.last_block),
            first: U64::new(self.first),
        };
        header.checksum = U32::new(header.sum());
        head.copy_from_slice(header.as_bytes());
        self.written.last_block = self.host.preserve_bytes(block)?;
        self.written.extents += u64::from(self.count);
        (self.count, self.words) = (0, 0);
        Ok(())
    }
}

impl<'h> Extents<'h> {
    /// The same on a machine whose frames end before `frame_end`.
    pub fn within(self, frame_end: u64) -> Self {
        Self { frame_end, ..self }
    }

    /// Reads and checks all of them.
    ///
    /// # Errors
    ///
    /// As listed above.
    pub fn verify(&self) -> Result<(), Errno> {
        self.for_each(|_| Ok(()))
    }

    /// Shows each extent to `visit`: the blocks from the last to the first, the extents of a block
    /// in ascending order. The checksum of a block comes after its extents, so who cannot undo what
    /// `visit` does calls [`verify`](Self::verify) before.
    ///
    /// # Errors
    ///
    /// As listed above, and those of `visit`.
    pub fn for_each(&self, mut visit: impl FnMut(Run) -> Result<(), Errno>) -> Result<(), Errno> {
        let (mut pages, mut end) = (0, self.size_in_pages);
        let mut blocks = self.chain.blocks(self.host);
        while let Some(block) = blocks.next().transpose()? {
            end = self.for_each_of(&block, end, |run| {
                // Extents do not overlap and end within 2^51 pages, so the sum cannot overflow.
                pages += run.length();
                visit(run)
            })?;
        }
        // A chain without blocks has the handle 0 as well.
        if blocks.handle == 0 && pages == self.chain.pages {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Shows the places before `file_end` that no extent has: the first of each gap, and the one
    /// after its last. In the order of the blocks, as [`for_each`](Self::for_each).
    ///
    /// # Errors
    ///
    /// As listed above, and those of `visit`.
    pub fn for_each_gap(
        &self,
        file_end: u64,
        visit: &mut dyn FnMut(u64, u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut show = |first: u64, end: u64| match first < end {
            true => visit(first, end),
            false => Ok(()),
        };
        // Where the blocks after this one begin.
        let mut end = file_end;
        for block in self.chain.blocks(self.host) {
            let (mut first, mut free) = (None, 0);
            self.for_each_of(&block?, self.size_in_pages, |run| {
                let gap = first.is_some().then_some(free);
                first.get_or_insert(run.index());
                free = run.end();
                gap.map_or(Ok(()), |gap| show(gap, run.index()))
            })?;
            show(free, end)?;
            end = first.unwrap_or(end);
        }
        show(0, end)
    }

    /// Shows the extents of a block, which must end at or before the page `end`; yields the page
    /// that the first one begins with.
    fn for_each_of(
        &self,
        block: &Block,
        end: u64,
        mut visit: impl FnMut(Run) -> Result<(), Errno>,
    ) -> Result<u64, Errno> {
        let mut some = [U32::ZERO; READ_AT_ONCE];
        let mut decoder = block.decoder();
        let (mut done, mut count, mut crc) = (0, 0, 0);
        let (mut first, mut free) = (None, 0);
        while done < block.words {
            let some = &mut some[..READ_AT_ONCE.min((block.words - done) as usize)];
            let offset = block_length(done) as u64;
            self.host
                .read_bytes(block.handle, offset, some.as_mut_bytes())?;
            crc = crc32c(crc, some.as_bytes());
            for word in &*some {
                let Some(run) = decoder.push(word.get())? else {
                    continue;
                };
                count += 1;
                if count > block.header.count.get() {
                    return Err(Errno::EINVAL);
                }
                self.check(&run, free, end)?;
                visit(run)?;
                first.get_or_insert(run.index());
                free = run.end();
            }
            done += some.len() as u32;
        }
        if crc != block.header.extents_checksum.get() {
            return Err(Errno::EBADMSG);
        }
        let complete = decoder.is_complete() && count == block.header.count.get();
        first.filter(|_| complete).ok_or(Errno::EINVAL)
    }

    /// Whether `run` may lie between the pages `free` and `end`.
    #[inline]
    fn check(&self, run: &Run, free: u64, end: u64) -> Result<(), Errno> {
        let there = run.frame() + run.length() <= self.frame_end;
        // Index, frame and length are multiples of the order, by the run's own rules.
        let whole = self.unit == 1 || 1 << run.order() == self.unit;
        let placed = free <= run.index() && (run.end() <= end || self.is_last_folio(run, end));
        if there && whole && placed {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Whether `run` ends with a large folio of which the last page of the file is the first.
    fn is_last_folio(&self, run: &Run, end: u64) -> bool {
        end == self.size_in_pages && run.end() <= end.next_multiple_of(1 << run.order())
    }

    /// Bytes that the host keeps for them.
    ///
    /// # Errors
    ///
    /// As listed above.
    pub fn metadata_bytes(&self) -> Result<u64, Errno> {
        let mut bytes = 0;
        for block in self.chain.blocks(self.host) {
            bytes += block_length(block?.words) as u64;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::FRAME_END;
    use luo_handler_api::testing::FakeHost;
    use proptest::prelude::*;

    /// A chain of every other page, in blocks of `counts` extents.
    fn chain_of(host: &FakeHost, counts: &[u32]) -> Chain {
        let make_buffer = || Ok(vec![0; BLOCK_LENGTH]);
        let mut writer = ChainWriter::new(host.lend(), &make_buffer);
        let mut index = 0;
        for &count in counts {
            for _ in 0..count {
                writer
                    .push(Run::new(index, 1 + index, 1, 0).unwrap())
                    .unwrap();
                index += 2;
            }
            writer.finish().unwrap();
        }
        writer.finish().unwrap()
    }

    fn extents_of(host: &FakeHost, chain: Chain) -> Extents<'_> {
        Extents {
            host: host.lend(),
            chain,
            size_in_pages: 1 << 20,
            unit: 1,
            frame_end: FRAME_END,
        }
    }

    const BOTH: [[u8; 4]; 2] = [BLOCK_MAGIC, WHOLE_BLOCK_MAGIC];

    /// Makes the checksums of a block right, as a hostile writer would.
    fn reseal(bytes: &mut [u8]) {
        let (head, extents) = bytes.split_at_mut(HEADER_LENGTH);
        let mut header = BlockHeader::read_from_bytes(head).unwrap();
        header.extents_checksum = U32::new(crc32c(0, extents));
        header.checksum = U32::new(header.sum());
        head.copy_from_slice(header.as_bytes());
    }

    /// Changes a block, and writes it in the layout that `magic` names.
    fn change_block(
        host: &FakeHost,
        handle: u64,
        magic: [u8; 4],
        change: impl FnOnce(&mut BlockHeader, &mut [Extent]),
    ) {
        let block = Block::load(host.lend(), handle, u64::MAX).unwrap();
        let mut extents = Vec::new();
        let chain = Chain::default();
        extents_of(host, chain)
            .for_each_of(&block, 1 << 20, |run| {
                extents.extend(run.extents());
                Ok(())
            })
            .unwrap();
        let (mut header, mut place) = (block.header, extents[0].index());
        header.magic = magic;
        header.first = U64::new(if magic == BLOCK_MAGIC { place } else { 0 });
        change(&mut header, &mut extents);
        let mut bytes = header.as_bytes().to_vec();
        for extent in extents {
            if magic == BLOCK_MAGIC {
                bytes.extend(Words::new(extent, place).as_bytes());
                place = extent.end();
            } else {
                bytes.extend(extent.as_bytes());
            }
        }
        reseal(&mut bytes);
        host.replace(handle, &bytes);
    }

    /// Three blocks with the handles 1 to 3, in either layout; one is changed, with its checksums
    /// right.
    fn verify_changed(
        handle: u64,
        change: impl Fn(&mut BlockHeader, &mut [Extent]),
    ) -> Result<(), Errno> {
        let results = BOTH.map(|magic| {
            let host = FakeHost::default();
            let chain = chain_of(&host, &[3, 2, 4]);
            for other in 1..=3 {
                change_block(&host, other, magic, |_, _| ());
            }
            change_block(&host, handle, magic, &change);
            let result = extents_of(&host, chain).verify();
            chain.release(host.lend());
            result
        });
        assert_eq!(results[0], results[1]);
        results[0]
    }

    fn extent(index: u64, frame: u64, length: u64) -> Extent {
        Extent::new(index, frame, length).unwrap()
    }

    /// A page without a frame, as nobody but a hostile writer makes it.
    fn frame_zero(index: u64) -> Extent {
        let words = [index << 13, 1].map(u64::to_le_bytes);
        Extent::read_from_bytes(words.as_flattened()).unwrap()
    }

    fn bytes_as_extent(bytes: [u8; 16]) -> Extent {
        Extent::read_from_bytes(&bytes).unwrap()
    }

    #[test]
    fn an_unchanged_chain_is_fine() {
        assert_eq!(verify_changed(2, |_, _| ()), Ok(()));
    }

    macro_rules! hostile {
        ($($name:ident: block $handle:literal, $change:expr => $errno:ident;)*) => {
            $(#[test]
            fn $name() {
                assert_eq!(verify_changed($handle, $change), Err(Errno::$errno));
            })*
        };
    }

    hostile! {
        hostile_magic: block 1, |h, _| h.magic[0] = 0 => EINVAL;
        hostile_count_of_nothing: block 2, |h, _| h.count = U32::ZERO => EINVAL;
        hostile_count_beyond_the_block: block 2, |h, _| h.count = U32::new(3) => EINVAL;
        hostile_count_below_the_block: block 2, |h, _| h.count = U32::new(1) => EINVAL;
        hostile_count_of_all_ones: block 2, |h, _| h.count = U32::MAX_VALUE => EINVAL;
        hostile_previous_unknown: block 3, |h, _| h.previous = U64::new(77) => ENOENT;
        hostile_previous_of_all_ones: block 3, |h, _| h.previous = U64::MAX_VALUE => ENOENT;
        hostile_previous_is_itself: block 3, |h, _| h.previous = U64::new(3) => EINVAL;
        hostile_previous_goes_in_a_circle: block 2, |h, _| h.previous = U64::new(3) => EINVAL;
        hostile_previous_skips_a_block: block 3, |h, _| h.previous = U64::new(1) => ENOENT;
        hostile_previous_of_the_first: block 1, |h, _| h.previous = U64::new(9) => EINVAL;
        hostile_first: block 1, |h, _| h.first = U64::MAX_VALUE => EINVAL;
        hostile_extent_of_no_page: block 2, |_, e| e[0] = bytes_as_extent([0; 16]) => EINVAL;
        hostile_overlap_in_a_block: block 2, |_, e| e[0] = extent(6, 7, 3) => EINVAL;
        hostile_order_in_a_block: block 2, |_, e| e.swap(0, 1) => EINVAL;
        hostile_twice_the_same: block 2, |_, e| e[1] = e[0] => EINVAL;
        hostile_overlap_between_blocks: block 2, |_, e| e[1] = extent(8, 7, 3) => EINVAL;
        hostile_order_between_blocks: block 1, |_, e| e[2] = extent(100, 7, 1) => EINVAL;
        hostile_extent_beyond_the_size: block 3,
            |_, e| e[3] = extent(1 << 20, 7, 1) => EINVAL;
        hostile_extent_across_the_end: block 3,
            |_, e| e[3] = extent((1 << 20) - 1, 7, 2) => EINVAL;
        hostile_extent_at_the_end_of_time: block 3,
            |_, e| e[3] = extent((1 << 51) - 1, 7, 1) => EINVAL;
        hostile_frame: block 3, |_, e| e[3] = frame_zero(16) => EINVAL;
        hostile_number_of_pages: block 3, |_, e| e[3] = extent(16, 7, 2) => EINVAL;
    }

    #[test]
    fn hostile_extent_of_all_ones() {
        let change = |_: &mut BlockHeader, extents: &mut [Extent]| {
            extents[3] = bytes_as_extent([0xff; 16]);
        };
        assert_eq!(verify_changed(3, change), Err(Errno::EINVAL));
    }

    #[test]
    fn no_more_extents_are_shown_than_a_block_counts() {
        let host = FakeHost::default();
        let chain = chain_of(&host, &[4]);
        change_block(&host, 1, BLOCK_MAGIC, |h, _| h.count = U32::new(2));
        let chain = Chain {
            extents: 2,
            ..chain
        };
        let mut shown = 0;
        let read = extents_of(&host, chain).for_each(|_| {
            shown += 1;
            Ok(())
        });
        assert_eq!((read, shown), (Err(Errno::EINVAL), 2));
    }

    #[test]
    fn huge_pages_come_whole() {
        let host = FakeHost::default();
        let mut extents = extents_of(&host, chain_of(&host, &[1]));
        extents.unit = 512;
        assert_eq!(extents.verify(), Err(Errno::EINVAL));
        extents.chain.pages = 1024;
        for (order, expected) in [
            (9, Ok(())),
            (0, Err(Errno::EINVAL)),
            (8, Err(Errno::EINVAL)),
            (10, Err(Errno::EINVAL)),
        ] {
            let folios = Extent::of_folios(1024, 2048, 1024, order).unwrap();
            change_block(&host, 1, BLOCK_MAGIC, |_, e| e[0] = folios);
            assert_eq!(extents.verify(), expected, "order {order}");
        }
    }

    #[test]
    fn only_the_rest_of_a_folio_reaches_beyond_the_end() {
        let host = FakeHost::default();
        let mut extents = extents_of(&host, chain_of(&host, &[1]));
        extents.chain.pages = 512;
        let folio = Extent::of_folios(512, 1024, 512, 9).unwrap();
        change_block(&host, 1, BLOCK_MAGIC, |_, e| e[0] = folio);
        for (size_in_pages, expected) in [
            (512, Err(Errno::EINVAL)),
            (513, Ok(())),
            (1024, Ok(())),
            (0, Err(Errno::EINVAL)),
        ] {
            extents.size_in_pages = size_in_pages;
            assert_eq!(extents.verify(), expected, "{size_in_pages}");
        }
        let pages = Extent::new(512, 1024, 512).unwrap();
        change_block(&host, 1, BLOCK_MAGIC, |_, e| e[0] = pages);
        extents.size_in_pages = 513;
        assert_eq!(extents.verify(), Err(Errno::EINVAL));
    }

    #[test]
    fn frames_beyond_memory_are_refused() {
        let host = FakeHost::default();
        let mut extents = extents_of(&host, chain_of(&host, &[1]));
        extents.chain.pages = 3;
        change_block(&host, 1, BLOCK_MAGIC, |_, e| e[0] = extent(0, 100, 3));
        assert_eq!(extents.within(103).verify(), Ok(()));
        assert_eq!(extents.within(102).verify(), Err(Errno::EINVAL));
    }

    #[test]
    fn a_chain_without_extents_takes_no_memory() {
        let host = FakeHost::default();
        let no_memory = || Err::<Vec<u8>, _>(Errno::ENOMEM);
        let mut writer = ChainWriter::new(host.lend(), &no_memory);
        assert_eq!(writer.finish(), Ok(Chain::default()));
        let page = Run::new(0, 1, 1, 0).unwrap();
        assert_eq!(writer.push(page), Err(Errno::ENOMEM));
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let host = FakeHost::default();
        let chain = chain_of(&host, &[2, 2]);
        for handle in [1, 2] {
            let whole = host.bytes(handle);
            for bit in 0..whole.len() * 8 {
                let mut bytes = whole.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                host.replace(handle, &bytes);
                let errno = extents_of(&host, chain).verify().unwrap_err();
                assert!(
                    [Errno::EBADMSG, Errno::EINVAL].contains(&errno),
                    "bit {bit}"
                );
            }
            host.replace(handle, &whole);
        }
        assert_eq!(extents_of(&host, chain).verify(), Ok(()));
    }

    #[test]
    fn full_blocks_are_kept_at_once() {
        let host = FakeHost::default();
        // A word for the first of a block, and two for each of the others.
        let full = BLOCK_WORDS / 2;
        let chain = chain_of(&host, &[2 * full + 1]);
        assert_eq!(chain.extents, u64::from(2 * full + 1));
        let lengths: Vec<usize> = host.all_bytes().values().map(Vec::len).collect();
        assert_eq!(lengths, [BLOCK_LENGTH - 4, BLOCK_LENGTH - 4, 32 + 4]);
        let extents = extents_of(&host, chain);
        assert_eq!(extents.verify(), Ok(()));
        let kept = lengths.iter().sum::<usize>() as u64;
        assert_eq!(extents.metadata_bytes(), Ok(kept));
        chain.release(host.lend());
        assert!(host.is_empty());
    }

    #[test]
    fn gaps_are_what_no_extent_has() {
        let host = FakeHost::default();
        let extents = extents_of(&host, chain_of(&host, &[3, 2]));
        for (end, last) in [(9, None), (10, Some((9, 10))), (500, Some((9, 500)))] {
            let mut gaps = Vec::new();
            let mut visit = |first, end| {
                gaps.push((first, end));
                Ok(())
            };
            extents.for_each_gap(end, &mut visit).unwrap();
            gaps.sort_unstable();
            let mut expected = vec![(1, 2), (3, 4), (5, 6), (7, 8)];
            expected.extend(last);
            assert_eq!(gaps, expected);
        }
        change_block(&host, 1, BLOCK_MAGIC, |h, _| h.first = U64::new(1));
        let mut first = u64::MAX;
        let mut visit = |begin, _| {
            first = first.min(begin);
            Ok(())
        };
        extents.for_each_gap(9, &mut visit).unwrap();
        assert_eq!(first, 0, "a file may begin with a hole");
        let nothing = extents_of(&host, Chain::default());
        let mut all = None;
        let mut visit = |first, end| {
            all = Some((first, end));
            Ok(())
        };
        nothing.for_each_gap(7, &mut visit).unwrap();
        assert_eq!(all, Some((0, 7)));
    }

    #[test]
    fn release_touches_nothing_that_is_no_block() {
        let host = FakeHost::default();
        let other = host.lend().preserve_bytes(&[0; 96]).unwrap();
        let chain = Chain {
            last_block: other,
            extents: u64::MAX,
            pages: u64::MAX,
        };
        chain.release(host.lend());
        assert_eq!(host.bytes(other), [0; 96]);
    }

    proptest! {
        #[test]
        fn a_hostile_block_is_an_error_or_consistent(
            handle in 1u64..4,
            writes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
            resize in prop::option::of(0usize..400),
            seal: bool,
        ) {
            let host = FakeHost::default();
            let chain = chain_of(&host, &[3, 2, 4]);
            let mut bytes = host.bytes(handle);
            for (place, byte) in writes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Some(length) = resize {
                bytes.resize(length, 0);
            }
            if seal && bytes.len() >= HEADER_LENGTH {
                reseal(&mut bytes);
            }
            host.replace(handle, &bytes);
            let (mut count, mut pages) = (0, 0);
            let read = extents_of(&host, chain).for_each(|run| {
                count += 1;
                pages += run.length();
                Ok(())
            });
            prop_assert!(count <= chain.extents);
            if read.is_ok() {
                prop_assert_eq!((count, pages), (chain.extents, chain.pages));
            }
            chain.release(host.lend());
        }
    }
}
