// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Whatever a participant does at whatever callback, the state afterwards is the documented one,
//! and every undoing and every drop happened exactly once and in reverse order.
//!
//! Lists of one to five participants, with every number of subsystems among them, and every
//! position in them are tried. The handlers of the test are ordinary ones whose C form is wrapped,
//! so that they can also return what safe Rust does not let them return.

#![allow(unsafe_code)] // an edge of the tests

mod support;

use std::ffi::c_void;
use std::fs::File;
use std::mem::transmute;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, OnceLock};

use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, HandlerOps, Host, OwnedFile, Prepared,
    Preserved, RawFile, Retrieved, Subsystem, SubsystemOps, Token, NO_FILE,
};
use luo_orchestrator::error::{Error, Failure, Participant, Phase, State};
use luo_orchestrator::handover::Complaints;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use support::{memfd, ops, panic_as_expected, subsystem_ops, Crossing};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    CanPreserve,
    FileId,
    Prepare,
    Freeze,
    Unfreeze,
    Cancel,
    Drop,
    Retrieve,
    CanFinish,
    Finish,
    /// Finish of what nobody reclaimed.
    FinishLost,
}

/// How a callback fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Error,
    Panic,
    /// Returns a number that is no answer.
    Status(i32),
    /// Yields a file that is none.
    File(RawFile),
}

const WAYS: [Way; 4] = [Way::Error, Way::Panic, Way::Status(7), Way::Status(-5000)];

impl Way {
    fn status(self) -> Option<i32> {
        match self {
            Self::Error => Some(Errno::EPERM.to_status()),
            Self::Status(status) => Some(status),
            Self::Panic | Self::File(_) => None,
        }
    }

    fn errno(self) -> Errno {
        match self {
            Self::Error => Errno::EPERM,
            Self::Panic | Self::Status(_) => Errno::EIO,
            Self::File(_) => Errno::EBADF,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    call: Call,
    member: usize,
    way: Way,
}

type Log = Vec<(Call, usize)>;

/// What the handlers were called for, and where they are to fail.
#[derive(Default)]
struct Script {
    log: Mutex<Log>,
    faults: Mutex<Vec<Fault>>,
}

impl Script {
    fn called(&self, call: Call, member: usize) -> Option<Way> {
        self.log.lock().unwrap().push((call, member));
        self.fault(call, member)
    }

    fn fault(&self, call: Call, member: usize) -> Option<Way> {
        let faults = self.faults.lock().unwrap();
        let fault = faults.iter().find(|f| (f.call, f.member) == (call, member));
        fault.map(|fault| fault.way)
    }

    fn panic_if_told(&self, call: Call, member: usize) {
        if self.fault(call, member) == Some(Way::Panic) {
            panic_as_expected();
        }
    }
}

/// Private state that tells of its end.
struct Probe {
    script: Arc<Script>,
    member: usize,
    kept: u64,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.script.called(Call::Drop, self.member);
        self.script.panic_if_told(Call::Drop, self.member);
    }
}

/// What crosses for a member, after prepare and after freeze.
const PREPARED: u64 = 100;
const FROZEN: u64 = 200;

fn member_of_data(data: u64) -> usize {
    (data % 100) as usize
}

/// The file of a member is so many bytes long, and one more.
fn member_of_file(file: FileRef<'_>) -> usize {
    rustix::fs::fstat(file.as_fd()).unwrap().st_size as usize - 1
}

/// The part that handlers and subsystems have in common. It stands first in both, so that a pointer
/// to either is one to it.
struct Core {
    script: Arc<Script>,
    /// Of a subsystem.
    member: usize,
    /// The C form that is wrapped: of a handler or of a subsystem.
    real: OnceLock<RawOps>,
    real_subsystem: OnceLock<RawSubsystemOps>,
}

impl Core {
    fn new(script: &Arc<Script>, member: usize) -> Self {
        Self {
            script: script.clone(),
            member,
            real: OnceLock::new(),
            real_subsystem: OnceLock::new(),
        }
    }

    fn prepare(&self, member: usize, host: Host<'_>) -> Result<Prepared<Probe>, Errno> {
        self.script.panic_if_told(Call::Prepare, member);
        Ok(Prepared {
            data: PREPARED + member as u64,
            private: Probe {
                script: self.script.clone(),
                member,
                kept: host.preserve_bytes(b"something")?,
            },
        })
    }

    fn freeze(&self, data: u64, private: &Probe) -> u64 {
        assert_eq!(private.member, member_of_data(data));
        self.script.panic_if_told(Call::Freeze, private.member);
        FROZEN + private.member as u64
    }

