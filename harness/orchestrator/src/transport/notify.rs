// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Messages to systemd, as `man 3 sd_notify` has them.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where systemd listens.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// Sends a message; `false` if systemd does not listen to this process.
pub(super) fn send(message: &str) -> io::Result<bool> {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else {
        return Ok(false);
    };
    let address = address(&socket)?;
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(true)
}

/// A path, or after an `@` a name in the abstract namespace.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(socket),
    }
}
