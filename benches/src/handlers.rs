// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Handlers that do next to nothing, so that what is measured is the way to them.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, HandlerOps, Host, OwnedFile, Prepared,
    Preserved,
};

/// Takes every file and counts its private states.
///
/// Each of its calls can panic as far as a compiler knows, as with most handlers: otherwise the
/// catching of panics would be optimized away.
#[derive(Debug)]
pub struct Counting;

/// The [`Counting`] handler.
pub static COUNTING: Counting = Counting;

/// Its C form.
pub static COUNTING_OPS: HandlerOps = HandlerOps::of(&COUNTING, env!("CARGO_PKG_NAME"));

/// Private states that were dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// The private state of one file; as with most handlers, its drop does something.
#[derive(Debug)]
pub struct Counted(u64);

impl Drop for Counted {
    fn drop(&mut self) {
        // A plain load and store: nobody else counts, and a locked addition would outweigh a call.
        DROPPED.store(DROPPED.load(Ordering::Relaxed) + self.0, Ordering::Relaxed);
    }
}

fn number(file: FileRef<'_>) -> u64 {
    u64::try_from(file.as_raw()).expect("an open file")
}

impl FileHandler for Counting {
    const COMPATIBLE: Compatible = Compatible::new("counting-v1");
    type Private = Counted;

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        number(file) < u64::MAX
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        Some(number(file))
    }

    fn prepare(&self, file: FileRef<'_>, _: Host<'_>) -> Result<Prepared<Counted>, Errno> {
        Ok(Prepared {
            data: number(file),
            private: Counted(1),
        })
    }

    fn cancel(&self, file: Preserved<'_, Counted>) {
        let count = file.private.0.checked_add(file.data);
        file.private.0 = count.expect("a count that fits");
    }

    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn finish(&self, _: Crossed<'_>) {}
}

/// Retrieves files that were put there before, the last one first; `ENFILE` once they are used up.
#[derive(Debug)]
pub struct Stock(Mutex<Vec<OwnedFile>>);

/// The [`Stock`] handler.
pub static STOCK: Stock = Stock(Mutex::new(Vec::new()));

/// Its C form.
pub static STOCK_OPS: HandlerOps = HandlerOps::of(&STOCK, env!("CARGO_PKG_NAME"));

impl Stock {
    /// Has `files` and no others.
    pub fn fill(&self, files: impl IntoIterator<Item = OwnedFd>) {
        let mut stock = self.lock();
        stock.clear();
        stock.extend(files.into_iter().map(OwnedFile::from));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileHandler for Stock {
    const COMPATIBLE: Compatible = Compatible::new("stock-v1");
    type Private = ();

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        false
    }

    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn cancel(&self, _: Preserved<'_, ()>) {}

    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        self.lock().pop().ok_or(Errno::ENFILE)
    }

    fn finish(&self, _: Crossed<'_>) {}
}
