// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Tests of `luo` as it is used on a real machine, from a shell, across jumps.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{bail, ensure, Context, Result};

use crate::checks::{preserve, spoil, Kept, BAD_MEMFD};
use crate::guest::{compose_initramfs, install_shell_commands, program, BUSYBOX};
use crate::initramfs::KERNEL_IN_GUEST;
use crate::job::next_stage;
use luo_bench::report::Report;
use luo_liveupdate::Device;

const LUO: &str = "/bin/luo";
const INITRD: &str = "/boot/initrd";
const REPORT: &str = "/tmp/report.json";
/// On the host: it has to outlast a kernel.
const NOTE: &str = "/results/note.json";
const RUNS: u32 = 2;

/// `luo bench` makes its own jumps, from files; before, it refuses what it should, and survives a jump that is refused.
pub(super) fn begin_bench(command_line: &str) -> Result<()> {
    let workloads =
        format!("--size 16M --fill dense --runs {RUNS} --compare mainline-c --note {NOTE}");
    let mut bench = kexec_bench(command_line, &workloads)?;
    expect_failure(&mut bench, "--yes says that it may")?;
    bench.arg("--yes");
    refuse_jump(&mut bench)?;
    jump(&mut bench)
}

/// It also takes files that are no memfds along.
pub(super) fn begin_device_bench(command_line: &str) -> Result<()> {
    let mut bench = kexec_bench(command_line, "--handler vfio,ioport --files 4 --runs 1")?;
    jump(bench.arg("--yes"))
}

fn kexec_bench(command_line: &str, workloads: &str) -> Result<Command> {
    provide_initrd()?;
    let options = format!(
        "bench --transport kexec --kernel {KERNEL_IN_GUEST} --initrd {INITRD} --json {REPORT} {workloads}"
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
        "luo ended with {status} instead of saying {reason:?}: {stderr}"
    );
    Ok(())
}

pub(super) fn continue_bench(_kept: &mut Kept) -> Result<()> {
    resume_bench(RUNS)
}

pub(super) fn continue_device_bench(_kept: &mut Kept) -> Result<()> {
    resume_bench(1)
}

/// In each of the next kernels, as a systemd unit would; in the last one there is a report.
fn resume_bench(runs: u32) -> Result<()> {
    provide_initrd()?;
    let resume = || program(LUO, &["bench", "--continue"]);
    let status = resume().status().context("starting luo bench")?;
    ensure!(status.success(), "luo bench --continue ended with {status}");

    check_report(2, runs)?;

    let again = resume().output().context("starting luo bench")?;
    let said = String::from_utf8_lossy(&again.stdout);
    ensure!(
        again.status.success() && said.contains("nothing to continue"),
        "at its end luo bench --continue ended with {} and said {said}",
        again.status
    );
    Ok(())
}

/// All of it was measured, and all of it was right.
fn check_report(rows: usize, runs: u32) -> Result<()> {
    let report = fs::read(REPORT).with_context(|| format!("reading {REPORT}"))?;
    let report: Report = serde_json::from_slice(&report).context("the report is garbled")?;
    ensure!(
        report.results.len() == rows,
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
    Ok(())
}

/// `luo bench` in one kernel, with files of every type. An image holds no devices.
pub(super) fn bench_devices(_kept: &mut Kept) -> Result<()> {
    let options = format!(
        "bench --handler vfio,ioport,memfd --files 2 --size 1M --fill dense --runs {RUNS} --json {REPORT}"
    );
    let status = program(LUO, &options.split(' ').collect::<Vec<_>>()).status();
    let status = status.context("starting luo bench")?;
    ensure!(status.success(), "luo bench ended with {status}");
    check_report(5, RUNS)
}

/// Holds sessions with a file that has no name any more; what holds them outlives the shell.
const HOLD: &str = r"
set -e
mkfifo /tmp/never
exec 4<>/tmp/never
for name in held unclaimed; do
    exec 3<>/tmp/file
    echo $name >&3
    rm /tmp/file
    luo session preserve $name 0x1=/proc/$$/fd/3 </tmp/never 2>/tmp/log &
    until grep 'holding session' /tmp/log; do sleep 1; done
    luo session list | grep $name'  held by luo'
done
";

const TAKE: &str = r#"
set -e
luo session list | grep 'no process holds a session'
luo session retrieve held 0x1=/tmp/copy
test "$(cat /tmp/copy)" = held
luo session finish unclaimed
for name in held unclaimed; do
    if luo session finish $name; then exit 1; fi
done
"#;

pub(super) fn hold_sessions(_kept: &mut Kept) -> Result<()> {
    run_script(HOLD)
}

pub(super) fn take_sessions(_kept: &mut Kept) -> Result<()> {
    run_script(TAKE)
}

fn run_script(script: &str) -> Result<()> {
    if !Path::new("/bin/grep").exists() {
        install_shell_commands()?;
    }
    let status = program(BUSYBOX, &["sh", "-xc", script]).status();
    let status = status.context("starting the shell")?;
    ensure!(
        status.success(),
        "the script ended with {status}; what it did is on the console"
    );
    Ok(())
}
