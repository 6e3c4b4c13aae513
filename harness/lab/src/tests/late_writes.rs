// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Stores that come while the kernel is on its way into the next one: no store may be half
//! preserved.
//!
//! A writer stores a number in one page after the other and then its place in the first page, which
//! was there before. After the jump each page up to that one must hold its number.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::kexec;
use luo_liveupdate::{Device, Session};
use luo_orchestrator::SharedMapping;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::tests::expect::expect_refused_jump;
use crate::tests::failing_freeze::spoil;
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::allow_huge_pages;

const PAGE: u64 = 4096;
const PAGES: u64 = (256 << 20) / PAGE;
/// Between two stores, so that holes are left when the jump comes, however slow the guest is.
const LEISURE: Duration = Duration::from_millis(2);
/// The same from shortly before the jump on, so that many stores come at its last moments.
const HURRY: Duration = Duration::from_micros(10);
static IN_A_HURRY: AtomicBool = AtomicBool::new(false);
/// So many pages are written before anything else happens.
const BEGUN: u64 = 64;

/// How a writer stores its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Mapping,
    /// Through a mapping with huge pages.
    HugePages,
    /// A read brings the page, then comes the store.
    ReadFirst,
    Pwrite,
    /// Into two files by turns.
    TwoFiles,
}

/// A session each, and a writer.
const WRITERS: [(&str, Way); 5] = [
    ("late-mapping", Way::Mapping),
    ("late-huge-pages", Way::HugePages),
    ("late-read-first", Way::ReadFirst),
    ("late-pwrite", Way::Pwrite),
    ("late-two-files", Way::TwoFiles),
];
const FIRST: Token = Token(1);
const SECOND: Token = Token(2);

fn sized_memfd() -> Result<File> {
    let file = File::from(rustix::fs::memfd_create("late", MemfdFlags::CLOEXEC)?);
    file.set_len(PAGES * PAGE)?;
    Ok(file)
}

fn map(file: &File) -> Result<SharedMapping> {
    SharedMapping::new(file, 0..PAGES * PAGE).context("mapping a memfd")
}

fn place(page: u64) -> usize {
    (page * PAGE) as usize
}

fn number_at(file: &File, page: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, page * PAGE)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Until it succeeds: a task that waits in kernel mode is refused after some seconds
/// (`shmem.patch`), and in a slow guest a jump takes longer than that.
fn insist(mut store: impl FnMut() -> io::Result<()>) {
    while let Err(error) = store() {
        let refused = [Errno::BUSY, Errno::FAULT].map(|errno| Some(errno.raw_os_error()));
        assert!(refused.contains(&error.raw_os_error()), "{error}");
    }
}

fn pause() {
    if !IN_A_HURRY.load(Ordering::Relaxed) {
        return thread::sleep(LEISURE);
    }
    let begun = Instant::now();
    while begun.elapsed() < HURRY {
        std::hint::spin_loop();
    }
}

impl Way {
    /// The memfd that the progress is in, and the other one if there are two.
    fn files(self) -> Result<(File, Option<File>)> {
        let first = sized_memfd()?;
        // This page is there from the start.
        first.write_all_at(&[0; 8], 0)?;
        let second = (self == Self::TwoFiles).then(sized_memfd).transpose()?;
        Ok((first, second))
    }

