// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The devicetree that crosses: written, read, and read with every file restored from it.
//!
//! `restore` is a new side's whole work: the orchestrator arrives, reads the devicetree and
//! retrieves every file. Its handler returns files that were opened before the clock started, so
//! its own work, which `handler alone` shows, is a lock and a pop. Closing the files is not
//! measured either.
//!
//! A process may have fewer files open than the largest set has. `restore/files` then ends at as
//! many as it may; `restore/refused` always has all of them, with a handler that fails: the same
//! way, the file itself left out.

use std::fs::File;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use criterion::measurement::WallTime;
use criterion::{
    criterion_group, criterion_main, BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput,
};
use fastrand::Rng;
use luo_benches::handlers::{Stock, STOCK, STOCK_OPS};
use luo_benches::{arrival, raise_file_limit, FILES};
use luo_handler_api::{FileHandler, Host, Token};
use luo_orchestrator::devicetree::{decode, encode, FileEntry, Tree};
use luo_orchestrator::handover::Arrival;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::outgoing::Outgoing;
use luo_orchestrator::registry::Registry;

/// Files with tokens from all over, which make the longest names and the poorest locality.
fn tree(files: usize) -> Tree {
    let mut random = Rng::with_seed(files as u64);
    let entry = |data| FileEntry {
        token: Token(random.u64(..)),
        compatible: Stock::COMPATIBLE,
        data,
    };
    Tree {
        update_number: 1,
        files: (0..files as u64).map(entry).collect(),
        subsystems: Vec::new(),
    }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("devicetree");
    for files in FILES {
        let tree = tree(files);
        let blob = encode(&tree).expect("a devicetree");
        sized(&mut group, files);
        group.bench_function(BenchmarkId::new("encode", files), |b| {
            b.iter(|| encode(black_box(&tree)))
        });
        group.bench_function(BenchmarkId::new("decode", files), |b| {
            b.iter(|| decode(black_box(&blob)))
        });
    }
    group.finish();
}

fn restore(criterion: &mut Criterion) {
    let registry = Arc::new(Registry::new());
    registry.register(&STOCK_OPS).expect("a usable handler");
    let limit = raise_file_limit();
    let mut group = criterion.benchmark_group("restore");
    for files in FILES {
        let stocked = files.min(limit);
        if stocked < files {
            println!("{files} open files are not allowed here: {stocked} are used instead");
        }
        sized(&mut group, stocked);
        let tree_of_stocked = tree(stocked);
        group.bench_function(BenchmarkId::new("files", stocked), |b| {
            b.iter_batched(
                || {
                    STOCK.fill(null_files(stocked));
                    arrival_of(&tree_of_stocked)
                },
                |arrival| {
                    let update = Orchestrator::arrived(registry.clone(), arrival);
                    for entry in &tree_of_stocked.files {
                        black_box(update.retrieve(entry.token)).expect("a file");
                    }
                    update
                },
                BatchSize::PerIteration,
            )
        });
        let outgoing = Outgoing::default();
        group.bench_function(BenchmarkId::new("handler alone", stocked), |b| {
            b.iter_batched(
                || {
                    STOCK.fill(null_files(stocked));
                    Vec::with_capacity(stocked)
                },
                |mut retrieved| {
                    for data in 0..stocked as u64 {
                        retrieved.push(STOCK.retrieve(black_box(data), Host::new(&outgoing)));
                    }
                    retrieved
                },
                BatchSize::PerIteration,
            )
        });
        STOCK.fill([]);
        let tree = tree(files);
        sized(&mut group, files);
        group.bench_function(BenchmarkId::new("refused", files), |b| {
            b.iter_batched(
                || arrival_of(&tree),
                |arrival| {
                    let update = Orchestrator::arrived(registry.clone(), arrival);
                    for entry in &tree.files {
                        black_box(update.retrieve(entry.token)).expect_err("no file");
                    }
                    update
                },
                BatchSize::PerIteration,
            )
        });
    }
    group.finish();
}

fn null_files(count: usize) -> impl Iterator<Item = OwnedFd> {
    let null = OwnedFd::from(File::open("/dev/null").expect("/dev/null"));
    (0..count).map(move |_| null.try_clone().expect("another /dev/null"))
}

fn arrival_of(tree: &Tree) -> Arrival {
    arrival(encode(tree).expect("a devicetree"))
}

/// Elements to count, and fewer samples of what takes long.
fn sized(group: &mut BenchmarkGroup<'_, WallTime>, files: usize) {
    group.throughput(Throughput::Elements(files as u64));
    group.sample_size(if files < 10_000 { 100 } else { 20 });
}

criterion_group!(benches, codec, restore);
criterion_main!(benches);
