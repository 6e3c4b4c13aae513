// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Handlers that return what no handler may.

use core::ffi::c_void;
use std::fs::File;

use super::*;
use crate::{Crossed, FileHandler, HostServices, Prepared, Preserved};

struct NoServices;

impl HostServices for NoServices {
    fn preserve_bytes(&self, _: &[u8]) -> Result<u64, Errno> {
        Err(Errno::ENOMEM)
    }
    fn bytes_len(&self, _: u64) -> Result<u64, Errno> {
        Err(Errno::ENOENT)
    }
    fn read_bytes(&self, _: u64, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::ENOENT)
    }
    fn release_bytes(&self, _: u64) {}
    fn preserve_file(&self, _: FileRef<'_>) -> Result<u64, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn take_file(&self, _: u64) -> Result<OwnedFile, Errno> {
        Err(Errno::ENOENT)
    }
    fn release_file(&self, _: u64) {}
}

/// What the functions below return, and the file that `retrieve` writes.
#[derive(Default)]
struct Answers {
    status: i32,
    file: RawFile,
}

impl FileHandler for Answers {
    const COMPATIBLE: Compatible = Compatible::new("answers-v1");
    type Private = u8;

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        true
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<u8>, Errno> {
        Ok(Prepared {
            data: 1,
            private: 0,
        })
    }
    fn freeze(&self, _: Preserved<'_, u8>) -> Result<u64, Errno> {
        Ok(2)
    }
    fn cancel(&self, _: Preserved<'_, u8>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

/// # Safety
///
/// `handler` is an `&Answers`.
unsafe fn status(handler: *const c_void) -> i32 {
    // SAFETY: the caller says so.
    unsafe { (*handler.cast::<Answers>()).status }
}

unsafe extern "C" fn can_preserve(handler: *const c_void, _: RawFile) -> i32 {
    // SAFETY: registered with an `Answers` alone.
    unsafe { status(handler) }
}

unsafe extern "C" fn file_id(handler: *const c_void, _: RawFile, _: *mut u64) -> i32 {
    // SAFETY: as above.
    unsafe { status(handler) }
}

unsafe extern "C" fn step(
    handler: *const c_void,
    _: RawFile,
    _: *const RawHost,
    _: *mut c_void,
    data: *mut u64,
) -> i32 {
    // SAFETY: as above, and `data` is valid for a write.
    unsafe {
        data.write(77);
        status(handler)
    }
}

unsafe extern "C" fn undo(
    handler: *const c_void,
    _: RawFile,
    _: *const RawHost,
    _: *mut c_void,
    _: u64,
) -> i32 {
    // SAFETY: as above.
    unsafe { status(handler) }
}

unsafe extern "C" fn retrieve(
    handler: *const c_void,
    _: *const RawHost,
    _: u64,
    file: *mut RawFile,
) -> i32 {
    // SAFETY: as above, and `file` is valid for a write.
    unsafe {
        file.write((*handler.cast::<Answers>()).file);
        status(handler)
    }
}

unsafe extern "C" fn finish(
    handler: *const c_void,
    _: *const RawHost,
    _: u64,
    _: RawFile,
    _: i32,
) -> i32 {
    // SAFETY: as above.
    unsafe { status(handler) }
}

fn handler(answers: Answers, change: impl FnOnce(&mut HandlerOps)) -> Handler {
    let mut ops = HandlerOps::of(Box::leak(Box::new(answers)), "tests");
    change(&mut ops);
    Handler::new(Box::leak(Box::new(ops))).unwrap()
}

fn returning(status: i32, change: impl FnOnce(&mut HandlerOps)) -> Handler {
    handler(Answers { status, file: 0 }, change)
}

fn host() -> Host<'static> {
    Host::new(&NoServices)
}

fn file() -> File {
    File::open("/dev/null").unwrap()
}

/// Returned statuses and the errors they mean, where only 0 is a success.
const FAILURES: [(i32, Errno); 7] = [
    (1, Errno::EIO),
    (7, Errno::EIO),
    (i32::MAX, Errno::EIO),
    (-28, Errno::ENOSPC),
    (-4096, Errno::EIO),
    (-5000, Errno::EIO),
    (i32::MIN, Errno::EIO),
];

#[test]
fn a_question_has_two_answers() {
    let file = file();
    let ask = |status| {
        let handler = returning(status, |ops| {
            ops.can_preserve = Some(can_preserve);
            ops.file_id = Some(file_id);
            ops.can_finish = Some(finish);
        });
        let can_preserve = handler.can_preserve(file.as_fd());
        assert_eq!(handler.can_finish(1, Reclaimed::No, host()), can_preserve);
        let known = handler.file_id(file.as_fd()).map(|id| id.is_some());
        assert_eq!(known, can_preserve);
        can_preserve
    };
    assert_eq!(ask(0), Ok(false));
    assert_eq!(ask(1), Ok(true));
    for (status, errno) in FAILURES.into_iter().filter(|(status, _)| *status != 1) {
        assert_eq!(ask(status), Err(errno), "{status}");
    }
}

#[test]
fn a_prepare_that_returns_garbage_failed() {
    for (status, errno) in FAILURES {
        let handler = returning(status, |ops| ops.prepare = Some(step));
        let failed = handler.prepare(Some(file().as_fd()), host());
        assert_eq!(failed.unwrap_err(), errno, "{status}");
    }
}

#[test]
fn a_freeze_that_returns_garbage_failed_and_changed_nothing() {
    let file = file();
    for (status, errno) in FAILURES {
        let handler = returning(status, |ops| ops.freeze = Some(step));
        let mut prepared = handler.prepare(Some(file.as_fd()), host()).unwrap();
        let failed = prepared.freeze(Some(file.as_fd()), host());
        assert_eq!((failed, prepared.data()), (Err(errno), 1), "{status}");
    }
}

#[test]
fn undoing_that_returns_garbage_is_told() {
    let file = file();
    let fd = Some(file.as_fd());
    for (status, errno) in FAILURES {
        let handler = returning(status, |ops| {
            ops.unfreeze = Some(undo);
            ops.cancel = Some(undo);
        });
        let mut prepared = handler.prepare(fd, host()).unwrap();
        assert_eq!(prepared.unfreeze(fd, host()), Err(errno), "{status}");
        assert_eq!(prepared.cancel(fd, host()), Err(errno), "{status}");
    }
}

#[test]
fn a_finish_that_returns_garbage_is_told() {
    for (status, errno) in FAILURES {
        let handler = returning(status, |ops| ops.finish = Some(finish));
        let finished = handler.finish(1, Reclaimed::No, host());
        assert_eq!(finished, Err(errno), "{status}");
    }
}

#[test]
fn a_retrieve_that_returns_garbage_failed() {
    for (status, errno) in FAILURES {
        let handler = returning(status, |ops| ops.retrieve = Some(retrieve));
        assert_eq!(handler.retrieve(1, host()).unwrap_err(), errno, "{status}");
        let subsystem = handler.retrieve_subsystem(1, host());
        assert_eq!(subsystem, Err(errno), "{status}");
    }
}

#[test]
fn a_file_that_is_none_is_not_taken() {
    let beyond = i32::MAX as RawFile;
    for file in [NO_FILE, -7, beyond, beyond + 1, RawFile::MAX, RawFile::MIN] {
        let handler = handler(Answers { status: 0, file }, |ops| {
            ops.retrieve = Some(retrieve);
        });
        let failed = handler.retrieve(1, host());
        assert_eq!(failed.unwrap_err(), Errno::EBADF, "{file}");
    }
}

#[test]
fn callbacks_that_are_missing_do_nothing() {
    let file = file();
    let fd = Some(file.as_fd());
    let handler = returning(0, |ops| {
        ops.file_id = None;
        ops.freeze = None;
        ops.unfreeze = None;
        ops.can_finish = None;
    });
    assert_eq!(handler.file_id(file.as_fd()), Ok(None));
    assert_eq!(handler.can_finish(1, Reclaimed::No, host()), Ok(true));
    let mut prepared = handler.prepare(fd, host()).unwrap();
    assert_eq!(prepared.freeze(fd, host()), Ok(()));
    assert_eq!(
        (prepared.unfreeze(fd, host()), prepared.data()),
        (Ok(()), 1)
    );
    assert_eq!(prepared.cancel(fd, host()), Ok(()));
}

#[test]
fn the_room_for_private_state_is_as_large_and_aligned_as_asked_for() {
    for bytes in [0, 1, 15, 16, 17, 4096] {
        let mut room = Room::of(bytes).unwrap();
        assert_eq!(room.as_ptr().addr() % 16, 0);
    }
    assert_eq!(Room::of(usize::MAX).unwrap_err(), Errno::ENOMEM);
}
