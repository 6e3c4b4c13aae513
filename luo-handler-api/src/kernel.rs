// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The traits as mainline's ops, for the kernel.
//!
//! C headers: [`include/linux/liveupdate.h`](srctree/include/linux/liveupdate.h).
//!
//! As `rust/kernel/miscdevice.rs` makes a `file_operations` from its trait, this makes a `struct
//! liveupdate_file_ops` from [`FileHandler`] and a `struct liveupdate_flb_ops` from [`Subsystem`]:
//! one function of Rust for each op, with nothing in between. Mainline's `get_id` does not get the
//! handler whose op it is, so the functions are made for the place of a handler, a [`Static`], and
//! not for its type.
//!
//! The kernel module finds a [`SectionEntry`] for each of them in a linker section, and puts its
//! own services, counters and switches around the calls: [`Around`].

#![allow(unsafe_code)] // an edge: functions that C calls

use core::{ffi::c_void, mem::MaybeUninit};

use ::kernel::{
    alloc::KBox,
    bindings,
    error::{to_result, Error},
    prelude::GFP_KERNEL,
    time::{Instant, Monotonic},
    types::Opaque,
};

use crate::{
    c::status, Compatible, Crossed, Errno, FileHandler, FileRef, Host, Hosts, NeededBy, OwnedFile,
    Pairs, Prepared, Preserved, Retrieved, Subsystem,
};

/// Where a handler or a subsystem lives; `register_handler!` makes one for each.
pub trait Static: 'static {
    /// What lives there.
    type Value: Sync + 'static;

    /// It.
    fn value() -> &'static Self::Value;
}

/// What the section `luo_handlers` has of a handler and `luo_subsystems` of a subsystem.
pub struct SectionEntry<Ops: 'static> {
    /// The name of its format.
    pub compatible: Compatible,
    /// The crate it comes from.
    pub origin: &'static str,
    /// See [`FileHandler::init`].
    pub init: fn(Host<'_>) -> Result<(), Errno>,
    /// See [`FileHandler::describe`].
    pub describe: fn(u64, Host<'_>, &mut Pairs<'_>) -> Result<(), Errno>,
    /// Of a subsystem: whose files need it.
    pub needed_by: NeededBy,
    ops: Ops,
}

/// Of a handler.
pub type HandlerEntry = SectionEntry<bindings::liveupdate_file_ops>;
/// Of a subsystem.
pub type SubsystemEntry = SectionEntry<bindings::liveupdate_flb_ops>;

// SAFETY: functions, static text and a NULL owner; nobody writes them.
unsafe impl<Ops> Sync for SectionEntry<Ops> {}

/// Bits of a handle that have the number of bytes; the others have the frame of the first, so that
/// nothing has to be stored beside them:
///
/// ```text
///      63                    24 23         0
///     |  frame of the first, 40 | length, 24 |
/// ```
const LENGTH_BITS: u32 = 24;

/// The most bytes that the host preserves as one.
pub const BYTES_MAX: u64 = (1 << LENGTH_BITS) - 1;

/// The host's handle of `length` bytes from the beginning of `frame` on; `None` if there is none
/// for so many, or for a frame so far away.
pub fn handle_of(frame: u64, length: u64) -> Option<u64> {
    let fits = frame < 1 << (64 - LENGTH_BITS) && length <= BYTES_MAX;
    fits.then_some(frame << LENGTH_BITS | length)
}

/// What a handle is of.
pub fn frame_and_length(handle: u64) -> (u64, u64) {
    (handle >> LENGTH_BITS, handle & BYTES_MAX)
}

/// A callback of a handler or a subsystem, in the order in which they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// See [`FileHandler::prepare`].
    Prepare,
    /// See [`FileHandler::freeze`].
    Freeze,
    /// See [`FileHandler::unfreeze`].
    Unfreeze,
    /// See [`FileHandler::cancel`].
    Cancel,
    /// See [`FileHandler::retrieve`].
    Retrieve,
    /// See [`FileHandler::can_finish`].
    CanFinish,
    /// See [`FileHandler::finish`].
    Finish,
}

