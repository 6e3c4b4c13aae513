// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Images: what comes back, what a damaged one costs, and what a crash leaves.

#![allow(unsafe_code)] // an edge of the tests

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;

use luo_handler_api::{Errno, FileRef, HostServices, Token};
use luo_handler_memfd as _;
use luo_orchestrator::devicetree::{encode, Tree};
use luo_orchestrator::error::Error;
use luo_orchestrator::handover::Handover;
use luo_orchestrator::inspection::{inspect, Inspection};
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::outgoing::Outgoing;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::image::{
    self, Data, Draft, ImageError, Saved, Tracked, CHUNK_BYTES,
};
use luo_orchestrator::SharedMapping;
use proptest::prelude::*;
use rustix::fs::{fcntl_add_seals, fcntl_get_seals, SealFlags};
use support::memfd;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Remembers the largest request, so that a test can tell a wild one.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), SeqCst);
        // SAFETY: `layout` is the caller's, who has to give one that is not of size zero.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` came from this allocator with this layout, which is the system's.
        unsafe { System.dealloc(place, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), SeqCst);
        // SAFETY: `layout` is the caller's, who has to give one that is not of size zero.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, SeqCst);
        // SAFETY: `place` came from the system's allocator with this layout; `size` is the
        // caller's.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// In memory, where it has room: there nobody waits until a disk has what was written.
fn directory() -> TempDir {
    const MEMORY: &str = "/dev/shm";
    let room = rustix::fs::statvfs(MEMORY).map_or(0, |it| it.f_bavail * it.f_frsize);
    match room > 1 << 30 {
        true => tempfile::tempdir_in(MEMORY).unwrap(),
        false => on_disk(),
    }
}

fn on_disk() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A frozen update of these files; file `n` has token `n`.
fn frozen(files: &[File]) -> Orchestrator {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    for (file, token) in files.iter().zip(0..) {
        update.preserve(Token(token), file).unwrap();
    }
    update.prepare().unwrap();
    update.freeze().unwrap();
    update
}

fn save(files: &[File], directory: &Path) -> Result<Saved, ImageError> {
    let progress = AtomicU64::new(0);
    let count = |bytes| {
        progress.fetch_add(bytes, SeqCst);
    };
    let saved = frozen(files)
        .handover(|handover| Ok::<_, Error>(image::save(&handover, directory, &count)))
        .unwrap()?;
    assert_eq!(progress.into_inner(), saved.contents_bytes);
    Ok(saved)
}

/// Completes a draft of a frozen update.
fn finish(update: &Orchestrator, draft: Draft) -> Result<Saved, ImageError> {
    let progress = AtomicU64::new(0);
    let count = |bytes| _ = progress.fetch_add(bytes, SeqCst);
    let saved = update
        .handover(|handover| Ok::<_, Error>(draft.finish(&handover, &count)))
        .unwrap()?;
    assert_eq!(progress.into_inner(), saved.contents_bytes);
    Ok(saved)
}

fn load(directory: &Path) -> Result<Orchestrator, ImageError> {
    let arrival = image::load(directory, |_| ())?;
    let registry = Arc::new(Registry::linked().unwrap());
    Ok(Orchestrator::arrived(registry, arrival))
}

fn image_of(directory: &Path) -> PathBuf {
    fs::canonicalize(directory.join("current")).unwrap()
}

/// What is in the directory, without the one name that is random.
fn listing(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| match name.starts_with("image-") {
            true => "image".to_owned(),
            false => name,
        })
        .collect();
    names.sort();
    names
}

const CLEAN: [&str; 3] = ["current", "image", "lock"];

fn bytes_of(file: &impl AsFd) -> Vec<u8> {
    support::contents(file)
}

fn name_of(file: &impl AsFd) -> Vec<u8> {
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()));
    link.unwrap().as_os_str().as_bytes().to_vec()
}

/// Contents, holes, size, position, seals, flags, mode and name.
fn assert_same(before: &File, after: &impl AsFd) {
    let after = File::from(after.as_fd().try_clone_to_owned().unwrap());
    let (mut old, mut new) = (before, &after);
    let (was, is) = (old.metadata().unwrap(), new.metadata().unwrap());
    assert_ne!(was.ino(), is.ino(), "a memfd of its own");
    assert_eq!(was.len(), is.len());
    assert_eq!(was.mode(), is.mode());
    assert_eq!(was.blocks(), is.blocks(), "holes are holes");
    assert_eq!(
        old.stream_position().unwrap(),
        new.stream_position().unwrap()
    );
    assert_eq!(fcntl_get_seals(old).unwrap(), fcntl_get_seals(new).unwrap());
    let flags = |file: &File| rustix::fs::fcntl_getfl(file).unwrap();
    assert_eq!(flags(old), flags(new));
    assert_eq!(name_of(old), name_of(new));
    if was.len() < 64 * MIB {
        assert!(bytes_of(old) == bytes_of(new));
    }
}

fn cross(files: &[File]) -> Saved {
    cross_by(&directory(), files)
}

fn cross_by(directory: &TempDir, files: &[File]) -> Saved {
    let saved = save(files, directory.path()).unwrap();
    let new = load(directory.path()).unwrap();
    assert_eq!(new.bad_entries().unwrap(), []);
    for (file, token) in files.iter().zip(0..) {
        assert_same(file, &new.retrieve(Token(token)).unwrap());
    }
    assert_eq!(new.finish().unwrap(), []);
    assert_eq!(listing(directory.path()), CLEAN);
    saved
}

/// An image is of the moment in which it was written.
#[test]
fn a_memfd_that_others_changed_before_the_save_is_restored_as_it_was_saved() {
    let directory = directory();
    let files = [sparse(MIB, &[0, 8192])];
    let update = frozen(&files);
    files[0].set_len(2 * MIB).unwrap();
    files[0].write_all_at(b"late", 2 * MIB - 4).unwrap();
    let saved = update
        .handover(|handover| Ok::<_, Error>(image::save(&handover, directory.path(), &|_| ())));
    saved.unwrap().unwrap();
    let new = load(directory.path()).unwrap();
    assert_same(&files[0], &new.retrieve(Token(0)).unwrap());
    let report = new.files().unwrap().remove(0).report;
    let expected = "changed since freeze: size 1048576 to 2097152";
    assert_eq!(report.as_deref(), Some(expected));
    assert_eq!(new.finish().unwrap(), []);
}

