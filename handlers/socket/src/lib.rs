// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Preserves listening and connected sockets across a live update of a process.
//!
//! Nothing has to be called: linking the crate in registers the handler, and a host finds it.
//!
//! ```
//! use luo_handler_api::registry::registered_handlers;
//! use luo_handler_socket as _; // without this line the linker drops the handler
//!
//! assert!(registered_handlers().any(|ops| ops.origin() == "luo_handler_socket"));
//! ```
//!
//! # Map
//!
//! - [`description`]: what a socket is, and how two of them differ
//! - [`record`]: the bytes that cross, and the checks they pass before they are used
//! - [`handler`]: the policy, [`SocketHandler`]
//! - `backend`: what the policy asks of its surroundings; `user`: the answers of a process
//!
//! # Where it works
//!
//! A socket is a state of the running kernel, and only an open descriptor holds it. So it crosses
//! where the next program gets that descriptor: over an exec, to a program started beside the old
//! one, and through systemd's file descriptor store. An image refuses it, because there is nothing
//! that could be written to a disk; a kexec does, because the state ends with its kernel. The
//! handler is [`Hosts::Hosted`](luo_handler_api::Hosts::Hosted).
//!
//! # What is preserved
//!
//! Unix stream, datagram and seqpacket sockets, TCP and UDP of both IP versions, whether they
//! listen, are connected or neither. The open socket itself crosses, so all of it lives on: its
//! addresses, options and status flags, connections that wait to be accepted, bytes and descriptors
//! that were sent and not read, timers. The other end notices nothing. A connection whose other end
//! closes it during the update crosses as well, and the next read finds its end.
//!
//! # What is not preserved
//!
//! - Registrations in an epoll instance or an io_uring: both belong to the old program, and the new
//!   one registers its sockets again. Level-triggered readiness is reported again then; with
//!   `EPOLLET` the first report comes from the registration itself.
//! - Half a request that the program had read already: that is the program's own state.
//! - `FD_CLOEXEC`, which belongs to the descriptor. A retrieved socket has it set.
//! - What `SO_PEERCRED` reports to the other end of a Unix connection: it names the process that
//!   connected or listened, also when that has become another one.
//!
//! Other sockets (netlink, packet, vsock, raw, MPTCP, SCTP) are refused with `EOPNOTSUPP`.
//!
//! # Trust
//!
//! The record is checked before it is used; the errors are listed at [`SocketRecord`]. The socket
//! that crossed is then compared with it: domain, type and protocol, the local address, whether it
//! listens, and `SO_COOKIE`, which no other socket of a running kernel has. So a descriptor that
//! stands in the place of another one is refused with `ENOENT`, also if it is bound to the same
//! address. A checksum is not a signature: anyone who can write a record can describe any socket in
//! it, and name any of the host's handles.

mod backend;
pub mod description;
#[cfg(test)]
mod fake;
pub mod handler;
pub mod record;
mod user;

pub use backend::{Seen, SocketBackend};
pub use description::Description;
pub use handler::{Private, SocketHandler};
pub use record::SocketRecord;
pub use user::{UserBackend, SOCKET};