/// What the kernel module puts around the calls of one handler or subsystem.
pub trait Around: Sync + 'static {
    /// Whether it takes new files.
    fn is_enabled(&self) -> bool;

    /// The host on the old side of the jump.
    fn outgoing(&self) -> Host<'_>;

    /// The host on the new side.
    fn incoming(&self) -> Host<'_>;

    /// Counts a call that has ended.
    fn ended(&self, callback: Callback, nanoseconds: u64, result: Result<(), Errno>);
}

/// A handler or a subsystem as mainline knows it, beside what its kernel module knows of it.
///
/// # Invariants
///
/// `known` stands first, so that its address is that of the whole. From
/// [`register`](Self::register) on `around` leads to the `state` of a box that is never freed.
#[repr(C)]
pub struct Registration<Known, A> {
    known: Opaque<Known>,
    around: Option<&'static dyn Around>,
    /// What the kernel module knows of it.
    pub state: A,
}

// SAFETY: `known` belongs to mainline, which takes its own locks; the rest is shared as its types
// allow.
unsafe impl<Known, A: Sync> Sync for Registration<Known, A> {}
// SAFETY: mainline does not care which thread registers; the rest is sent as its types allow.
unsafe impl<Known, A: Send> Send for Registration<Known, A> {}

/// Of a handler.
pub type HandlerRegistration<A> = Registration<bindings::liveupdate_file_handler, A>;
/// Of a subsystem.
pub type SubsystemRegistration<A> = Registration<bindings::liveupdate_flb, A>;

/// The beginning of every [`Registration`] of a kind, for any type of `state`.
#[repr(C)]
struct Head<Known> {
    known: Opaque<Known>,
    around: Option<&'static dyn Around>,
}

impl<Known, A: Around> Registration<Known, A> {
    /// Allocates one, fills mainline's part with `known`, and calls `register` with its address.
    /// What was not registered is freed; what was stays for good.
    fn register(
        known: Known,
        state: A,
        register: impl FnOnce(*mut Known) -> Result<(), Error>,
    ) -> Result<&'static Self, Error> {
        let registration = Self {
            known: Opaque::new(known),
            around: None,
            state,
        };
        let whole = KBox::into_raw(KBox::new(registration, GFP_KERNEL)?);
        // SAFETY: `whole` is a box that nobody else knows. The reference to `state` ends with the
        // box: only ops use it, and none is called unless mainline registers it, after which the
        // box stays.
        unsafe { (*whole).around = Some(&(*whole).state) };
        match register(whole.cast()) {
            // SAFETY: mainline has it, and it is never unregistered nor freed.
            Ok(()) => Ok(unsafe { &*whole }),
            Err(error) => {
                // SAFETY: `whole` comes from a box. Mainline has no pointer to what it does not
                // register, and the references made above are not used any more.
                drop(unsafe { KBox::from_raw(whole) });
                Err(error)
            }
        }
    }

    /// Mainline's part.
    fn known(&self) -> *mut Known {
        self.known.get()
    }
}

impl<A: Around> HandlerRegistration<A> {
    /// Registers a handler with mainline, for good.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if live update is switched off, `EEXIST` if its compatible is taken, `ENOMEM`.
    pub fn new(entry: &'static HandlerEntry, state: A) -> Result<&'static Self, Error> {
        let handler = bindings::liveupdate_file_handler {
            ops: &entry.ops,
            compatible: name(&entry.compatible),
            ..Default::default()
        };
        Self::register(handler, state, |handler| {
            // SAFETY: the ops are static, and the handler lives as long as it is registered, by the
            // contract of `register`.
            to_result(unsafe { bindings::liveupdate_register_file_handler(handler) })
        })
    }
}

impl<A: Around> SubsystemRegistration<A> {
    /// Registers a subsystem with mainline, for good: with one of the handlers whose files need it.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if live update is switched off, `EEXIST` if its compatible is taken, `ENOMEM`.
    pub fn new<B: Around>(
        entry: &'static SubsystemEntry,
        state: A,
        handler: &HandlerRegistration<B>,
    ) -> Result<&'static Self, Error> {
        let flb = bindings::liveupdate_flb {
            ops: &entry.ops,
            compatible: name(&entry.compatible),
            ..Default::default()
        };
        Self::register(flb, state, |flb| {
            // SAFETY: a HandlerRegistration that somebody can refer to is registered. The ops are
            // static, and the subsystem lives as long as it is registered, by the contract of
            // `register`.
            to_result(unsafe { bindings::liveupdate_register_flb(handler.known(), flb) })
        })
    }