    fn cancel(&self, private: &Probe, host: Host<'_>) {
        host.release_bytes(private.kept);
        self.script.panic_if_told(Call::Cancel, private.member);
    }
}

#[repr(C)]
struct Files(Core);

impl FileHandler for Files {
    const COMPATIBLE: Compatible = Compatible::new("files-v1");
    type Private = Probe;

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        self.0
            .script
            .panic_if_told(Call::CanPreserve, member_of_file(file));
        true
    }
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        let member = member_of_file(file);
        self.0.script.panic_if_told(Call::FileId, member);
        Some(member as u64)
    }
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Probe>, Errno> {
        self.0.prepare(member_of_file(file), host)
    }
    fn freeze(&self, file: Preserved<'_, Probe>) -> Result<u64, Errno> {
        assert_eq!(member_of_file(file.file), file.private.member);
        Ok(self.0.freeze(file.data, file.private))
    }
    fn unfreeze(&self, file: Preserved<'_, Probe>) {
        self.0
            .script
            .panic_if_told(Call::Unfreeze, file.private.member);
    }
    fn cancel(&self, file: Preserved<'_, Probe>) {
        self.0.cancel(file.private, file.host);
    }
    fn retrieve(&self, data: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        let member = member_of_data(data);
        self.0.script.panic_if_told(Call::Retrieve, member);
        let file = memfd(&vec![0; member + 1]);
        Ok(std::os::fd::OwnedFd::from(file).into())
    }
    fn can_finish(&self, file: Crossed<'_>) -> bool {
        let member = member_of_data(file.data);
        self.0.script.panic_if_told(Call::CanFinish, member);
        true
    }
    fn finish(&self, file: Crossed<'_>) {
        let member = member_of_data(file.data);
        if let Some(file) = file.retrieved.file() {
            assert_eq!(member_of_file(file), member);
        }
        self.0.script.panic_if_told(Call::Finish, member);
    }
}

#[repr(C)]
struct Sub<const N: usize>(Core);

const SUBSYSTEMS: [Compatible; 5] = [
    Compatible::new("sub-0"),
    Compatible::new("sub-1"),
    Compatible::new("sub-2"),
    Compatible::new("sub-3"),
    Compatible::new("sub-4"),
];

impl<const N: usize> Subsystem for Sub<N> {
    const COMPATIBLE: Compatible = SUBSYSTEMS[N];
    type Private = Probe;

    fn prepare(&self, host: Host<'_>) -> Result<Prepared<Probe>, Errno> {
        self.0.prepare(self.0.member, host)
    }
    fn freeze(&self, data: u64, private: &mut Probe, _: Host<'_>) -> Result<u64, Errno> {
        Ok(self.0.freeze(data, private))
    }
    fn unfreeze(&self, _: u64, private: &mut Probe, _: Host<'_>) {
        self.0.script.panic_if_told(Call::Unfreeze, private.member);
    }
    fn cancel(&self, _: u64, private: &mut Probe, host: Host<'_>) {
        self.0.cancel(private, host);
    }
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<(), Errno> {
        self.0.script.panic_if_told(Call::Retrieve, self.0.member);
        Ok(())
    }
    fn can_finish(&self, _: u64, _: Host<'_>) -> bool {
        self.0.script.panic_if_told(Call::CanFinish, self.0.member);
        true
    }
    fn finish(&self, _: u64, _: bool, _: Host<'_>) {
        self.0.script.panic_if_told(Call::Finish, self.0.member);
    }
}

/// The C form as its documentation has it: what a plugin in another language would write.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawHeader {
    abi_version: u32,
    size: u32,
    compatible: [u8; 48],
    hosts: u32,
    private_size: u32,
    private_align: u32,
    needed_by_count: u32,
    origin: *const u8,
    origin_len: usize,
    context: *const c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawOps {
    header: RawHeader,
    can_preserve: unsafe extern "C" fn(*const c_void, RawFile) -> i32,
    file_id: unsafe extern "C" fn(*const c_void, RawFile, *mut u64) -> i32,
    prepare: StepFn,
    freeze: StepFn,
    unfreeze: UndoFn,
    cancel: UndoFn,
    drop_private: unsafe extern "C" fn(*mut c_void) -> i32,
    retrieve: unsafe extern "C" fn(*const c_void, *const c_void, u64, *mut RawFile) -> i32,
    can_finish: FinishFn,
    finish: FinishFn,
    describe: DescribeFn,
    init: unsafe extern "C" fn(*const c_void, *const c_void) -> i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawSubsystemOps {
    header: RawHeader,
    needed_by: *const [u8; 48],
    prepare: SubsystemStepFn,
    freeze: SubsystemStepFn,
    unfreeze: SubsystemUndoFn,
    cancel: SubsystemUndoFn,
    drop_private: unsafe extern "C" fn(*mut c_void) -> i32,
    retrieve: SubsystemFn,
    can_finish: SubsystemFn,
    finish: unsafe extern "C" fn(*const c_void, *const c_void, u64, i32) -> i32,
    describe: DescribeFn,
    init: unsafe extern "C" fn(*const c_void, *const c_void) -> i32,
}

type DescribeFn = unsafe extern "C" fn(*const c_void, *const c_void, u64, *const c_void) -> i32;
type SubsystemStepFn =
    unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void, *mut u64) -> i32;
