// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memfds go from a stock kernel to one with our handlers, back, and forth again, in mainline's
//! format.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use anyhow::{ensure, Context, Result};
use rustix::fs::{fcntl_add_seals, fcntl_get_seals, fstat, seek, SealFlags, SeekFrom};

use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{allow_huge_pages, memfd, preserve, retrieve};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_handler_api::Token;
use luo_liveupdate::{Device, Session};

/// Parameters of a kernel whose new memfds a stock kernel takes.
pub(crate) const MAINLINES_FORMAT: &str = "luo_handlers.memfd_format=mainline";
const PARAMETER: &str = "/sys/module/luo_handlers/parameters/memfd_format";

const CHAIN: &str = "chain";
/// Dense, of an odd size; sparse; of huge pages; sealed; empty.
const FILES: [Workload; 5] = [
    memfd((3 << 20) + 123, Fill::Dense, 1),
    memfd(16 << 20, Fill::sparse(500), 2),
    Workload {
        size: 8 << 20,
        pages: Pages::Thp,
        fill: Fill::Dense,
        seed: 3,
    },
    memfd(1 << 20, Fill::Shuffled, SEALED),
    memfd(0, Fill::Dense, 5),
];
const SEALED: u64 = 4;
/// Preserved by our handler, so that its holes are there when a stock kernel retrieves it.
const WITH_HOLES: Workload = memfd((256 << 20) + 1, Fill::sparse(100), 6);

/// What a workload is like before any jump.
fn make(workload: &Workload) -> Result<File> {
    allow_huge_pages()?;
    let file = workload.make(|_| ())?;
    if workload.seed == SEALED {
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SEAL)?;
    }
    Ok(file)
}

/// Compares size, position, seals, huge pages and every byte with a file that never crossed.
fn compare(workload: &Workload, file: &File) -> Result<()> {
    let twin = make(workload)?;
    let seals = [fcntl_get_seals(file)?, fcntl_get_seals(&twin)?];
    ensure!(seals[0] == seals[1], "the seals are {seals:?}");
    // A look at huge pages maps the file to be written, which the seal forbids.
    if workload.seed != SEALED {
        let found = [workload.look(file)?, workload.look(&twin)?];
        ensure!(found[0] == found[1], "huge pages are {found:?}");
    }
    let size = fstat(file)?.st_size;
    ensure!(size as u64 == workload.size, "the size is {size}");
    let positions = [
        seek(file, SeekFrom::Current(0))?,
        seek(&twin, SeekFrom::Current(0))?,
    ];
    ensure!(
        positions[0] == positions[1],
        "the positions are {positions:?}"
    );
    let mut blocks = [vec![0; 1 << 20], vec![0; 1 << 20]];
    for offset in (0..workload.size).step_by(1 << 20) {
        let length = (workload.size - offset).min(1 << 20) as usize;
        for (block, file) in blocks.iter_mut().zip([file, &twin]) {
            file.read_exact_at(&mut block[..length], offset)?;
        }
        ensure!(
            blocks[0] == blocks[1],
            "the bytes from {offset:#x} on differ"
        );
    }
    Ok(())
}

fn take(session: &Session) -> Result<Vec<File>> {
    let take = |workload: &Workload| {
        let file = File::from(session.retrieve(Token(workload.seed))?);
        compare(workload, &file).with_context(|| format!("token {}", workload.seed))?;
        Ok(file)
    };
    FILES.iter().map(take).collect()
}

fn preserve_all(held: &mut HeldOpen, files: &[File]) -> Result<Session> {
    let session = Device::open()?.create_session(CHAIN)?;
    for (workload, file) in FILES.iter().zip(files) {
        session.preserve(Token(workload.seed), file.as_fd())?;
    }
    held.hold(&session)?;
    Ok(session)
}

/// In a stock kernel.
pub(crate) fn begin(held: &mut HeldOpen) -> Result<()> {
    let files = FILES.iter().map(make).collect::<Result<Vec<_>>>()?;
    preserve_all(held, &files).map(|_| ())
}

/// In ours: takes them, and preserves them with one more, whose holes stay holes.
pub(crate) fn pass_on(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(CHAIN)?;
    let files = take(&session)?;
    session.finish()?;
    drop(session);
    let session = preserve_all(held, &files)?;
    preserve(&session, &[WITH_HOLES]).map(|_| ())
}

/// In the stock kernel: takes them back, and preserves them again.
pub(crate) fn pass_back(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(CHAIN)?;
    let files = take(&session)?;
    retrieve(&session, &WITH_HOLES).context("the memfd with holes")?;
    session.finish()?;
    drop(session);
    preserve_all(held, &files).map(|_| ())
}

/// At the end, in either.
pub(crate) fn end(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(CHAIN)?;
    take(&session)?;
    Ok(session.finish()?)
}

const WAY_BACK: &str = "way-back";

/// In our kernel: what was preserved in our format cannot be taken by a stock kernel. Told to, our
/// handler leaves new files to mainline's, which is in the same image.
pub(crate) fn preserve_in_both_formats(held: &mut HeldOpen) -> Result<()> {
    let files = FILES.iter().map(make).collect::<Result<Vec<_>>>()?;
    let session = preserve_all(held, &files)?;
    ensure!(
        fs::write(PARAMETER, "nonesuch").is_err(),
        "a format nobody knows was accepted"
    );
    fs::write(PARAMETER, "mainline").with_context(|| format!("writing {PARAMETER}"))?;
    let at_run_time = Device::open()?.create_session(WAY_BACK)?;
    let dense = memfd(1 << 20, Fill::Dense, 9);
    at_run_time.preserve(Token(dense.seed), make(&dense)?.as_fd())?;
    held.hold(&at_run_time)?;
    let shown = fs::read_to_string(SESSIONS).with_context(|| format!("reading {SESSIONS}"))?;
    let of = |compatible: &str| shown.matches(&format!(" preserved {compatible} ")).count();
    let formats = (of("luo-handlers,memfd-v1"), of("memfd-v2"));
    ensure!(
        formats == (FILES.len(), 1),
        "{formats:?} files of each format:\n{shown}"
    );
    drop(session);
    Ok(())
}

const SESSIONS: &str = "/sys/kernel/debug/luo_handlers/sessions";

/// In our kernel with our handler switched off: mainline's takes what ours gives back.
pub(crate) fn change_the_format(held: &mut HeldOpen) -> Result<()> {
    let device = Device::open()?;
    let session = device.retrieve_session(CHAIN)?;
    let files = take(&session)?;
    session.finish()?;
    drop(session);
    let session = device.retrieve_session(WAY_BACK)?;
    let dense = memfd(1 << 20, Fill::Dense, 9);
    compare(&dense, &File::from(session.retrieve(Token(dense.seed))?))?;
    session.finish()?;
    drop((session, device));
    preserve_all(held, &files).map(|_| ())
}