    /// Registers it with one more handler.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); it stays registered with those of before.
    pub fn also_with<B: Around>(&self, handler: &HandlerRegistration<B>) -> Result<(), Error> {
        // SAFETY: both are registered, and registrations stay for good.
        to_result(unsafe { bindings::liveupdate_register_flb(handler.known(), self.known()) })
    }

    /// Retrieves what came in for it, if anything did: mainline does that when somebody asks, and
    /// would otherwise have nothing to count the finished files down from.
    ///
    /// # Errors
    ///
    /// `ENODATA` if nothing came in at all, `ENOENT` if nothing did for this subsystem, `ENOMEM`.
    pub fn retrieve(&self) -> Result<(), Error> {
        self.with_incoming(|_| ()).inspect_err(|_| {
            // SAFETY: the subsystem is registered. No file was finished yet: this is done at boot,
            // before /dev/liveupdate can be opened.
            unsafe { luo_flb_did_not_come(self.known().cast()) };
        })
    }

    /// Calls `look` with the `u64` that came in, as long as that is not finished.
    ///
    /// # Errors
    ///
    /// `ENODATA` if nothing came in or it is finished, `ENOENT` if nothing did for this subsystem.
    pub fn with_incoming<R>(&self, look: impl FnOnce(u64) -> R) -> Result<R, Error> {
        let mut object = core::ptr::null_mut();
        // SAFETY: the subsystem is registered, and `object` is borrowed until the call returns.
        to_result(unsafe { bindings::liveupdate_flb_get_incoming(self.known(), &mut object) })?;
        // SAFETY: what mainline has as the object of this subsystem is what `flb_retrieve` made; it
        // stays until the reference that was just taken is given back.
        let data = unsafe { (*object.cast::<Arrived>()).data };
        let result = look(data);
        // SAFETY: this gives back the reference that was taken above.
        unsafe { bindings::liveupdate_flb_put_incoming(self.known()) };
        Ok(result)
    }
}

extern "C" {
    /// Lets mainline count finished files that came without this subsystem.
    fn luo_flb_did_not_come(flb: *mut c_void);
    fn luo_crc32c(so_far: u32, bytes: *const u8, len: usize) -> u32;
}

/// Continues a checksum, as in a process.
pub fn crc32c(so_far: u32, bytes: &[u8]) -> u32 {
    // SAFETY: a slice is valid for reads of its length.
    unsafe { luo_crc32c(so_far, bytes.as_ptr(), bytes.len()) }
}

/// A name in mainline's form, a C string.
const fn name(compatible: &Compatible) -> [::kernel::ffi::c_char; crate::COMPATIBLE_LENGTH] {
    *compatible.as_bytes()
}

/// Makes a call and reports its end.
fn timed<T>(
    around: &dyn Around,
    callback: Callback,
    call: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let begun = Instant::<Monotonic>::now();
    let result = call();
    let nanoseconds = begun.elapsed().as_nanos().max(0) as u64;
    let ended = result.as_ref().map(|_| ()).map_err(|errno| *errno);
    around.ended(callback, nanoseconds, ended);
    result
}

/// The module's part of what mainline calls an op with.
///
/// # Safety
///
/// `known` is that of a [`Registration`] that was registered.
unsafe fn around<Known>(known: *mut Known) -> &'static dyn Around {
    // SAFETY: by the invariant of Registration `known` stands first in it, as in Head, and both
    // stay for good; mainline writes within `known` alone.
    let around = unsafe { (&raw const (*known.cast::<Head<Known>>()).around).read() };
    // SAFETY: `register` sets it before mainline knows of the whole.
    unsafe { around.unwrap_unchecked() }
}