/// Bytes of which no two pages are alike.
fn pattern(length: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    // Fast also where nothing else is optimized.
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn dense(length: u64, seed: u64) -> File {
    memfd(&pattern(length, seed))
}

fn sparse(length: u64, places: &[u64]) -> File {
    let file = memfd(b"");
    file.set_len(length).unwrap();
    for &place in places {
        let bytes = pattern(4096.min(length - place), place);
        file.write_all_at(&bytes, place).unwrap();
    }
    file
}

#[test]
fn dense_memfds_of_every_length_cross() {
    let lengths = [
        1,
        4095,
        4096,
        4097,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES + 4096 + 7,
        17 * MIB + 5,
        33 * MIB,
    ];
    let files: Vec<_> = lengths.map(|length| dense(length, length)).into();
    let saved = cross_by(&on_disk(), &files);
    let pages: u64 = lengths.iter().sum();
    assert_eq!(saved.contents_bytes, pages);
}

#[test]
fn sparse_memfds_cross_without_their_holes() {
    let files = [
        sparse(0, &[]),
        sparse(1, &[]),
        sparse(MIB, &[]),
        sparse(MIB, &[0]),
        sparse(MIB, &[MIB - 4096]),
        sparse(MIB + 9, &[4096, 12288, MIB]),
        sparse(64 << 30, &[0, 1 << 30, 63 << 30]),
    ];
    let saved = cross(&files);
    assert_eq!(saved.contents_bytes, 4096 * 7 + 9);
}

/// How many bytes are written of files that were copied before, after `change`.
fn written_late(files: &[File], change: impl FnOnce(&[File])) -> u64 {
    let directory = directory();
    let update = frozen(files);
    let mut draft = Draft::new(directory.path()).unwrap();
    let copied = draft.copy(&update.held(), &|_| ()).unwrap();
    change(files);
    let saved = finish(&update, draft).unwrap();
    let new = load(directory.path()).unwrap();
    for (file, token) in files.iter().zip(0..) {
        let after = new.retrieve(Token(token)).unwrap();
        assert_eq!(
            file.metadata().unwrap().blocks(),
            rustix::fs::fstat(&after).unwrap().st_blocks as u64
        );
        assert!(bytes_of(file) == bytes_of(&after));
    }
    assert_eq!(new.finish().unwrap(), []);
    assert_eq!(listing(directory.path()), CLEAN);
    assert!(copied > 0);
    saved.late_bytes
}

fn punch(file: &File, offset: u64, length: u64) {
    use rustix::fs::{fallocate, FallocateFlags};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, offset, length).unwrap();
}

#[test]
fn only_what_changed_after_a_copy_is_written_again() {
    const BLOCK: u64 = 16 << 10;
    type Change = fn(&File);
    let cases: [(Change, u64); 8] = [
        (|_| (), 0),
        (|file| file.write_all_at(&[1], 5 * MIB + 7).unwrap(), BLOCK),
        // Over the border of two blocks, which is also that of two chunks.
        (
            |file| file.write_all_at(&[0xee; 2], MIB - 1).unwrap(),
            2 * BLOCK,
        ),
        (
            |file| SharedMapping::new(file, 0..4096).unwrap().write(9, &[1]),
            BLOCK,
        ),
        (
            |file| file.write_all_at(&[1; 4096], 18 * MIB).unwrap(),
            4096,
        ),
        // The rest of its chunk is a chunk of its own then.
        (|file| punch(file, MIB, 4096), CHUNK_BYTES - 4096),
        (|file| file.set_len(3 * MIB).unwrap(), 0),
        (
            |file| {
                file.set_len(MIB).unwrap();
                file.set_len(20 * MIB).unwrap();
            },
            0,
        ),
    ];
    for (number, (change, expected)) in cases.into_iter().enumerate() {
        // Enough for several stripes, with a hole in it.
        let files = [dense(17 * MIB, 1), dense(10_000, 2)];
        files[0].set_len(20 * MIB).unwrap();
        let late = written_late(&files, |files| change(&files[0]));
        assert_eq!(late, expected, "case {number}");
    }
    let sealed = dense(MIB, 3);
    fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SHRINK).unwrap();
    assert_eq!(written_late(&[sealed], |_| ()), 0);
}

#[test]
fn a_draft_follows_its_files() {
    let directory = directory();
    let files = [dense(9000, 1), dense(MIB, 2), dense(17 * MIB, 3)];
    let update = frozen(&files);
    let mut draft = Draft::new(directory.path()).unwrap();
    draft.copy(&update.held(), &|_| ()).unwrap();
    // The handles begin again, and stand for others; one file fewer, and one that is new.
    update.cancel().unwrap();
    for token in 0..3 {
        update.unpreserve(Token(token)).unwrap();
    }
    let later = [dense(5000, 4), dense(MIB, 2)];
    for (file, token) in later.iter().zip(0..) {
        update.preserve(Token(token), file).unwrap();
    }
    update.prepare().unwrap();
    draft.copy(&update.held()[..1], &|_| ()).unwrap();
    update.freeze().unwrap();
    assert_eq!(finish(&update, draft).unwrap().late_bytes, MIB);
    let image = fs::read_dir(image_of(directory.path())).unwrap();
    let mut names: Vec<_> = image.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let metadata = ["devicetree.dtb", "manifest.json", "memory"];
    assert_eq!(
        names,
        [&["contents-1", "contents-2"], &metadata[..]].concat()
    );
    let new = load(directory.path()).unwrap();
    for (file, token) in later.iter().zip(0..) {
        assert_same(file, &new.retrieve(Token(token)).unwrap());
    }
}

#[test]
fn the_older_image_is_removed_by_the_next_draft_or_on_demand() {
    let directory = directory();
    let save_draft = |seed| {
        save_as_draft(&[dense(1000, seed)], directory.path()).unwrap();
        image_of(directory.path())
    };
    let first = save_draft(1);
    let second = save_draft(2);
    assert!(first.exists() && second.exists());
    let third = save_draft(3);
    assert!(!first.exists() && second.exists() && third.exists());
    image::remove_older(directory.path()).unwrap();
    assert!(!second.exists() && third.exists());
    assert_eq!(listing(directory.path()), CLEAN);
}

#[test]
fn a_draft_that_is_dropped_leaves_the_old_image() {
    let directory = directory();
    let old = [dense(1000, 1)];
    save(&old, directory.path()).unwrap();
    let mut draft = Draft::new(directory.path()).unwrap();
    draft
        .copy(&frozen(&[dense(2000, 2)]).held(), &|_| ())
        .unwrap();
    drop(draft);
    assert_eq!(listing(directory.path()), CLEAN);
    assert_same(
        &old[0],
        &load(directory.path()).unwrap().retrieve(Token(0)).unwrap(),
    );
}

/// A change of a memfd of at most 2 MiB.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, u64, u64),
    /// Through the mapping.
    Store(usize, usize, u64),
    /// The page tables of the mapping forget these pages.
    Forget(usize, usize),
    Punch(u64, u64),
    Resize(u64),
    Copy,
}

fn any_change() -> impl Strategy<Value = Change> {
    let place = || 0..2 * MIB;
    let length = || prop_oneof![1..64u64, 1..3 * CHUNK_BYTES];
    let page = || 0..512usize;
    prop_oneof![
        (place(), length(), any::<u64>()).prop_map(|(at, n, seed)| Change::Write(at, n, seed)),
        (page(), 1..40_000usize, any::<u64>()).prop_map(|(at, n, seed)| Change::Store(at, n, seed)),
        (page(), page()).prop_map(|(at, n)| Change::Forget(at, n)),
        (place(), length()).prop_map(|(at, n)| Change::Punch(at, n)),
        place().prop_map(Change::Resize),
        Just(Change::Copy),
        Just(Change::Copy),
    ]
}

impl Change {
    /// Whether a tracked mapping notices it.
    fn is_by_mapping(&self) -> bool {
        matches!(self, Self::Store(..) | Self::Forget(..) | Self::Copy)
    }

    fn apply(&self, file: &File, mapping: &SharedMapping, copy: &mut dyn FnMut()) {
        let size = file.metadata().unwrap().len() as usize;
        match *self {
            Self::Write(place, length, seed) => {
                file.write_all_at(&pattern(length, seed), place).unwrap();
            }
            Self::Store(page, length, seed) => {
                // Beyond the end of the file there is no memory.
                let place = page * 4096 + seed as usize % 4096;
                let length = length.min(size.saturating_sub(place));
                if length > 0 {
                    mapping.write(place, &pattern(length as u64, seed));
                }
            }
            Self::Forget(page, pages) => {
                let range = page * 4096..(page + pages).min(512) * 4096;
                mapping
                    .advise(range, rustix::mm::Advice::LinuxDontNeed)
                    .unwrap();
            }
            Self::Punch(place, length) => punch(file, place, length),
            Self::Resize(size) => file.set_len(size).unwrap(),
            Self::Copy => copy(),
        }
    }
}

