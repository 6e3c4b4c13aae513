// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the orchestrator promises where no handler fails, or one fails in an ordinary way.

#![allow(unsafe_code)] // an edge of the tests

mod support;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};

use luo_handler_api::hosted::{Handler, SubsystemRef};
use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, Host, InvalidReason, NeededBy, OwnedFile,
    Prepared, Preserved, Subsystem, Token,
};
use luo_handler_memfd as _;
use luo_orchestrator::devicetree::{decode, BadReason, FileEntry, SubsystemEntry, Tree};
use luo_orchestrator::error::{Error, State};
use luo_orchestrator::files::{FileSource, HeldFile, NoFiles};
use luo_orchestrator::handover::{Arrival, Handover};
use luo_orchestrator::incoming::Incoming;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::loopback;
use support::{contents, inode, memfd, ops, subsystem_ops, Crossing};

/// How often a handler was called, and what it answers.
#[derive(Default)]
struct Desk {
    prepared: AtomicUsize,
    cancelled: AtomicUsize,
    dropped: AtomicUsize,
    retrieved: AtomicUsize,
    finished: Mutex<Vec<bool>>,
    refuses: AtomicBool,
    keeps_unfinished: AtomicBool,
}

impl Desk {
    fn ends(&self) -> (usize, usize, usize) {
        (
            self.prepared.load(SeqCst),
            self.cancelled.load(SeqCst),
            self.dropped.load(SeqCst),
        )
    }
}

struct Slip(Arc<Desk>);

impl Drop for Slip {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, SeqCst);
    }
}

/// Keeps the contents of any memfd as bytes; there are three such handlers.
struct Notes<const N: usize>(Arc<Desk>);

const NOTES: [Compatible; 4] = [
    Compatible::new("notes-0"),
    Compatible::new("notes-1"),
    Compatible::new("notes-2"),
    Compatible::new("luo-handlers,memfd-v1"),
];

impl<const N: usize> FileHandler for Notes<N> {
    const COMPATIBLE: Compatible = NOTES[N];
    type Private = Slip;

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        rustix::fs::fcntl_get_seals(file).is_ok()
    }
    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Slip>, Errno> {
        let data = host.preserve_bytes(&contents(file))?;
        self.0.prepared.fetch_add(1, SeqCst);
        let private = Slip(self.0.clone());
        Ok(Prepared { data, private })
    }
    fn freeze(&self, file: Preserved<'_, Slip>) -> Result<u64, Errno> {
        file.host.release_bytes(file.data);
        file.host.preserve_bytes(&contents(file.file))
    }
    fn cancel(&self, file: Preserved<'_, Slip>) {
        file.host.release_bytes(file.data);
        self.0.cancelled.fetch_add(1, SeqCst);
    }
    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        self.0.retrieved.fetch_add(1, SeqCst);
        if self.0.refuses.load(SeqCst) {
            return Err(Errno::ENOSPC);
        }
        let mut bytes = vec![0; host.bytes_len(data)? as usize];
        host.read_bytes(data, 0, &mut bytes)?;
        std::thread::yield_now();
        Ok(OwnedFd::from(memfd(&bytes)).into())
    }
    fn can_finish(&self, _: Crossed<'_>) -> bool {
        !self.0.keeps_unfinished.load(SeqCst)
    }
    fn finish(&self, file: Crossed<'_>) {
        self.0
            .finished
            .lock()
            .unwrap()
            .push(file.retrieved.file().is_some());
        file.host.release_bytes(file.data);
    }
}

struct Clock(AtomicUsize);

impl Subsystem for Clock {
    const COMPATIBLE: Compatible = Compatible::new("clock-v1");
    type Private = ();

