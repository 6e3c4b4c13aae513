// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What several of the tests need. Each test program uses a part of it.
#![allow(dead_code)]

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::panic::panic_any;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;

use luo_handler_api::{FileHandler, HandlerOps, Subsystem, SubsystemOps};
use luo_orchestrator::error::Error;
use luo_orchestrator::files::NoFiles;
use luo_orchestrator::handover::{Arrival, Handover};
use luo_orchestrator::incoming::Incoming;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::outgoing::Outgoing;

/// What handlers throw that are to panic.
const EXPECTED: &str = "expected";

/// Panics, as the test wants it; nothing is printed.
pub fn panic_as_expected() -> Infallible {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref() != Some(&EXPECTED) {
                loud(panic);
            }
        }));
    });
    panic_any(EXPECTED)
}

/// The C form of a handler that lives as long as the program.
pub fn ops<T: FileHandler>(handler: T) -> &'static HandlerOps {
    let handler = Box::leak(Box::new(handler));
    Box::leak(Box::new(HandlerOps::of(handler, "tests")))
}

/// The same of a subsystem.
pub fn subsystem_ops<S: Subsystem>(subsystem: S) -> &'static SubsystemOps {
    let subsystem = Box::leak(Box::new(subsystem));
    Box::leak(Box::new(SubsystemOps::of(subsystem, "tests")))
}

pub fn memfd(contents: &[u8]) -> File {
    let options = memfd::MemfdOptions::default().allow_sealing(true);
    let mut file = options.create("test").unwrap().into_file();
    file.write_all(contents).unwrap();
    file
}

/// The whole contents, whatever the position.
pub fn contents(file: impl AsFd) -> Vec<u8> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    std::fs::read(path).unwrap()
}

pub fn inode(file: impl AsFd) -> u64 {
    rustix::fs::fstat(file).unwrap().st_ino
}

/// What a frozen orchestrator hands over.
pub struct Crossing {
    pub devicetree: Vec<u8>,
    pub memory: Vec<u8>,
}

impl Crossing {
    pub fn of(update: &Orchestrator) -> Self {
        let handover = |handover: Handover<'_>| {
            Ok::<_, Error>(Self {
                memory: memory_of(handover.outgoing),
                devicetree: handover.devicetree,
            })
        };
        update.handover(handover).unwrap()
    }

    /// The same without any bytes that handlers preserved.
    pub fn of_tree(tree: &luo_orchestrator::devicetree::Tree) -> Self {
        Self {
            devicetree: luo_orchestrator::devicetree::encode(tree).unwrap(),
            memory: memory_of(&Outgoing::default()),
        }
    }

    /// The bytes crossed, but no files.
    pub fn arrival(self) -> Arrival {
        Arrival {
            devicetree: self.devicetree,
            incoming: Incoming::new(self.memory, NoFiles).unwrap(),
        }
    }
}

fn memory_of(outgoing: &Outgoing) -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    outgoing.write_memory(&file).unwrap();
    let mut memory = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut memory, 0).unwrap();
    memory
}

/// An example that cargo built, with this test or now.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap().join("examples").join(name);
    if !built.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = ["build", "--package", "luo-orchestrator", "--example", name];
        assert!(Command::new(cargo).args(build).status().unwrap().success());
    }
    built
}
