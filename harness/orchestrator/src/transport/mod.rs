// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The ways over the jump: each takes a [`Handover`](crate::orchestrator::Handover) on the old side
//! and brings an [`Arrival`](crate::orchestrator::Arrival) on the new one.
//!
//! - [`exec`]: the process replaces itself; files and metadata are inherited, nothing is copied
//! - [`image`]: contents and metadata are written to a directory, and read by any later process

pub mod exec;
#[cfg(feature = "image")]
pub mod image;