/// Follows changes with a draft, the mapping tracked from one of them on; what comes out of the
/// image is the file as it is at the end.
fn assert_arrives(changes: &[Change], tracked_from: Option<usize>) {
    let directory = directory();
    // Data in most places, and holes.
    let file = dense(MIB + 4096, 1);
    file.set_len(2 * MIB).unwrap();
    file.write_all_at(&pattern(4096, 2), MIB + 8192).unwrap();
    let mapping = SharedMapping::new(&file, 0..2 * MIB).unwrap();
    let update = frozen(std::slice::from_ref(&file));
    let mut draft = Draft::new(directory.path()).unwrap();
    draft.copy(&update.held(), &|_| ()).unwrap();
    for (change, number) in changes.iter().zip(0..) {
        if tracked_from == Some(number) {
            draft.track(Tracked::new(&file, 0, mapping.as_ptr(), mapping.len()).unwrap());
        }
        change.apply(&file, &mapping, &mut || {
            draft.copy(&update.held(), &|_| ()).unwrap();
        });
    }
    finish(&update, draft).unwrap();
    let new = load(directory.path()).unwrap();
    assert_same(&file, &new.retrieve(Token(0)).unwrap());
}

/// Why nothing can be tracked here, if so.
fn untracked() -> Option<std::io::Error> {
    let file = dense(4096, 1);
    let mapping = SharedMapping::new(&file, 0..4096).unwrap();
    Tracked::new(&file, 0, mapping.as_ptr(), 4096).err()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_change_between_copies_arrives(changes in prop::collection::vec(any_change(), 0..12)) {
        assert_arrives(&changes, None);
    }

    #[test]
    fn every_change_by_a_tracked_mapping_arrives(
        changes in prop::collection::vec(any_change(), 1..20),
        from: prop::sample::Index,
    ) {
        let changes: Vec<_> = changes.into_iter().filter(Change::is_by_mapping).collect();
        let from = from.index(changes.len() + 1);
        match untracked() {
            None => assert_arrives(&changes, Some(from)),
            Some(error) => eprintln!("skipped: memory cannot be tracked here: {error}"),
        }
    }
}

#[test]
fn a_draft_follows_a_program_that_runs() {
    let directory = directory();
    let file = dense(20 * MIB, 1);
    let update = frozen(std::slice::from_ref(&file));
    let mapping = SharedMapping::new(&file, 0..20 * MIB).unwrap();
    let mut draft = Draft::new(directory.path()).unwrap();
    if let Ok(tracked) = Tracked::new(&file, 0, mapping.as_ptr(), mapping.len()) {
        draft.track(tracked);
    }
    let is_over = &std::sync::atomic::AtomicBool::new(false);
    let writes = &AtomicU64::new(0);
    let _mapping = std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            while !is_over.load(SeqCst) {
                let number = writes.fetch_add(1, SeqCst);
                let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (20 * MIB - 8);
                mapping.write(place as usize, &number.to_le_bytes());
            }
            mapping
        });
        for _ in 0..5 {
            let before = writes.load(SeqCst);
            draft.copy(&update.held(), &|_| ()).unwrap();
            while writes.load(SeqCst) < before + 100 {
                std::thread::yield_now();
            }
        }
        is_over.store(true, SeqCst);
        writer.join().unwrap()
    });
    finish(&update, draft).unwrap();
    let new = load(directory.path()).unwrap();
    assert_same(&file, &new.retrieve(Token(0)).unwrap());
}

/// What a tracked mapping does not see is not looked for: the promise of the caller counts.
#[test]
fn tracked_memory_that_nobody_wrote_to_is_not_read() {
    if let Some(error) = untracked() {
        return eprintln!("skipped: memory cannot be tracked here: {error}");
    }
    let directory = directory();
    let file = dense(4 * CHUNK_BYTES, 1);
    let before = bytes_of(&file);
    let update = frozen(std::slice::from_ref(&file));
    let mut draft = Draft::new(directory.path()).unwrap();
    // The second half alone.
    let half = 2 * CHUNK_BYTES;
    let mapping = SharedMapping::new(&file, half..2 * half).unwrap();
    draft.track(Tracked::new(&file, half, mapping.as_ptr(), mapping.len()).unwrap());
    draft.copy(&update.held(), &|_| ()).unwrap();
    file.write_all_at(b"seen", 0).unwrap();
    file.write_all_at(b"not seen", half).unwrap();
    // As the kernel does for others: a write by a system call into the mapping.
    let place = (half + CHUNK_BYTES) as usize;
    // SAFETY: 8 bytes within the mapping, which can be written.
    let read = unsafe {
        let zero = File::open("/dev/zero").unwrap();
        libc::read(
            zero.as_raw_fd(),
            mapping
                .as_ptr()
                .add(place - half as usize)
                .cast_mut()
                .cast(),
            8,
        )
    };
    assert_eq!(read, 8);
    finish(&update, draft).unwrap();
    let new = load(directory.path()).unwrap();
    let after = bytes_of(&new.retrieve(Token(0)).unwrap());
    assert_eq!(&after[..4], b"seen");
    assert_eq!(after[half as usize..][..8], before[half as usize..][..8]);
    assert_eq!(after[place..][..8], [0; 8]);
}

#[test]
fn what_is_not_the_memfd_is_not_tracked() {
    let file = dense(2 * MIB, 1);
    let mapping = SharedMapping::new(&file, 4096..MIB).unwrap();
    let (address, length) = (mapping.as_ptr(), mapping.len());
    let track = |file: &File, offset, address, length| {
        let error = Tracked::new(file, offset, address, length).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    };
    track(&file, 0, address, length);
    track(&file, 8192, address, length);
    track(&file, 4096, address, length + MIB as usize);
    track(&file, 4096, address, 0);
    track(&file, 4096, std::ptr::null(), length);
    track(&file, 4096, address, usize::MAX);
    track(&dense(2 * MIB, 1), 4096, address, length);
    if untracked().is_none() {
        Tracked::new(&file, 4096, address, length).unwrap();
        Tracked::new(&file, 8192, address.wrapping_add(4096), length - 4096).unwrap();
    }
}

#[test]
fn many_memfds_cross() {
    let files: Vec<_> = (0..300).map(|n| dense(n * 37 % 9000, n)).collect();
    cross(&files);
}

#[test]
fn no_memfd_at_all_crosses() {
    cross(&[]);
}

#[test]
fn seals_position_flags_mode_and_name_cross() {
    let sealed = |seals| {
        let file = dense(10_000, 3);
        file.set_permissions(fs::Permissions::from_mode(0o640))
            .unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    };
    let positioned = |position| {
        let mut file = dense(10_000, 4);
        file.seek(SeekFrom::Start(position)).unwrap();
        file
    };
    let append = dense(100, 5);
    rustix::fs::fcntl_setfl(&append, rustix::fs::OFlags::APPEND).unwrap();
    let named = |name: &str| {
        let options = memfd::MemfdOptions::default();
        options.create(name).unwrap().into_file()
    };
    cross(&[
        sealed(SealFlags::SHRINK),
        sealed(SealFlags::GROW | SealFlags::WRITE),
        sealed(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL),
        sealed(SealFlags::FUTURE_WRITE),
        positioned(0),
        positioned(4321),
        positioned(1 << 40),
        append,
        named(""),
        named("(deleted)"),
        named(&"ä".repeat(124)),
        named(&"x".repeat(249)),
    ]);
}

