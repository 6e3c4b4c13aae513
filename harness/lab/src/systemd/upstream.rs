// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What systemd's own TEST-91-LIVEUPDATE does, with its program `test-luo`, which Debian has in the
//! package systemd-tests. Its script needs containers and user sessions; the guest has neither.

use std::fs;

use anyhow::{ensure, Context, Result};

use crate::systemd::manager::{show, systemctl};

/// Units that appear at runtime: they are forgotten with the kernel, their descriptors are not.
const UNITS: &str = "/run/systemd/system";
const PROGRAM: &str = "/usr/bin/test-luo";

/// Stores two memfds, and a session that has a third.
const STORED: &str = "3";
/// Units, each of which has a session of this name.
const MAIN: &str = "main";
const LATE: &str = "late";
const NO_RELOAD: &str = "late-noreload";
const NO_STORE: &str = "late-zerofds";
const HIJACK: &str = "hijack";
const SESSIONS: &str = "sessions";
const SESSION_NAMES: &str = "test-session-1 test-session-2";

/// Before the kexec.
pub(super) fn store() -> Result<()> {
    for name in [MAIN, LATE, NO_RELOAD, NO_STORE] {
        write(name, &format!("store {name}"), "FileDescriptorStoreMax=20")?;
        start(name)?;
        expect_stored(name, STORED)?;
    }
    // A session with the name of systemd's own must not get into the next kernel as one.
    write(HIJACK, "store-hijack", "FileDescriptorStoreMax=20")?;
    start(HIJACK)?;
    expect_stored(HIJACK, "1")?;
    write_sessions()?;
    start(SESSIONS)?;
    expect_stored(SESSIONS, "2")
}

/// After it.
pub(super) fn check() -> Result<()> {
    let kexecs = show(None, "KExecCount")?;
    ensure!(kexecs == "1", "systemd counts {kexecs:?} kexecs");
    expect_stored(HIJACK, "0")?;
    write(HIJACK, "check-hijack", "FileDescriptorStoreMax=20")?;
    start(HIJACK)?;

    write(MAIN, "check main", "FileDescriptorStoreMax=20")?;
    start(MAIN)?;
    // The unit's file is there before anything is asked about it.
    write(LATE, "check late", "FileDescriptorStoreMax=20")?;
    expect_stored(LATE, STORED)?;
    for command in ["daemon-reload", "daemon-reexec"] {
        systemctl(&[command])?;
        expect_stored(LATE, STORED).context(command)?;
    }
    start(LATE)?;
    write(
        NO_RELOAD,
        "check late-noreload",
        "FileDescriptorStoreMax=20",
    )?;
    expect_stored(NO_RELOAD, STORED)?;
    start(NO_RELOAD)?;
    // A unit that has no store any more loses what was in it.
    write(NO_STORE, "", "FileDescriptorStoreMax=0")?;
    systemctl(&["daemon-reload"])?;
    expect_stored(NO_STORE, "0")?;

    write_sessions()?;
    expect_stored(SESSIONS, "2")?;
    start(SESSIONS)?;
    expect_stored(SESSIONS, "2")
}

fn unit(name: &str) -> String {
    format!("upstream-{name}.service")
}

fn write_sessions() -> Result<()> {
    let settings = format!("FileDescriptorStoreMax=10\nLUOSession={SESSION_NAMES}");
    write(
        SESSIONS,
        &format!("check-sessions {SESSION_NAMES}"),
        &settings,
    )
}

fn write(name: &str, arguments: &str, settings: &str) -> Result<()> {
    let text = format!(
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nFileDescriptorStorePreserve=yes\n\
         StandardOutput=kmsg\nStandardError=kmsg\n{settings}\nExecStart={PROGRAM} {arguments}\n"
    );
    let file = format!("{UNITS}/{}", unit(name));
    fs::create_dir_all(UNITS).with_context(|| format!("creating {UNITS}"))?;
    fs::write(&file, text).with_context(|| format!("writing {file}"))
}

fn start(name: &str) -> Result<()> {
    systemctl(&["start", &unit(name)])
}

fn expect_stored(name: &str, count: &str) -> Result<()> {
    let found = show(Some(&unit(name)), "NFileDescriptorStore")?;
    ensure!(
        found == count,
        "{name} has {found} descriptors in its store, expected {count}"
    );
    Ok(())
}
