// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a call through `HandlerOps` costs, against a direct call and against `dyn`.
//!
//! Each way does the same work for the same handler; `prepare+cancel` makes room for the private
//! state, fills it, lends it to cancel and drops it. The way by `HandlerOps` is the one of a host,
//! with panics caught and answers checked; the others do neither. Every question ends in the same
//! plain answer, and what is prepared lies in memory until it is cancelled, as in a host.

use std::fs::File;
use std::hint::black_box;
use std::os::fd::AsFd;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use luo_benches::handlers::{Counting, COUNTING, COUNTING_OPS};
use luo_handler_api::hosted::Handler;
use luo_handler_api::{Errno, FileHandler, FileRef, Host, Prepared, Preserved};
use luo_orchestrator::outgoing::Outgoing;

/// [`FileHandler`] as it would be if hosts called handlers by `dyn`.
trait DynHandler {
    fn can_preserve(&self, file: FileRef<'_>) -> bool;
    fn file_id(&self, file: FileRef<'_>) -> Option<u64>;
    fn prepare(
        &'static self,
        file: FileRef<'_>,
        host: Host<'_>,
    ) -> Result<Box<dyn DynPrepared>, Errno>;
}

/// A prepared file of a [`DynHandler`], with its private state.
trait DynPrepared {
    fn cancel(&mut self, file: FileRef<'_>, host: Host<'_>);
}

struct PreparedBy<T: FileHandler> {
    handler: &'static T,
    prepared: Prepared<T::Private>,
}

impl<T: FileHandler> DynHandler for T {
    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        FileHandler::can_preserve(self, file)
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        FileHandler::file_id(self, file)
    }

    fn prepare(
        &'static self,
        file: FileRef<'_>,
        host: Host<'_>,
    ) -> Result<Box<dyn DynPrepared>, Errno> {
        Ok(Box::new(PreparedBy {
            handler: self,
            prepared: FileHandler::prepare(self, file, host)?,
        }))
    }
}

impl<T: FileHandler> DynPrepared for PreparedBy<T> {
    fn cancel(&mut self, file: FileRef<'_>, host: Host<'_>) {
        self.handler.cancel(Preserved {
            file,
            data: self.prepared.data,
            private: &mut self.prepared.private,
            host,
        });
    }
}

/// The private state is boxed here too: in a host it lives longer than a stack frame.
fn prepare_and_cancel(handler: &Counting, file: FileRef<'_>, host: Host<'_>) -> Result<(), Errno> {
    let mut prepared = Box::new(FileHandler::prepare(handler, file, host)?);
    handler.cancel(Preserved {
        file,
        data: prepared.data,
        private: &mut black_box(&mut prepared).private,
        host,
    });
    Ok(())
}

fn handler_call(criterion: &mut Criterion) {
    let opened = File::open("/dev/null").expect("/dev/null");
    let (fd, file) = (opened.as_fd(), FileRef::from(opened.as_fd()));
    let outgoing = Outgoing::default();
    let host = Host::new(&outgoing);

    let direct = &COUNTING;
    let dynamic: &'static dyn DynHandler = &COUNTING;
    let ops = &Handler::new(&COUNTING_OPS).expect("a usable handler");

    let mut group = criterion.benchmark_group("handler_call");
    let by = BenchmarkId::new;

    group.bench_function(by("can_preserve", "direct"), |b| {
        b.iter(|| FileHandler::can_preserve(black_box(direct), black_box(file)))
    });
    group.bench_function(by("can_preserve", "dyn"), |b| {
        b.iter(|| black_box(dynamic).can_preserve(black_box(file)))
    });
    group.bench_function(by("can_preserve", "HandlerOps"), |b| {
        b.iter(|| black_box(ops).can_preserve(black_box(fd)) == Ok(true))
    });

    group.bench_function(by("file_id", "direct"), |b| {
        b.iter(|| FileHandler::file_id(black_box(direct), black_box(file)).unwrap_or(0))
    });
    group.bench_function(by("file_id", "dyn"), |b| {
        b.iter(|| black_box(dynamic).file_id(black_box(file)).unwrap_or(0))
    });
    group.bench_function(by("file_id", "HandlerOps"), |b| {
        b.iter(|| {
            let id = black_box(ops).file_id(black_box(fd));
            id.unwrap_or(None).unwrap_or(0)
        })
    });

    group.bench_function(by("prepare+cancel", "direct"), |b| {
        b.iter(|| prepare_and_cancel(black_box(direct), black_box(file), black_box(host)))
    });
    group.bench_function(by("prepare+cancel", "dyn"), |b| {
        b.iter(|| {
            let mut prepared = black_box(dynamic).prepare(black_box(file), black_box(host))?;
            black_box(&mut prepared).cancel(black_box(file), black_box(host));
            Ok::<_, Errno>(())
        })
    });
    group.bench_function(by("prepare+cancel", "HandlerOps"), |b| {
        b.iter(|| {
            let mut prepared = black_box(ops).prepare(black_box(fd), black_box(host))?;
            black_box(&mut prepared);
            prepared.cancel(black_box(fd), black_box(host))
        })
    });
    group.finish();
}

criterion_group!(benches, handler_call);
criterion_main!(benches);