#[test]
fn a_name_that_is_no_text_stays_behind() {
    let name = std::ffi::CString::new([0xff; 249]).unwrap();
    let options = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create(&*name, options).unwrap());
    file.write_all_at(b"contents", 0).unwrap();
    let directory = directory();
    save(&[file], directory.path()).unwrap();
    let new = load(directory.path()).unwrap();
    assert_eq!(bytes_of(&new.retrieve(Token(0)).unwrap()), b"contents");
}

#[test]
fn an_image_can_be_read_again_and_again() {
    let directory = directory();
    let file = [dense(10_000, 1)];
    save(&file, directory.path()).unwrap();
    for _ in 0..3 {
        let new = load(directory.path()).unwrap();
        assert_same(&file[0], &new.retrieve(Token(0)).unwrap());
        new.finish().unwrap();
    }
}

#[test]
fn a_save_takes_the_place_of_the_one_before() {
    let directory = directory();
    save(&[dense(1000, 1), dense(5000, 2)], directory.path()).unwrap();
    let first = image_of(directory.path());
    let second = [dense(2000, 3)];
    save(&second, directory.path()).unwrap();
    assert!(!first.exists());
    assert_eq!(listing(directory.path()), CLEAN);
    let new = load(directory.path()).unwrap();
    assert_eq!(new.files().unwrap().len(), 1);
    assert_same(&second[0], &new.retrieve(Token(0)).unwrap());
}

#[test]
fn saves_at_the_same_time_wait_for_each_other() {
    let directory = directory();
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            let path = directory.path();
            scope.spawn(move || {
                for _ in 0..3 {
                    save(&[dense(thread * MIB, thread)], path).unwrap();
                }
            });
        }
    });
    assert_eq!(listing(directory.path()), CLEAN);
    let new = load(directory.path()).unwrap();
    let file = new.retrieve(Token(0)).unwrap();
    let seed = rustix::fs::fstat(&file).unwrap().st_size as u64 / MIB;
    assert!(bytes_of(&file) == pattern(seed * MIB, seed));
}

#[test]
fn what_was_loaded_survives_later_saves() {
    let directory = directory();
    let old = [dense(1000, 1), dense(20 * MIB, 2)];
    save(&old, directory.path()).unwrap();
    let first = image_of(directory.path());
    let loaded = load(directory.path()).unwrap();
    assert_same(&old[0], &loaded.retrieve(Token(0)).unwrap());
    for seed in 3..5 {
        save(&[dense(1000, seed)], directory.path()).unwrap();
        assert_ne!(image_of(directory.path()), first);
        assert!(first.exists());
        assert_eq!(
            listing(directory.path()),
            ["current", "image", "image", "lock"]
        );
    }
    assert_same(&old[1], &loaded.retrieve(Token(1)).unwrap());
    loaded.finish().unwrap();
    drop(loaded);
    save(&[dense(1000, 5)], directory.path()).unwrap();
    assert!(!first.exists());
    assert_eq!(listing(directory.path()), CLEAN);
}

#[test]
fn loads_during_saves_are_complete() {
    let directory = directory();
    let files = [dense(9000, 1), dense(10, 2)];
    save(&files, directory.path()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers = [(); 3].map(|()| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let new = load(directory.path()).unwrap();
                    for (file, token) in files.iter().zip(0..) {
                        assert_same(file, &new.retrieve(Token(token)).unwrap());
                    }
                }
            })
        });
        let saved: Vec<_> = (0..200).map(|_| save(&files, directory.path())).collect();
        done.store(true, SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(saved.iter().all(Result::is_ok), "{saved:?}");
    });
    save(&files, directory.path()).unwrap();
    assert_eq!(listing(directory.path()), CLEAN);
}

#[test]
fn a_link_that_cannot_be_read_costs_no_image() {
    let directory = directory();
    save(&[dense(1000, 1)], directory.path()).unwrap();
    let image = image_of(directory.path());
    let current = directory.path().join("current");
    fs::remove_file(&current).unwrap();
    fs::write(&current, "no link").unwrap();
    let error = save(&[dense(1000, 2)], directory.path()).unwrap_err();
    assert!(error.to_string().contains("current"), "{error}");
    assert!(image.join("contents-1").exists());
    // A link to the same image by another path is one that counts, too.
    fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(&image, &current).unwrap();
    let null = Outgoing::default();
    null.preserve_file(FileRef::from(File::open("/dev/null").unwrap().as_fd()))
        .unwrap();
    let handover = Handover {
        devicetree: Vec::new(),
        outgoing: &null,
    };
    image::save(&handover, directory.path(), &|_| ()).unwrap_err();
    assert!(image.join("contents-1").exists());
    load(directory.path()).unwrap();
}

#[test]
fn a_link_without_a_name_costs_no_image() {
    for target in [".", "..", "/", "./.", "image/.."] {
        let directory = directory();
        save(&[dense(1000, 1)], directory.path()).unwrap();
        let image = image_of(directory.path());
        let current = directory.path().join("current");
        fs::remove_file(&current).unwrap();
        std::os::unix::fs::symlink(target, &current).unwrap();
        let null = Outgoing::default();
        null.preserve_file(FileRef::from(File::open("/dev/null").unwrap().as_fd()))
            .unwrap();
        let handover = Handover {
            devicetree: Vec::new(),
            outgoing: &null,
        };
        image::save(&handover, directory.path(), &|_| ()).unwrap_err();
        assert!(image.join("contents-1").exists(), "{target}");
        let second = [dense(2000, 2)];
        save(&second, directory.path()).unwrap();
        assert_eq!(listing(directory.path()), CLEAN, "{target}");
        let new = load(directory.path()).unwrap();
        assert_same(&second[0], &new.retrieve(Token(0)).unwrap());
    }
}

#[test]
fn damaged_contents_are_named_and_stay_where_they_are() {
    let image = Damaged::new();
    let path = image.path("contents-1");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    let new = load(image.directory.path()).unwrap();
    let error = new.retrieve(Token(0)).unwrap_err();
    assert_eq!(error.errno(), Errno::EBADMSG);
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    assert!(
        error.to_string().contains("not what was written"),
        "{error}"
    );
    assert_eq!(new.finish().unwrap(), []);
    assert_eq!(new.left(), [Token(0)]);
    assert_eq!(new.take_left(Token(0)).unwrap_err().errno(), Errno::EBADMSG);
    // Once it is repaired, for example by a copy, it can be had.
    fs::write(&path, good).unwrap();
    let files = new.take_left(Token(0)).unwrap();
    assert!(bytes_of(&files[0]) == bytes_of(&image.files[0]));
}

#[test]
fn directories_are_created_as_deep_as_needed() {
    let directory = directory();
    let deep = directory.path().join("a/b/c");
    save(&[dense(1000, 1)], &deep).unwrap();
    assert_eq!(listing(&deep), CLEAN);
}

fn inspection(path: &Path) -> Result<Inspection, String> {
    let registry = Registry::linked().unwrap();
    inspect(path, &registry).map_err(|error| error.to_string())
}

fn damages(inspection: &Inspection) -> Vec<Option<&str>> {
    let files = inspection.files.iter();
    files.map(|file| file.damaged.as_deref()).collect()
}

