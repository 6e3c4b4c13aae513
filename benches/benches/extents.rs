// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Pages merged into extents: maps of 1 GiB in pages of 4 KiB.

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use fastrand::Rng;
use luo_handler_api::Errno;
use luo_handler_memfd::{Extent, Run, RunBuilder};

const PAGES: u64 = 262_144;
const FIRST_FRAME: u64 = 1 << 20;

/// A page's index in its file, and its frame.
type Page = (u64, u64);

/// All in order: one extent.
fn dense() -> Vec<Page> {
    (0..PAGES).zip(FIRST_FRAME..).collect()
}

/// Each twentieth page or so, in frames that follow each other: nearly an extent a page.
fn sparse() -> Vec<Page> {
    let mut random = Rng::with_seed(1);
    (0..PAGES)
        .filter(|_| random.u32(..100) < 5)
        .zip(FIRST_FRAME..)
        .collect()
}

/// Every page, in frames that are permuted: an extent a page.
fn shuffled() -> Vec<Page> {
    let mut frames: Vec<u64> = (FIRST_FRAME..FIRST_FRAME + PAGES).collect();
    Rng::with_seed(2).shuffle(&mut frames);
    (0..PAGES).zip(frames).collect()
}

fn extents(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("extents");
    for (name, pages) in [
        ("dense", dense()),
        ("sparse", sparse()),
        ("shuffled", shuffled()),
    ] {
        let mut extents: Vec<Extent> = Vec::with_capacity(pages.len());
        group.throughput(Throughput::Elements(pages.len() as u64));
        group.bench_function(BenchmarkId::new(name, pages.len()), |b| {
            b.iter(|| {
                extents.clear();
                let mut builder = RunBuilder::new(|run| {
                    extents.extend(run.extents());
                    Ok(())
                });
                for &(index, frame) in black_box(&pages) {
                    let run = Run::new(index, frame, 1, 0).ok_or(Errno::EINVAL)?;
                    builder.push(run)?;
                }
                builder.finish()
            })
        });
    }
    group.finish();
}

criterion_group!(benches, extents);
criterion_main!(benches);
