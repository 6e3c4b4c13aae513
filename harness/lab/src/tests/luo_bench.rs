// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench` as it is used on a real machine, across jumps.

use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{bail, ensure, Context, Result};

use crate::archive::KERNEL_IN_GUEST;
use crate::build::variant::Variant;
use crate::guest::next_kernel::{compose_initramfs, image_of};
use crate::guest::programs::{program, LUO};
use crate::job::next_stage;
use crate::tests::failing_freeze::{spoil, BAD_MEMFD};
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::preserve;
use luo_bench::case::Implementation;
use luo_bench::report::{Report, Skipped};
use luo_liveupdate::{kexec, Device};

const INITRD: &str = "/boot/initrd";
const REPORT: &str = "/tmp/report.json";
/// On the host: it has to outlast a kernel.
const NOTE: &str = "/results/note.json";
const RUNS: u32 = 2;
const KINDS: &str = "--size 16M --pages 4k,hugetlb";

/// `luo bench` makes its own jumps, from files; before, it refuses what it should, and survives a
/// jump that is refused.
pub(crate) fn begin_bench(command_line: &str) -> Result<()> {
    let workloads =
        format!("{KINDS} --fill dense --runs {RUNS} --compare mainline-c --note {NOTE}");
    let mut bench = kexec_bench(command_line, KERNEL_IN_GUEST.as_ref(), &workloads)?;
    expect_failure(&mut bench, "--yes allows it")?;
    bench.arg("--yes");
    refuse_jump(&mut bench)?;
    jump(&mut bench)
}

/// Other files than memfds cross as well.
pub(crate) fn begin_device_bench(command_line: &str) -> Result<()> {
    let workloads = "--handler vfio,ioport,memfd --files 4 --runs 1 --size 4M --fill dense \
                     --pages collapsed";
    jump(kexec_bench(command_line, KERNEL_IN_GUEST.as_ref(), workloads)?.arg("--yes"))
}

/// A kernel without one of the handlers is refused before it is loaded, and good enough for files
/// of the others.
pub(crate) fn begin_bench_into_lacking(command_line: &str) -> Result<()> {
    let lacking = image_of(Variant::Lacking);
    let bench = |file_types: &str| {
        let workloads = format!("--handler {file_types} --size 1M --fill dense --runs 1 --yes");
        kexec_bench(command_line, &lacking, &workloads)
    };
    kexec::unload()?;
    let reason = "the next kernel has no handler for luo-handlers,ioport-v1";
    expect_failure(&mut bench("memfd,ioport")?, reason)?;
    expect_nothing_loaded()?;
    jump(&mut bench("memfd")?)
}

fn kexec_bench(command_line: &str, kernel: &Path, workloads: &str) -> Result<Command> {
    provide_initrd()?;
    let options = format!(
        "bench --transport kexec --kernel {} --initrd {INITRD} --json {REPORT} {workloads}",
        kernel.display()
    );
    let mut bench = program(LUO, &options.split(' ').collect::<Vec<_>>());
    bench.args(["--command-line", &next_stage(command_line, 2, "", "")]);
    Ok(bench)
}

fn jump(bench: &mut Command) -> Result<()> {
    let status = bench.status().context("starting luo bench")?;
    bail!("luo bench ended with {status} and did not jump");
}

fn provide_initrd() -> Result<()> {
    let mut file = File::create(INITRD).with_context(|| format!("creating {INITRD}"))?;
    compose_initramfs(&mut file)
}

/// With memory that went bad in somebody's session nobody can jump.
fn refuse_jump(bench: &mut Command) -> Result<()> {
    let session = Device::open()?.create_session("bad")?;
    for file in &preserve(&session, &[BAD_MEMFD])? {
        spoil(file, 0)?;
    }
    expect_failure(bench, "the jump was refused")?;
    expect_nothing_loaded()
}