type SubsystemUndoFn = unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void, u64) -> i32;
type SubsystemFn = unsafe extern "C" fn(*const c_void, *const c_void, u64) -> i32;
type StepFn = unsafe extern "C" fn(
    *const c_void,
    RawFile,
    host: *const c_void,
    private: *mut c_void,
    data: *mut u64,
) -> i32;
type UndoFn = unsafe extern "C" fn(
    *const c_void,
    RawFile,
    host: *const c_void,
    private: *mut c_void,
    data: u64,
) -> i32;
type FinishFn = unsafe extern "C" fn(*const c_void, *const c_void, u64, RawFile, i32) -> i32;

// SAFETY: the pointers lead to a Sync handler and to static text.
unsafe impl Send for RawHeader {}
// SAFETY: the pointers lead to a Sync handler and to static text.
unsafe impl Sync for RawHeader {}
// SAFETY: beside functions there is a pointer to static names.
unsafe impl Send for RawSubsystemOps {}
// SAFETY: beside functions there is a pointer to static names.
unsafe impl Sync for RawSubsystemOps {}

/// The handler's own C form with the functions below around it.
fn wrapped(ops: &'static HandlerOps) -> &'static HandlerOps {
    // SAFETY: RawOps has the layout of HandlerOps, and `of` leaves no callback out.
    let real = unsafe { *(&raw const *ops).cast::<RawOps>() };
    // SAFETY: the context is a Files, which begins with its Core.
    let core = unsafe { core(real.header.context) };
    assert!(core.real.set(real).is_ok());
    let raw = RawOps {
        can_preserve,
        file_id,
        prepare,
        freeze,
        unfreeze,
        cancel,
        retrieve,
        can_finish,
        finish,
        ..real
    };
    // SAFETY: the layouts are the same, and the functions do what the description of HandlerOps
    // says.
    Box::leak(Box::new(unsafe { transmute::<RawOps, HandlerOps>(raw) }))
}

/// The same of a subsystem.
fn wrapped_subsystem(ops: &'static SubsystemOps) -> &'static SubsystemOps {
    // SAFETY: RawSubsystemOps has the layout of SubsystemOps, and `of` leaves no callback out.
    let real = unsafe { *(&raw const *ops).cast::<RawSubsystemOps>() };
    // SAFETY: the context is a Sub, which begins with its Core.
    let core = unsafe { core(real.header.context) };
    assert!(core.real_subsystem.set(real).is_ok());
    let raw = RawSubsystemOps {
        prepare: subsystem::prepare,
        freeze: subsystem::freeze,
        unfreeze: subsystem::unfreeze,
        cancel: subsystem::cancel,
        retrieve: subsystem::retrieve,
        can_finish: subsystem::can_finish,
        finish: subsystem::finish,
        ..real
    };
    // SAFETY: the layouts are the same, and the functions do what the description of SubsystemOps
    // says.
    Box::leak(Box::new(unsafe {
        transmute::<RawSubsystemOps, SubsystemOps>(raw)
    }))
}

/// # Safety
///
/// `handler` is a `&'static Files` or `&'static Sub`.
unsafe fn core(handler: *const c_void) -> &'static Core {
    // SAFETY: the safety section demands one of these two, and both begin with their Core.
    unsafe { &*handler.cast() }
}

impl Core {
    fn real(&self) -> &RawOps {
        self.real.get().unwrap()
    }

    /// # Safety
    ///
    /// `file` is open during the call.
    unsafe fn member_of(&self, file: RawFile) -> usize {
        // SAFETY: the safety section demands an open file.
        member_of_file(unsafe { FileRef::from_raw(file) })
    }

    /// Notes the call; yields the status to return at once, if there is one.
    fn called(&self, call: Call, member: usize) -> Option<i32> {
        self.script.called(call, member).and_then(Way::status)
    }
}

// The arguments are the host's, and each of these hands them to the function it is wrapped around,
// or fails. That function and this one are registered together, with a Files or Sub as handler.

unsafe extern "C" fn can_preserve(handler: *const c_void, file: RawFile) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        core.called(Call::CanPreserve, core.member_of(file))
            .unwrap_or_else(|| (core.real().can_preserve)(handler, file))
    }
}

unsafe extern "C" fn file_id(handler: *const c_void, file: RawFile, id: *mut u64) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        core.called(Call::FileId, core.member_of(file))
            .unwrap_or_else(|| (core.real().file_id)(handler, file, id))
    }
}

unsafe extern "C" fn prepare(
    handler: *const c_void,
    file: RawFile,
    host: *const c_void,
    private: *mut c_void,
    data: *mut u64,
) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        core.called(Call::Prepare, core.member_of(file))
            .unwrap_or_else(|| (core.real().prepare)(handler, file, host, private, data))
    }
}

