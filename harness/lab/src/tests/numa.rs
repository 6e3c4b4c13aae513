// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Memory of two NUMA nodes in one memfd: it comes back, and each page is where it was.

use std::fs;

use anyhow::{ensure, Context, Result};
use rustix::thread::{sched_setaffinity, CpuSet};

use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::{memfd, preserve, retrieve};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_liveupdate::Device;

const SESSION: &str = "two-nodes";
/// Each has one processor, of its own number.
const NODES: [usize; 2] = [0, 1];
/// One for each node; the first half of the pages of each is of the one, the rest of the other
/// node.
const MEMFDS: [Workload; 2] = [
    memfd(32 << 20, Fill::sparse(5000), 1),
    memfd(16 << 20, Fill::Shuffled, 2),
];
/// What the kernel may count late.
const SLACK: u64 = 2 << 20;

/// Memory comes from the node of the processor that writes to it first.
pub(crate) fn preserve_on_both(held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.create_session(SESSION)?;
    for (node, workload) in NODES.into_iter().zip(MEMFDS) {
        run_on(node)?;
        let before = shared_memory(node)?;
        preserve(&session, std::slice::from_ref(&workload))?;
        expect_memory(node, before, &workload, "was preserved")?;
    }
    held.hold(&session)
}

pub(crate) fn take_from_both(_held: &mut HeldOpen) -> Result<()> {
    let session = Device::open()?.retrieve_session(SESSION)?;
    // All on one processor: where the memory is does not depend on who retrieves it.
    run_on(NODES[0])?;
    for (node, workload) in NODES.into_iter().zip(MEMFDS) {
        let before = shared_memory(node)?;
        let _file = retrieve(&session, &workload)?;
        expect_memory(node, before, &workload, "was retrieved")?;
    }
    Ok(session.finish()?)
}

fn expect_memory(node: usize, before: u64, workload: &Workload, when: &str) -> Result<()> {
    let found = shared_memory(node)?.saturating_sub(before);
    let expected = workload.data_bytes();
    ensure!(
        found.abs_diff(expected) <= SLACK,
        "expected {expected} bytes on node {node} after its memfd {when}, found {found}"
    );
    Ok(())
}

fn run_on(processor: usize) -> Result<()> {
    let mut processors = CpuSet::new();
    processors.set(processor);
    sched_setaffinity(None, &processors).with_context(|| format!("moving to {processor}"))
}

/// Bytes of shmem on a node.
fn shared_memory(node: usize) -> Result<u64> {
    let path = format!("/sys/devices/system/node/node{node}/meminfo");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.split_once("Shmem:"));
    let kilobytes = line.and_then(|(_, value)| value.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes
        .and_then(|digits| digits.trim().parse().ok())
        .with_context(|| format!("{path} has no Shmem"))?;
    Ok(kilobytes << 10)
}
