// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A memory limit that a memfd does not fit under.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_handler_api::Token;
use luo_liveupdate::Device;
use rustix::io::Errno;
use rustix::mount::{mount, MountFlags};

use crate::tests::expect::expect_errno;
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{memfd, preserve, retrieve};

const SESSION: &str = "limited";
const MEMFD: Workload = memfd(32 << 20, Fill::Shuffled, 1);

pub(super) fn preserve_much(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    preserve(&session, &[MEMFD])?;
    held.hold(&session)
}

/// The limit is found out before anything is taken, so that it can be raised.
pub(super) fn retrieve_under_a_limit(_held: &mut HeldOpen) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    mount("cgroup", root, c"cgroup2", MountFlags::empty(), None).context("mounting cgroups")?;
    let group = root.join("limited");
    fs::create_dir(&group)?;
    fs::write(root.join("cgroup.subtree_control"), "+memory")?;
    fs::write(group.join("memory.max"), "16M")?;
    fs::write(group.join("cgroup.procs"), "0")?;

    let session = Device::open()?.retrieve_session(SESSION)?;
    for attempt in ["retrieving under a limit", "retrieving again"] {
        expect_errno(session.retrieve(Token(MEMFD.seed)), Errno::AGAIN, attempt)?;
    }
    fs::write(group.join("memory.max"), "64M")?;
    retrieve(&session, &MEMFD)?;
    Ok(session.finish()?)
}
