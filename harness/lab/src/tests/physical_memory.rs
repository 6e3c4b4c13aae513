// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! All of the machine's memory, through `/dev/mem`.

use std::fs::{read_to_string, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The memory of a kernel that does not protect it.
pub(crate) struct PhysicalMemory(File);

impl PhysicalMemory {
    pub(crate) fn open() -> Result<Self> {
        let memory = File::options().read(true).write(true).open("/dev/mem");
        let memory = memory.context("opening the machine's memory; it takes CONFIG_DEVMEM")?;
        Ok(Self(memory))
    }

    pub(crate) fn load<T: FromBytes + IntoBytes>(&self, at: u64) -> Result<T> {
        let mut value = T::new_zeroed();
        self.0
            .read_exact_at(value.as_mut_bytes(), at)
            .with_context(|| format!("reading memory at {at:#x}"))?;
        Ok(value)
    }

    pub(crate) fn store<T: IntoBytes + Immutable + ?Sized>(
        &self,
        at: u64,
        value: &T,
    ) -> Result<()> {
        self.0
            .write_all_at(value.as_bytes(), at)
            .with_context(|| format!("writing memory at {at:#x}"))
    }

    /// So many bytes.
    pub(crate) fn load_bytes(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("reading {length} bytes of memory at {at:#x}"))?;
        Ok(bytes)
    }

    /// Where memory is.
    pub(crate) fn ranges(&self) -> Result<Vec<Range<u64>>> {
        let iomem = read_to_string("/proc/iomem").context("reading where memory is")?;
        Ok(ram(&iomem).collect())
    }

    /// The addresses of all pages that are memory as a whole.
    pub(crate) fn pages(&self) -> Result<impl Iterator<Item = u64>> {
        let page = rustix::param::page_size() as u64;
        let numbers = self
            .ranges()?
            .into_iter()
            .flat_map(move |range| range.start.div_ceil(page)..range.end / page);
        Ok(numbers.map(move |number| number * page))
    }
}

/// The ranges of memory that `/proc/iomem` lists.
fn ram(iomem: &str) -> impl Iterator<Item = Range<u64>> + '_ {
    iomem.lines().filter_map(|line| {
        let (first, last) = line.strip_suffix(" : System RAM")?.split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(number(first)?..number(last)? + 1)
    })
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn memory_is_what_iomem_calls_so() {
        let iomem = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n  \
                     00002000-00002fff : Kernel code\n\
                     100000000-13fffffff : System RAM\n";
        let found: Vec<_> = ram(iomem).collect();
        assert_eq!(found, [0x1000..0x9fc00, 0x1_0000_0000..0x1_4000_0000]);
    }
}
