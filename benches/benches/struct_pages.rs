// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The least that a retrieve of huge pages can cost on this machine: writing to each `struct page`
//! of 16 GiB of memory what the kernel's `prep_compound_tail` and `set_page_count` write, and
//! nothing else. By one thread and by all processors: where memory is no faster for several, they
//! do not help. Divide by 16 for what a GiB costs.

use std::hint::black_box;
use std::thread;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};

/// Those of 16 GiB in base pages: 256 MiB, more than most caches hold.
const PAGES: usize = 16 << 18;

/// As the kernel's on 64 bits: a cache line. Fields that nobody writes to have no name.
#[derive(Clone, Default)]
#[repr(C, align(64))]
struct StructPage {
    flags: u64,
    compound_info: u64,
    _lru: u64,
    mapping: u64,
    _index: u64,
    private: u64,
    refcount: u64,
    _memcg_data: u64,
}

fn make_tails(pages: &mut [StructPage], head: u64) {
    for page in pages {
        page.refcount = 0;
        page.mapping = 0x400;
        page.compound_info = head | 1;
        page.private = 0;
    }
}

fn struct_pages(criterion: &mut Criterion) {
    // Written to, so that no page fault is measured.
    let mut pages = vec![StructPage::default(); PAGES];
    for page in &mut pages {
        page.flags = 1;
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut counts = vec![1, processors];
    counts.dedup();
    let mut group = criterion.benchmark_group("struct_pages");
    group.throughput(Throughput::Elements(PAGES as u64));
    group.sample_size(30);
    for threads in counts {
        group.bench_function(BenchmarkId::new("threads", threads), |b| {
            b.iter(|| {
                thread::scope(|scope| {
                    for part in pages.chunks_mut(PAGES.div_ceil(threads)) {
                        scope.spawn(move || make_tails(part, black_box(0x1000)));
                    }
                });
            });
        });
    }
    group.finish();
    black_box(&pages);
}

criterion_group!(benches, struct_pages);
criterion_main!(benches);
