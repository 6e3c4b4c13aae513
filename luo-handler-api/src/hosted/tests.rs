// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Handlers that return what no handler may.

use core::ffi::c_void;
use std::fs::File;

use std::os::fd::AsFd;

use super::*;
use crate::{Crossed, FileHandler, HostServices, Prepared, Preserved, Subsystem};

struct NoServices;

impl HostServices for NoServices {}

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
    // SAFETY: the safety section demands an `&Answers`.
    unsafe { (*handler.cast::<Answers>()).status }
}

unsafe extern "C" fn can_preserve(handler: *const c_void, _: RawFile) -> i32 {
    // SAFETY: these functions are put into the ops of an `&'static Answers` alone.
    unsafe { status(handler) }
}

unsafe extern "C" fn file_id(handler: *const c_void, _: RawFile, _: *mut u64) -> i32 {
    // SAFETY: these functions are put into the ops of an `&'static Answers` alone.
    unsafe { status(handler) }
}

unsafe extern "C" fn step(
    handler: *const c_void,
    _: RawFile,
    _: *const RawHost,
    _: *mut c_void,
    data: *mut u64,
) -> i32 {
    // SAFETY: these functions are put into the ops of an `&'static Answers` alone; `data` is valid
    // for a write by the contract of the callback.
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
    // SAFETY: these functions are put into the ops of an `&'static Answers` alone.
    unsafe { status(handler) }
}

unsafe extern "C" fn retrieve(
    handler: *const c_void,
    _: *const RawHost,
    _: u64,
    file: *mut RawFile,
) -> i32 {
    // SAFETY: these functions are put into the ops of an `&'static Answers` alone; `file` is valid
    // for a write by the contract of the callback.
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
    // SAFETY: these functions are put into the ops of an `&'static Answers` alone.
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
        assert_eq!(
            handler.can_finish(1, Retrieved::NotAsked, host()),
            can_preserve
        );
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
        let failed = handler.prepare(file().as_fd(), host());
        assert_eq!(failed.unwrap_err(), errno, "{status}");
    }
}

#[test]
fn a_freeze_that_returns_garbage_failed_and_changed_nothing() {
    let file = file();
    for (status, errno) in FAILURES {
        let handler = returning(status, |ops| ops.freeze = Some(step));
        let mut prepared = handler.prepare(file.as_fd(), host()).unwrap();
        let failed = prepared.freeze(file.as_fd(), host());
        assert_eq!((failed, prepared.data()), (Err(errno), 1), "{status}");
    }
}

#[test]
fn undoing_that_returns_garbage_is_told() {
    let file = file();
    let fd = file.as_fd();
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
        let finished = handler.finish(1, Retrieved::NotAsked, host());
        assert_eq!(finished, Err(errno), "{status}");
    }
}