    fn prepare(&self, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        Ok(Prepared {
            data: 12,
            private: (),
        })
    }
    fn cancel(&self, _: u64, (): &mut (), _: Host<'_>) {}
    fn retrieve(&self, data: u64, _: Host<'_>) -> Result<(), Errno> {
        assert_eq!((data, self.0.fetch_add(1, SeqCst)), (12, 0), "once");
        Ok(())
    }
    fn finish(&self, _: u64, _: bool, _: Host<'_>) {}
}

fn host() -> (Arc<Desk>, Arc<Registry>, Orchestrator) {
    let desk = Arc::<Desk>::default();
    let registry = Arc::new(Registry::new());
    registry.register(ops(Notes::<0>(desk.clone()))).unwrap();
    let update = Orchestrator::new(registry.clone());
    (desk, registry, update)
}

fn freeze(update: &Orchestrator) {
    update.prepare().unwrap();
    update.freeze().unwrap();
}

/// The new side of an update of so many files; file `n` has token `n` and says so in its contents.
fn crossed(files: u64) -> (Arc<Desk>, Orchestrator) {
    let (desk, registry, update) = host();
    for token in 0..files {
        update
            .preserve(Token(token), memfd(text(token).as_bytes()))
            .unwrap();
    }
    freeze(&update);
    let arrival = Crossing::of(&update).arrival();
    update.depart();
    (desk, Orchestrator::arrived(registry, arrival))
}

fn text(token: u64) -> String {
    format!("contents of {token}")
}

fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> Errno {
    result.unwrap_err().errno()
}

#[test]
fn eight_threads_at_once_restore_each_file_once() {
    const FILES: u64 = 50;
    for _ in 0..20 {
        let (desk, new) = crossed(FILES);
        let start = Barrier::new(8);
        let got: Vec<Vec<i32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let (new, start) = (&new, &start);
                    scope.spawn(move || {
                        start.wait();
                        let mut fds = vec![0; FILES as usize];
                        for step in 0..FILES {
                            let token = (step + thread % 2 * 7) % FILES;
                            let file = new.retrieve(Token(token)).unwrap();
                            fds[token as usize] = file.as_raw_fd();
                        }
                        fds
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(desk.retrieved.load(SeqCst), FILES as usize);
        assert!(got.iter().all(|fds| *fds == got[0]));
        for token in 0..FILES {
            let file = new.retrieve(Token(token)).unwrap();
            assert_eq!(contents(file), text(token).as_bytes());
        }
        assert_eq!(desk.retrieved.load(SeqCst), FILES as usize);
    }
}

#[test]
fn files_are_retrieved_in_any_order_and_as_often_as_one_likes() {
    for first in 0..4 {
        for step in [1, 3] {
            let (desk, new) = crossed(4);
            let order = (0..4).map(|n| (first + n * step) % 4);
            for token in order.clone().chain(order) {
                let file = new.retrieve(Token(token)).unwrap();
                assert_eq!(contents(&file), text(token).as_bytes());
                let again = new.retrieve(Token(token)).unwrap();
                assert_eq!(again.as_raw_fd(), file.as_raw_fd());
            }
            assert_eq!(desk.retrieved.load(SeqCst), 4);
        }
    }
}

#[test]
fn a_token_that_did_not_cross_is_not_found() {
    let (_, new) = crossed(1);
    let error = new.retrieve(Token(7)).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOENT);
    assert!(error.to_string().contains("0x7"), "{error}");
    let unknown = new.retrieve_subsystem(Clock::COMPATIBLE);
    assert_eq!(errno(unknown), Errno::ENOENT);
}

#[test]
fn a_failed_retrieve_keeps_its_errno_and_is_not_tried_again() {
    let (desk, new) = crossed(2);
    desk.refuses.store(true, SeqCst);
    assert_eq!(errno(new.retrieve(Token(0))), Errno::ENOSPC);
    desk.refuses.store(false, SeqCst);
    let again = new.retrieve(Token(0)).unwrap_err();
    assert_eq!(again.errno(), Errno::ENOSPC);
    let message = again.to_string();
    for part in ["retrieve", "0x0", "notes-0", "ENOSPC"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(desk.retrieved.load(SeqCst), 1);
    new.retrieve(Token(1)).unwrap();
    let status: Vec<_> = new
        .files()
        .unwrap()
        .into_iter()
        .map(|f| f.retrieved)
        .collect();
    assert_eq!(status, [Some(Err(Errno::ENOSPC)), Some(Ok(()))]);
    new.finish().unwrap();
    assert_eq!(*desk.finished.lock().unwrap(), [false, true]);
}

#[test]
fn what_nobody_claims_waits_for_a_handler_that_comes_later() {
    let (_, _, update) = host();
    update.preserve(Token(1), memfd(b"one")).unwrap();
    freeze(&update);
    let registry = Arc::new(Registry::new());
    let new = Orchestrator::arrived(registry.clone(), Crossing::of(&update).arrival());
    let claimed = || new.files().unwrap()[0].claimed;
    for _ in 0..2 {
        assert!(!claimed());
        let error = new.retrieve(Token(1)).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOENT);
        assert!(error.to_string().contains("notes-0"), "{error}");
    }
    let desk = Arc::<Desk>::default();
    registry.register(ops(Notes::<0>(desk))).unwrap();
    assert!(claimed());
    assert_eq!(contents(new.retrieve(Token(1)).unwrap()), b"one");
}

#[test]
fn a_subsystem_that_comes_later_gets_what_it_said() {
    let registry = Registry::new();
    registry
        .register_subsystem(subsystem_ops(Clock(AtomicUsize::new(0))))
        .unwrap();
    let update = Orchestrator::new(Arc::new(registry));
    freeze(&update);
    let registry = Arc::new(Registry::new());
    let new = Orchestrator::arrived(registry.clone(), Crossing::of(&update).arrival());
    let expected = SubsystemEntry {
        compatible: Clock::COMPATIBLE,
        data: 12,
    };
    assert_eq!(new.subsystems().unwrap(), [expected]);
    let retrieve = || new.retrieve_subsystem(Clock::COMPATIBLE);
    assert_eq!(errno(retrieve()), Errno::ENOENT);
    registry
        .register_subsystem(subsystem_ops(Clock(AtomicUsize::new(0))))
        .unwrap();
    retrieve().unwrap();
    retrieve().unwrap();
    assert_eq!(new.finish().unwrap(), []);
}

/// Belongs to the files of [`Notes::<1>`].
struct Shared;

impl Subsystem for Shared {
    const COMPATIBLE: Compatible = Compatible::new("shared-v1");
    const NEEDED_BY: NeededBy = NeededBy::Handlers(&[Notes::<1>::COMPATIBLE]);
    type Private = ();

    fn prepare(&self, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        Ok(Prepared {
            data: 5,
            private: (),
        })
    }
    fn cancel(&self, _: u64, (): &mut (), _: Host<'_>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<(), Errno> {
        Ok(())
    }
    fn finish(&self, _: u64, _: bool, _: Host<'_>) {}
}

#[test]
fn a_subsystem_comes_with_the_files_that_need_it() {
    let crossed_with = |register: &dyn Fn(&Registry, Arc<Desk>)| {
        let registry = Registry::new();
        register(&registry, Arc::default());
        registry.register_subsystem(subsystem_ops(Shared)).unwrap();
        let update = Orchestrator::new(Arc::new(registry));
        update.preserve(Token(1), memfd(b"one")).unwrap();
        freeze(&update);
        let new = Orchestrator::arrived(Arc::default(), Crossing::of(&update).arrival());
        new.subsystems().unwrap().len()
    };
    let other = |registry: &Registry, desk| registry.register(ops(Notes::<0>(desk))).unwrap();
    let needing = |registry: &Registry, desk| registry.register(ops(Notes::<1>(desk))).unwrap();
    assert_eq!(crossed_with(&other), 0);
    assert_eq!(crossed_with(&needing), 1);
}

/// Takes every file and leaves its identity to the host.
struct Anything;

impl FileHandler for Anything {
    const COMPATIBLE: Compatible = Compatible::new("anything-v1");
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
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

#[test]
fn files_that_share_an_inode_by_their_type_are_not_the_same_file() {
    let registry = Registry::new();
    registry.register(ops(Anything)).unwrap();
    let update = Orchestrator::new(Arc::new(registry));
    let eventfd = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (first, second) = (eventfd(), eventfd());
    assert_eq!(inode(&first), inode(&second), "the test is about this");
    update.preserve(Token(1), &first).unwrap();
    update.preserve(Token(2), &second).unwrap();
    let same = first.try_clone().unwrap();
    assert_eq!(errno(update.preserve(Token(3), &same)), Errno::EBUSY);

    let (read, write) = rustix::pipe::pipe().unwrap();
    update.preserve(Token(4), &read).unwrap();
    update.preserve(Token(5), &write).unwrap();

    let file = memfd(b"a regular file");
    update.preserve(Token(6), &file).unwrap();
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let again = std::fs::File::open(again).unwrap();
    assert_eq!(errno(update.preserve(Token(7), &again)), Errno::EBUSY);
}

#[test]
fn what_nobody_claimed_is_told_at_the_end_and_hinders_nobody() {
    let (_, _, update) = host();
    update.preserve(Token(1), memfd(b"one")).unwrap();
    freeze(&update);
    let new = Orchestrator::arrived(Arc::default(), Crossing::of(&update).arrival());
    let complaints = new.finish().unwrap();
    assert_eq!(complaints.len(), 1);
    assert_eq!(complaints[0].errno, Errno::ENOENT);
    assert_eq!(new.state(), State::Normal);
}

#[test]
fn one_who_cannot_finish_keeps_the_whole_set() {
    let (desk, new) = crossed(3);
    new.retrieve(Token(1)).unwrap();
    desk.keeps_unfinished.store(true, SeqCst);
    assert_eq!(errno(new.finish()), Errno::EBUSY);
    assert_eq!(new.state(), State::Updated);
    assert!(desk.finished.lock().unwrap().is_empty());
    new.retrieve(Token(2)).unwrap();
    desk.keeps_unfinished.store(false, SeqCst);
    assert_eq!(new.finish().unwrap(), []);
    assert_eq!(*desk.finished.lock().unwrap(), [false, true, true]);
    assert_eq!(new.state(), State::Normal);
}

/// Every call, whether it went well, and the states it is possible in.
type CallIn<'a> = (
    &'a str,
    Box<dyn Fn(&Orchestrator) -> Result<(), Error> + 'a>,
    &'a [State],
);

fn every_call(file: &std::fs::File) -> Vec<CallIn<'_>> {
    use State::{Frozen, Normal, Prepared, Updated};
    let fresh = Token(99);
    vec![
        (
            "preserve",
            Box::new(move |o| o.preserve(fresh, file).map(drop)),
            &[Normal, Prepared],
        ),
        (
            "unpreserve",
            Box::new(move |o| o.unpreserve(Token(0)).map(drop)),
            &[Normal, Prepared],
        ),
        ("prepare", Box::new(|o| o.prepare()), &[Normal]),
        ("freeze", Box::new(|o| o.freeze()), &[Prepared]),
        ("unfreeze", Box::new(|o| o.unfreeze().map(drop)), &[Frozen]),
        (
            "cancel",
            Box::new(|o| o.cancel().map(drop)),
            &[Prepared, Frozen],
        ),
        ("handover", Box::new(|o| o.handover(|_| Ok(()))), &[Frozen]),
        (
            "retrieve",
            Box::new(|o| o.retrieve(Token(0)).map(drop)),
            &[Updated],
        ),
        ("files", Box::new(|o| o.files().map(drop)), &[Updated]),
        (
            "subsystems",
            Box::new(|o| o.subsystems().map(drop)),
            &[Updated],
        ),
        (
            "bad entries",
            Box::new(|o| o.bad_entries().map(drop)),
            &[Updated],
        ),
        ("finish", Box::new(|o| o.finish().map(drop)), &[Updated]),
    ]
}

#[test]
fn a_call_that_does_not_fit_the_state_is_einval_and_changes_nothing() {
    let file = memfd(b"another");
    let in_state = |state| {
        if state == State::Updated {
            return crossed(1);
        }
        let (desk, _, update) = host();
        update.preserve(Token(0), memfd(b"offered")).unwrap();
        match state {
            State::Prepared => update.prepare().unwrap(),
            State::Frozen => freeze(&update),
            State::Normal | State::Updated => {}
        }
        (desk, update)
    };
    for state in [
        State::Normal,
        State::Prepared,
        State::Frozen,
        State::Updated,
    ] {
        for (name, call, fitting) in every_call(&file) {
            let (desk, update) = in_state(state);
            let before = (desk.ends(), update.preserved());
            let result = call(&update);
            if fitting.contains(&state) {
                assert_eq!(result, Ok(()), "{name} in {state}");
                continue;
            }
            let error = result.unwrap_err();
            assert_eq!(error.errno(), Errno::EINVAL, "{name} in {state}");
            assert!(error.to_string().contains(&state.to_string()), "{error}");
            assert_eq!(update.state(), state, "{name}");
            assert_eq!(
                (desk.ends(), update.preserved()),
                before,
                "{name} in {state}"
            );
            // It goes on as if nothing had been asked.
            match state {
                State::Normal => freeze(&update),
                State::Prepared => update.freeze().unwrap(),
                State::Frozen => drop(update.cancel().unwrap()),
                State::Updated => drop(update.retrieve(Token(0)).unwrap()),
            }
        }
    }
}

#[test]
fn a_token_is_used_once() {
    let (_, _, update) = host();
    for token in [0, 1, u64::MAX] {
        update.preserve(Token(token), memfd(b"")).unwrap();
        let error = update.preserve(Token(token), memfd(b"")).unwrap_err();
        assert_eq!(error.errno(), Errno::EEXIST);
        assert!(
            error.to_string().contains(&Token(token).to_string()),
            "{error}"
        );
    }
}

#[test]
fn a_file_is_offered_once_by_whatever_descriptor() {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    let file = memfd(b"");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let options = std::fs::File::options().read(true).write(true).clone();
    let offers = [
        file.try_clone().unwrap(),
        file.try_clone().unwrap(),
        options.open(&path).unwrap(),
        std::fs::File::open(&path).unwrap(),
    ];
    update.preserve(Token(0), &file).unwrap();
    for (file, token) in offers.iter().chain([&file]).zip(1..) {
        let error = update.preserve(Token(token), file).unwrap_err();
        assert_eq!(error.errno(), Errno::EBUSY);
        assert!(
            error.to_string().contains("luo-handlers,memfd-v1"),
            "{error}"
        );
    }
    update.preserve(Token(9), memfd(b"")).unwrap();
}

#[test]
fn the_identity_of_a_file_is_what_its_handler_says() {
    struct Pairs<const N: usize>;
    impl<const N: usize> FileHandler for Pairs<N> {
        const COMPATIBLE: Compatible = NOTES[N];
        type Private = ();
        fn can_preserve(&self, file: FileRef<'_>) -> bool {
            contents(file).len() == N
        }
        fn file_id(&self, _: FileRef<'_>) -> Option<u64> {
            Some(7)
        }
        fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
            Err(Errno::EOPNOTSUPP)
        }
        fn cancel(&self, _: Preserved<'_, ()>) {}
        fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
            Err(Errno::EOPNOTSUPP)
        }
        fn finish(&self, _: Crossed<'_>) {}
    }
    let registry = Registry::new();
    registry.register(ops(Pairs::<1>)).unwrap();
    registry.register(ops(Pairs::<2>)).unwrap();
    let update = Orchestrator::new(Arc::new(registry));
    update.preserve(Token(1), memfd(b"x")).unwrap();
    assert_eq!(errno(update.preserve(Token(2), memfd(b"y"))), Errno::EBUSY);
    update.preserve(Token(3), memfd(b"zz")).unwrap();
}

#[test]
fn a_descriptor_that_nobody_takes_is_refused_with_its_reason() {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    let (reader, writer) = std::io::pipe().unwrap();
    let others: [OwnedFd; 5] = [
        reader.into(),
        writer.into(),
        tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap()
            .into(),
        std::fs::File::open("/").unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
    ];
    for other in others {
        let error = update.preserve(Token(1), &other).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOENT);
        let message = error.to_string();
        assert!(
            message.contains("0x1") && message.contains("no handler takes"),
            "{message}"
        );
    }
    // SAFETY: breaks the promise on purpose; the number is larger than any that is ever open.
    let closed = unsafe { BorrowedFd::borrow_raw(i32::MAX) };
    let error = update.preserve(Token(1), closed).unwrap_err();
    assert_eq!(error.errno(), Errno::EBADF);
    assert!(error.to_string().contains("bad file descriptor"), "{error}");
    update.preserve(Token(1), memfd(b"")).unwrap();
}

#[test]
fn the_first_handler_to_say_yes_takes_the_file() {
    let registry = Registry::new();
    let desk = Arc::<Desk>::default();
    registry.register(ops(Notes::<2>(desk.clone()))).unwrap();
    registry.register(ops(Notes::<1>(desk))).unwrap();
    let update = Orchestrator::new(Arc::new(registry));
    assert_eq!(update.preserve(Token(1), memfd(b"")), Ok(NOTES[1]));
}

#[test]
fn what_comes_before_the_linked_handlers_is_asked_first_and_replaces_its_namesakes() {
    let others = Registry::new();
    let desk = Arc::<Desk>::default();
    others.register(ops(Notes::<0>(desk.clone()))).unwrap();
    let registry = Registry::linked_after(&others).unwrap();
    let last = registry.handlers().last().map(|it| *it.compatible());
    assert_eq!(
        last,
        Some(NOTES[0]),
        "the order of names is not that of asking"
    );
    let update = Orchestrator::new(Arc::new(registry));
    assert_eq!(update.preserve(Token(1), memfd(b"")), Ok(NOTES[0]));

    let others = Registry::new();
    others.register(ops(Notes::<3>(desk))).unwrap();
    let registry = Registry::linked_after(&others).unwrap();
    let count = |registry: &Registry| registry.handlers().len();
    assert_eq!(count(&registry), count(&Registry::linked().unwrap()));
    let replaced = registry.handler(&NOTES[3]).unwrap();
    assert_ne!(replaced.origin(), "luo_handler_memfd");
}

#[test]
fn two_handlers_of_one_name_are_refused() {
    let desk = Arc::<Desk>::default();
    let registry = Registry::new();
    registry.register(ops(Notes::<0>(desk.clone()))).unwrap();
    let refused = registry
        .register(ops(Notes::<0>(desk.clone())))
        .unwrap_err();
    assert_eq!(refused.reason, InvalidReason::Duplicate);
    assert!(refused.to_string().contains("notes-0"), "{refused}");
    let new = |ops| Handler::new(ops).unwrap();
    let both = [
        new(ops(Notes::<1>(desk.clone()))),
        new(ops(Notes::<0>(desk))),
    ];
    let clock = SubsystemRef::new(subsystem_ops(Clock(AtomicUsize::new(0)))).unwrap();
    registry.register_all(&both, &[clock]).unwrap_err();
    registry
        .register_all(&both[..1], &[clock, clock])
        .unwrap_err();
    assert_eq!(registry.handlers().len(), 1, "all or none");
    assert_eq!(registry.subsystems().len(), 0, "all or none");
    registry.register_all(&both[..1], &[clock]).unwrap();
    assert_eq!(registry.handlers().len(), 2);
}

#[test]
fn an_offer_that_is_taken_back_was_never_made() {
    let (desk, _, update) = host();
    let file = memfd(b"taken back");
    assert_eq!(errno(update.unpreserve(Token(1))), Errno::ENOENT);
    update.preserve(Token(1), &file).unwrap();
    update.preserve(Token(2), memfd(b"stays")).unwrap();
    update.unpreserve(Token(1)).unwrap();
    assert_eq!(errno(update.unpreserve(Token(1))), Errno::ENOENT);
    update.prepare().unwrap();
    assert_eq!(desk.ends(), (1, 0, 0));
    update.cancel().unwrap();
    update.preserve(Token(1), &file).unwrap();
    freeze(&update);
    let tree = decode(&Crossing::of(&update).devicetree).unwrap().tree;
    let tokens: Vec<_> = tree.files.iter().map(|file| file.token.0).collect();
    assert_eq!(tokens, [2, 1]);
}

#[test]
fn a_caller_may_close_a_file_that_it_offered() {
    let (_, registry, update) = host();
    let file = memfd(b"kept open by the host");
    update.preserve(Token(1), &file).unwrap();
    drop(file);
    freeze(&update);
    let new = Orchestrator::arrived(registry, Crossing::of(&update).arrival());
    let file = new.retrieve(Token(1)).unwrap();
    assert_eq!(contents(file), b"kept open by the host");
}

#[test]
fn what_is_written_after_prepare_crosses() {
    use std::io::Write;
    let (_, registry, update) = host();
    let mut file = memfd(b"before");
    update.preserve(Token(1), &file).unwrap();
    update.prepare().unwrap();
    file.write_all(b" and after").unwrap();
    update.freeze().unwrap();
    let new = Orchestrator::arrived(registry, Crossing::of(&update).arrival());
    assert_eq!(
        contents(new.retrieve(Token(1)).unwrap()),
        b"before and after"
    );
}

#[test]
fn an_update_that_is_dropped_is_cancelled() {
    for frozen in [false, true] {
        let (desk, _, update) = host();
        for token in 0..3 {
            update.preserve(Token(token), memfd(b"")).unwrap();
        }
        update.prepare().unwrap();
        if frozen {
            update.freeze().unwrap();
        }
        drop(update);
        assert_eq!(desk.ends(), (3, 3, 3));
    }
}

#[test]
fn an_old_side_that_departs_drops_its_private_state_without_cancel() {
    let (desk, _, update) = host();
    for token in 0..3 {
        update.preserve(Token(token), memfd(b"")).unwrap();
    }
    freeze(&update);
    update.depart();
    assert_eq!(desk.ends(), (3, 0, 3));
}

/// Files that crossed, and which of them were taken and given up.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<Vec<(&'static str, u64)>>>);

impl FileSource for Ledger {
    fn take(&self, handle: u64) -> Result<OwnedFd, Errno> {
        self.0.lock().unwrap().push(("taken", handle));
        Err(Errno::ENOENT)
    }
    fn release(&self, handle: u64) {
        self.0.lock().unwrap().push(("released", handle));
    }
    fn held(&self) -> Vec<HeldFile> {
        Vec::new()
    }
}

#[test]
fn finish_releases_what_nobody_retrieved() {
    let registry = Arc::new(Registry::linked().unwrap());
    let update = Orchestrator::new(registry.clone());
    for token in 0..2 {
        update.preserve(Token(token), memfd(b"something")).unwrap();
    }
    freeze(&update);
    let mut handles = Vec::new();
    update
        .handover(|handover| {
            handover.outgoing.each_file(|held, _| {
                handles.push(held.handle);
                Ok::<_, Error>(())
            })
        })
        .unwrap();
    let crossing = Crossing::of(&update);
    let ledger = Ledger::default();
    let new = Orchestrator::arrived(
        registry,
        Arrival {
            devicetree: crossing.devicetree,
            incoming: Incoming::new(crossing.memory, ledger.clone()).unwrap(),
        },
    );
    assert_eq!(errno(new.retrieve(Token(0))), Errno::ENOENT);
    assert_eq!(new.finish().unwrap(), []);
    let expected = [
        ("taken", handles[0]),
        ("released", handles[0]),
        ("released", handles[1]),
    ];
    assert_eq!(*ledger.0.lock().unwrap(), expected);
}

#[test]
fn finish_without_any_retrieve_tells_every_handler() {
    let (desk, new) = crossed(3);
    assert_eq!(new.finish().unwrap(), []);
    assert_eq!(*desk.finished.lock().unwrap(), [false; 3]);
    assert_eq!(errno(new.retrieve(Token(0))), Errno::EINVAL);
    new.preserve(Token(0), memfd(b"the next update")).unwrap();
}

/// A devicetree of another writer, with entries below `file-descriptors`.
fn foreign_tree(write: impl FnOnce(&mut vm_fdt::FdtWriter)) -> Vec<u8> {
    let mut fdt = vm_fdt::FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    fdt.property_string("compatible", "luo-v1").unwrap();
    fdt.property_u64("liveupdate-num", 1).unwrap();
    let files = fdt.begin_node("file-descriptors").unwrap();
    fdt.property_string("compatible", "luo-file-descriptors-v1")
        .unwrap();
    write(&mut fdt);
    fdt.end_node(files).unwrap();
    fdt.end_node(root).unwrap();
    let mut tree = fdt.finish().unwrap();
    while let Some(place) = tree.windows(2).position(|two| two == STAND_IN.as_bytes()) {
        tree[place..place + 2].copy_from_slice(b"0x");
    }
    tree
}

/// The writer allows no name that begins with a digit.
const STAND_IN: &str = "Qx";

fn entry(fdt: &mut vm_fdt::FdtWriter, name: &str, compatible: &str, data: &[u8]) {
    let node = fdt.begin_node(&name.replace("0x", STAND_IN)).unwrap();
    fdt.property_string("compatible", compatible).unwrap();
    fdt.property("data", data).unwrap();
    fdt.end_node(node).unwrap();
}

fn arrived_with(devicetree: Vec<u8>, memory: Vec<u8>) -> Orchestrator {
    let (_, registry, _) = host();
    let incoming = Incoming::new(memory, NoFiles).unwrap();
    Orchestrator::arrived(
        registry,
        Arrival {
            devicetree,
            incoming,
        },
    )
}

/// Formats had no vendor once. One of the same name may be somebody else's: its record shows it.
#[test]
fn former_names_are_retrieved_if_the_record_is_ours() {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    update.preserve(Token(1), memfd(b"contents")).unwrap();
    freeze(&update);
    let cross = |handover: Handover<'_>| {
        let mut arrival = loopback::cross(&handover).unwrap();
        let data = decode(&arrival.devicetree).unwrap().tree.files[0].data;
        arrival.devicetree = foreign_tree(|fdt| {
            entry(fdt, "0x1", "memfd-v1", &data.to_be_bytes());
            entry(fdt, "0x2", "memfd-v1", &0x1234_5000_u64.to_be_bytes());
            entry(fdt, "0x3", "memfd-v2", &data.to_be_bytes());
        });
        Ok::<_, Error>(arrival)
    };
    let new = Orchestrator::arrived(
        Arc::new(Registry::linked().unwrap()),
        update.handover(cross).unwrap(),
    );
    assert_eq!(contents(new.retrieve(Token(1)).unwrap()), b"contents");
    let reason = new.retrieve(Token(2)).unwrap_err().to_string();
    assert!(
        reason.contains("nothing is preserved where its record should be"),
        "{reason}"
    );
    let reason = new.retrieve(Token(3)).unwrap_err().to_string();
    assert!(reason.contains("no handler for memfd-v2"), "{reason}");
}

#[test]
fn bad_entries_are_listed_and_the_others_are_usable() {
    let (_, _, update) = host();
    update.preserve(Token(1), memfd(b"good")).unwrap();
    freeze(&update);
    let Crossing { devicetree, memory } = Crossing::of(&update);
    let data = decode(&devicetree).unwrap().tree.files[0]
        .data
        .to_be_bytes();
    let tree = foreign_tree(|fdt| {
        entry(fdt, "seven", "notes-0", &data);
        entry(fdt, "0x1", "notes-0", &data);
        entry(fdt, "0x01", "notes-0", &data);
        entry(fdt, "0x2", "notes-0", &data[..7]);
        entry(fdt, "0x3", "no notes", &data);
        entry(fdt, "0x4", "unheard-of-v1", &data);
    });
    let new = arrived_with(tree, memory);
    let bad = new.bad_entries().unwrap();
    let reasons: Vec<_> = bad
        .iter()
        .map(|bad| (bad.path.as_str(), &bad.reason))
        .collect();
    assert_eq!(reasons[0], ("/file-descriptors/seven", &BadReason::Name));
    assert_eq!(
        reasons[1],
        ("/file-descriptors/0x01", &BadReason::Duplicate)
    );
    assert_eq!(
        reasons[2],
        ("/file-descriptors/0x2", &BadReason::DataLength(7))
    );
    assert!(matches!(
        reasons[3],
        ("/file-descriptors/0x3", BadReason::Compatible(_))
    ));
    assert_eq!(reasons.len(), 4);
    for bad in &bad {
        assert!(bad.to_string().starts_with(&format!("{}: ", bad.path)));
    }
    let claimed: Vec<_> = new
        .files()
        .unwrap()
        .iter()
        .map(|file| (file.token.0, file.claimed))
        .collect();
    assert_eq!(claimed, [(1, true), (4, false)]);
    assert_eq!(contents(new.retrieve(Token(1)).unwrap()), b"good");
    for token in [2, 3, 4, 7] {
        assert_eq!(errno(new.retrieve(Token(token))), Errno::ENOENT);
    }
}

#[test]
fn data_that_leads_nowhere_costs_one_file() {
    let (_, _, update) = host();
    update.preserve(Token(1), memfd(b"good")).unwrap();
    freeze(&update);
    let Crossing { devicetree, memory } = Crossing::of(&update);
    let good = decode(&devicetree).unwrap().tree.files[0];
    let places = [
        0,
        1,
        good.data + 1,
        good.data + 16,
        memory.len() as u64,
        1 << 63,
        u64::MAX,
    ];
    let files = places.iter().zip(100..).map(|(&data, token)| FileEntry {
        token: Token(token),
        data,
        ..good
    });
    let tree = Tree {
        update_number: 1,
        files: files.chain([good]).collect(),
        subsystems: Vec::new(),
    };
    let new = arrived_with(Crossing::of_tree(&tree).devicetree, memory);
    for token in 100..100 + places.len() as u64 {
        let errno = errno(new.retrieve(Token(token)));
        assert!(
            [Errno::ENOENT, Errno::EBADMSG].contains(&errno),
            "{token}: {errno}"
        );
    }
    assert_eq!(contents(new.retrieve(Token(1)).unwrap()), b"good");
}

#[test]
fn a_tree_that_cannot_be_read_is_one_error_at_every_call() {
    let memory = Crossing::of_tree(&Tree::default()).memory;
    let good = Crossing::of_tree(&Tree::default()).devicetree;
    let mut foreign = vm_fdt::FdtWriter::new().unwrap();
    let root = foreign.begin_node("").unwrap();
    foreign.property_string("compatible", "qemu,pc").unwrap();
    foreign.end_node(root).unwrap();
    let trees = [
        Vec::new(),
        vec![0; 4096],
        good[..good.len() - 1].to_vec(),
        foreign.finish().unwrap(),
    ];
    let file = memfd(b"");
    for tree in trees {
        let new = arrived_with(tree, memory.clone());
        for (name, call, fitting) in every_call(&file) {
            if fitting == [State::Updated] {
                let error = call(&new).unwrap_err();
                assert_eq!(error.errno(), Errno::EINVAL, "{name}");
                assert!(
                    error.to_string().contains("cannot be read"),
                    "{name}: {error}"
                );
            }
        }
    }
}

#[test]
fn updates_are_counted() {
    let (_, registry, update) = host();
    let number = |update: &Orchestrator| {
        freeze(update);
        let crossing = Crossing::of(update);
        (
            decode(&crossing.devicetree).unwrap().tree.update_number,
            crossing,
        )
    };
    let (first, crossing) = number(&update);
    let new = Orchestrator::arrived(registry, crossing.arrival());
    new.finish().unwrap();
    assert_eq!((first, number(&new).0), (1, 2));
}

#[test]
fn the_largest_update_number_hinders_nobody() {
    let tree = Tree {
        update_number: u64::MAX,
        ..Tree::default()
    };
    let new = Orchestrator::arrived(Arc::default(), Crossing::of_tree(&tree).arrival());
    new.finish().unwrap();
    freeze(&new);
    Crossing::of(&new);
}

#[test]
fn updates_that_were_given_up_leave_nothing_in_what_crosses() {
    let (_, _, update) = host();
    update.preserve(Token(1), memfd(&[1; 1000])).unwrap();
    freeze(&update);
    let bytes = Crossing::of(&update).memory.len();
    for _ in 0..10 {
        update.cancel().unwrap();
        assert_eq!((update.preserved(), update.metadata_bytes()), ((0, 0), 0));
        freeze(&update);
    }
    assert_eq!(Crossing::of(&update).memory.len(), bytes);
}

#[test]
fn the_memfds_of_a_cancelled_update_are_as_they_were() {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    let file = memfd(b"mine");
    let before = inode(&file);
    update.preserve(Token(1), &file).unwrap();
    freeze(&update);
    update.cancel().unwrap();
    assert_eq!(
        (inode(file.as_fd()), contents(&file)),
        (before, b"mine".to_vec())
    );
}

/// Keeps bytes and the file, and panics before it can say so.
struct Forgetful;

impl FileHandler for Forgetful {
    const COMPATIBLE: Compatible = Compatible::new("forgetful");
    type Private = ();

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        true
    }

    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<()>, Errno> {
        let data = host.preserve_bytes(b"bytes")?;
        if host.preserve_file(file).is_ok() {
            support::panic_as_expected();
        }
        Ok(Prepared { data, private: () })
    }