impl HandlerEntry {
    /// Of the handler at `S`, which comes from the crate `origin`.
    pub const fn of<S: Static>(origin: &'static str) -> Self
    where
        S::Value: FileHandler,
    {
        const {
            assert!(
                S::Value::HOSTS.include(Hosts::Kernel),
                "a handler that is registered in the kernel names it among its HOSTS"
            );
        }
        Self {
            compatible: S::Value::COMPATIBLE,
            origin,
            init: |host| S::value().init(host),
            describe: |data, host, pairs| S::value().describe(data, host, pairs),
            needed_by: NeededBy::Every,
            ops: bindings::liveupdate_file_ops {
                can_preserve: Some(can_preserve::<S>),
                preserve: Some(preserve::<S>),
                unpreserve: Some(unpreserve::<S>),
                freeze: Some(freeze::<S>),
                unfreeze: Some(unfreeze::<S>),
                retrieve: Some(retrieve::<S>),
                can_finish: Some(can_finish::<S>),
                finish: Some(finish::<S>),
                get_id: Some(get_id::<S>),
                // SAFETY: all zero is a value of this struct of pointers; the owner is NULL, as for
                // everything that is built in.
                ..unsafe { MaybeUninit::zeroed().assume_init() }
            },
        }
    }
}

type Args = *mut bindings::liveupdate_file_op_args;

/// # Safety
///
/// Called by mainline for a registered handler, with an open file.
unsafe extern "C" fn can_preserve<S: Static>(
    handler: *mut bindings::liveupdate_file_handler,
    file: *mut bindings::file,
) -> bool
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the handler is registered and the file open.
    let (around, file) = unsafe { (around(handler), FileRef::from_raw(file as isize)) };
    around.is_enabled() && S::value().can_preserve(file)
}

/// # Safety
///
/// Called by mainline with an open file.
unsafe extern "C" fn get_id<S: Static>(file: *mut bindings::file) -> usize
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the file is open.
    let lent = unsafe { FileRef::from_raw(file as isize) };
    match S::value().file_id(lent) {
        Some(id) => id as usize,
        // As mainline does without a get_id.
        None => file as usize,
    }
}

/// # Safety
///
/// Called by mainline with the args of a registered handler and an open file, all of it this
/// call's.
unsafe extern "C" fn preserve<S: Static>(args: Args) -> i32
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the args are there, the handler is registered and the file
    // open.
    let (around, file) = unsafe {
        (
            around((*args).handler),
            FileRef::from_raw((*args).file as isize),
        )
    };
    let prepared = timed(around, Callback::Prepare, || {
        let room = room()?;
        let prepared = S::value().prepare(file, around.outgoing())?;
        Ok((prepared.data, KBox::write(room, prepared.private)))
    });
    status(prepared.map(|(data, private)| {
        // SAFETY: by the safety section the args are this call's, and mainline reads these two of
        // them when it returns 0.
        unsafe {
            (*args).serialized_data = data;
            (*args).private_data = KBox::into_raw(private).cast();
        }
    }))
}

/// Room for a value, or `ENOMEM`.
fn room<T>() -> Result<KBox<MaybeUninit<T>>, Errno> {
    KBox::new_uninit(GFP_KERNEL).map_err(|_| Errno::ENOMEM)
}

/// A file on the old side, as mainline gives it to an op.
///
/// # Safety
///
/// The args are those of a file that [`preserve`] of this handler took; nobody else uses it for
/// `'a`.
unsafe fn preserved<'a, P>(args: Args, around: &'a dyn Around) -> Preserved<'a, P> {
    // SAFETY: by the safety section the file is open, and its private data is the box that
    // `preserve` put there, which is nobody else's for `'a`.
    unsafe {
        Preserved {
            file: FileRef::from_raw((*args).file as isize),
            data: (*args).serialized_data,
            private: &mut *(*args).private_data.cast(),
            host: around.outgoing(),
        }
    }
}

/// # Safety
///
/// Called by mainline with the args of a file that [`preserve`] of this handler took, under the
/// file's lock.
unsafe extern "C" fn freeze<S: Static>(args: Args) -> i32
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the handler is registered.
    let around = unsafe { around((*args).handler) };
    let frozen = timed(around, Callback::Freeze, || {
        // SAFETY: by the safety section `preserve` took the file, and its lock is held.
        S::value().freeze(unsafe { preserved(args, around) })
    });
    status(frozen.map(|data| {
        // SAFETY: by the safety section the args are this call's, and mainline reads the data when
        // it returns 0.
        unsafe { (*args).serialized_data = data }
    }))
}

