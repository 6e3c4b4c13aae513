// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A service that stores numbers into the pages of a memfd until the jump: systemd neither stops
//! nor kills it. After the jump every page up to its counter has to hold its number.
//!
//! The counter is at the beginning of the first page. After it come the number of the page at which
//! systemd-shutdown had taken over, and the time of the last store.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{fence, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use luo_orchestrator::transport::fdstore::FdStore;
use luo_orchestrator::SharedMapping;
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::time::{clock_gettime, ClockId};
use sd_notify::NotifyState;

use crate::systemd::client::{keep, ready, report, rest};
use crate::systemd::found::{Found, FoundFile};

pub(super) const UNIT: &str = "luo-writer";
const NAME: &str = "pages";

const PAGE: u64 = 4096;
const PAGES: u64 = (1 << 30) / PAGE;
/// Most pages have to be left when the machine goes down, and holes when the jump comes.
const LEISURELY: Duration = Duration::from_millis(20);
const FAST: Duration = Duration::from_micros(100);
/// What the first process is called. systemd-shutdown has its own name.
const FIRST_PROCESS: &str = "/proc/1/comm";

const AT_SHUTDOWN: u64 = 8;
const LAST_STORE: u64 = 16;

/// Compares what came back, and begins again.
pub(super) fn serve() -> Result<()> {
    let passed = FdStore::open("unused")?.others();
    let arrived = passed.into_iter().find(|(name, _)| name == NAME);
    let has_arrived = arrived.is_some();
    let (differences, remarks) = match arrived {
        Some((_, file)) => compare(&File::from(file))?,
        None => (Vec::new(), Vec::new()),
    };
    let remove = [NotifyState::FdStoreRemove, NotifyState::FdName(NAME)];
    sd_notify::notify(&remove).context("removing what came back")?;
    let file = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC)?);
    file.set_len(PAGES * PAGE)?;
    keep(NAME, &file)?;
    report(Found {
        unit: UNIT.into(),
        has_arrived,
        files: vec![FoundFile::new(NAME, differences)],
        remarks,
    })?;
    ready()?;
    write(&file)?;
    // It is too late for a report; that the counter is at its end is found after the jump.
    rest()
}

fn write(file: &File) -> Result<()> {
    let mapping = SharedMapping::new(file, 0..PAGES * PAGE).context("mapping the memfd")?;
    let first_process = File::open(FIRST_PROCESS)?;
    let systemd = name_in(&first_process)?;
    let mut pace = LEISURELY;
    for page in 1..PAGES {
        let number = page.to_le_bytes();
        mapping.write((page * PAGE) as usize, &number);
        fence(Ordering::SeqCst);
        mapping.write(0, &number);
        mapping.write(LAST_STORE as usize, &now_ms().to_le_bytes());
        if pace == LEISURELY && name_in(&first_process)? != systemd {
            mapping.write(AT_SHUTDOWN as usize, &number);
            pace = FAST;
        }
        sleep(pace);
    }
    Ok(())
}

fn name_in(file: &File) -> Result<Vec<u8>> {
    let mut name = vec![0; 32];
    let length = file.read_at(&mut name, 0)?;
    name.truncate(length);
    Ok(name)
}

/// By the clock that the kernel's messages have as well.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// What is not as it should be, and how far it came.
fn compare(file: &File) -> Result<(Vec<String>, Vec<String>)> {
    let number_at = |offset: u64| -> Result<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let (counter, at_shutdown) = (number_at(0)?, number_at(AT_SHUTDOWN)?);
    let mut differences = Vec::new();
    let mut lost = Vec::new();
    for page in 1..=counter {
        if number_at(page * PAGE)? != page {
            lost.push(page);
        }
    }
    if let Some(first) = lost.first() {
        let count = lost.len();
        differences.push(format!(
            "{count} of {counter} pages are lost, from page {first} on"
        ));
    }
    if at_shutdown == 0 || counter == at_shutdown {
        differences.push("the writer was killed before the jump".into());
    }
    if counter + 1 >= PAGES {
        differences.push("the writer was at its end before the jump".into());
    }
    let last = number_at(LAST_STORE)?;
    let remark = format!(
        "{counter} pages, {} of them since systemd-shutdown began, the last at {}.{:03} s",
        counter.saturating_sub(at_shutdown),
        last / 1000,
        last % 1000
    );
    Ok((differences, vec![remark]))
}