unsafe extern "C" fn freeze(
    handler: *const c_void,
    file: RawFile,
    host: *const c_void,
    private: *mut c_void,
    data: *mut u64,
) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        core.called(Call::Freeze, core.member_of(file))
            .unwrap_or_else(|| (core.real().freeze)(handler, file, host, private, data))
    }
}

unsafe extern "C" fn unfreeze(
    handler: *const c_void,
    file: RawFile,
    host: *const c_void,
    private: *mut c_void,
    data: u64,
) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        core.called(Call::Unfreeze, core.member_of(file))
            .unwrap_or_else(|| (core.real().unfreeze)(handler, file, host, private, data))
    }
}

unsafe extern "C" fn cancel(
    handler: *const c_void,
    file: RawFile,
    host: *const c_void,
    private: *mut c_void,
    data: u64,
) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        core.called(Call::Cancel, core.member_of(file))
            .unwrap_or_else(|| (core.real().cancel)(handler, file, host, private, data))
    }
}

unsafe extern "C" fn retrieve(
    handler: *const c_void,
    host: *const c_void,
    data: u64,
    file: *mut RawFile,
) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        let way = core.script.called(Call::Retrieve, member_of_data(data));
        if let Some(Way::File(raw)) = way {
            file.write(raw);
            return 0;
        }
        way.and_then(Way::status)
            .unwrap_or_else(|| (core.real().retrieve)(handler, host, data, file))
    }
}

unsafe extern "C" fn can_finish(
    handler: *const c_void,
    host: *const c_void,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        core.called(Call::CanFinish, member_of_data(data))
            .unwrap_or_else(|| (core.real().can_finish)(handler, host, data, file, retrieved))
    }
}

unsafe extern "C" fn finish(
    handler: *const c_void,
    host: *const c_void,
    data: u64,
    file: RawFile,
    retrieved: i32,
) -> i32 {
    // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context is
    // a `&'static Files`: `wrapped` registers the two together.
    unsafe {
        let core = core(handler);
        let member = member_of_data(data);
        if retrieved <= 0 {
            core.script.called(Call::FinishLost, member);
            return (core.real().finish)(handler, host, data, file, retrieved);
        }
        core.called(Call::Finish, member)
            .unwrap_or_else(|| (core.real().finish)(handler, host, data, file, retrieved))
    }
}

/// The same around the functions of a subsystem.
mod subsystem {
    use super::*;

    pub(super) unsafe extern "C" fn prepare(
        context: *const c_void,
        host: *const c_void,
        private: *mut c_void,
        data: *mut u64,
    ) -> i32 {
        // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context
        // is a `&'static Sub`: `wrapped_subsystem` registers the two together.
        unsafe {
            let core = core(context);
            let real = core.real_subsystem.get().unwrap();
            core.called(Call::Prepare, core.member)
                .unwrap_or_else(|| (real.prepare)(context, host, private, data))
        }
    }

    pub(super) unsafe extern "C" fn freeze(
        context: *const c_void,
        host: *const c_void,
        private: *mut c_void,
        data: *mut u64,
    ) -> i32 {
        // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context
        // is a `&'static Sub`: `wrapped_subsystem` registers the two together.
        unsafe {
            let core = core(context);
            let real = core.real_subsystem.get().unwrap();
            core.called(Call::Freeze, core.member)
                .unwrap_or_else(|| (real.freeze)(context, host, private, data))
        }
    }

    pub(super) unsafe extern "C" fn unfreeze(
        context: *const c_void,
        host: *const c_void,
        private: *mut c_void,
        data: u64,
    ) -> i32 {
        // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context
        // is a `&'static Sub`: `wrapped_subsystem` registers the two together.
        unsafe {
            let core = core(context);
            let real = core.real_subsystem.get().unwrap();
            core.called(Call::Unfreeze, core.member)
                .unwrap_or_else(|| (real.unfreeze)(context, host, private, data))
        }
    }

    pub(super) unsafe extern "C" fn cancel(
        context: *const c_void,
        host: *const c_void,
        private: *mut c_void,
        data: u64,
    ) -> i32 {
        // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context
        // is a `&'static Sub`: `wrapped_subsystem` registers the two together.
        unsafe {
            let core = core(context);
            let real = core.real_subsystem.get().unwrap();
            core.called(Call::Cancel, core.member)
                .unwrap_or_else(|| (real.cancel)(context, host, private, data))
        }
    }

    pub(super) unsafe extern "C" fn retrieve(
        context: *const c_void,
        host: *const c_void,
        data: u64,
    ) -> i32 {
        // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context
        // is a `&'static Sub`: `wrapped_subsystem` registers the two together.
        unsafe {
            let core = core(context);
            let real = core.real_subsystem.get().unwrap();
            core.called(Call::Retrieve, core.member)
                .unwrap_or_else(|| (real.retrieve)(context, host, data))
        }
    }