fn expect_nothing_loaded() -> Result<()> {
    let loaded = fs::read_to_string("/sys/kernel/kexec_loaded").context("reading kexec_loaded")?;
    ensure!(
        loaded.trim() == "0",
        "after a refused jump a kernel is loaded"
    );
    Ok(())
}

fn expect_failure(command: &mut Command, reason: &str) -> Result<()> {
    let Output { status, stderr, .. } = command.output().context("starting luo")?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(
        status.code() == Some(1) && stderr.contains(reason),
        "luo ended with {status} and does not report {reason:?}: {stderr}"
    );
    Ok(())
}

pub(crate) fn continue_bench(_held: &mut HeldOpen) -> Result<()> {
    // A kernel without a handler of hugetlb pages has skipped our turn as well.
    let report = resume_bench(2..=3, RUNS)?;
    let mut skipped = report.skipped.iter();
    let is_refusal = |it: &Skipped| {
        let theirs = it.case.implementation == Implementation::MainlineC;
        theirs && it.reason.contains("refuses memfds of hugetlb pages")
    };
    ensure!(
        skipped.any(is_refusal) && report.results.len() + report.skipped.len() == 4,
        "skipped: {:?}",
        report.skipped
    );
    Ok(())
}

pub(crate) fn continue_device_bench(_held: &mut HeldOpen) -> Result<()> {
    let report = resume_bench(3..=3, 1)?;
    let collapse = report.results[2].collapse.as_ref();
    let bytes = collapse.map_or(0, |it| it.collapsed_bytes);
    ensure!(bytes == 4 * (4 << 20), "{collapse:?}");
    Ok(())
}

pub(crate) fn continue_bench_in_lacking(_held: &mut HeldOpen) -> Result<()> {
    resume_bench(1..=1, 1)?;
    Ok(())
}

/// In each of the next kernels, as a systemd unit would; in the last one there is a report.
fn resume_bench(rows: RangeInclusive<usize>, runs: u32) -> Result<Report> {
    provide_initrd()?;
    let resume = || program(LUO, &["bench", "--continue"]);
    let status = resume().status().context("starting luo bench")?;
    ensure!(status.success(), "luo bench --continue ended with {status}");

    let report = check_report(rows, runs)?;

    let again = resume().output().context("starting luo bench")?;
    let printed = String::from_utf8_lossy(&again.stdout);
    ensure!(
        again.status.success() && printed.contains("nothing to continue"),
        "at its end luo bench --continue ended with {} and printed {printed}",
        again.status
    );
    Ok(report)
}

/// All of it was measured, and all of it was right.
fn check_report(rows: RangeInclusive<usize>, runs: u32) -> Result<Report> {
    let report = fs::read(REPORT).with_context(|| format!("reading {REPORT}"))?;
    let report: Report = serde_json::from_slice(&report).context("the report is garbled")?;
    ensure!(
        rows.contains(&report.results.len()),
        "the report has {} rows; skipped: {:?}",
        report.results.len(),
        report.skipped
    );
    for row in &report.results {
        let name = format!("{} {}", row.way(), row.name());
        ensure!(
            row.runs == runs && row.phases.blackout_ns.min > 0,
            "{name} was measured {} times, its blackout is {:?}",
            row.runs,
            row.phases.blackout_ns
        );
        ensure!(row.verified, "{name}: {:?}", row.mismatch);
    }
    Ok(report)
}

/// `luo bench` in one kernel, with files of every type. An image holds no devices.
pub(crate) fn bench_devices(_held: &mut HeldOpen) -> Result<()> {
    let options = format!(
        "bench --handler vfio,ioport,memfd --files 2 --size 1M --fill dense --runs 1 --json \
         {REPORT}"
    );
    let status = program(LUO, &options.split(' ').collect::<Vec<_>>()).status();
    let status = status.context("starting luo bench")?;
    ensure!(status.success(), "luo bench ended with {status}");
    check_report(5..=5, 1)?;
    Ok(())
}
