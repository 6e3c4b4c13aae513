// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What every handler has to pass.

use core::{
    cell::RefCell,
    fmt::{Arguments, Debug},
};
use std::{
    boxed::Box,
    format,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{catch_unwind, AssertUnwindSafe},
    string::String,
    vec::Vec,
};

use super::{
    fake_host::FakeHost,
    form::{Counted, Direct, Form, Held},
};
use crate::{
    hosted::Handler, record, Errno, FileHandler, HandlerOps, Host, HostServices, Retrieved,
};

/// How many bytes of what a handler preserves are flipped one by one, and how many lengths it is
/// cut to. Of more bytes a sample is taken, evenly, with the first and the last.
pub const PLACES_MAX: usize = 1024;

/// Calls of the host that one phase may make before a test of their failures gives up.
const CALLS_MAX: u64 = 10_000;

/// Drives `handler` through all that a host may do with it, and panics at the first thing that the
/// contract does not allow; the message names the step. Call it in a test:
///
/// ```
/// # use luo_handler_api::{*, record::PREFIX};
/// # use std::{io::Write, os::fd::{AsFd, OwnedFd}, fs::File};
/// # use rustix::fs::{memfd_create, MemfdFlags, seek, SeekFrom};
/// # struct Positions;
/// # impl FileHandler for Positions {
/// #     const COMPATIBLE: Compatible = Compatible::new("positions-v1");
/// #     type Private = ();
/// #     fn can_preserve(&self, _: FileRef<'_>) -> bool { true }
/// #     fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<()>, Errno> {
/// #         Ok(Prepared { data: host.preserve_file(file)?, private: () })
/// #     }
/// #     fn cancel(&self, file: Preserved<'_, ()>) { file.host.release_file(file.data) }
/// #     fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
/// #         host.take_file(data)
/// #     }
/// #     fn finish(&self, file: Crossed<'_>) {
/// #         if file.retrieved.file().is_none() { file.host.release_file(file.data) }
/// #     }
/// # }
/// # static HANDLER: Positions = Positions;
/// luo_handler_api::testing::conformance(
///     &HANDLER,
///     || memfd_create("a new file", MemfdFlags::CLOEXEC).unwrap(),
///     |file| { seek(file, SeekFrom::Start(7)).unwrap(); },
///     |file| seek(file, SeekFrom::Current(0)).unwrap(),
/// );
/// ```
///
/// - `make` makes a new file that the handler takes, another one at each call.
/// - `change` does to a file what a workload may do between prepare and freeze.
/// - `look` returns all of a file that crosses; it sees what `change` did. The old file is compared
///   with the new one by it. What differs by nature, as a time that runs, is left out, or evened
///   out by the `PartialEq` of what is returned.
///
/// Every check is made twice, by calls of the trait and by calls through the
/// [C form](crate::HandlerOps). The steps:
///
/// - every order of the phases, with a change at every place, up to two freezes that are undone,
///   ended by cancel, by a retrieve, by a finish of a file that nobody asked for, and by one that
///   failed
/// - each call of the host fails, in every phase; and a host that offers nothing
/// - handles that the host does not know, of foreign bytes, of a foreign file, of a record that was
///   released, given to `retrieve` and to `finish`
/// - what was preserved, with every byte flipped, at every length, at most [`PLACES_MAX`] of each;
///   as it is, and, where it begins as [`record`] has it, with the length and the checksum made
///   right again; and every bit of the `u64`
/// - two files at once
///
/// After each the host holds nothing that the handler preserved, but for what cannot be told to be
/// the handler's any more: a record that does not begin as it did, in its first 8 bytes, may be
/// left, and what is somebody else's must be. It has got nothing back twice, and every private
/// state was dropped once. A record with a wrong checksum is refused, or yields an
/// equal file. One with a right checksum may yield any file that the handler takes: anyone can
/// write such a record.
///
/// The handler has to run in a process: [`Hosts::Hosted`](crate::Hosts) or `Both`. To try the
/// policy of a kernel's handler, give it a backend in memory, as this project's handlers do.
/// Descriptors that a handler opens for itself and forgets are not counted.
///
/// # Panics
///
/// If the handler does not conform, or cannot be used in a process.
pub fn conformance<H, F, S>(
    handler: &'static H,
    make: impl Fn() -> F,
    change: impl Fn(BorrowedFd<'_>),
    look: impl Fn(BorrowedFd<'_>) -> S,
) where
    H: FileHandler,
    F: Into<OwnedFd>,
    S: PartialEq + Debug,
{
    // Some bytes a test: the C form is of what lives as long as the program.
    let counted: &'static Counted<H> = Box::leak(Box::new(Counted::new(handler)));
    let ops = Box::leak(Box::new(HandlerOps::of(counted, "conformance")));
    let c_form = Handler::new(ops)
        .unwrap_or_else(|invalid| panic!("it cannot be used in a process: {invalid}"));
    for form in [&Direct(counted) as &dyn Form, &c_form] {
        let checks = Checks {
            form,
            compatible: H::COMPATIBLE.as_str(),
            alive: &|| counted.alive(),
            make: &|| make().into(),
            change: &change,
            look: &look,
            step: RefCell::default(),
        };
        checks.files();
        checks.orders();
        checks.failing_host();
        checks.foreign_handles();
        checks.forged();
        checks.two_files();
    }
}

struct Checks<'a, S> {
    form: &'a dyn Form,
    compatible: &'static str,
    alive: &'a dyn Fn() -> isize,
    make: &'a dyn Fn() -> OwnedFd,
    change: &'a dyn Fn(BorrowedFd<'_>),
    look: &'a dyn Fn(BorrowedFd<'_>) -> S,
    /// What is being tried, for messages.
    step: RefCell<String>,
}