    pub(super) unsafe extern "C" fn can_finish(
        context: *const c_void,
        host: *const c_void,
        data: u64,
    ) -> i32 {
        // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context
        // is a `&'static Sub`: `wrapped_subsystem` registers the two together.
        unsafe {
            let core = core(context);
            let real = core.real_subsystem.get().unwrap();
            core.called(Call::CanFinish, core.member)
                .unwrap_or_else(|| (real.can_finish)(context, host, data))
        }
    }

    pub(super) unsafe extern "C" fn finish(
        context: *const c_void,
        host: *const c_void,
        data: u64,
        retrieved: i32,
    ) -> i32 {
        // SAFETY: the wrapped function is called with the arguments of its wrapper, and the context
        // is a `&'static Sub`: `wrapped_subsystem` registers the two together.
        unsafe {
            let core = core(context);
            let real = core.real_subsystem.get().unwrap();
            if retrieved <= 0 {
                core.script.called(Call::FinishLost, core.member);
                return (real.finish)(context, host, data, retrieved);
            }
            core.called(Call::Finish, core.member)
                .unwrap_or_else(|| (real.finish)(context, host, data, retrieved))
        }
    }
}

/// A host with so many files and subsystems; the subsystems are the last members.
struct World {
    script: Arc<Script>,
    registry: Arc<Registry>,
    update: Orchestrator,
    files: Vec<File>,
    /// The members in the order they were offered.
    order: Vec<usize>,
}

impl World {
    fn new(files: usize, subsystems: usize) -> Self {
        let script = Arc::new(Script::default());
        let registry = Arc::new(Registry::new());
        let core = |member| Core::new(&script, member);
        registry
            .register(wrapped(ops(Files(core(usize::MAX)))))
            .unwrap();
        for subsystem in 0..subsystems {
            let core = core(files + subsystem);
            let ops = match subsystem {
                0 => subsystem_ops(Sub::<0>(core)),
                1 => subsystem_ops(Sub::<1>(core)),
                2 => subsystem_ops(Sub::<2>(core)),
                3 => subsystem_ops(Sub::<3>(core)),
                _ => subsystem_ops(Sub::<4>(core)),
            };
            registry.register_subsystem(wrapped_subsystem(ops)).unwrap();
        }
        Self {
            update: Orchestrator::new(registry.clone()),
            script,
            registry,
            files: (0..files)
                .map(|member| memfd(&vec![0; member + 1]))
                .collect(),
            order: (0..files + subsystems).collect(),
        }
    }

    /// A host to which all files are offered.
    fn offered(files: usize, subsystems: usize) -> Self {
        let world = Self::new(files, subsystems);
        for member in 0..files {
            world.preserve(member).unwrap();
        }
        world.take_log();
        world
    }

    fn preserve(&self, member: usize) -> Result<Compatible, Error> {
        self.update.preserve(token(member), &self.files[member])
    }

    fn fail(&self, call: Call, member: usize, way: Way) {
        let fault = Fault { call, member, way };
        self.script.faults.lock().unwrap().push(fault);
    }

    fn mend(&self) {
        self.script.faults.lock().unwrap().clear();
    }

    fn take_log(&self) -> Log {
        std::mem::take(&mut *self.script.log.lock().unwrap())
    }

    fn participant(&self, member: usize) -> Participant {
        match member.checked_sub(self.files.len()) {
            None => Participant::File(token(member)),
            Some(subsystem) => Participant::Subsystem(SUBSYSTEMS[subsystem]),
        }
    }

    fn failure(&self, phase: Phase, member: usize, errno: Errno) -> Failure {
        Failure {
            phase,
            participant: self.participant(member),
            handler: Some(match self.participant(member) {
                Participant::File(_) => Files::COMPATIBLE,
                Participant::Subsystem(compatible) => compatible,
            }),
            errno,
            reason: None,
        }
    }

    /// `call` of every member, in order.
    fn all(&self, call: Call) -> Log {
        self.order.iter().map(|&member| (call, member)).collect()
    }

    fn all_reversed(&self, call: Call) -> Log {
        self.all(call).into_iter().rev().collect()
    }

    /// Everybody is cancelled and then dropped, the last one first.
    fn all_cancelled(&self) -> Log {
        cancelled(self.order.iter().rev().copied())
    }

    fn expect(&self, state: State, log: Log) {
        assert_eq!(self.update.state(), state);
        assert_eq!(self.take_log(), log);
    }

    /// Prepares and freezes, and nothing goes wrong.
    fn frozen(self) -> Self {
        self.update.prepare().unwrap();
        self.expect(State::Prepared, self.all(Call::Prepare));
        self.update.freeze().unwrap();
        self.expect(State::Frozen, self.all(Call::Freeze));
        self
    }

