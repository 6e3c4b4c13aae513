// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Live updates of file descriptors in an ordinary process: what a program embeds.
//!
//! ```
//! use std::sync::Arc;
//! use luo_handler_api::Token;
//! use luo_handler_memfd as _; // links the handler in, so that the registry finds it
//! use luo_orchestrator::{orchestrator::Orchestrator, registry::Registry};
//!
//! let memfd = memfd::MemfdOptions::default().create("guest memory")?;
//! let update = Orchestrator::new(Arc::new(Registry::linked()?));
//! update.preserve(Token(1), memfd.as_file())?;
//! update.prepare()?; // the workload still runs
//! update.freeze()?; // it stands still
//! update.handover(|handover| {
//!     assert!(!handover.devicetree.is_empty()); // a transport carries it over from here
//!     Ok::<_, luo_orchestrator::error::Error>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Map
//!
//! - [`orchestrator`]: the file table and the state machine; [`error`]: what can fail;
//!   `reason`: what handlers report about it
//! - [`registry`]: the handlers it calls; `plugin`: those that come from shared objects
//! - [`devicetree`]: what crosses, as numbers and names
//! - [`outgoing`], [`incoming`]: the bytes and files that handlers preserve, on either side
//! - [`transport`]: the ways over the jump
//! - `envelope`: the program's own state, for the next version and the one before
//!
//! # Features
//!
//! - `image`: the transport that writes contents to a directory
//! - `plugin`: handlers out of shared objects
//! - `fdstore`: the transport that leaves files with systemd
//! - `state`: the program's own state, by versions

mod arrived;
pub mod devicetree;
#[cfg(feature = "state")]
pub mod envelope;
pub mod error;
pub mod holes;
pub mod incoming;
pub mod orchestrator;
pub mod outgoing;
#[cfg(feature = "plugin")]
pub mod plugin;
mod reason;
pub mod registry;
pub mod sys;
pub mod transport;