/// # Safety
///
/// As [`freeze`].
unsafe extern "C" fn unfreeze<S: Static>(args: Args)
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the handler is registered.
    let around = unsafe { around((*args).handler) };
    let _ = timed(around, Callback::Unfreeze, || {
        // SAFETY: by the safety section `preserve` took the file, and its lock is held.
        S::value().unfreeze(unsafe { preserved(args, around) });
        Ok(())
    });
}

/// # Safety
///
/// Called by mainline with the args of a file that [`preserve`] of this handler took; no op of the
/// file is called after it.
unsafe extern "C" fn unpreserve<S: Static>(args: Args)
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the handler is registered.
    let around = unsafe { around((*args).handler) };
    let _ = timed(around, Callback::Cancel, || {
        // SAFETY: by the safety section `preserve` took the file, and no other op of it runs.
        S::value().cancel(unsafe { preserved(args, around) });
        // SAFETY: the private data is the box that `preserve` put there, and no op looks at it
        // again.
        drop(unsafe {
            KBox::from_raw(
                (*args)
                    .private_data
                    .cast::<<S::Value as FileHandler>::Private>(),
            )
        });
        Ok(())
    });
}

/// # Safety
///
/// Called by mainline with the args of a registered handler.
unsafe extern "C" fn retrieve<S: Static>(args: Args) -> i32
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the args are there and the handler is registered.
    let (around, data) = unsafe { (around((*args).handler), (*args).serialized_data) };
    let retrieved = timed(around, Callback::Retrieve, || {
        S::value().retrieve(data, around.incoming())
    });
    status(retrieved.map(|file: OwnedFile| {
        // SAFETY: by the safety section the args are this call's, and mainline takes the file over
        // when it returns 0.
        unsafe { (*args).file = file.into_raw() as *mut bindings::file }
    }))
}

/// A file on the new side, as mainline gives it to an op.
///
/// # Safety
///
/// The args are those of a file that came in; with a status above 0 it is open for `'a`.
unsafe fn crossed<'a>(args: Args, around: &'a dyn Around) -> Crossed<'a> {
    // SAFETY: by the safety section these args are there.
    let (data, status, file) = unsafe {
        (
            (*args).serialized_data,
            (*args).retrieve_status,
            (*args).file as isize,
        )
    };
    Crossed {
        data,
        retrieved: match Errno::from_status(status) {
            Ok(0) => Retrieved::NotAsked,
            // SAFETY: the status is above 0, and the safety section has an open file then.
            Ok(_) => Retrieved::File(unsafe { FileRef::from_raw(file) }),
            Err(errno) => Retrieved::Failed(errno),
        },
        host: around.incoming(),
    }
}

/// # Safety
///
/// Called by mainline with the args of a file that came in, under the file's lock.
unsafe extern "C" fn can_finish<S: Static>(args: Args) -> bool
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the handler is registered.
    let around = unsafe { around((*args).handler) };
    let answer = timed(around, Callback::CanFinish, || {
        // SAFETY: by the safety section the file came in, and LUO holds it if it was retrieved.
        Ok(S::value().can_finish(unsafe { crossed(args, around) }))
    });
    answer == Ok(true)
}

/// # Safety
///
/// As [`can_finish`].
unsafe extern "C" fn finish<S: Static>(args: Args)
where
    S::Value: FileHandler,
{
    // SAFETY: by the safety section the handler is registered.
    let around = unsafe { around((*args).handler) };
    let _ = timed(around, Callback::Finish, || {
        // SAFETY: by the safety section the file came in, and LUO holds it if it was retrieved.
        S::value().finish(unsafe { crossed(args, around) });
        Ok(())
    });
}