#[test]
fn inspecting_finds_damaged_contents() {
    let image = Damaged::new();
    let good = inspection(image.directory.path()).unwrap();
    assert_eq!(damages(&good), [None; 3]);
    assert!(good.damaged_contents.is_empty());
    assert!(good
        .files
        .iter()
        .all(|file| file.bad_record.is_none() && file.claimed));
    let assert_first_is_damaged = |path: &Path| {
        let found = inspection(path).unwrap();
        assert!(found.damaged_contents.is_empty());
        assert_eq!(found.files[0].contents, None);
        assert!(found.files[1].contents.is_some());
        let first = Some("contents-1 is missing or not what was written");
        assert_eq!(damages(&found), [first, None, None]);
    };
    let header = 0..(HEADER_BYTES + NAME_BYTES) * 8;
    let data = DATA_PLACE * 8..image.length("contents-1") * 8;
    let bits = header.chain(data).step_by(97);
    image.with_each_bit("contents-1", bits, |_| {
        assert_first_is_damaged(image.directory.path());
    });
    fs::remove_file(image.path("contents-1")).unwrap();
    for path in [
        image.directory.path().to_owned(),
        image.directory.path().join("current"),
        image.path(image::DEVICETREE),
    ] {
        assert_first_is_damaged(&path);
    }
}

#[test]
fn inspecting_finds_damaged_contents_without_any_record() {
    let image = Damaged::new();
    fs::remove_file(image.path("contents-2")).unwrap();
    fs::remove_file(image.path(image::MEMORY)).unwrap();
    let found = inspection(image.directory.path()).unwrap();
    let second = Some("contents-2 is missing or not what was written");
    assert_eq!(damages(&found), [None, second, None]);
    assert_eq!(found.memory_bytes, None);

    // A file that is there and cannot be read is an error.
    fs::create_dir(image.path(image::MEMORY)).unwrap();
    let error = inspection(image.directory.path()).unwrap_err();
    assert!(
        error.contains("cannot read") && error.contains("memory"),
        "{error}"
    );
}

#[test]
fn inspecting_finds_damaged_contents_that_belong_to_no_entry() {
    let directory = directory();
    let outgoing = Outgoing::default();
    let file = dense(1000, 1);
    let handle = outgoing.preserve_file(FileRef::from(file.as_fd())).unwrap();
    let handover = Handover {
        devicetree: encode(&Tree::default()).unwrap(),
        outgoing: &outgoing,
    };
    image::save(&handover, directory.path(), &|_| ()).unwrap();
    let contents = image_of(directory.path()).join(format!("contents-{handle}"));
    fs::remove_file(contents).unwrap();
    let found = inspection(directory.path()).unwrap();
    let damaged = found.damaged_contents.iter();
    let handles: Vec<_> = damaged.map(|damaged| damaged.handle).collect();
    assert_eq!(handles, [handle]);
    assert!(found.damaged_contents[0]
        .reason
        .contains("contents-1 is missing"));
}

#[test]
fn inspecting_a_damaged_image_or_none_is_an_error() {
    let image = Damaged::new();
    for name in ["manifest.json", image::DEVICETREE] {
        let good = fs::read(image.path(name)).unwrap();
        fs::write(image.path(name), &good[1..]).unwrap();
        let error = inspection(image.directory.path()).unwrap_err();
        assert!(error.contains(name) && error.contains("damaged"), "{error}");
        fs::write(image.path(name), good).unwrap();
    }
    let error = inspection(directory().path()).unwrap_err();
    assert!(error.contains("holds no image"), "{error}");
}

