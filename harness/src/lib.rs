// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! work in progress
pub mod arrived;
pub mod devicetree;
pub mod error;
pub mod incoming;
pub mod orchestrator;
pub mod outgoing;
pub mod registry;
mod holes;
mod sys;
pub mod transport;
