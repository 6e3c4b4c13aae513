// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Commands in a mount namespace of their own, as root: what they mount vanishes with them.

use std::process::{Command, Stdio};

/// Whether files may be made as anybody and file systems mounted.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that may mount, as root: in a mount namespace, and for a user in a user namespace with
/// all subordinate ids.
pub(crate) fn in_namespace(program: &str) -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program);
    command
}

/// Whether a command can be run in such a namespace.
pub(crate) fn user_namespaces_work() -> bool {
    let mut command = in_namespace("true");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