#[test]
fn inspecting_shows_what_the_handler_describes_and_what_the_image_holds() {
    let directory = directory();
    let spread = sparse(1 << 30, &[0, 4096, 1 << 20, (1 << 30) - 4096]);
    let chunks = dense(2 * CHUNK_BYTES + 1, 1);
    save(
        &[dense(4, 1), spread, sparse(9, &[]), chunks],
        directory.path(),
    )
    .unwrap();
    let found = inspection(directory.path()).unwrap();
    let expected = [
        ("kind", "shmem"),
        ("size_bytes", "4"),
        ("position", "4"),
        ("metadata_bytes", "368"),
        ("needs[]", "memfd-r3"),
        ("needs[]", "shmem"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(found.files[0].record, expected);
    let data = |(extents, data_bytes)| Data {
        extents,
        data_bytes,
    };
    let held: Vec<_> = found
        .files
        .iter()
        .filter_map(|file| file.contents)
        .collect();
    let large = 2 * CHUNK_BYTES + 1;
    assert_eq!(held, [(1, 4), (3, 16384), (0, 0), (1, large)].map(data));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["files"][0]["record"]["size_bytes"], 4);
    assert_eq!(json["files"][1]["contents"]["data_bytes"], 16384);
    assert_eq!(json["files"][1]["contents"]["extents"], 3);
    assert_eq!(json["files"][0]["token"], "0x0");
    assert_eq!(json["files"][0]["compatible"], "luo-handlers,memfd-v1");
}

/// A bad record is reported as such, and costs its entry alone.
#[test]
fn inspecting_reports_a_record_that_cannot_be_read() {
    let image = Damaged::new();
    // Past the header: the magic of the first block.
    let mut memory = fs::read(image.path(image::MEMORY)).unwrap();
    let block = 64
        + memory[64..]
            .windows(4)
            .position(|word| word == b"LUOB")
            .unwrap();
    memory[block] ^= 1;
    fs::write(image.path(image::MEMORY), memory).unwrap();
    let found = inspection(image.directory.path()).unwrap();
    let bad = found.files.iter().filter(|file| file.bad_record.is_some());
    assert_eq!(bad.count(), 1);
}

#[test]
fn a_save_touches_nothing_outside_of_its_directory() {
    let (directory, other) = (directory(), directory());
    let precious = other.path().join("precious");
    fs::write(&precious, "data").unwrap();
    std::os::unix::fs::symlink(other.path(), directory.path().join("current")).unwrap();
    std::os::unix::fs::symlink(other.path(), directory.path().join("image-link")).unwrap();
    save(&[dense(10, 1)], directory.path()).unwrap();
    assert!(precious.exists());
    assert_eq!(listing(directory.path()), CLEAN);
}

#[test]
fn a_file_that_is_no_memfd_is_refused_and_the_old_image_stays() {
    let directory = directory();
    let file = [dense(1000, 1)];
    save(&file, directory.path()).unwrap();
    let outgoing = Outgoing::default();
    let null = File::open("/dev/null").unwrap();
    let handle = outgoing.preserve_file(FileRef::from(null.as_fd())).unwrap();
    let handover = Handover {
        devicetree: Vec::new(),
        outgoing: &outgoing,
    };
    let error = image::save(&handover, directory.path(), &|_| ()).unwrap_err();
    assert!(matches!(error, ImageError::NotAMemfd { handle: told } if told == handle));
    assert!(
        error.to_string().contains("use another transport"),
        "{error}"
    );
    assert_eq!(listing(directory.path()), CLEAN);
    let new = load(directory.path()).unwrap();
    assert_same(&file[0], &new.retrieve(Token(0)).unwrap());
}

/// An image of three small memfds, to be damaged.
struct Damaged {
    directory: TempDir,
    files: Vec<File>,
}

impl Damaged {
    fn new() -> Self {
        let directory = directory();
        let files = vec![
            dense(5000, 1),
            sparse(1 << 16, &[0, 8192, (1 << 16) - 4096]),
            sparse(CHUNK_BYTES + 100, &[CHUNK_BYTES - 4096, CHUNK_BYTES]),
        ];
        save(&files, directory.path()).unwrap();
        Self { directory, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        image_of(self.directory.path()).join(name)
    }

    /// What becomes of each file; those that come back are complete.
    fn results(&self) -> Result<Vec<Result<(), Errno>>, ImageError> {
        let new = load(self.directory.path())?;
        let results =
            self.files
                .iter()
                .zip(0..)
                .map(|(file, token)| match new.retrieve(Token(token)) {
                    Ok(retrieved) => {
                        assert_same(file, &retrieved);
                        Ok(())
                    }
                    Err(error) => {
                        assert!(
                            error.to_string().contains(&Token(token).to_string()),
                            "{error}"
                        );
                        Err(error.errno())
                    }
                });
        Ok(results.collect())
    }

    /// The one error that says that the file is not what was written.
    fn assert_refused(&self, name: &str) -> String {
        let error = self.results().unwrap_err().to_string();
        let said = match name {
            image::MEMORY => error.contains("memory"),
            _ => error.contains(name),
        };
        assert!(said, "{name}: {error}");
        error
    }

    /// Runs `check` with each of `bits` of a file turned, one at a time.
    fn with_each_bit(&self, name: &str, bits: impl Iterator<Item = usize>, check: impl Fn(usize)) {
        let path = self.path(name);
        let good = fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for bit in bits {
            let (place, byte) = (bit as u64 / 8, good[bit / 8]);
            file.write_all_at(&[byte ^ 1 << (bit % 8)], place).unwrap();
            check(bit);
            file.write_all_at(&[byte], place).unwrap();
        }
        assert_eq!(self.results().unwrap(), [Ok(()); 3]);
    }

    fn length(&self, name: &str) -> usize {
        fs::metadata(self.path(name)).unwrap().len() as usize
    }
}

/// One of the bits of a byte, each in its turn.
fn one_bit_of(byte: usize) -> usize {
    byte * 8 + byte % 8
}

/// Header and name of `contents-N`, and what each of its chunks has after the data.
const HEADER_BYTES: usize = 128;
const NAME_BYTES: usize = 4;
const CHUNK_ENTRY_BYTES: usize = 28;
const DATA_PLACE: usize = 4096;

#[test]
fn a_flipped_bit_in_contents_costs_that_file_alone() {
    let image = Damaged::new();
    let chunks = [1, 3, 2];
    for file in 0..3 {
        let name = format!("contents-{}", file + 1);
        let length = image.length(&name);
        let table = length - chunks[file] * CHUNK_ENTRY_BYTES..length;
        // The first and last bytes of the data, and some in between.
        let data = (DATA_PLACE..length)
            .filter(|byte| byte - DATA_PLACE < 2 || length - byte < 3 || byte % 499 == 0)
            .map(one_bit_of);
        let mut expected = [Ok(()); 3];
        expected[file] = Err(Errno::EBADMSG);
        let header = 0..HEADER_BYTES + NAME_BYTES;
        let tables = header.chain(table).flat_map(|byte| byte * 8..byte * 8 + 8);
        image.with_each_bit(&name, tables.chain(data), |bit| {
            assert_eq!(image.results().unwrap(), expected, "bit {bit} of {name}");
        });
    }
}

#[test]
fn contents_that_are_truncated_or_missing_cost_that_file_alone() {
    let image = Damaged::new();
    for file in 0..3 {
        let name = format!("contents-{}", file + 1);
        let good = fs::read(image.path(&name)).unwrap();
        let lengths = (0..good.len()).filter(|&length| length < 300 || length % 997 == 0);
        for length in lengths.chain([good.len() - 1]) {
            fs::write(image.path(&name), &good[..length]).unwrap();
            let mut expected = [Ok(()); 3];
            expected[file] = Err(Errno::EBADMSG);
            assert_eq!(
                image.results().unwrap(),
                expected,
                "{length} bytes of {name}"
            );
        }
        fs::remove_file(image.path(&name)).unwrap();
        let mut expected = [Ok(()); 3];
        expected[file] = Err(Errno::EBADMSG);
        assert_eq!(image.results().unwrap(), expected, "{name} is missing");
        fs::write(image.path(&name), good).unwrap();
    }
}

#[test]
fn a_stripe_that_is_missing_or_damaged_costs_its_file_alone() {
    let directory = directory();
    let files = [dense(100, 1), dense(20 * MIB, 2), dense(100, 3)];
    save(&files, directory.path()).unwrap();
    let stripe = image_of(directory.path()).join("contents-2.1");
    if !stripe.exists() {
        return eprintln!("skipped: with one core there is one stripe");
    }
    let assert_second = |expected: Result<(), Errno>| {
        let new = load(directory.path()).unwrap();
        let got = [0, 1, 2].map(|token| new.retrieve(Token(token)).map(drop));
        let got = got.map(|result| result.map_err(|error| error.errno()));
        assert_eq!(got, [Ok(()), expected, Ok(())]);
    };
    assert_second(Ok(()));
    let good = fs::read(&stripe).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    for bad in [&flipped[..], &good[..good.len() - 1], &[]] {
        fs::write(&stripe, bad).unwrap();
        assert_second(Err(Errno::EBADMSG));
    }
    fs::remove_file(&stripe).unwrap();
    assert_second(Err(Errno::EBADMSG));
}

#[test]
fn a_flipped_bit_in_memory_costs_at_most_one_file() {
    let image = Damaged::new();
    // The first 16 bytes say what the file is.
    image.with_each_bit(image::MEMORY, 0..16 * 8, |_| {
        image.assert_refused(image::MEMORY);
    });
    let lost = AtomicUsize::new(0);
    let bits = (16..image.length(image::MEMORY)).map(one_bit_of);
    let count = bits.len();
    image.with_each_bit(image::MEMORY, bits, |bit| {
        let results = image.results().unwrap();
        let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        match errors[..] {
            [] => {}
            // Without its magic number a block is none, and nothing is found there.
            [Errno::EBADMSG | Errno::ENOENT] => {
                lost.fetch_add(1, SeqCst);
            }
            _ => panic!("bit {bit}: {errors:?}"),
        }
    });
    // The rest is what freeze replaced, and what fills blocks up.
    assert!(lost.into_inner() * 3 > count);
}

#[test]
fn a_flipped_bit_in_the_devicetree_is_one_error() {
    let image = Damaged::new();
    let bits = 0..image.length(image::DEVICETREE) * 8;
    image.with_each_bit(image::DEVICETREE, bits, |_| {
        image.assert_refused(image::DEVICETREE);
    });
}

#[test]
fn a_flipped_bit_in_the_manifest_is_one_error_or_means_nothing() {
    let image = Damaged::new();
    let refused = AtomicUsize::new(0);
    let bits = 0..image.length("manifest.json") * 8;
    let count = bits.len();
    image.with_each_bit("manifest.json", bits, |bit| match image.results() {
        Ok(results) => assert_eq!(results, [Ok(()); 3], "bit {bit}"),
        Err(error) => {
            assert!(error.to_string().contains("manifest.json"), "{error}");
            refused.fetch_add(1, SeqCst);
        }
    });
    assert!(refused.into_inner() * 10 > count * 9, "all but white space");
}

#[test]
fn a_truncated_or_missing_part_is_one_error() {
    let image = Damaged::new();
    for name in [image::DEVICETREE, image::MEMORY, "manifest.json"] {
        let good = fs::read(image.path(name)).unwrap();
        for length in 0..good.len() {
            fs::write(image.path(name), &good[..length]).unwrap();
            image.assert_refused(name);
        }
        fs::remove_file(image.path(name)).unwrap();
        let error = image.assert_refused(name);
        assert!(error.contains("No such file"), "{error}");
        fs::write(image.path(name), good).unwrap();
    }
    assert_eq!(image.results().unwrap(), [Ok(()); 3]);
}

#[test]
fn a_directory_without_an_image_says_so() {
    let directory = directory();
    for path in [directory.path(), &directory.path().join("missing")] {
        let error = load(path).unwrap_err();
        assert!(matches!(error, ImageError::NoImage(_)), "{error}");
        assert!(error.to_string().contains("holds no image"), "{error}");
    }
    // A save that was interrupted before the first image counted.
    std::os::unix::fs::symlink("image-gone", directory.path().join("current")).unwrap();
    assert!(matches!(
        load(directory.path()),
        Err(ImageError::NoImage(_))
    ));
}

/// Where the numbers of a header stand, with their sizes.
const NUMBERS: [(usize, usize); 8] = [
    (12, 4), // huge page shift
    (16, 8), // size
    (24, 4), // mode
    (28, 4), // bytes of the name
    (32, 8), // number of chunks
    (40, 4), // stripes
    (44, 8), // where the chunks are
    (52, 4), // reserved
];

/// The same of a chunk: offset, length, place and stripe.
const CHUNK_NUMBERS: [(usize, usize); 4] = [(0, 8), (8, 4), (16, 8), (24, 4)];

/// Where the chunks are, and the bytes of each: in an older image they are before the data.
fn table_of(contents: &[u8]) -> (usize, usize) {
    match contents.starts_with(b"LUOIMG1") {
        true => (HEADER_BYTES.saturating_add(number(contents, 28, 4)), 16),
        false => (number(contents, 44, 8), CHUNK_ENTRY_BYTES),
    }
}

fn number(contents: &[u8], place: usize, size: usize) -> usize {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&contents[place..place + size]);
    u64::from_le_bytes(bytes) as usize
}

/// Makes the checksum right again, as somebody would who wants to be believed.
fn seal(contents: &mut [u8]) {
    let name_end = HEADER_BYTES.saturating_add(number(contents, 28, 4));
    let (start, entry_bytes) = table_of(contents);
    let end = start.saturating_add(number(contents, 32, 8).saturating_mul(entry_bytes));
    contents[8..12].fill(0);
    let parts = [0..name_end, start..end].map(|part| contents.get(part).unwrap_or_default());
    let sum = crc32c::crc32c(&parts.concat());
    contents[8..12].copy_from_slice(&sum.to_le_bytes());
}

fn hostile_number() -> impl Strategy<Value = u64> {
    let powers = (0..64u32, -2..3i64).prop_map(|(n, d)| (1u64 << n).wrapping_add_signed(d));
    prop_oneof![powers, any::<u64>(), Just(u64::MAX), Just(0), 0..100u64]
}

/// Retrieves the first file of an image whose contents a stranger wrote; the others are as they
/// were.
fn read_hostile(image: &Damaged, contents: &[u8]) -> Result<(), Errno> {
    fs::write(image.path("contents-1"), contents).unwrap();
    let new = load(image.directory.path()).unwrap();
    let first = new.retrieve(Token(0)).map(drop);
    for token in [1, 2] {
        let file = new.retrieve(Token(token)).unwrap();
        assert_same(&image.files[token as usize], &file);
    }
    first.map_err(|error| error.errno())
}

/// More than any test of this program asks for at once, and far less than hostile numbers would.
const MODERATE: usize = 160 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn hostile_contents_never_panic_nor_allocate_wildly(
        numbers in prop::collection::vec((0..NUMBERS.len(), hostile_number()), 0..3),
        chunks in prop::collection::vec(
            (0..3usize, prop::sample::select(CHUNK_NUMBERS.to_vec()), hostile_number()),
            0..5,
        ),
        bytes in prop::collection::vec((0..16_000usize, any::<u8>()), 0..4),
        sealed: bool,
        is_older: bool,
    ) {
        thread_local!(static IMAGE: Damaged = Damaged::new());
        IMAGE.with(|image| {
            let mut contents = match is_older {
                true => fs::read(Path::new(OLDER_IMAGE).join("contents-2")).unwrap(),
                false => dense_contents(),
            };
            let (table, entry_bytes) = table_of(&contents);
            for (at, value) in numbers {
                let (place, size) = NUMBERS[at];
                contents[place..place + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            for (chunk, (at, size), value) in chunks {
                let place = table + chunk * entry_bytes + at;
                contents[place..place + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            for (place, byte) in bytes {
                contents[place] = byte;
            }
            if sealed {
                seal(&mut contents);
            }
            let _ = read_hostile(image, &contents);
        });
        prop_assert!(LARGEST.load(SeqCst) < MODERATE);
    }
}

/// The contents of a memfd with three chunks.
fn dense_contents() -> Vec<u8> {
    thread_local!(static CONTENTS: Vec<u8> = {
        let directory = directory();
        save(&[sparse(MIB, &[0, 8192, MIB - 4096])], directory.path()).unwrap();
        fs::read(image_of(directory.path()).join("contents-1")).unwrap()
    });
    CONTENTS.with(Clone::clone)
}

/// As the program of schema 2 wrote it: a short memfd, a sparse one, and an empty one.
const OLDER_IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/image-2");

#[test]
fn an_image_of_an_older_program_is_read() {
    let directory = directory();
    std::os::unix::fs::symlink(OLDER_IMAGE, directory.path().join("current")).unwrap();
    let new = load(directory.path()).unwrap();
    let file = |token| File::from(new.retrieve(Token(token)).unwrap().try_clone().unwrap());
    assert_eq!(bytes_of(&file(0)), b"contents of an older image");
    let mut sparse = file(1);
    assert_eq!(sparse.stream_position().unwrap(), 7);
    assert_eq!(
        sparse.metadata().unwrap().blocks(),
        4 * 8,
        "holes are holes"
    );
    let bytes = bytes_of(&sparse);
    assert_eq!(bytes.len(), 3 << 20);
    let pages = bytes.chunks(4096).zip(0..);
    let data: Vec<(usize, u8)> = pages
        .filter(|(page, _)| page.iter().any(|&byte| byte != 0))
        .map(|(page, index)| (index, page[0]))
        .collect();
    assert_eq!(data, [(0, 1), (1, 2), (73, 3), (767, 4)]);
    assert_eq!(bytes_of(&file(2)), b"");
    assert_eq!(new.finish().unwrap(), []);
    let inspected = inspection(directory.path()).unwrap();
    assert_eq!(damages(&inspected), [None; 3]);
    // A newer one than this program knows is refused with a reason.
    let image = Damaged::new();
    let manifest = fs::read_to_string(image.path("manifest.json")).unwrap();
    let newer = manifest.replace("\"schema\": 3", "\"schema\": 4");
    fs::write(image.path("manifest.json"), newer).unwrap();
    let error = image.assert_refused("manifest.json");
    assert!(error.contains("its schema is 4"), "{error}");
}

#[test]
fn contents_as_large_as_a_file_can_be_are_not_read() {
    let image = Damaged::new();
    let path = image.path("contents-1");
    let mut contents = fs::read(&path).unwrap();
    let length = 1u64 << 40;
    for chunks in [length / 28, length / 56, 1 << 20] {
        contents[32..40].copy_from_slice(&chunks.to_le_bytes());
        seal(&mut contents);
        fs::write(&path, &contents).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length)
            .unwrap();
        assert_eq!(
            image.results().unwrap(),
            [Err(Errno::EBADMSG), Ok(()), Ok(())]
        );
        assert!(LARGEST.load(SeqCst) < MODERATE);
    }
}

#[test]
fn chunks_that_overlap_or_leave_the_file_are_refused() {
    let image = Damaged::new();
    let good = dense_contents();
    let with_chunk = |chunk: usize, offset: u64, length: u32| {
        let mut contents = good.clone();
        let place = table_of(&contents).0 + chunk * CHUNK_ENTRY_BYTES;
        contents[place..place + 8].copy_from_slice(&offset.to_le_bytes());
        contents[place + 8..place + 12].copy_from_slice(&length.to_le_bytes());
        seal(&mut contents);
        read_hostile(&image, &contents)
    };
    let hostile = [
        (1, 0, 4096),
        (1, 4095, 4096),
        (2, 8192, 4096),
        (2, MIB - 4095, 4096),
        (2, MIB, 4096),
        (2, u64::MAX, 4096),
        (2, u64::MAX - 4095, 4096),
        (0, 0, 0),
        (0, 0, u32::MAX),
        (2, MIB - CHUNK_BYTES, CHUNK_BYTES as u32 + 1),
    ];
    for (chunk, offset, length) in hostile {
        let result = with_chunk(chunk, offset, length);
        assert_eq!(result, Err(Errno::EBADMSG), "{chunk}: {offset}, {length}");
    }
}

// What needs a process of its own is done by this program once more, told by these what to do.
const CHILD_TASK: &str = "LUO_TEST_TASK";
const CHILD_DIRECTORY: &str = "LUO_TEST_DIRECTORY";

fn as_child(mut command: Command, task: &str, directory: &Path) -> Command {
    command
        .args([
            "child_process",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD_TASK, task)
        .env(CHILD_DIRECTORY, directory);
    command
}

fn child(task: &str, directory: &Path) -> Command {
    as_child(
        Command::new(std::env::current_exe().unwrap()),
        task,
        directory,
    )
}

#[test]
#[ignore = "other tests start it"]
fn child_process() {
    let (Ok(task), Some(directory)) =
        (std::env::var(CHILD_TASK), std::env::var_os(CHILD_DIRECTORY))
    else {
        return;
    };
    let directory = Path::new(&directory);
    match task.as_str() {
        "limited" => save_with_a_limited_file_size(directory),
        "full" => save_to_a_full_disk(directory),
        "draft" => save_forever(directory, save_as_draft),
        _ => save_forever(directory, save),
    }
}

/// A save that fails costs nothing: the old image is there, and nothing else.
fn assert_fails_harmlessly(directory: &Path, too_much: &[File], why: &str) {
    let old = [dense(300_000, 1), dense(10, 2)];
    save(&old, directory).unwrap();
    let image = image_of(directory);
    for _ in 0..3 {
        let error = save(too_much, directory).unwrap_err().to_string();
        assert!(
            error.contains(why) && error.contains("make room"),
            "{error}"
        );
        assert_eq!(image_of(directory), image);
        assert_eq!(listing(directory), CLEAN);
        let update = frozen(too_much);
        let mut draft = Draft::new(directory).unwrap();
        for _ in 0..2 {
            let error = draft.copy(&update.held(), &|_| ()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let finished = update.handover(|handover| Ok::<_, Error>(draft.finish(&handover, &|_| ())));
        let error = finished.unwrap().unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(image_of(directory), image);
        assert_eq!(listing(directory), CLEAN);
    }
    let new = load(directory).unwrap();
    for (file, token) in old.iter().zip(0..) {
        assert_same(file, &new.retrieve(Token(token)).unwrap());
    }
    // Nothing that is read is removed.
    drop(new);
    save(&old, directory).unwrap();
    assert_eq!(listing(directory), CLEAN);
}

fn save_with_a_limited_file_size(directory: &Path) {
    use rustix::process::{setrlimit, Resource, Rlimit};
    // SAFETY: to ignore a signal touches no memory.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // Memfds are files as well, so these are made before.
    let too_much = [dense(1000, 3), dense(8 * MIB, 4), dense(1000, 5)];
    let limit = Rlimit {
        current: Some(MIB),
        maximum: Some(MIB),
    };
    setrlimit(Resource::Fsize, limit).unwrap();
    assert_fails_harmlessly(directory, &too_much, "File too large");
}

fn save_to_a_full_disk(directory: &Path) {
    let too_much = [dense(1000, 3), dense(8 * MIB, 4), dense(1000, 5)];
    assert_fails_harmlessly(directory, &too_much, "No space left");
}

fn assert_success(mut command: Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn a_file_that_grows_too_large_costs_nothing() {
    let directory = directory();
    assert_success(child("limited", directory.path()));
}

#[test]
fn a_full_disk_costs_nothing() {
    let directory = directory();
    let with_small_disk = |program: &Path| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg("mount -t tmpfs -o size=2m tmpfs \"$1\" && shift && exec \"$@\"")
            .arg("sh")
            .arg(directory.path())
            .arg(program);
        command
    };
    let probe = with_small_disk(Path::new("true")).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        return eprintln!("skipped: no tmpfs can be mounted in a user namespace here");
    }
    let program = std::env::current_exe().unwrap();
    assert_success(as_child(
        with_small_disk(&program),
        "full",
        directory.path(),
    ));
}

/// The two images that take turns.
fn image_a() -> Vec<File> {
    (0..3).map(|n| dense(2 * MIB + n, 0xa + n)).collect()
}

fn image_b() -> Vec<File> {
    (0..5).map(|n| dense(MIB + n, 0xb00 + n)).collect()
}

fn save_forever(directory: &Path, save: impl Fn(&[File], &Path) -> Result<Saved, ImageError>) {
    let (a, b) = (image_a(), image_b());
    println!("\nready");
    loop {
        save(&b, directory).unwrap();
        save(&a, directory).unwrap();
    }
}

fn save_as_draft(files: &[File], directory: &Path) -> Result<Saved, ImageError> {
    let update = frozen(files);
    let mut draft = Draft::new(directory)?;
    draft.copy(&update.held(), &|_| ())?;
    finish(&update, draft)
}

#[test]
fn a_process_that_is_killed_leaves_the_old_image_or_the_new_one() {
    let directory = on_disk();
    let (a, b) = (image_a(), image_b());
    save(&a, directory.path()).unwrap();
    let mut interrupted = 0;
    for round in 0..24 {
        let task = if round % 2 == 0 { "save" } else { "draft" };
        let mut process = child(task, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "ready"));
        std::thread::sleep(std::time::Duration::from_micros(round * 1_300));
        process.kill().unwrap();
        process.wait().unwrap();

        interrupted += usize::from(listing(directory.path()) != CLEAN);
        let new = load(directory.path()).unwrap();
        let expected = match new.files().unwrap().len() {
            3 => &a,
            5 => &b,
            other => panic!("{other} files are neither image"),
        };
        for (file, token) in expected.iter().zip(0..) {
            let retrieved = new.retrieve(Token(token)).unwrap();
            assert!(bytes_of(file) == bytes_of(&retrieved), "round {round}");
        }
    }
    println!("{interrupted} of 24 left something behind");
    save(&a, directory.path()).unwrap();
    assert_eq!(listing(directory.path()), CLEAN);
}
