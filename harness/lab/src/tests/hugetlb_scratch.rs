// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Huge pages that lie where the next kernel boots: they move, and where there is no other place
//! their file is refused.

use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use luo_bench::counters::moved_bytes;
use luo_bench::memory::{expect_meminfo, free_bytes};
use luo_handler_api::Token;
use luo_liveupdate::Device;
use luo_orchestrator::SharedMapping;
use rustix::fs::{fallocate, FallocateFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::tests::expect::expect_errno;
use crate::tests::held_open::HeldOpen;
use crate::tests::hugetlb::{huge_memfd, map, number, number_at, Counters, HUGE, POOL};

const SESSION: &str = "huge-scratch";
const TOKEN: Token = Token(1);
/// So many pages are left that have to move, and so many that may stay.
const LEFT: usize = 8;

/// The scratch memory of kexec handover.
fn scratch() -> Result<Vec<Range<u64>>> {
    const DIRECTORY: &str = "/sys/kernel/debug/kho/out";
    let numbers = |name: &str| -> Result<Vec<u64>> {
        let path = format!("{DIRECTORY}/{name}");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let number = |word: &str| match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        let numbers: Result<_, _> = text.split_whitespace().map(number).collect();
        numbers.with_context(|| format!("{path} has {text}"))
    };
    let starts = numbers("scratch_phys")?;
    let lengths = numbers("scratch_len")?;
    let areas = starts.into_iter().zip(lengths);
    Ok(areas.map(|(start, length)| start..start + length).collect())
}

/// Whether the first page of each huge page of a mapping lies in one of the ranges.
fn lie_in(mapping: &SharedMapping, ranges: &[Range<u64>]) -> Result<Vec<bool>> {
    const FRAME: u64 = (1 << 55) - 1;
    let page = rustix::param::page_size() as u64;
    // All at once: KASAN keeps what each read of it allocates and frees.
    let mut entries = vec![0_u64; mapping.len() / page as usize];
    let place = mapping.as_ptr() as u64 / page * size_of::<u64>() as u64;
    File::open("/proc/self/pagemap")?.read_exact_at(entries.as_mut_bytes(), place)?;
    let firsts = entries.iter().step_by((HUGE / page) as usize);
    firsts
        .enumerate()
        .map(|(number, entry)| {
            let place = (entry & FRAME) * page;
            ensure!(place != 0, "huge page {number} is not mapped");
            Ok(ranges.iter().any(|range| range.contains(&place)))
        })
        .collect()
}

/// Far more scratch memory than [`SPARED`], in a guest of any kernel.
pub(super) const PARAMETERS: &str = "kho_scratch=64M,1G,256M";
/// Bytes that are left outside of scratch memory, which the kernel itself cannot use: it does not
/// go on without any.
const SPARED: u64 = 384 << 20;
/// Huge pages by which the pool grows.
const STEP: u64 = 16;

/// Makes huge pages of all of memory; returns how many.
fn fill_memory() -> Result<u64> {
    free_bytes()?;
    let mut pages = 0;
    while expect_meminfo("MemFree:")? > expect_meminfo("CmaFree:")? + SPARED {
        pages += STEP;
        POOL.resize(pages)?;
    }
    Ok(pages)
}

/// With all of memory in huge pages there is no place to move some to; with less they move.
pub(super) fn preserve_from_scratch(held: &mut HeldOpen) -> Result<()> {
    let all = fill_memory()?;
    let file = huge_memfd("scratch", all)?;
    let mapping = map(&file, all)?;
    (0..all).for_each(|page| number(&mapping, page));
    let scratch = scratch()?;
    let in_scratch = lie_in(&mapping, &scratch)?;
    println!(
        "of {all} huge pages {} lie in scratch memory",
        in_scratch.iter().filter(|page| **page).count()
    );

    let session = Device::open()?.create_session(SESSION)?;
    let before = POOL.counters()?;
    let refused = session.preserve(TOKEN, file.as_fd());
    expect_errno(refused, Errno::NOMEM, "preserving all of memory")?;
    POOL.expect(before, "after that was refused")?;
    for page in 0..all {
        expect_number(&file, page)?;
    }

    let in_scratch = lie_in(&mapping, &scratch)?;
    let mut left = [0; 2];
    for (page, is_in_scratch) in (0..all).zip(in_scratch) {
        let left = &mut left[usize::from(is_in_scratch)];
        if *left < LEFT {
            *left += 1;
        } else {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, punch, page * HUGE, HUGE)?;
        }
    }
    ensure!(left == [LEFT; 2], "elsewhere and in scratch lie {left:?}");
    drop(mapping);
    POOL.resize(2 * LEFT as u64)?;
    let (before, moved) = (POOL.counters()?, moved_bytes()?);
    session.preserve(TOKEN, file.as_fd())?;
    let moved = moved_bytes()? - moved;
    ensure!(
        moved == LEFT as u64 * HUGE,
        "{moved} bytes of {LEFT} huge pages were moved"
    );
    POOL.expect(before, "after some were moved")?;
    held.hold(&session)
}

fn expect_number(file: &File, page: u64) -> Result<()> {
    let found = number_at(file, page)?;
    ensure!(found == page + 1, "huge page {page} holds {found}");
    Ok(())
}

pub(super) fn take_moved(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(SESSION)?;
    let file = File::from(session.retrieve(TOKEN)?);
    POOL.expect(Counters::of_files(2 * LEFT as u64), "with what crossed")?;
    let mut pages = 0;
    for page in 0..file.metadata()?.len() / HUGE {
        if number_at(&file, page)? != 0 {
            expect_number(&file, page)?;
            pages += 1;
        }
    }
    ensure!(pages == 2 * LEFT, "{pages} huge pages have a number");
    Ok(session.finish()?)
}
