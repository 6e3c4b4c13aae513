// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Private state is created by prepare, borrowed by the others, and dropped exactly once.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::panic_any;
use std::sync::Once;

use luo_handler_api::hosted::{Handler, PreparedFile};
use luo_handler_api::{
    Compatible, Crossed, Errno, FileHandler, FileRef, HandlerOps, Host, HostServices, OwnedFile,
    Prepared, Preserved,
};

/// A host that preserves nothing.
struct NoServices;

impl HostServices for NoServices {}

// A handler is called on the thread of its test, so each test counts for itself.
thread_local! {
    static MADE: Cell<usize> = const { Cell::new(0) };
    static BORROWED: Cell<usize> = const { Cell::new(0) };
    static DROPPED: Cell<usize> = const { Cell::new(0) };
    static DROP_PANICS: Cell<bool> = const { Cell::new(false) };
}

fn count(counter: &'static std::thread::LocalKey<Cell<usize>>) {
    counter.set(counter.get() + 1);
}

/// Private state of some shape that counts its ends.
trait State: Send + 'static {
    fn new() -> Self;
    fn check(&self);
}

fn begin() {
    count(&MADE);
}

fn end() {
    count(&DROPPED);
    if DROP_PANICS.get() {
        panic_any("expected");
    }
}

struct Nothing;

impl State for Nothing {
    fn new() -> Self {
        begin();
        Self
    }
    fn check(&self) {}
}

impl Drop for Nothing {
    fn drop(&mut self) {
        end();
    }
}

#[repr(align(16))]
struct Aligned {
    places: [u64; 5],
    owned: Vec<u8>,
}

impl State for Aligned {
    fn new() -> Self {
        begin();
        Self {
            places: [1, 2, 3, 4, 5],
            owned: vec![7; 100],
        }
    }
    fn check(&self) {
        assert_eq!((&raw const *self).addr() % 16, 0);
        assert_eq!(self.places, [1, 2, 3, 4, 5]);
        assert_eq!(self.owned, [7; 100]);
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        self.check();
        end();
    }
}

struct Byte(u8);

impl State for Byte {
    fn new() -> Self {
        begin();
        Self(0x5a)
    }
    fn check(&self) {
        assert_eq!(self.0, 0x5a);
    }
}

impl Drop for Byte {
    fn drop(&mut self) {
        self.check();
        end();
    }
}

/// Something thrown that panics once more when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic_any("expected");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Call {
    Prepare,
    Freeze,
    Unfreeze,
    Cancel,
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Error,
    Panic,
    PanicTwice,
}

struct Keeper<P> {
    fault: Option<(Call, Fault)>,
    private: std::marker::PhantomData<fn() -> P>,
}

impl<P> Keeper<P> {
    fn fail(&self, call: Call) -> Result<(), Errno> {
        match self.fault {
            Some((faulty, fault)) if faulty == call => match fault {
                Fault::Error => Err(Errno::ENOSPC),
                Fault::Panic => panic_any("expected"),
                Fault::PanicTwice => panic_any(Bomb),
            },
            _ => Ok(()),
        }
    }
}

impl<P: State> FileHandler for Keeper<P> {
    const COMPATIBLE: Compatible = Compatible::new("keeper-v1");
    type Private = P;

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        true
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<P>, Errno> {
        let private = P::new();
        self.fail(Call::Prepare)?;
        Ok(Prepared { data: 1, private })
    }
    fn freeze(&self, file: Preserved<'_, P>) -> Result<u64, Errno> {
        file.private.check();
        count(&BORROWED);
        self.fail(Call::Freeze)?;
        Ok(file.data + 1)
    }
    fn unfreeze(&self, file: Preserved<'_, P>) {
        file.private.check();
        count(&BORROWED);
        let _ = self.fail(Call::Unfreeze);
    }
    fn cancel(&self, file: Preserved<'_, P>) {
        file.private.check();
        count(&BORROWED);
        assert_eq!(DROPPED.get(), 0, "still there");
        let _ = self.fail(Call::Cancel);
    }
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

fn handler<P: State>(fault: Option<(Call, Fault)>) -> Handler {
    let keeper: &Keeper<P> = Box::leak(Box::new(Keeper {
        fault,
        private: std::marker::PhantomData,
    }));
    Handler::new(Box::leak(Box::new(HandlerOps::of(keeper, "tests")))).unwrap()
}

fn start() {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thrown = panic.payload();
            if !thrown.is::<Bomb>() && thrown.downcast_ref() != Some(&"expected") {
                loud(panic);
            }
        }));
    });
    for counter in [&MADE, &BORROWED, &DROPPED] {
        counter.set(0);
    }
    DROP_PANICS.set(false);
}