    fn cancel(&self, _: Preserved<'_, ()>) {}

    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn finish(&self, _: Crossed<'_>) {}
}

#[test]
fn what_a_handler_kept_before_it_panicked_does_not_stay() {
    let registry = Registry::new();
    registry.register(ops(Forgetful)).unwrap();
    let update = Orchestrator::new(Arc::new(registry));
    update.preserve(Token(1), memfd(b"contents")).unwrap();
    for _ in 0..3 {
        assert_eq!(update.prepare().unwrap_err().errno(), Errno::EIO);
        assert_eq!(update.preserved(), (0, 0));
    }
}

/// Files that crossed, of which the first cannot be retrieved: its block is damaged.
fn with_a_lost_file(registry: Arc<Registry>) -> Orchestrator {
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    for token in 0..3 {
        let contents = format!("contents {token}");
        let file = memfd(contents.as_bytes());
        update.preserve(Token(token), file).unwrap();
    }
    freeze(&update);
    let arrival = update.handover(|handover| {
        let data = decode(&handover.devicetree).unwrap().tree.files[0].data;
        let mut memory = Crossing::of(&update).memory;
        memory[data as usize + 20] ^= 1;
        let files = loopback::files(&handover).unwrap();
        Ok::<_, Error>(Arrival {
            incoming: Incoming::new(memory, files).unwrap(),
            devicetree: handover.devicetree,
        })
    });
    Orchestrator::arrived(registry, arrival.unwrap())
}

fn take_one(update: &Orchestrator, token: Token) -> Vec<u8> {
    let [file] = <[OwnedFd; 1]>::try_from(update.take_left(token).unwrap()).unwrap();
    contents(file)
}

#[test]
fn a_file_that_cannot_be_retrieved_is_not_lost() {
    for after_finish in [false, true] {
        let new = with_a_lost_file(Arc::new(Registry::linked().unwrap()));
        assert_eq!(new.left(), []);
        assert_eq!(errno(new.take_left(Token(0))), Errno::ENOENT);
        let error = new.retrieve(Token(0)).unwrap_err();
        assert_eq!(error.errno(), Errno::EBADMSG);
        assert!(error.to_string().contains("block"), "{error}");
        let second = new.retrieve(Token(1)).unwrap();
        assert_eq!(new.left(), [Token(0)]);
        if after_finish {
            assert_eq!(new.finish().unwrap(), []);
            assert_eq!(new.left(), [Token(0)], "finish does not drop it");
        }
        assert_eq!(take_one(&new, Token(0)), b"contents 0");
        assert_eq!(new.left(), []);
        assert_eq!(errno(new.take_left(Token(0))), Errno::ENOENT);
        assert_eq!(errno(new.take_left(Token(1))), Errno::ENOENT);
        assert_eq!(errno(new.take_left(Token(9))), Errno::ENOENT);
        assert_eq!(contents(second), b"contents 1");
        if !after_finish {
            assert_eq!(new.finish().unwrap(), []);
        }
        assert_eq!(new.state(), State::Normal);
    }
}

#[test]
fn files_whose_handler_is_missing_are_left_until_they_are_dropped() {
    let inodes = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        let links = links.filter_map(|link| Some(link.to_str()?.to_owned()));
        links.filter(|link| link.contains("left until")).count()
    };
    let update = Orchestrator::new(Arc::new(Registry::linked().unwrap()));
    let options = memfd::MemfdOptions::default();
    update
        .preserve(Token(5), options.create("left until").unwrap().into_file())
        .unwrap();
    freeze(&update);
    let cross = |handover: Handover<'_>| Ok::<_, Error>(loopback::cross(&handover).unwrap());
    let new = Orchestrator::arrived(Arc::default(), update.handover(cross).unwrap());
    drop(update);
    let Err(Error::Failed(failure)) = new.retrieve(Token(5)) else {
        panic!("there is no handler");
    };
    assert_eq!(failure.handler, None, "nobody failed");
    assert!(
        failure
            .to_string()
            .contains("no handler for luo-handlers,memfd-v1"),
        "{failure}"
    );
    assert_eq!(new.finish().unwrap().len(), 1);
    assert_eq!((new.left(), inodes()), (vec![Token(5)], 1));
    new.drop_left();
    assert_eq!((new.left(), inodes()), (vec![], 0));
    assert_eq!(errno(new.take_left(Token(5))), Errno::ENOENT);
}

#[test]
fn everything_that_arrived_can_be_passed_on() {
    let registry = Arc::new(Registry::linked().unwrap());
    let first = with_a_lost_file(registry.clone());
    first.retrieve(Token(0)).unwrap_err();
    let retrieved = first.retrieve(Token(1)).unwrap();
    for _ in 0..2 {
        let cross = |handover: Handover<'_>| Ok::<_, Error>(loopback::cross(&handover).unwrap());
        let second = Orchestrator::arrived(registry.clone(), first.pass_on(cross).unwrap());
        assert_eq!(errno(second.retrieve(Token(0))), Errno::EBADMSG);
        assert_eq!(take_one(&second, Token(0)), b"contents 0");
        let again = second.retrieve(Token(1)).unwrap();
        assert_eq!(inode(&*again), inode(&*retrieved));
        assert_eq!(contents(second.retrieve(Token(2)).unwrap()), b"contents 2");
        assert_eq!(second.finish().unwrap(), []);
    }
    // What was passed on in vain is still here.
    assert_eq!(take_one(&first, Token(0)), b"contents 0");
    assert_eq!(contents(first.retrieve(Token(2)).unwrap()), b"contents 2");
    assert_eq!(first.finish().unwrap(), []);
    let error = first.pass_on(|_| Ok::<_, Error>(())).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
}

#[test]
fn files_are_offered_and_taken_back_until_freeze() {
    let (desk, registry, update) = host();
    update.preserve(Token(1), memfd(b"one")).unwrap();
    update.prepare().unwrap();
    update.preserve(Token(2), memfd(b"two")).unwrap();
    update.preserve(Token(3), memfd(b"three")).unwrap();
    assert_eq!(update.unpreserve(Token(1)).unwrap(), []);
    assert_eq!(update.unpreserve(Token(3)).unwrap(), []);
    assert_eq!(desk.ends().1, 2, "both were cancelled");
    update.freeze().unwrap();
    let cross = |handover: Handover<'_>| Ok::<_, Error>(loopback::cross(&handover).unwrap());
    let new = Orchestrator::arrived(registry, update.handover(cross).unwrap());
    let tokens: Vec<_> = new.files().unwrap().iter().map(|file| file.token).collect();
    assert_eq!(tokens, [Token(2)]);
    assert_eq!(update.cancel().unwrap(), []);
    assert_eq!(update.preserved(), (0, 0));
    // Offered again, as after any cancel.
    update.prepare().unwrap();
}
