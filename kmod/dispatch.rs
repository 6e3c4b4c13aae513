// SPDX-License-Identifier: GPL-2.0-only
//! The ops of `struct liveupdate_file_ops`, forwarded to the handler behind them.
//!
//! Mirrors [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h). The shim calls each of
//! these with the pointer that [`luo_register`](crate::shim::luo_register) was given.

use core::{ffi::c_void, mem::MaybeUninit};

use kernel::prelude::*;
use luo_handler_api::{kernel::PreparedFile, Errno, FileRef, Host, HostServices, Retrieved};

use crate::{
    counters::Phase,
    host::{Incoming, Outgoing},
    Registered, Shown,
};

type File = *mut c_void;

/// A unit of private state, as aligned as any handler may ask for.
type Unit = MaybeUninit<u128>;

/// # Safety
///
/// `handler` is a registered one.
unsafe fn registered(handler: *const c_void) -> &'static Registered {
    // SAFETY: the caller says so, and registered handlers stay.
    unsafe { &*handler.cast() }
}

/// # Safety
///
/// `file` is open for `'a`.
unsafe fn lent<'a>(file: File) -> FileRef<'a> {
    // SAFETY: the caller says so.
    unsafe { FileRef::from_raw(file as isize) }
}

/// # Safety
///
/// `file` is open, and `private` is what [`luo_preserve`] wrote for it; nobody else uses it for `'a`.
unsafe fn prepared<'a>(file: File, private: *mut c_void, host: &'a Outgoing) -> PreparedFile<'a> {
    // SAFETY: the caller says so.
    unsafe { PreparedFile::new(lent(file), private, Host::new(host)) }
}

fn status(result: Result<(), Errno>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(errno) => errno.to_status(),
    }
}

/// Room for the private state of one file.
///
/// # Invariants
///
/// As many units as its handler asks for.
struct Room(KVec<Unit>);

impl Room {
    fn units(registered: &Registered) -> usize {
        registered
            .handler
            .private_size()
            .div_ceil(size_of::<Unit>())
    }

    fn new(registered: &Registered) -> Result<Self, Errno> {
        let room = KVec::with_capacity(Self::units(registered), GFP_KERNEL);
        room.map(Self).map_err(|_| Errno::ENOMEM)
    }

    fn into_raw(self) -> *mut c_void {
        let (start, _, _) = self.0.into_raw_parts();
        start.cast()
    }

    /// # Safety
    ///
    /// `private` comes from [`into_raw`](Self::into_raw), for the same handler, and is not used
    /// again.
    unsafe fn from_raw(registered: &Registered, private: *mut c_void) -> Self {
        // SAFETY: the caller says so; the capacity is the one that was asked for.
        Self(unsafe { KVec::from_raw_parts(private.cast(), 0, Self::units(registered)) })
    }
}

/// # Safety
///
/// `handler` is a registered one, `file` is open.
#[no_mangle]
unsafe extern "C" fn luo_can_preserve(handler: *const c_void, file: File) -> bool {
    // SAFETY: the caller says so.
    let (registered, file) = unsafe { (registered(handler), lent(file)) };
    !registered.disabled && registered.handler.can_preserve(file) == Ok(true)
}

/// # Safety
///
/// `handler` is a registered one, `file` is open.
#[no_mangle]
unsafe extern "C" fn luo_get_id(handler: *const c_void, file: File) -> usize {
    // SAFETY: the caller says so.
    let (registered, lent) = unsafe { (registered(handler), lent(file)) };
    match registered.handler.file_id(lent) {
        Ok(Some(id)) => id as usize,
        // As mainline does without a get_id.
        _ => file as usize,
    }
}

/// # Safety
///
/// `handler` is a registered one, `file` is open, the others are valid for a write.
#[no_mangle]
unsafe extern "C" fn luo_preserve(
    handler: *const c_void,
    file: File,
    data: *mut u64,
    private: *mut *mut c_void,
) -> i32 {
    // SAFETY: the caller says so.
    let (registered, file) = unsafe { (registered(handler), lent(file)) };
    let prepared = registered.counters.count(Phase::Prepare, || {
        let mut room = Room::new(registered)?;
        let state = room.0.as_mut_ptr().cast();
        // SAFETY: the room has the size and alignment that the handler asks for.
        let prepared = unsafe {
            registered
                .handler
                .prepare(file, state, Host::new(&Outgoing(registered)))
        };
        prepared.map(|prepared| (prepared, room))
    });
    status(prepared.map(|(prepared, room)| {
        // SAFETY: the caller says so.
        unsafe {
            data.write(prepared);
            private.write(room.into_raw());
        }
    }))
}

