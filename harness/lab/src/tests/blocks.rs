// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Blocks of the extents of a memfd, as they lie in memory: read, changed, and signed again.

use anyhow::{Context, Result};
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

use crate::tests::physical_memory::PhysicalMemory;
use crate::tests::records::{
    memory_of, sign_memfd_block, MemfdBlock, MemfdDecoder, MemfdExtent, MemfdRecord,
};

/// The blocks of the record with the handle `data`, from the last on: their handles.
pub(super) fn blocks_of(memory: &PhysicalMemory, data: u64) -> Result<Vec<u64>> {
    let record: MemfdRecord = memory.load(memory_of(data).0)?;
    let mut blocks = Vec::new();
    let mut handle = record.chain.last_block.get();
    while handle != 0 {
        blocks.push(handle);
        let block: MemfdBlock = memory.load(memory_of(handle).0)?;
        handle = block.previous.get();
    }
    Ok(blocks)
}

pub(super) struct Block {
    at: u64,
    pub(super) header: MemfdBlock,
    pub(super) words: Vec<U32>,
}

impl Block {
    pub(super) fn load(memory: &PhysicalMemory, handle: u64) -> Result<Self> {
        let (at, length) = memory_of(handle);
        let bytes = memory.load_bytes(at, length as usize)?;
        let words = bytes[size_of::<MemfdBlock>()..].chunks_exact(4);
        let words = words.map(|word| U32::from_bytes(word.try_into().expect("four bytes")));
        Ok(Self {
            at,
            header: memory.load(at)?,
            words: words.collect(),
        })
    }

    /// The first extent that is wanted, and the place of its last word, which ends with the frame.
    pub(super) fn find(
        &self,
        wanted: impl Fn(&MemfdExtent) -> bool,
    ) -> Result<(usize, MemfdExtent)> {
        let mut decoder = MemfdDecoder::new(self.header.first.get());
        for (place, word) in self.words.iter().enumerate() {
            let run = decoder.push(word.get())?;
            let extent = run.and_then(|run| run.extents().next());
            if let Some(extent) = extent.filter(&wanted) {
                return Ok((place, extent));
            }
        }
        anyhow::bail!("a block at {:#x} has no such extent", self.at)
    }

    /// Changes the first extent of large folios, which come whole.
    pub(super) fn change_folios(
        &mut self,
        change: impl FnOnce(MemfdExtent) -> Option<MemfdExtent>,
    ) -> Result<()> {
        let (last, extent) = self.find(|extent| extent.order() > 0)?;
        let changed = change(extent).context("what it is changed to is an extent")?;
        let words = size_of::<MemfdExtent>() / size_of::<U32>();
        let whole = &mut self.words[last + 1 - words..=last];
        whole.as_mut_bytes().copy_from_slice(changed.as_bytes());
        Ok(())
    }

    pub(super) fn store(mut self, memory: &PhysicalMemory) -> Result<()> {
        sign_memfd_block(&mut self.header, self.words.as_bytes());
        memory.store(self.at, &self.header)?;
        memory.store(self.at + size_of::<MemfdBlock>() as u64, &self.words[..])
    }
}