fn prepare<P: State>(
    file: BorrowedFd<'_>,
    fault: Option<(Call, Fault)>,
) -> Result<PreparedFile, Errno> {
    start();
    DROP_PANICS.set(matches!(fault, Some((Call::Drop, _))));
    handler::<P>(fault).prepare(file, Host::new(&NoServices))
}

fn counts() -> (usize, usize, usize) {
    (MADE.get(), BORROWED.get(), DROPPED.get())
}

/// Takes a file from prepare through freeze and unfreeze to cancel; yields the results of the
/// three.
fn whole_life<P: State>(fault: Option<(Call, Fault)>) -> [Result<(), Errno>; 3] {
    let file = File::open("/dev/null").unwrap();
    let fd = file.as_fd();
    let host = Host::new(&NoServices);
    let mut prepared = prepare::<P>(file.as_fd(), fault).unwrap();
    let results = [prepared.freeze(fd, host), prepared.unfreeze(fd, host)];
    assert_eq!(counts(), (1, 2, 0));
    let cancelled = prepared.cancel(fd, host);
    assert_eq!(
        counts(),
        (1, 3, 1),
        "made once, borrowed thrice, dropped once"
    );
    [results[0], results[1], cancelled]
}

const EIO: Result<(), Errno> = Err(Errno::EIO);

fn every_callback_may_fail<P: State>() {
    assert_eq!(whole_life::<P>(None), [Ok(()); 3]);
    let frozen = whole_life::<P>(Some((Call::Freeze, Fault::Error)));
    assert_eq!(frozen, [Err(Errno::ENOSPC), Ok(()), Ok(())]);
    for fault in [Fault::Panic, Fault::PanicTwice] {
        let run = |call| whole_life::<P>(Some((call, fault)));
        assert_eq!(run(Call::Freeze), [EIO, Ok(()), Ok(())]);
        assert_eq!(run(Call::Unfreeze), [Ok(()), EIO, Ok(())]);
        assert_eq!(run(Call::Cancel), [Ok(()), Ok(()), EIO]);
        assert_eq!(run(Call::Drop), [Ok(()); 3], "nobody can take the error");
    }
}

fn a_failed_prepare_keeps_nothing<P: State>() {
    let file = File::open("/dev/null").unwrap();
    for (fault, errno) in [
        (Fault::Error, Errno::ENOSPC),
        (Fault::Panic, Errno::EIO),
        (Fault::PanicTwice, Errno::EIO),
    ] {
        let failed = prepare::<P>(file.as_fd(), Some((Call::Prepare, fault)));
        assert_eq!(failed.unwrap_err(), errno, "{fault:?}");
        assert_eq!(counts(), (1, 0, 1), "{fault:?}");
    }
}

fn an_end_without_cancel_drops<P: State>() {
    let file = File::open("/dev/null").unwrap();
    drop(prepare::<P>(file.as_fd(), None).unwrap());
    assert_eq!(counts(), (1, 0, 1));
}

fn it_may_end_on_another_thread<P: State>() {
    let file = File::open("/dev/null").unwrap();
    let prepared = prepare::<P>(file.as_fd(), None).unwrap();
    let dropped = std::thread::spawn(|| {
        drop(prepared);
        DROPPED.get()
    });
    assert_eq!(dropped.join().unwrap(), 1);
    assert_eq!(counts(), (1, 0, 0));
}

macro_rules! for_each_shape {
    ($($test:ident),+) => {
        $(mod $test {
            #[test]
            fn of_no_size() {
                super::$test::<super::Nothing>();
            }
            #[test]
            fn of_one_byte() {
                super::$test::<super::Byte>();
            }
            #[test]
            fn aligned_to_16_bytes() {
                super::$test::<super::Aligned>();
            }
        })+
    };
}

for_each_shape!(
    every_callback_may_fail,
    a_failed_prepare_keeps_nothing,
    an_end_without_cancel_drops,
    it_may_end_on_another_thread
);

#[test]
fn a_failed_freeze_leaves_the_data_as_prepare_said() {
    let file = File::open("/dev/null").unwrap();
    let (fd, host) = (file.as_fd(), Host::new(&NoServices));
    let mut prepared = prepare::<Byte>(file.as_fd(), None).unwrap();
    prepared.freeze(fd, host).unwrap();
    assert_eq!(prepared.data(), 2);
    for fault in [Fault::Error, Fault::Panic] {
        let mut prepared = prepare::<Byte>(file.as_fd(), Some((Call::Freeze, fault))).unwrap();
        prepared.freeze(fd, host).unwrap_err();
        assert_eq!(prepared.data(), 1);
    }
}
