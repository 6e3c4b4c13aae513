// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A memory limit that a memfd does not fit under.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
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
    let group = mount_cgroups("memory")?.join("limited");
    fs::create_dir(&group)?;
    fs::write(group.join("memory.max"), "16M")?;
    fs::write(group.join("cgroup.procs"), "0")?;

    let session = Device::open()?.retrieve_session(SESSION)?;
    for attempt in ["retrieving under a limit", "retrieving again"] {
        expect_errno(session.retrieve(Token(MEMFD.seed)), Errno::AGAIN, attempt)?;
    }
    fs::write(group.join("memory.max"), "64M")?;
    retrieve(&session, &MEMFD)?;
    // Until the session is finished it has the file.
    let charged = charged(&group)?;
    ensure!(
        charged.used >= MEMFD.size && charged.is_of(MEMFD.size),
        "a memfd of {} bytes was retrieved: {charged:?}",
        MEMFD.size
    );
    session.finish()?;
    let left = self::charged(&group)?;
    ensure!(
        left.used < MEMFD.size / 2 && left.is_of(0),
        "the memfd is gone: {left:?}"
    );
    Ok(())
}

/// Mounts cgroups whose groups have this controller; returns the root.
pub(super) fn mount_cgroups(controller: &str) -> Result<PathBuf> {
    mount_cgroups_with(controller, None)
}

/// The same with an option of the mount.
pub(super) fn mount_cgroups_with(controller: &str, option: Option<&CStr>) -> Result<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    mount("cgroup", &root, c"cgroup2", MountFlags::empty(), option).context("mounting cgroups")?;
    fs::write(
        root.join("cgroup.subtree_control"),
        format!("+{controller}"),
    )
    .with_context(|| format!("this kernel has no {controller} cgroups"))?;
    Ok(root)
}

/// What a cgroup is charged for, in bytes.
#[derive(Debug)]
pub(super) struct Charged {
    pub(super) used: u64,
    shmem: u64,
    /// Beyond anonymous memory, on the lists that shared memory is reclaimed from.
    listed: u64,
}

impl Charged {
    /// Whether there is so much shared memory. Anonymous pages come to the lists a little later.
    pub(super) fn is_of(&self, shmem: u64) -> bool {
        self.shmem == shmem && self.listed.abs_diff(shmem) < 2 << 20
    }
}

pub(super) fn charged(group: &Path) -> Result<Charged> {
    let stat = fs::read_to_string(group.join("memory.stat"))?;
    let value = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(key, _)| *key == name);
        let (_, value) = found.with_context(|| format!("memory.stat has no {name}"))?;
        Ok::<u64, anyhow::Error>(value.parse()?)
    };
    let used = fs::read_to_string(group.join("memory.current"))?;
    Ok(Charged {
        used: used.trim().parse()?,
        shmem: value("shmem")?,
        listed: (value("inactive_anon")? + value("active_anon")?).saturating_sub(value("anon")?),
    })
}
