// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handler in a process: whether it conforms, and across a real exec.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luo_handler_api::testing::conformance;
use luo_handler_sample::SAMPLE;
use luo_orchestrator::testing::cross_exec;
use rustix::fs::{fcntl_getfl, fcntl_setfl, fstat, open, Mode, OFlags};

fn make() -> OwnedFd {
    open("/dev/full", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// What a workload may do at any time.
fn change(file: BorrowedFd<'_>) {
    let flags = fcntl_getfl(file).unwrap();
    fcntl_setfl(file, flags ^ OFlags::NONBLOCK).unwrap();
}

/// All that crosses.
fn look(file: BorrowedFd<'_>) -> (u64, OFlags) {
    (fstat(file).unwrap().st_rdev, fcntl_getfl(file).unwrap())
}

#[test]
fn it_conforms() {
    conformance(&SAMPLE, make, change, look);
}

#[test]
fn a_file_crosses_an_exec() {
    let old = || {
        let file = make();
        change(file.as_fd());
        [file]
    };
    cross_exec(old, |[file]| {
        let expected = old();
        assert_eq!(look(file.as_fd()), look(expected[0].as_fd()));
    });
}