    /// The new side, after a jump in which the old side ended.
    fn arrived(mut self) -> Self {
        let arrival = Crossing::of(&self.update).arrival();
        let new = Orchestrator::arrived(self.registry.clone(), arrival);
        std::mem::replace(&mut self.update, new).depart();
        let mut dropped = self.take_log();
        dropped.sort_by_key(|(_, member)| *member);
        let mut expected = self.all(Call::Drop);
        expected.sort_by_key(|(_, member)| *member);
        assert_eq!(dropped, expected);
        self
    }

    fn retrieve(&self, member: usize) -> Result<(), Error> {
        match self.participant(member) {
            Participant::File(token) => {
                let file = self.update.retrieve(token)?;
                assert_eq!(member_of_file((*file).as_fd().into()), member);
                Ok(())
            }
            Participant::Subsystem(compatible) => self.update.retrieve_subsystem(compatible),
        }
    }

    fn retrieved(self) -> Self {
        for &member in &self.order {
            self.retrieve(member).unwrap();
        }
        self.expect(State::Updated, self.all(Call::Retrieve));
        self
    }

    fn finish_well(&self) {
        assert_eq!(self.update.finish().unwrap(), []);
        let finished = [self.all(Call::CanFinish), self.all(Call::Finish)].concat();
        self.expect(State::Normal, finished);
    }

    /// The second try, from `Normal`: nothing is left of the first one.
    fn update_works(self) {
        self.mend();
        self.take_log();
        assert_eq!(self.update.state(), State::Normal);
        self.frozen().arrived().retrieved().finish_well();
    }

    /// Another update of the new side, which has files of its own.
    fn next_update_works(self) {
        self.mend();
        for &member in self
            .order
            .iter()
            .filter(|&&member| member < self.files.len())
        {
            self.preserve(member).unwrap();
        }
        self.update_works();
    }
}

fn token(member: usize) -> Token {
    Token(1000 + member as u64)
}

fn cancelled(members: impl Iterator<Item = usize>) -> Log {
    members
        .flat_map(|member| [(Call::Cancel, member), (Call::Drop, member)])
        .collect()
}

fn failed(failure: Failure) -> Result<(), Error> {
    Err(Error::Failed(failure))
}

/// Runs `case` with every list, every position in it and every way: files, subsystems, member, way.
fn for_each_position(ways: &[Way], case: impl Fn(usize, usize, usize, Way)) {
    for members in 1..=5 {
        for files in 0..=members {
            for member in 0..members {
                for &way in ways {
                    case(files, members - files, member, way);
                }
            }
        }
    }
}

/// The same for what only files have.
fn for_each_file(ways: &[Way], case: impl Fn(usize, usize, usize, Way)) {
    for_each_position(ways, |files, subsystems, member, way| {
        if member < files {
            case(files, subsystems, member, way);
        }
    });
}

/// The same with two members of which the first comes before the second.
fn for_each_pair(case: impl Fn(usize, usize, usize, usize, Way)) {
    for_each_position(&WAYS, |files, subsystems, second, way| {
        for first in 0..second {
            case(files, subsystems, first, second, way);
        }
    });
}

fn a_failed_offer_leaves_the_others(call: Call) {
    for_each_file(&WAYS, |files, subsystems, faulty, way| {
        let mut world = World::new(files, subsystems);
        world.fail(call, faulty, way);
        for member in 0..files {
            let expected = match member == faulty {
                true => Err(Error::Failed(world.failure(
                    Phase::Preserve,
                    member,
                    way.errno(),
                ))),
                false => Ok(Files::COMPATIBLE),
            };
            assert_eq!(world.preserve(member), expected);
        }
        world.mend();
        world.preserve(faulty).unwrap();
        let faulty = world.order.remove(faulty);
        world.order.insert(files - 1, faulty);
        world.update_works();
    });
}

#[test]
fn a_failed_question_whether_a_file_can_be_kept_leaves_the_others() {
    a_failed_offer_leaves_the_others(Call::CanPreserve);
}

#[test]
fn a_failed_question_for_the_identity_leaves_the_others() {
    a_failed_offer_leaves_the_others(Call::FileId);
}

#[test]
fn a_failed_prepare_cancels_those_before_it() {
    for_each_position(&WAYS, |files, subsystems, member, way| {
        let world = World::offered(files, subsystems);
        world.fail(Call::Prepare, member, way);
        let failure = world.failure(Phase::Prepare, member, way.errno());
        assert_eq!(world.update.prepare(), failed(failure));
        let mut log = world.all(Call::Prepare);
        log.truncate(member + 1);
        log.extend(cancelled((0..member).rev()));
        world.expect(State::Normal, log);
        assert_eq!(world.update.preserved(), (0, 0));
        world.update_works();
    });
}

