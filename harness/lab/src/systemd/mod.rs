// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! systemd as init of a guest, as a real client: its services store memfds, and find them again
//! after `systemctl kexec`.
//!
//! A guest is one [`scenario`]. In each of its kernels the `driver` starts the services, which
//! compare what systemd gives them with what they stored, and print what they [`found`] to the
//! port of events. The `image` is what the lab adds to Debian's packages.
//!
//! - `files`: memfds of each kind
//! - `writer`: a memfd that is written to until the jump
//! - `store`: an update by the transport fdstore
//! - [`service`]: which of them runs; `client`: what they have in common
//! - `upstream`: systemd's own test; `manager`: what the driver asks of systemd

mod client;
pub(crate) mod driver;
mod files;
pub mod found;
pub(crate) mod image;
mod manager;
pub mod scenario;
pub mod service;
mod store;
mod upstream;
mod writer;
