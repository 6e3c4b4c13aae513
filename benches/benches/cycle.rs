// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A whole live update of small memfds, without the jump: offered, prepared, frozen, handed over to
//! this process, retrieved and finished, by number of files.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use luo_benches::{carry_over, memfd, raise_file_limit};
use luo_handler_api::Token;
use luo_handler_memfd as _; // links the handler in
use luo_orchestrator::error::Error;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;

const CONTENTS: &[u8] = &[0x5a; 4096];

/// Open files that each memfd needs: its own, the offered, the preserved and the one that crossed.
const DESCRIPTORS: usize = 4;

fn small_memfd(_: usize) -> File {
    let mut file = memfd("small");
    file.write_all(CONTENTS).expect("room for a page");
    file
}

fn update(registry: &Arc<Registry>, files: &[File]) -> Result<Orchestrator, Error> {
    let old = Orchestrator::new(registry.clone());
    for (token, file) in (0..).map(Token).zip(files) {
        old.preserve(token, file)?;
    }
    old.prepare()?;
    old.freeze()?;
    let arrival = carry_over(&old);
    old.depart();
    let new = Orchestrator::arrived(registry.clone(), arrival);
    for (token, _) in (0..).map(Token).zip(files) {
        black_box(new.retrieve(token)?);
    }
    let complaints = new.finish()?;
    assert!(complaints.is_empty(), "{complaints:?}");
    Ok(new)
}

fn cycle(criterion: &mut Criterion) {
    let registry = Arc::new(Registry::linked().expect("usable handlers"));
    let limit = raise_file_limit();
    let mut group = criterion.benchmark_group("cycle");
    for count in [1, 10, 100, 1000] {
        if count * DESCRIPTORS > limit {
            println!("{count} memfds need more open files than are allowed here: left out");
            continue;
        }
        let files: Vec<File> = (0..count).map(small_memfd).collect();
        group.throughput(Throughput::Elements(count as u64));
        if count == 1000 {
            group.sample_size(30);
        }
        group.bench_function(BenchmarkId::new("memfds", count), |b| {
            b.iter(|| update(&registry, &files).expect("an update"))
        });
    }
    group.finish();
}

criterion_group!(benches, cycle);
criterion_main!(benches);
