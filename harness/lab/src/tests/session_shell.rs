// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo session` as it is used from a shell, across a jump.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::io::FdFlags;

use crate::guest::programs::{install_shell_commands, program, BUSYBOX};
use crate::tests::held_open::HeldOpen;
use crate::tests::memfds::memfd;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;

/// The sessions, each with a memfd that contains its name. One of them has a large one as well.
const NAMES: [&str; 2] = ["held", "unclaimed"];
const LARGE: Workload = memfd(4 << 20, Fill::Dense, 2);

/// Holds the sessions with the memfds that the shell inherited; what holds them outlives the shell.
/// `$1` and `$2` are their descriptors, `$3` that of the large one.
const HOLD: &str = r#"
set -e
mkfifo /tmp/never
exec 9<>/tmp/never
large=$3
for name in held unclaimed; do
    luo session preserve --collapse $name 0x1=$$:$1 ${large:+0x2=$$:$large} </tmp/never 2>/tmp/log &
    shift
    until grep 'holding session' /tmp/log; do sleep 1; kill -0 $! || { cat /tmp/log; exit 1; }; done
    luo inspect | grep "^$name: held by luo ("
    luo session list | grep "$name"
    grep '0x1: .*: 0.0 of 0.0 MiB of data' /tmp/log
    test -z "$large" || grep '0x2: .*: 4.0 of 4.0 MiB of data lie in huge pages' /tmp/log
    large=
done
"#;

const TAKE: &str = r#"
set -e
luo inspect | grep '^held: came in, waiting'
luo session list | grep 'waiting.*0x1'
luo session list --json | grep '"size_bytes": 5'
luo inspect | grep '0x1: luo-handlers,memfd-v1, waiting, data 0x.*, size_bytes 5'
luo session retrieve held 0x1=/tmp/copy 0x2=/tmp/large
test "$(cat /tmp/copy)" = held
luo session finish unclaimed
for name in held unclaimed; do
    if luo session finish $name; then exit 1; fi
done
"#;

pub(crate) fn hold_sessions(_held: &mut HeldOpen) -> Result<()> {
    let mut memfds = Vec::new();
    for name in NAMES {
        // Without FD_CLOEXEC: the shell inherits it.
        let mut memfd = File::from(memfd_create(name, MemfdFlags::empty())?);
        writeln!(memfd, "{name}")?;
        memfds.push(memfd);
    }
    let large = LARGE.make(|_| ())?;
    rustix::io::fcntl_setfd(&large, FdFlags::empty())?;
    memfds.push(large);
    let numbers: Vec<String> = memfds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    run_script(HOLD, &numbers)
}

pub(crate) fn take_sessions(_held: &mut HeldOpen) -> Result<()> {
    run_script(TAKE, &[])?;
    let (copy, made) = (File::open("/tmp/large")?, LARGE.make(|_| ())?);
    let bytes = |file: &File| -> Result<Vec<u8>> {
        let mut bytes = vec![0; LARGE.size as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    ensure!(
        bytes(&copy)? == bytes(&made)?,
        "what was collapsed holds other bytes"
    );
    Ok(())
}

fn run_script(script: &str, arguments: &[String]) -> Result<()> {
    if !Path::new("/bin/grep").exists() {
        install_shell_commands()?;
    }
    let mut shell = program(BUSYBOX, &["sh", "-xc", script, "sh"]);
    let status = shell.args(arguments).status();
    let status = status.context("starting the shell")?;
    ensure!(
        status.success(),
        "the script ended with {status}; what it did is on the console"
    );
    Ok(())
}
