// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The guest's side of the test of a subsystem: it comes with the first file and goes with the
//! last.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{ensure, Context, Result};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_liveupdate::Device;

use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{self, memfd};

const LINEAGE: &str = "/sys/kernel/debug/luo_subsystems/lineage";
/// Two sessions with a file each, so that one can be finished before the other.
const SESSIONS: [(&str, Workload); 2] = [
    ("lineage-first", memfd(1 << 20, Fill::Dense, 0x31)),
    ("lineage-second", memfd(3 << 20, Fill::sparse(500), 0x32)),
];

/// What debugfs has of the subsystem: the counts of its phases, and what came in.
fn shown() -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(LINEAGE).with_context(|| format!("reading {LINEAGE}"))?;
    let words = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    });
    Ok(words.collect())
}

/// Refuses other values; `None` is a key that is not there.
fn expect(expected: &[(&str, Option<&str>)], when: &str) -> Result<()> {
    let shown = shown()?;
    for &(key, value) in expected {
        let found = shown.get(key).map(String::as_str);
        ensure!(
            found == value,
            "{when}: expected {key} {value:?}, found {found:?} in {shown:?}"
        );
    }
    Ok(())
}

/// Where each kernel leaves its version for the next one.
const PREVIOUS: &str = "/results/release";

/// The kernel's version as the subsystem records it.
fn this_release() -> String {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .take(3)
        .collect::<Vec<_>>();
    numbers.join(".")
}

fn preserve(held: &mut HeldOpen) -> Result<()> {
    fs::write(PREVIOUS, this_release()).with_context(|| format!("writing {PREVIOUS}"))?;
    for (name, workload) in SESSIONS {
        let session = Device::open()?.create_session(name)?;
        memfds::preserve(&session, &[workload])?;
        held.hold(&session)?;
    }
    Ok(())
}

/// Takes back what came in.
fn take() -> Result<()> {
    for (name, workload) in SESSIONS {
        let session = Device::open()?.retrieve_session(name)?;
        memfds::retrieve(&session, &workload)?;
        session.finish()?;
    }
    Ok(())
}

/// The first kernel: what is given up does not count.
pub(crate) fn preserve_first(held: &mut HeldOpen) -> Result<()> {
    let nothing = [("retrieve", Some("0")), ("live_updates", None)];
    expect(&nothing, "after a cold boot")?;
    {
        let mut given_up = HeldOpen::default();
        preserve(&mut given_up)?;
        expect(
            &[("prepare", Some("1")), ("cancel", Some("0"))],
            "with two files",
        )?;
    }
    expect(
        &[("prepare", Some("1")), ("cancel", Some("1"))],
        "without any",
    )?;
    preserve(held)?;
    expect(&[("prepare", Some("2"))], "with two files again")
}

/// A kernel that the files reach with their subsystem, and that passes others on.
fn pass_on(held: &mut HeldOpen, live_updates: &str) -> Result<()> {
    let release = fs::read_to_string(PREVIOUS).with_context(|| format!("reading {PREVIOUS}"))?;
    let came_in = [
        ("retrieve", Some("1")),
        ("finish", Some("0")),
        ("live_updates", Some(live_updates)),
        ("preserved_by", Some(release.as_str())),
    ];
    expect(&came_in, "before any file was asked for")?;
    let [(first, workload), second] = SESSIONS;
    let session = Device::open()?.retrieve_session(first)?;
    memfds::retrieve(&session, &workload)?;
    session.finish()?;
    expect(&came_in, "with one file left")?;
    let session = Device::open()?.retrieve_session(second.0)?;
    memfds::retrieve(&session, &second.1)?;
    session.finish()?;
    let finished = [
        ("retrieve", Some("1")),
        ("finish", Some("1")),
        ("live_updates", None),
    ];
    expect(&finished, "after the last file")?;
    preserve(held)
}

/// The second kernel.
pub(crate) fn pass_on_first(held: &mut HeldOpen) -> Result<()> {
    pass_on(held, "1")
}

/// The third kernel.
pub(crate) fn pass_on_second(held: &mut HeldOpen) -> Result<()> {
    pass_on(held, "2")
}

/// A kernel in which the subsystem is switched off: the files cross all the same.
pub(crate) fn pass_on_without(held: &mut HeldOpen) -> Result<()> {
    ensure!(
        shown().is_err(),
        "{LINEAGE} is there although it is switched off"
    );
    take()?;
    preserve(held)
}

/// A kernel that gets files from one without the subsystem: they are finished, and counting begins
/// again.
pub(crate) fn begin_again(_: &mut HeldOpen) -> Result<()> {
    let nothing = [
        ("retrieve", Some("0")),
        ("live_updates", None),
        ("finish", Some("0")),
    ];
    expect(&nothing, "after files came without it")?;
    take()?;
    expect(&nothing, "after those were finished")?;
    preserve(&mut HeldOpen::default())?;
    expect(
        &[("prepare", Some("1")), ("cancel", Some("1"))],
        "at the end",
    )
}