#[test]
fn a_failed_freeze_unfreezes_those_before_it() {
    for_each_position(&WAYS, |files, subsystems, member, way| {
        let world = World::offered(files, subsystems);
        world.update.prepare().unwrap();
        world.take_log();
        world.fail(Call::Freeze, member, way);
        let failure = world.failure(Phase::Freeze, member, way.errno());
        assert_eq!(world.update.freeze(), failed(failure));
        let mut log = world.all(Call::Freeze);
        log.truncate(member + 1);
        log.extend((0..member).rev().map(|member| (Call::Unfreeze, member)));
        world.expect(State::Prepared, log);

        world.mend();
        world.update.freeze().unwrap();
        world.expect(State::Frozen, world.all(Call::Freeze));
        assert_eq!(world.update.cancel().unwrap(), []);
        let undone = [world.all_reversed(Call::Unfreeze), world.all_cancelled()].concat();
        world.expect(State::Normal, undone);
        assert_eq!(world.update.preserved(), (0, 0));
        world.update_works();
    });
}

#[test]
fn a_failed_unfreeze_is_told_and_stops_nobody() {
    for_each_position(&WAYS, |files, subsystems, member, way| {
        let world = World::offered(files, subsystems).frozen();
        world.fail(Call::Unfreeze, member, way);
        let complaints = [world.failure(Phase::Unfreeze, member, way.errno())];
        assert_eq!(world.update.unfreeze().unwrap(), complaints);
        world.expect(State::Prepared, world.all_reversed(Call::Unfreeze));
        world.update.freeze().unwrap();
        world.expect(State::Frozen, world.all(Call::Freeze));
        world.mend();
        assert_eq!(world.update.cancel().unwrap(), []);
        world.update_works();
    });
}

#[test]
fn a_failed_cancel_is_told_and_stops_nobody() {
    for_each_position(&WAYS, |files, subsystems, member, way| {
        for frozen in [false, true] {
            let world = World::offered(files, subsystems);
            world.update.prepare().unwrap();
            world.take_log();
            let mut log = Log::new();
            if frozen {
                world.update.freeze().unwrap();
                world.take_log();
                log = world.all_reversed(Call::Unfreeze);
            }
            world.fail(Call::Cancel, member, way);
            let complaints = [world.failure(Phase::Cancel, member, way.errno())];
            assert_eq!(world.update.cancel().unwrap(), complaints);
            log.extend(world.all_cancelled());
            world.expect(State::Normal, log);
            world.update_works();
        }
    });
}

#[test]
fn a_failed_drop_stops_nobody() {
    for_each_position(&[Way::Panic], |files, subsystems, member, way| {
        let world = World::offered(files, subsystems).frozen();
        world.fail(Call::Drop, member, way);
        assert_eq!(world.update.cancel().unwrap(), []);
        let undone = [world.all_reversed(Call::Unfreeze), world.all_cancelled()].concat();
        world.expect(State::Normal, undone);
        let world = World::offered(files, subsystems).frozen();
        world.fail(Call::Drop, member, way);
        world.arrived().retrieved().finish_well();
    });
}

#[test]
fn a_cancel_that_fails_while_a_failed_prepare_is_undone_stops_nobody() {
    for_each_pair(|files, subsystems, first, second, way| {
        let world = World::offered(files, subsystems);
        world.fail(Call::Prepare, second, Way::Error);
        world.fail(Call::Cancel, first, way);
        let failure = world.failure(Phase::Prepare, second, Errno::EPERM);
        assert_eq!(world.update.prepare(), failed(failure));
        let mut log = world.all(Call::Prepare);
        log.truncate(second + 1);
        log.extend(cancelled((0..second).rev()));
        world.expect(State::Normal, log);
        world.update_works();
    });
}

#[test]
fn an_unfreeze_that_fails_while_a_failed_freeze_is_undone_stops_nobody() {
    for_each_pair(|files, subsystems, first, second, way| {
        let world = World::offered(files, subsystems);
        world.update.prepare().unwrap();
        world.take_log();
        world.fail(Call::Freeze, second, Way::Error);
        world.fail(Call::Unfreeze, first, way);
        let failure = world.failure(Phase::Freeze, second, Errno::EPERM);
        assert_eq!(world.update.freeze(), failed(failure));
        let mut log = world.all(Call::Freeze);
        log.truncate(second + 1);
        log.extend((0..second).rev().map(|member| (Call::Unfreeze, member)));
        world.expect(State::Prepared, log);
        world.mend();
        assert_eq!(world.update.cancel().unwrap(), []);
        world.expect(State::Normal, world.all_cancelled());
        world.update_works();
    });
}

#[test]
fn all_who_complain_of_their_undoing_are_told_the_last_one_first() {
    for_each_pair(|files, subsystems, first, second, way| {
        let world = World::offered(files, subsystems).frozen();
        world.fail(Call::Unfreeze, first, way);
        world.fail(Call::Cancel, first, way);
        world.fail(Call::Cancel, second, way);
        let complaints: Complaints = vec![
            world.failure(Phase::Unfreeze, first, way.errno()),
            world.failure(Phase::Cancel, second, way.errno()),
            world.failure(Phase::Cancel, first, way.errno()),
        ];
        assert_eq!(world.update.cancel().unwrap(), complaints);
        world.update_works();
    });
}