#[test]
fn a_retrieve_that_returns_garbage_failed() {
    for (status, errno) in FAILURES {
        let handler = returning(status, |ops| ops.retrieve = Some(retrieve));
        assert_eq!(handler.retrieve(1, host()).unwrap_err(), errno, "{status}");
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
    let fd = file.as_fd();
    let handler = returning(0, |ops| {
        ops.file_id = None;
        ops.freeze = None;
        ops.unfreeze = None;
        ops.can_finish = None;
    });
    assert_eq!(handler.file_id(file.as_fd()), Ok(None));
    assert_eq!(handler.can_finish(1, Retrieved::NotAsked, host()), Ok(true));
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

/// What the functions of a subsystem return.
struct Status(i32);

impl Subsystem for Status {
    const COMPATIBLE: Compatible = Compatible::new("status-v1");
    type Private = u8;

    fn prepare(&self, _: Host<'_>) -> Result<Prepared<u8>, Errno> {
        Ok(Prepared {
            data: 1,
            private: 0,
        })
    }
    fn cancel(&self, _: u64, _: &mut u8, _: Host<'_>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<(), Errno> {
        Ok(())
    }
    fn finish(&self, _: u64, _: bool, _: Host<'_>) {}
}

/// # Safety
///
/// `subsystem` is a `&Status`.
unsafe fn subsystem_status(subsystem: *const c_void) -> i32 {
    // SAFETY: the safety section demands a `&Status`.
    unsafe { (*subsystem.cast::<Status>()).0 }
}

unsafe extern "C" fn subsystem_step(
    subsystem: *const c_void,
    _: *const RawHost,
    _: *mut c_void,
    data: *mut u64,
) -> i32 {
    // SAFETY: these functions are put into the ops of a `&'static Status` alone; `data` is valid
    // for a write by the contract of the callback.
    unsafe {
        data.write(77);
        subsystem_status(subsystem)
    }
}

unsafe extern "C" fn subsystem_undo(
    subsystem: *const c_void,
    _: *const RawHost,
    _: *mut c_void,
    _: u64,
) -> i32 {
    // SAFETY: these functions are put into the ops of a `&'static Status` alone.
    unsafe { subsystem_status(subsystem) }
}

unsafe extern "C" fn subsystem_ask(subsystem: *const c_void, _: *const RawHost, _: u64) -> i32 {
    // SAFETY: these functions are put into the ops of a `&'static Status` alone.
    unsafe { subsystem_status(subsystem) }
}

unsafe extern "C" fn subsystem_end(
    subsystem: *const c_void,
    _: *const RawHost,
    _: u64,
    _: i32,
) -> i32 {
    // SAFETY: these functions are put into the ops of a `&'static Status` alone.
    unsafe { subsystem_status(subsystem) }
}

fn subsystem(status: i32, change: impl FnOnce(&mut SubsystemOps)) -> SubsystemRef {
    let mut ops = SubsystemOps::of(Box::leak(Box::new(Status(status))), "tests");
    change(&mut ops);
    SubsystemRef::new(Box::leak(Box::new(ops))).unwrap()
}

#[test]
fn a_subsystem_that_returns_garbage_failed_and_changed_nothing() {
    for (status, errno) in FAILURES {
        let preparing = subsystem(status, |ops| ops.prepare = Some(subsystem_step));
        assert_eq!(preparing.prepare(host()).unwrap_err(), errno, "{status}");

        let later = subsystem(status, |ops| {
            ops.freeze = Some(subsystem_step);
            ops.unfreeze = Some(subsystem_undo);
            ops.cancel = Some(subsystem_undo);
            ops.retrieve = Some(subsystem_ask);
            ops.finish = Some(subsystem_end);
        });
        let mut prepared = later.prepare(host()).unwrap();
        let frozen = prepared.freeze(host());
        assert_eq!((frozen, prepared.data()), (Err(errno), 1), "{status}");
        assert_eq!(prepared.unfreeze(host()), Err(errno), "{status}");
        assert_eq!(prepared.cancel(host()), Err(errno), "{status}");
        assert_eq!(later.retrieve(1, host()), Err(errno), "{status}");
        assert_eq!(later.finish(1, true, host()), Err(errno), "{status}");
    }
    for (status, expected) in [(0, Ok(false)), (1, Ok(true)), (2, Err(Errno::EIO))] {
        let asked = subsystem(status, |ops| ops.can_finish = Some(subsystem_ask));
        assert_eq!(asked.can_finish(1, host()), expected);
    }
}

#[test]
fn callbacks_that_a_subsystem_does_not_have_do_nothing() {
    let bare = subsystem(0, |ops| {
        ops.freeze = None;
        ops.unfreeze = None;
        ops.can_finish = None;
        ops.describe = None;
        ops.init = None;
    });
    assert_eq!(bare.can_finish(1, host()), Ok(true));
    assert_eq!(bare.describe(1, host()), (Vec::new(), Ok(())));
    let mut prepared = bare.prepare(host()).unwrap();
    assert_eq!((prepared.freeze(host()), prepared.data()), (Ok(()), 1));
    assert_eq!(prepared.unfreeze(host()), Ok(()));
    assert_eq!(prepared.cancel(host()), Ok(()));
}

#[test]
fn a_subsystem_names_the_handlers_that_need_it() {
    static TWO: [Compatible; 2] = [Compatible::new("a-v1"), Compatible::new("b-v1")];
    let two = subsystem(0, |ops| {
        ops.needed_by = TWO.as_ptr();
        ops.header.needed_by_count = 2;
    });
    assert_eq!(two.needed_by(), NeededBy::Handlers(&TWO));
    assert!(two.needed_by().includes(&TWO[1]));
    assert!(!two.needed_by().includes(&Compatible::new("c-v1")));
    assert_eq!(subsystem(0, |_| ()).needed_by(), NeededBy::Every);

    let refused = |count, names: *const Compatible| {
        let mut ops = SubsystemOps::of(&Status(0), "tests");
        ops.header.needed_by_count = count;
        ops.needed_by = names;
        ops.validate().unwrap_err().reason
    };
    assert_eq!(refused(1, core::ptr::null()), InvalidReason::NeededBy);
    assert_eq!(refused(u32::MAX, TWO.as_ptr()), InvalidReason::NeededBy);
    let unnamed = [0u8; 48];
    assert_eq!(refused(1, unnamed.as_ptr().cast()), InvalidReason::NeededBy);
}

/// Cannot work here, and can describe without end.
struct Peculiar;

impl FileHandler for Peculiar {
    const COMPATIBLE: Compatible = Compatible::new("peculiar-v1");
    type Private = ();

    fn init(&self, host: Host<'_>) -> Result<(), Errno> {
        assert_eq!(host.preserve_bytes(b"1"), Err(Errno::EOPNOTSUPP));
        Err(host.refuse(Errno::ENODEV, format_args!("there is no such bus")))
    }
    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        false
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn cancel(&self, _: Preserved<'_, ()>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
    fn describe(&self, data: u64, _: Host<'_>, pairs: &mut Pairs<'_>) -> Result<(), Errno> {
        for _ in 0..data {
            pairs.put("turn[]", data);
        }
        Err(Errno::EINVAL)
    }
}

#[test]
fn a_handler_keeps_itself_out_with_its_reason() {
    let ops = Box::leak(Box::new(HandlerOps::of(&Peculiar, "tests")));
    let message = Handler::new(ops).unwrap_err().to_string();
    for part in ["peculiar-v1", "there is no such bus", "ENODEV"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_description_is_bounded_and_ends_with_its_status() {
    let mut ops = HandlerOps::of(&Peculiar, "tests");
    ops.init = None;
    let handler = Handler::new(Box::leak(Box::new(ops))).unwrap();
    let (pairs, end) = handler.describe(2, host());
    let expected = ("turn[]".to_owned(), "2".to_owned());
    assert_eq!((pairs, end), (vec![expected; 2], Err(Errno::EINVAL)));
    assert_eq!(handler.describe(1 << 16, host()).0.len(), DESCRIPTION_MAX);
}

#[test]
fn a_host_of_an_older_version_lacks_services() {
    struct Asks;
    impl Subsystem for Asks {
        const COMPATIBLE: Compatible = Compatible::new("asks-v1");
        type Private = ();
        fn prepare(&self, host: Host<'_>) -> Result<Prepared<()>, Errno> {
            // What is not there is not called.
            host.explain(format_args!("nobody reads this"));
            let data = host.preserve_bytes(b"1")?;
            Ok(Prepared { data, private: () })
        }
        fn cancel(&self, _: u64, (): &mut (), _: Host<'_>) {}
        fn retrieve(&self, _: u64, _: Host<'_>) -> Result<(), Errno> {
            Ok(())
        }
        fn finish(&self, _: u64, _: bool, _: Host<'_>) {}
    }

    let ops = SubsystemOps::of(&Asks, "tests");
    let prepare = ops.prepare.unwrap();
    let services = crate::testing::FakeHost::default();
    let whole = services.lend().as_raw();
    // SAFETY: a host's ops are valid as long as the host.
    let whole_ops = unsafe { &*whole.ops };
    let prepared = |size| {
        // The memory ends after this size: what is read beyond it is found by Miri or ASan.
        let mut shorter = vec![0u64; size / 8];
        // SAFETY: `size` is at most that of the ops; the destination has as many bytes.
        unsafe {
            let from = (&raw const *whole_ops).cast::<u8>();
            core::ptr::copy_nonoverlapping(from, shorter.as_mut_ptr().cast::<u8>(), size);
            shorter.as_mut_ptr().cast::<u32>().write(size as u32);
        }
        let host = RawHost {
            ops: shorter.as_ptr().cast(),
            context: whole.context,
        };
        let mut data = 0;
        // SAFETY: the context is that of the ops, the host's ops are as long as they claim, and a
        // private state of no bytes may lie anywhere.
        let status = unsafe {
            let nowhere = NonNull::<()>::dangling().as_ptr().cast();
            prepare(ops.header.context, &host, nowhere, &mut data)
        };
        done(status)
    };
    let whole_size = size_of::<crate::host::HostOps>();
    assert_eq!(prepared(whole_size), Ok(()));
    assert_eq!(services.reason(), "nobody reads this");
    assert_eq!(prepared(whole_size - 8), Ok(()));
    assert_eq!(prepared(8), Err(Errno::EOPNOTSUPP));
}
