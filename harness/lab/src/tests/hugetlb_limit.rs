// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Limits of a hugetlb cgroup: they are found out before anything is taken, and what is retrieved
//! is charged to who retrieves it, for as long as the file lives.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::Device;
use rustix::fs::{fallocate, FallocateFlags};
use rustix::io::Errno;

use crate::tests::expect::expect_errno;
use crate::tests::held_open::HeldOpen;
use crate::tests::hugetlb::{huge_memfd, map, number, number_at, HUGE, POOL};
use crate::tests::limit::mount_cgroups;

const SESSION: &str = "huge-limited";
const TOKEN: Token = Token(1);
const PAGES: u64 = 8;

pub(super) struct Group(PathBuf);

impl Group {
    /// With this process in it.
    pub(super) fn enter(root: &Path, name: &str) -> Result<Self> {
        let group = root.join(name);
        fs::create_dir(&group)?;
        fs::write(group.join("cgroup.procs"), "0")?;
        Ok(Self(group))
    }

    fn limit(&self, name: &str, pages: u64) -> Result<()> {
        let file = self.0.join(format!("hugetlb.2MB.{name}"));
        let written = fs::write(&file, (pages * HUGE).to_string());
        written.with_context(|| format!("writing to {}", file.display()))
    }

    /// Refuses anything but so many pages, and so many in reservations.
    pub(super) fn expect(&self, pages: u64, reserved: u64, when: &str) -> Result<()> {
        let expected = [("current", pages), ("rsvd.current", reserved)];
        for (name, expected) in expected {
            let found = fs::read_to_string(self.0.join(format!("hugetlb.2MB.{name}")))?;
            ensure!(
                found.trim() == (expected * HUGE).to_string(),
                "{when} {name} is {found}, expected {expected} pages"
            );
        }
        Ok(())
    }
}

/// Neither prepare nor cancel changes what is charged.
pub(super) fn preserve_charged(held: &mut HeldOpen) -> Result<()> {
    POOL.resize(PAGES)?;
    let root = mount_cgroups("hugetlb")?;
    let group = Group::enter(&root, "before")?;
    let file = huge_memfd("limited", PAGES)?;
    let mapping = map(&file, PAGES)?;
    (0..PAGES).for_each(|page| number(&mapping, page));
    drop(mapping);
    group.expect(PAGES, PAGES, "with a file")?;
    let session = Device::open()?.create_session("cancelled")?;
    session.preserve(TOKEN, file.as_fd())?;
    group.expect(PAGES, PAGES, "after prepare")?;
    drop(session);
    group.expect(PAGES, PAGES, "after a cancel")?;
    let session = Device::open()?.create_session(SESSION)?;
    session.preserve(TOKEN, file.as_fd())?;
    held.hold(&session)
}

pub(super) fn retrieve_under_limits(_held: &mut HeldOpen) -> Result<()> {
    let root = mount_cgroups("hugetlb")?;
    let group = Group::enter(&root, "after")?;
    let session = Device::open()?.retrieve_session(SESSION)?;
    let attempt = || session.retrieve(TOKEN);
    group.limit("max", PAGES - 1)?;
    expect_errno(attempt(), Errno::AGAIN, "retrieving under a limit of pages")?;
    group.limit("max", PAGES)?;
    group.limit("rsvd.max", PAGES - 1)?;
    expect_errno(
        attempt(),
        Errno::AGAIN,
        "retrieving under one of reservations",
    )?;
    group.expect(0, 0, "after refusals")?;
    group.limit("rsvd.max", PAGES)?;
    let file = File::from(attempt()?);
    for page in 0..PAGES {
        let found = number_at(&file, page)?;
        ensure!(found == page + 1, "huge page {page} holds {found}");
    }
    group.expect(PAGES, PAGES, "after it was retrieved")?;
    session.finish()?;

    // Who has the file then is not who is charged: it is the file that is.
    let other = Group::enter(&root, "other")?;
    group.expect(PAGES, PAGES, "after its user left")?;
    other.expect(0, 0, "in another group")?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 0, HUGE)?;
    group.expect(PAGES - 1, PAGES - 1, "after a page was given up")?;
    drop(file);
    group.expect(0, 0, "after the file was closed")
}