/// The new side of an update in which one member cannot be retrieved.
fn a_failed_retrieve_is_kept_and_costs_that_one(
    files: usize,
    subsystems: usize,
    faulty: usize,
    way: Way,
) {
    let world = World::offered(files, subsystems).frozen().arrived();
    world.fail(Call::Retrieve, faulty, way);
    let failure = world.failure(Phase::Retrieve, faulty, way.errno());
    for round in 0..2 {
        for &member in &world.order {
            let expected = match member == faulty {
                true => failed(failure.clone()),
                false => Ok(()),
            };
            assert_eq!(world.retrieve(member), expected, "round {round}");
        }
        world.mend();
    }
    world.expect(State::Updated, world.all(Call::Retrieve));
    assert_eq!(world.update.finish().unwrap(), []);
    let mut log = [world.all(Call::CanFinish), world.all(Call::Finish)].concat();
    log[world.order.len() + faulty].0 = Call::FinishLost;
    world.expect(State::Normal, log);
    world.next_update_works();
}

#[test]
fn a_failed_retrieve_is_kept_and_costs_one_member() {
    for_each_position(&WAYS, a_failed_retrieve_is_kept_and_costs_that_one);
}

#[test]
fn a_retrieve_that_yields_no_file_is_kept_and_costs_one_file() {
    let closed = i32::MAX as RawFile;
    let ways = [NO_FILE, -7, closed, closed + 1, RawFile::MIN].map(Way::File);
    for_each_file(&ways, a_failed_retrieve_is_kept_and_costs_that_one);
}

#[test]
fn a_file_that_was_closed_behind_the_hosts_back_is_not_taken() {
    struct Closing;
    impl FileHandler for Closing {
        const COMPATIBLE: Compatible = Compatible::new("closing-v1");
        type Private = ();
        fn can_preserve(&self, _: FileRef<'_>) -> bool {
            true
        }
        fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
            Ok(Prepared {
                data: 0,
                private: (),
            })
        }
        fn cancel(&self, _: Preserved<'_, ()>) {}
        fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
            // A number so high that no other thread of the test gets it meanwhile.
            let file = rustix::io::fcntl_dupfd_cloexec(memfd(b""), 900).unwrap();
            let raw = file.as_raw_fd() as RawFile;
            drop(file);
            // SAFETY: breaks the promise on purpose, which is the fault that is tested; the number
            // is nobody else's.
            Ok(unsafe { OwnedFile::from_raw(raw) })
        }
        fn finish(&self, file: Crossed<'_>) {
            assert!(matches!(file.retrieved, Retrieved::Failed(Errno::EBADF)));
        }
    }
    let registry = Arc::new(Registry::new());
    registry.register(ops(Closing)).unwrap();
    let update = Orchestrator::new(registry.clone());
    update.preserve(Token(1), memfd(b"")).unwrap();
    update.prepare().unwrap();
    update.freeze().unwrap();
    let new = Orchestrator::arrived(registry, Crossing::of(&update).arrival());
    assert_eq!(new.retrieve(Token(1)).unwrap_err().errno(), Errno::EBADF);
    assert_eq!(new.finish().unwrap(), []);
}

#[test]
fn a_failed_can_finish_keeps_the_whole_set() {
    let ways = [
        Way::Error,
        Way::Panic,
        Way::Status(2),
        Way::Status(-5000),
        Way::Status(0),
    ];
    for_each_position(&ways, |files, subsystems, member, way| {
        let world = World::offered(files, subsystems)
            .frozen()
            .arrived()
            .retrieved();
        world.fail(Call::CanFinish, member, way);
        let errno = match way {
            Way::Status(0) => Errno::EBUSY,
            _ => way.errno(),
        };
        let failure = world.failure(Phase::Finish, member, errno);
        assert_eq!(world.update.finish(), Err(Error::Failed(failure)));
        let mut log = world.all(Call::CanFinish);
        log.truncate(member + 1);
        world.expect(State::Updated, log);

        world.mend();
        for &member in &world.order {
            world.retrieve(member).unwrap();
        }
        world.finish_well();
        world.next_update_works();
    });
}

#[test]
fn a_failed_finish_is_told_and_stops_nobody() {
    for_each_position(&WAYS, |files, subsystems, member, way| {
        let world = World::offered(files, subsystems)
            .frozen()
            .arrived()
            .retrieved();
        world.fail(Call::Finish, member, way);
        let complaints = [world.failure(Phase::Finish, member, way.errno())];
        assert_eq!(world.update.finish().unwrap(), complaints);
        let log = [world.all(Call::CanFinish), world.all(Call::Finish)].concat();
        world.expect(State::Normal, log);
        assert_eq!(world.update.finish().unwrap_err().errno(), Errno::EINVAL);
        world.next_update_works();
    });
}