    fn begin(self, session: &Session) -> Result<Writer> {
        let (first, second) = self.files()?;
        session.preserve(FIRST, first.as_fd())?;
        if let Some(second) = &second {
            session.preserve(SECOND, second.as_fd())?;
        }
        let progress = map(&first)?;
        let mapping = map(second.as_ref().unwrap_or(&first))?;
        if self == Self::HugePages {
            mapping
                .advise(0..(PAGES * PAGE) as usize, Advice::LinuxHugepage)
                .context("asking for huge pages")?;
        }
        let file = first.try_clone()?;
        thread::spawn(move || {
            for page in 1..PAGES {
                let number = page.to_le_bytes();
                match self {
                    Self::Pwrite => insist(|| file.write_all_at(&number, page * PAGE)),
                    Self::TwoFiles if page % 2 == 0 => progress.write(place(page), &number),
                    Self::ReadFirst => {
                        let bytes = place(page)..place(page + 1);
                        insist(|| mapping.advise(bytes.clone(), Advice::LinuxPopulateRead));
                        mapping.write(place(page), &number);
                    }
                    _ => mapping.write(place(page), &number),
                }
                fence(Ordering::SeqCst);
                progress.write(0, &number);
                fence(Ordering::SeqCst);
                pause();
            }
        });
        let writer = Writer { progress: first };
        writer.wait_for(BEGUN)?;
        Ok(writer)
    }

    /// Compares what came back.
    fn compare(self, session: &Session) -> Result<()> {
        let first = File::from(session.retrieve(FIRST)?);
        let second = match self {
            Self::TwoFiles => Some(File::from(session.retrieve(SECOND)?)),
            _ => None,
        };
        let progress = number_at(&first, 0)?;
        ensure!(
            (BEGUN..PAGES - 1).contains(&progress),
            "the writer was at page {progress}: it has to be at work when the jump comes"
        );
        let mut lost = 0;
        for page in 1..=progress {
            let file = match &second {
                Some(second) if page % 2 == 1 => second,
                _ => &first,
            };
            lost += u64::from(number_at(file, page)? != page);
        }
        ensure!(lost == 0, "{lost} of {progress} pages are lost");
        Ok(())
    }
}

/// A thread that stores numbers until the jump.
struct Writer {
    /// The memfd with its progress.
    progress: File,
}

impl Writer {
    fn page(&self) -> Result<u64> {
        number_at(&self.progress, 0)
    }

    fn wait_for(&self, page: u64) -> Result<()> {
        let begun = Instant::now();
        while self.page()? < page {
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "a writer stands still at page {}, before page {page}",
                self.page()?
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn begin_all(held: &mut HeldOpen) -> Result<Vec<Writer>> {
    allow_huge_pages()?;
    WRITERS
        .iter()
        .map(|(name, way)| {
            let session = Device::open()?.create_session(name)?;
            held.hold(&session)?;
            way.begin(&session)
        })
        .collect()
}

fn jump() -> Result<()> {
    IN_A_HURRY.store(true, Ordering::Relaxed);
    bail!("the jump was refused: {}", kexec::jump())
}

/// Jumps while the writers are at work.
pub(super) fn write_on(_command_line: &str) -> Result<()> {
    let mut held = HeldOpen::default();
    let _writers = begin_all(&mut held)?;
    jump()
}

/// A jump is refused while the writers are at work: they go on, and cross with the next one.
pub(super) fn write_on_after_a_refusal(_command_line: &str) -> Result<()> {
    let mut held = HeldOpen::default();
    let writers = begin_all(&mut held)?;
    let bad_session = Device::open()?.create_session("late-bad")?;
    let bad = Way::Mapping.begin(&bad_session)?;
    let spoilt = sized_memfd()?;
    bad_session.preserve(SECOND, spoilt.as_fd())?;
    spoil(&spoilt, 0)?;
    let files = WRITERS.len() as u64 + 1;
    expect_refused_jump(Errno::IO, files + 1)?;
    for writer in writers.iter().chain([&bad]) {
        writer.wait_for(writer.page()? + BEGUN)?;
    }
    // The file that failed runs on as well.
    spoilt.write_all_at(&[1; 8], 2 * PAGE)?;
    drop(bad_session);
    jump()
}

/// After the jump.
pub(super) fn compare(_held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let mut problems = Vec::new();
    for (name, way) in WRITERS {
        let session = device.retrieve_session(name)?;
        if let Err(error) = way.compare(&session) {
            problems.push(format!("{way:?}: {error:#}"));
        }
        session.finish()?;
    }
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}
