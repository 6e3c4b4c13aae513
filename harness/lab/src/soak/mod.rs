// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A long chain of live updates in one guest, with random files of all handlers. Everything is made
//! from a seed, so that both sides of a jump know what crosses, and a failure can be repeated.

pub mod options;
pub(crate) mod plan;
pub(crate) mod update;
pub(crate) mod writer;