impl SubsystemEntry {
    /// Of the subsystem at `S`, which comes from the crate `origin`.
    pub const fn of<S: Static>(origin: &'static str) -> Self
    where
        S::Value: Subsystem,
    {
        const {
            assert!(
                S::Value::HOSTS.include(Hosts::Kernel),
                "a subsystem that is registered in the kernel names it among its HOSTS"
            );
        }
        Self {
            compatible: S::Value::COMPATIBLE,
            origin,
            init: |host| S::value().init(host),
            describe: |data, host, pairs| S::value().describe(data, host, pairs),
            needed_by: S::Value::NEEDED_BY,
            ops: bindings::liveupdate_flb_ops {
                preserve: Some(flb_preserve::<S>),
                unpreserve: Some(flb_unpreserve::<S>),
                retrieve: Some(flb_retrieve::<S>),
                finish: Some(flb_finish::<S>),
                // SAFETY: all zero is a value of this struct of pointers; the owner is NULL, as for
                // everything that is built in.
                ..unsafe { MaybeUninit::zeroed().assume_init() }
            },
        }
    }
}

type FlbArgs = *mut bindings::liveupdate_flb_op_args;

/// What came in for a subsystem: mainline gives `finish` the object alone.
struct Arrived {
    data: u64,
    retrieved: bool,
}

/// # Safety
///
/// Called by mainline with the args of a registered subsystem, under its lock.
unsafe extern "C" fn flb_preserve<S: Static>(args: FlbArgs) -> i32
where
    S::Value: Subsystem,
{
    // SAFETY: by the safety section the args are there and the subsystem is registered.
    let around = unsafe { around((*args).flb) };
    let prepared = timed(around, Callback::Prepare, || {
        let room = room::<<S::Value as Subsystem>::Private>()?;
        let Prepared { data, private } = S::value().prepare(around.outgoing())?;
        Ok((data, KBox::write(room, private)))
    });
    status(prepared.map(|(data, private)| {
        // SAFETY: by the safety section the args are this call's, and mainline reads these two of
        // them when it returns 0.
        unsafe {
            (*args).data = data;
            (*args).obj = KBox::into_raw(private).cast();
        }
    }))
}

/// # Safety
///
/// Called by mainline with what [`flb_preserve`] of this subsystem made, under its lock; the object
/// is not used again.
unsafe extern "C" fn flb_unpreserve<S: Static>(args: FlbArgs)
where
    S::Value: Subsystem,
{
    // SAFETY: by the safety section the subsystem is registered, and the object is the box that
    // `flb_preserve` made, which is used here for the last time.
    let (around, data, mut private) = unsafe {
        (
            around((*args).flb),
            (*args).data,
            KBox::from_raw((*args).obj.cast::<<S::Value as Subsystem>::Private>()),
        )
    };
    let _ = timed(around, Callback::Cancel, || {
        S::value().cancel(data, &mut private, around.outgoing());
        Ok(())
    });
}

/// Never fails but for want of memory: mainline would warn when the last file is finished, and what
/// the previous kernel wrote must not cause one.
///
/// # Safety
///
/// As [`flb_preserve`].
unsafe extern "C" fn flb_retrieve<S: Static>(args: FlbArgs) -> i32
where
    S::Value: Subsystem,
{
    // SAFETY: by the safety section the args are there and the subsystem is registered.
    let (around, data) = unsafe { (around((*args).flb), (*args).data) };
    let arrived = room().map(|room| {
        let retrieved = timed(around, Callback::Retrieve, || {
            S::value().retrieve(data, around.incoming())
        });
        let retrieved = retrieved.is_ok();
        KBox::write(room, Arrived { data, retrieved })
    });
    status(arrived.map(|arrived| {
        // SAFETY: by the safety section the args are this call's, and mainline stores the object
        // when it returns 0.
        unsafe { (*args).obj = KBox::into_raw(arrived).cast::<c_void>() }
    }))
}

/// # Safety
///
/// Called by mainline with what [`flb_retrieve`] of this subsystem made, under its lock; the object
/// is not used again.
unsafe extern "C" fn flb_finish<S: Static>(args: FlbArgs)
where
    S::Value: Subsystem,
{
    // SAFETY: by the safety section the subsystem is registered, and the object is the box that
    // `flb_retrieve` made, which is used here for the last time.
    let (around, arrived) = unsafe {
        (
            around((*args).flb),
            KBox::from_raw((*args).obj.cast::<Arrived>()),
        )
    };
    let _ = timed(around, Callback::Finish, || {
        S::value().finish(arrived.data, arrived.retrieved, around.incoming());
        Ok(())
    });
}
