// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The ways over the jump: each takes a [`Handover`](crate::handover::Handover) on the old side and
//! brings an [`Arrival`](crate::handover::Arrival) on the new one.
//!
//! - [`exec`]: the process replaces itself; files and metadata are inherited, nothing is copied
//! - [`spawn`]: the new program starts beside this one, which goes on if it does not come up
//! - `fdstore`: systemd holds files and metadata until the next start of the service
//! - `image`: contents and metadata are written to a directory, and read by any later process
//! - [`loopback`]: within one process, for tests
//! - [`program`]: what a jump starts, and whether it can run here

pub mod exec;
mod executable;
#[cfg(feature = "fdstore")]
pub mod fdstore;
#[cfg(feature = "image")]
pub mod image;
mod inheritance;
pub mod loopback;
mod notify;
pub mod program;
pub mod spawn;