/// # Safety
///
/// `handler` is a registered one, `file` is open, `private` is what [`luo_preserve`] wrote for it,
/// `data` is valid for reads and writes.
#[no_mangle]
unsafe extern "C" fn luo_freeze(
    handler: *const c_void,
    file: File,
    data: *mut u64,
    private: *mut c_void,
) -> i32 {
    // SAFETY: the caller says so.
    let (registered, before) = unsafe { (registered(handler), data.read()) };
    let host = Outgoing(registered);
    let frozen = registered.counters.count(Phase::Freeze, || {
        // SAFETY: this handler prepared the file; mainline holds its lock.
        unsafe {
            let prepared = prepared(file, private, &host);
            registered.handler.freeze(prepared, before)
        }
    });
    // SAFETY: the caller says so.
    status(frozen.map(|frozen| unsafe { data.write(frozen) }))
}

/// # Safety
///
/// As [`luo_freeze`].
#[no_mangle]
unsafe extern "C" fn luo_unfreeze(
    handler: *const c_void,
    file: File,
    data: u64,
    private: *mut c_void,
) {
    // SAFETY: the caller says so.
    let registered = unsafe { registered(handler) };
    let host = Outgoing(registered);
    let _ = registered.counters.count(Phase::Unfreeze, || {
        // SAFETY: this handler prepared the file; mainline holds its lock.
        unsafe {
            let prepared = prepared(file, private, &host);
            registered.handler.unfreeze(prepared, data)
        }
    });
}

/// # Safety
///
/// As [`luo_freeze`], and `private` is not used again.
#[no_mangle]
unsafe extern "C" fn luo_unpreserve(
    handler: *const c_void,
    file: File,
    data: u64,
    private: *mut c_void,
) {
    // SAFETY: the caller says so.
    let registered = unsafe { registered(handler) };
    let host = Outgoing(registered);
    let _ = registered.counters.count(Phase::Cancel, || {
        // SAFETY: this handler prepared the file.
        unsafe {
            let prepared = prepared(file, private, &host);
            registered.handler.cancel(prepared, data)
        }
    });
    // SAFETY: the caller says so, and the state was dropped.
    drop(unsafe { Room::from_raw(registered, private) });
}

/// # Safety
///
/// `handler` is a registered one, `file` is valid for a write.
#[no_mangle]
unsafe extern "C" fn luo_retrieve(handler: *const c_void, data: u64, file: *mut File) -> i32 {
    // SAFETY: the caller says so.
    let registered = unsafe { registered(handler) };
    let retrieved = registered.counters.count(Phase::Retrieve, || {
        if registered.disabled {
            Incoming(registered).explain("it is switched off by luo_handlers.disable");
            return Err(Errno::EOPNOTSUPP);
        }
        registered
            .handler
            .retrieve(data, Host::new(&Incoming(registered)))
    });
    if let Err(errno) = &retrieved {
        pr_warn!(
            "{} did not retrieve a file: {}\n",
            registered.name(),
            Shown(errno)
        );
    }
    // SAFETY: the caller says so.
    status(retrieved.map(|retrieved| unsafe { file.write(retrieved.into_raw() as File) }))
}

/// # Safety
///
/// `handler` is a registered one; with a `status` above 0, `file` is open.
#[no_mangle]
unsafe extern "C" fn luo_can_finish(
    handler: *const c_void,
    file: File,
    data: u64,
    status: i32,
) -> bool {
    // SAFETY: the caller says so.
    let (registered, file) = unsafe {
        (
            registered(handler),
            Retrieved::from_raw(file as isize, status),
        )
    };
    let answer = registered.counters.count(Phase::CanFinish, || {
        // Nobody can ask a handler for its files that is switched off.
        if registered.disabled {
            return Ok(true);
        }
        registered
            .handler
            .can_finish(data, file, Host::new(&Incoming(registered)))
    });
    answer == Ok(true)
}

/// # Safety
///
/// As [`luo_can_finish`].
#[no_mangle]
unsafe extern "C" fn luo_finish(handler: *const c_void, file: File, data: u64, status: i32) {
    // SAFETY: the caller says so.
    let (registered, file) = unsafe {
        (
            registered(handler),
            Retrieved::from_raw(file as isize, status),
        )
    };
    let _ = registered.counters.count(Phase::Finish, || {
        registered
            .handler
            .finish(data, file, Host::new(&Incoming(registered)))
    });
}