/// How an order ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Cancel,
    Retrieve,
    NotAsked,
    Failed,
}

/// A host without services.
struct Nothing;

impl HostServices for Nothing {}

/// What crosses of one file, and the file as it was at freeze.
struct Crossing<S> {
    host: FakeHost,
    data: u64,
    was: S,
}

impl<S: PartialEq + Debug> Checks<'_, S> {
    fn at(&self, step: Arguments<'_>) {
        *self.step.borrow_mut() = format!("{step}");
    }

    fn fail(&self, what: Arguments<'_>) -> ! {
        let (name, form, step) = (self.compatible, self.form.name(), self.step.borrow());
        panic!("{name}, {form}: {step}: {what}");
    }

    /// Makes a call of the handler; one that panics is named.
    fn call<T>(&self, callback: &str, call: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(call))
            .unwrap_or_else(|_| self.fail(format_args!("{callback} panicked")))
    }

    /// The same of a callback that cannot fail: in C form it may return garbage.
    fn sure<T>(&self, callback: &str, call: impl FnOnce() -> Result<T, Errno>) -> T {
        self.call(callback, call).unwrap_or_else(|errno| {
            self.fail(format_args!("{callback} panicked, or returned {errno}"))
        })
    }

    fn prepare(&self, file: &OwnedFd, host: Host<'_>) -> Result<Box<dyn Held + '_>, Errno> {
        self.call("prepare", || self.form.prepare(file.as_fd(), host))
    }

    fn prepared(&self, file: &OwnedFd, host: &FakeHost) -> Box<dyn Held + '_> {
        self.prepare(file, host.lend()).unwrap_or_else(|errno| {
            let reason = host.reason();
            self.fail(format_args!("prepare failed: {errno} {reason}"))
        })
    }

    fn freeze(&self, held: &mut dyn Held, file: &OwnedFd, host: &FakeHost) -> Result<(), Errno> {
        self.call("freeze", || held.freeze(file.as_fd(), host.lend()))
    }

    fn frozen(&self, held: &mut dyn Held, file: &OwnedFd, host: &FakeHost) {
        self.freeze(held, file, host).unwrap_or_else(|errno| {
            let reason = host.reason();
            self.fail(format_args!("freeze failed: {errno} {reason}"))
        });
    }

    fn unfreeze(&self, held: &mut dyn Held, file: &OwnedFd, host: &FakeHost) {
        self.sure("unfreeze", || held.unfreeze(file.as_fd(), host.lend()));
    }

    fn cancel(&self, held: Box<dyn Held + '_>, file: &OwnedFd, host: &FakeHost) {
        self.sure("cancel", || held.cancel(file.as_fd(), host.lend()));
    }

    fn retrieve(&self, data: u64, host: &FakeHost) -> Result<OwnedFd, Errno> {
        self.call("retrieve", || self.form.retrieve(data, host.lend()))
    }

    fn retrieved(&self, data: u64, host: &FakeHost) -> OwnedFd {
        self.retrieve(data, host).unwrap_or_else(|errno| {
            let reason = host.reason();
            self.fail(format_args!("retrieve failed: {errno} {reason}"))
        })
    }

    fn can_finish(&self, data: u64, retrieved: Retrieved<'_>, host: &FakeHost) -> bool {
        self.sure("can_finish", || {
            self.form.can_finish(data, retrieved, host.lend())
        })
    }

    /// Finishes a file that was asked for: nothing that comes later could make that possible.
    fn finish(&self, data: u64, retrieved: Retrieved<'_>, host: &FakeHost) {
        if !self.can_finish(data, retrieved, host) {
            self.fail(format_args!(
                "can_finish of {retrieved:?} is false for good"
            ));
        }
        self.finish_now(data, retrieved, host);
    }

    fn finish_now(&self, data: u64, retrieved: Retrieved<'_>, host: &FakeHost) {
        self.sure("finish", || self.form.finish(data, retrieved, host.lend()));
    }

    /// Finishes a file that nobody asked for. A handler may insist on being asked first.
    fn finish_not_asked(&self, data: u64, host: &FakeHost) {
        if self.can_finish(data, Retrieved::NotAsked, host) {
            return self.finish_now(data, Retrieved::NotAsked, host);
        }
        match self.retrieve(data, host) {
            Ok(file) => self.finish(data, Retrieved::File(file.as_fd().into()), host),
            Err(errno) => self.finish(data, Retrieved::Failed(errno), host),
        }
    }

    fn look(&self, file: &OwnedFd) -> S {
        (self.look)(file.as_fd())
    }

    fn expect_like(&self, was: &S, file: &OwnedFd, when: &str) {
        let now = self.look(file);
        if *was != now {
            self.fail(format_args!("{when} it is {now:?}, and was {was:?}"));
        }
    }

    /// Nothing is left of what the handler made.
    fn expect_nothing_left(&self, host: &FakeHost) {
        self.expect_no_private();
        if let Some(handle) = host.released_twice() {
            self.fail(format_args!(
                "the bytes under {handle:#x} are released twice"
            ));
        }
        let (bytes, files) = host.handles();
        if !bytes.is_empty() || !files.is_empty() {
            self.fail(format_args!(
                "the host still holds bytes under {bytes:?} and files under {files:?}"
            ));
        }
    }

    /// The file is as if it had never been offered: so it can be offered.
    fn expect_cancelled(&self, was: &S, file: &OwnedFd, host: &FakeHost) {
        self.expect_nothing_left(host);
        self.expect_like(was, file, "after cancel");
        let again = self.prepared(file, host);
        self.cancel(again, file, host);
        self.expect_nothing_left(host);
        self.expect_like(was, file, "after another prepare and cancel");
    }

    fn expect_no_private(&self) {
        let alive = (self.alive)();
        if alive != 0 {
            self.fail(format_args!(
                "{alive} private states more were made than dropped"
            ));
        }
    }

    /// What the other steps build on.
    fn files(&self) {
        self.at(format_args!("a new file"));
        let (file, other) = ((self.make)(), (self.make)());
        let was = self.look(&file);
        self.expect_like(&was, &file, "when it is looked at again");
        if !self.sure("can_preserve", || self.form.can_preserve(file.as_fd())) {
            self.fail(format_args!("can_preserve is false"));
        }
        let id = |file: &OwnedFd| self.sure("file_id", || self.form.file_id(file.as_fd()));
        let (one, another) = (id(&file), id(&other));
        if one != id(&file) || one.is_some() && one == another {
            self.fail(format_args!(
                "file_id is {one:?}, then {:?}, and that of another file is {another:?}",
                id(&file)
            ));
        }
        self.expect_like(&was, &file, "after can_preserve and file_id");
        (self.change)(file.as_fd());
        if self.look(&file) == was {
            self.fail(format_args!("it is still {was:?} after a change"));
        }
    }

    /// Every order in which a host may call the phases.
    fn orders(&self) {
        for undone in 0..=2 {
            for change in (0..=undone).map(Some).chain([None]) {
                for end in [End::Cancel, End::Retrieve, End::NotAsked, End::Failed] {
                    let change_at = change.map_or("a change before".into(), |at| {
                        format!("a change after {at} of them")
                    });
                    self.at(format_args!(
                        "prepare, {undone} times freeze and unfreeze, {change_at}, {end:?}"
                    ));
                    self.order(undone, change, end);
                }
            }
        }
    }

    fn order(&self, undone: u32, change: Option<u32>, end: End) {
        let host = FakeHost::default();
        let file = (self.make)();
        if change.is_none() {
            (self.change)(file.as_fd());
        }
        let mut was = self.look(&file);
        let mut held = self.prepared(&file, &host);
        self.expect_like(&was, &file, "after prepare");
        for round in 0..=undone {
            if round > 0 {
                self.frozen(&mut *held, &file, &host);
                self.unfreeze(&mut *held, &file, &host);
                self.expect_like(&was, &file, "after unfreeze");
            }
            if change == Some(round) {
                (self.change)(file.as_fd());
                was = self.look(&file);
            }
        }
        if let End::Cancel = end {
            self.cancel(held, &file, &host);
            return self.expect_cancelled(&was, &file, &host);
        }
        self.frozen(&mut *held, &file, &host);
        let data = held.data();
        // The old side ends.
        drop((held, file));
        self.expect_no_private();
        match end {
            End::Retrieve => {
                let new = self.retrieved(data, &host);
                self.expect_like(&was, &new, "after the jump");
                self.finish(data, Retrieved::File(new.as_fd().into()), &host);
                self.expect_like(&was, &new, "after finish");
            }
            End::NotAsked => self.finish_not_asked(data, &host),
            _ => self.finish(data, Retrieved::Failed(Errno::EIO), &host),
        }
        self.expect_nothing_left(&host);
    }

    /// A file that was changed after prepare, and crosses.
    fn crossing(&self) -> Crossing<S> {
        let host = FakeHost::default();
        let file = (self.make)();
        let mut held = self.prepared(&file, &host);
        (self.change)(file.as_fd());
        let was = self.look(&file);
        self.frozen(&mut *held, &file, &host);
        let data = held.data();
        Crossing { host, data, was }
    }

    /// Calls `attempt` with a number of calls of the host after which one fails, until none does.
    fn each_failure(&self, phase: &str, attempt: impl Fn(u64) -> bool) {
        for call in 0..CALLS_MAX {
            self.at(format_args!(
                "call {} of the host in {phase} fails",
                call + 1
            ));
            if !attempt(call) {
                return;
            }
        }
        self.fail(format_args!(
            "it calls the host more than {CALLS_MAX} times"
        ));
    }

    /// An error has to have a cause.
    fn expect_cause(&self, callback: &str, errno: Errno, has_failed: bool) {
        if !has_failed {
            self.fail(format_args!(
                "{callback} failed while no call of the host did: {errno}"
            ));
        }
    }

    fn failing_host(&self) {
        self.each_failure("prepare", |call| self.failing_prepare(call));
        for undone in [false, true] {
            self.each_failure("freeze", |call| {
                self.failing_freeze(call, undone, End::Cancel);
                self.failing_freeze(call, undone, End::Retrieve)
            });
        }
        self.each_failure("unfreeze", |call| self.failing_undo(call, true));
        self.each_failure("cancel", |call| self.failing_undo(call, false));
        self.each_failure("retrieve", |call| {
            let Crossing { host, data, was } = self.crossing();
            host.fail_at(call);
            let retrieved = self.retrieve(data, &host);
            let has_failed = host.stop_failing();
            match retrieved {
                Ok(file) => {
                    self.expect_like(&was, &file, "after the jump");
                    self.finish(data, Retrieved::File(file.as_fd().into()), &host);
                }
                Err(errno) => {
                    self.expect_cause("retrieve", errno, has_failed);
                    self.finish(data, Retrieved::Failed(errno), &host);
                }
            }
            self.expect_nothing_left(&host);
            has_failed
        });
        for asked in [false, true] {
            self.each_failure("finish", |call| {
                let Crossing { host, data, .. } = self.crossing();
                let file = asked.then(|| self.retrieved(data, &host));
                let retrieved = match &file {
                    Some(file) => Retrieved::File(file.as_fd().into()),
                    None => Retrieved::NotAsked,
                };
                if !asked && !self.can_finish(data, retrieved, &host) {
                    return false;
                }
                host.fail_at(call);
                self.finish_now(data, retrieved, &host);
                let has_failed = host.stop_failing();
                if !has_failed {
                    self.expect_released(data, &host);
                }
                has_failed
            });
        }
        self.at(format_args!("prepare with a host that offers nothing"));
        let file = (self.make)();
        let was = self.look(&file);
        if let Ok(held) = self.prepare(&file, Host::new(&Nothing)) {
            self.sure("cancel", || held.cancel(file.as_fd(), Host::new(&Nothing)));
        }
        self.expect_no_private();
        self.expect_like(&was, &file, "afterwards");
    }

    /// Whether a call of the host has failed.
    fn failing_prepare(&self, call: u64) -> bool {
        let host = FakeHost::default();
        let file = (self.make)();
        let was = self.look(&file);
        host.fail_at(call);
        let prepared = self.prepare(&file, host.lend());
        let has_failed = host.stop_failing();
        match prepared {
            Ok(held) => self.cancel(held, &file, &host),
            Err(errno) => {
                self.expect_cause("prepare", errno, has_failed);
                self.expect_nothing_left(&host);
                self.expect_like(&was, &file, "after a prepare that failed");
            }
        }
        self.expect_cancelled(&was, &file, &host);
        has_failed
    }

    /// A freeze that fails is followed by a cancel or by another freeze, without unfreeze.
    fn failing_freeze(&self, call: u64, undone: bool, end: End) -> bool {
        let host = FakeHost::default();
        let file = (self.make)();
        let mut held = self.prepared(&file, &host);
        if undone {
            self.frozen(&mut *held, &file, &host);
            self.unfreeze(&mut *held, &file, &host);
        }
        (self.change)(file.as_fd());
        let was = self.look(&file);
        let data = held.data();
        host.fail_at(call);
        let frozen = self.freeze(&mut *held, &file, &host);
        let has_failed = host.stop_failing();
        if let Err(errno) = frozen {
            self.expect_cause("freeze", errno, has_failed);
            self.expect_like(&was, &file, "after a freeze that failed");
            if held.data() != data {
                self.fail(format_args!(
                    "the u64 is {:#x}, and was {data:#x}",
                    held.data()
                ));
            }
            if let End::Retrieve = end {
                self.frozen(&mut *held, &file, &host);
            }
        } else if let End::Cancel = end {
            self.unfreeze(&mut *held, &file, &host);
        }
        if let End::Cancel = end {
            self.cancel(held, &file, &host);
            self.expect_cancelled(&was, &file, &host);
        } else {
            let data = held.data();
            drop((held, file));
            let new = self.retrieved(data, &host);
            self.expect_like(&was, &new, "after the jump");
            self.finish(data, Retrieved::File(new.as_fd().into()), &host);
        }
        self.expect_nothing_left(&host);
        has_failed
    }

    /// What cannot fail is called with a host that does: it does not panic.
    fn failing_undo(&self, call: u64, freezes: bool) -> bool {
        let host = FakeHost::default();
        let file = (self.make)();
        let mut held = self.prepared(&file, &host);
        if freezes {
            self.frozen(&mut *held, &file, &host);
        }
        host.fail_at(call);
        if freezes {
            self.unfreeze(&mut *held, &file, &host);
        } else {
            self.cancel(held, &file, &host);
            self.expect_no_private();
            return host.stop_failing();
        }
        let has_failed = host.stop_failing();
        self.cancel(held, &file, &host);
        self.expect_nothing_left(&host);
        has_failed
    }

    /// The host still holds these bytes, which another preserved.
    fn expect_left_alone(&self, others: Result<u64, Errno>, host: &FakeHost) {
        if !host.handles().0.contains(&others.unwrap_or_default()) {
            self.fail(format_args!("bytes of somebody else are released"));
        }
    }

    /// `data` does not name bytes any more.
    fn expect_released(&self, data: u64, host: &FakeHost) {
        if host.handles().0.contains(&data) {
            self.fail(format_args!(
                "the record {data:#x} is not released by finish"
            ));
        }
    }

    /// Numbers that are not what the handler made.
    fn foreign_handles(&self) {
        let crossing = self.crossing();
        let Crossing { host, data, .. } = &crossing;
        let is_handle = host.handles().0.contains(data);
        let text = host.lend().preserve_bytes(b"not what was preserved");
        let nothing = host.lend().preserve_bytes(b"");
        let zeros = host.lend().preserve_bytes(&[0; 4096]);
        let file = (self.make)();
        let file = host.lend().preserve_file(file.as_fd().into());
        let foreign = [text, nothing, zeros, file].map(|handle| handle.unwrap_or_default());
        let (bytes, files) = host.handles();
        let unknown = [
            0,
            data.wrapping_add(1 << 20),
            !data,
            u64::MAX,
            1 << 63,
            1 << 40,
        ];
        let is_unknown = |handle: &u64| !bytes.contains(handle) && !files.contains(handle);
        for forged in unknown.into_iter().filter(is_unknown).chain(foreign) {
            for asked in [true, false] {
                self.at(format_args!(
                    "{forged:#x} instead of {data:#x}, asked for: {asked}"
                ));
                let host = host.fork();
                self.forged_handle(forged, asked, is_handle, &host);
                // A handler whose u64 is the handle of a file may take it for its own.
                let mut left = host.handles();
                let was_taken = !is_handle && files.contains(&forged);
                if was_taken && !left.1.contains(&forged) {
                    left.1.push(forged);
                    left.1.sort_unstable();
                }
                if left.0 != bytes || left.1 != files {
                    self.fail(format_args!(
                        "the host has lost what it held for others: {left:?}"
                    ));
                }
            }
        }
        self.at(format_args!("a record that was released"));
        let host = host.fork();
        self.finish_not_asked(*data, &host);
        let left = host.handles();
        if is_handle && self.retrieve(*data, &host).is_ok() {
            self.fail(format_args!("retrieve succeeded"));
        }
        self.finish(*data, Retrieved::Failed(Errno::ENOENT), &host);
        if left != host.handles() {
            self.fail(format_args!("a second finish has released something"));
        }
    }

    fn forged_handle(&self, forged: u64, asked: bool, is_handle: bool, host: &FakeHost) {
        let _ = self.call("describe", || self.form.describe(forged, host.lend()));
        if !asked {
            return self.finish_not_asked(forged, host);
        }
        match self.retrieve(forged, host) {
            Ok(_) if is_handle => self.fail(format_args!("retrieve succeeded")),
            Ok(file) => self.finish(forged, Retrieved::File(file.as_fd().into()), host),
            Err(errno) => self.finish(forged, Retrieved::Failed(errno), host),
        }
    }

    /// What crossed, changed by whoever could.
    fn forged(&self) {
        let crossing = self.crossing();
        let all = crossing.host.all_bytes();
        let total: usize = all.values().map(Vec::len).sum();
        for (&handle, bytes) in &all {
            let signed = is_signed(bytes);
            // Each has a share of the places, and at least some of them.
            let share = (PLACES_MAX * bytes.len()).div_ceil(total.max(1)).max(16);
            for place in places(bytes.len(), share) {
                for flip in [1 << (place % 8), 0xff] {
                    let mut forged = bytes.clone();
                    forged[place] ^= flip;
                    self.at(format_args!(
                        "byte {place} of {} under {handle:#x} is {:#04x} instead of {:#04x}",
                        bytes.len(),
                        forged[place],
                        bytes[place]
                    ));
                    self.forged_bytes(&crossing, handle, forged, signed);
                }
            }
            for length in places(bytes.len(), share).chain([bytes.len() + 1]) {
                let mut forged = bytes.clone();
                forged.resize(length, 0);
                self.at(format_args!(
                    "{length} bytes of {} are under {handle:#x}",
                    bytes.len()
                ));
                self.forged_bytes(&crossing, handle, forged, signed);
            }
        }
        for bit in 0..u64::BITS {
            let data = crossing.data ^ 1 << bit;
            self.at(format_args!("{data:#x} instead of {:#x}", crossing.data));
            for asked in [true, false] {
                let host = crossing.host.fork();
                let others = host.lend().preserve_bytes(b"of somebody else");
                self.cross_forged(data, asked, None, &host);
                self.expect_left_alone(others, &host);
            }
        }
    }

    /// Crosses with other bytes, as they are and signed anew if the handler checks that.
    fn forged_bytes(&self, from: &Crossing<S>, handle: u64, mut forged: Vec<u8>, signed: bool) {
        let was = from.host.bytes(handle);
        let begins_as_before = forged.len() >= 8 && was.starts_with(&forged[..8]);
        let cross = |forged: &[u8], equal: Option<&S>| {
            for asked in [true, false] {
                let host = from.host.fork();
                host.replace(handle, forged);
                let others = host.lend().preserve_bytes(b"of somebody else");
                self.cross_forged(from.data, asked, equal, &host);
                self.expect_left_alone(others, &host);
                if begins_as_before || handle != from.data {
                    self.expect_released(from.data, &host);
                }
            }
        };
        if !signed {
            return cross(&forged, None);
        }
        if !is_signed(&forged) {
            cross(&forged, Some(&from.was));
        }
        if record::sign(&mut forged).is_ok() {
            let step = self.step.replace(String::new());
            self.at(format_args!("{step}, with a right checksum"));
            cross(&forged, None);
            *self.step.borrow_mut() = step;
        }
    }

    /// Nothing panics; what comes back is `equal` where that can be demanded, and otherwise a file
    /// that the handler takes.
    fn cross_forged(&self, data: u64, asked: bool, equal: Option<&S>, host: &FakeHost) {
        let _ = self.call("describe", || self.form.describe(data, host.lend()));
        match asked.then(|| self.retrieve(data, host)) {
            None => self.finish_not_asked(data, host),
            Some(Err(errno)) => self.finish(data, Retrieved::Failed(errno), host),
            Some(Ok(file)) => {
                if let Some(was) = equal {
                    self.expect_like(was, &file, "it was not refused, and");
                } else if !self.sure("can_preserve", || self.form.can_preserve(file.as_fd())) {
                    self.fail(format_args!(
                        "it yields a file that can_preserve does not take"
                    ));
                }
                self.finish(data, Retrieved::File(file.as_fd().into()), host);
            }
        }
    }

    /// Two files do not come into each other's way.
    fn two_files(&self) {
        for first in [0, 1] {
            self.at(format_args!(
                "two files, of which file {first} is retrieved first"
            ));
            let (host, crossed) = self.two();
            for which in [first, 1 - first] {
                let (data, was) = &crossed[which];
                let file = self.retrieved(*data, &host);
                self.expect_like(was, &file, "after the jump");
                self.finish(*data, Retrieved::File(file.as_fd().into()), &host);
            }
            self.expect_nothing_left(&host);

            self.at(format_args!(
                "two files, of which nobody asks for file {first}"
            ));
            let (host, crossed) = self.two();
            self.finish_not_asked(crossed[first].0, &host);
            let (data, was) = &crossed[1 - first];
            let file = self.retrieved(*data, &host);
            self.expect_like(was, &file, "after the jump");
            self.finish(*data, Retrieved::File(file.as_fd().into()), &host);
            self.expect_nothing_left(&host);
        }
        self.at(format_args!("two files, of which one is cancelled"));
        let host = FakeHost::default();
        let files = [(self.make)(), (self.make)()];
        let cancelled = self.prepared(&files[0], &host);
        let mut held = self.prepared(&files[1], &host);
        (self.change)(files[1].as_fd());
        let was = self.look(&files[1]);
        self.cancel(cancelled, &files[0], &host);
        self.frozen(&mut *held, &files[1], &host);
        let data = held.data();
        drop((held, files));
        let file = self.retrieved(data, &host);
        self.expect_like(&was, &file, "after the jump");
        self.finish(data, Retrieved::File(file.as_fd().into()), &host);
        self.expect_nothing_left(&host);
    }

    /// Two files that cross, of which one was changed.
    fn two(&self) -> (FakeHost, [(u64, S); 2]) {
        let host = FakeHost::default();
        let files = [(self.make)(), (self.make)()];
        let mut held = [&files[0], &files[1]].map(|file| self.prepared(file, &host));
        (self.change)(files[1].as_fd());
        let was = [self.look(&files[0]), self.look(&files[1])];
        for (held, file) in held.iter_mut().zip(&files) {
            self.frozen(&mut **held, file, &host);
        }
        let [one, other] = was;
        let crossed = [(held[0].data(), one), (held[1].data(), other)];
        (host, crossed)
    }
}

/// At most about `most` places among `len`, with the first and the last.
fn places(len: usize, most: usize) -> impl Iterator<Item = usize> {
    let step = len.div_ceil(most.max(1)).max(1);
    let last = len.checked_sub(1).filter(|last| last % step != 0);
    (0..len).step_by(step).chain(last)
}

/// Whether the bytes have a length and a checksum, and both are right.
fn is_signed(bytes: &[u8]) -> bool {
    let mut signed = Vec::from(bytes);
    record::sign(&mut signed).is_ok() && signed == bytes
}
