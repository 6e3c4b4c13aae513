// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! For the tests of handlers: [`conformance`], which any handler passes; a host in memory; and a
//! live update without a jump, for what is special to a handler.
//!
//! A real exec takes an orchestrator, and is in its crate: `luo_orchestrator::testing::cross_exec`.
//!
//! Its calls panic where a test has gone wrong: a lock that a panic has poisoned, a handle that a
//! test made up.

mod conformance;
mod fake_host;
mod form;
mod rehearsal;

pub use conformance::{conformance, PLACES_MAX};
pub use fake_host::FakeHost;
pub use rehearsal::Rehearsal;
