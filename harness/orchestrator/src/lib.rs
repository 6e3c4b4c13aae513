// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Live updates of file descriptors in an ordinary process: what a program embeds.
//!
//! ```
//! use std::sync::Arc;
//! use luo_handler_api::Token;
//! use luo_handler_memfd as _; // links the handler in, so that the registry finds it
//! use luo_orchestrator::{orchestrator::Orchestrator, registry::Registry, transport::loopback};
//!
//! let memfd = memfd::MemfdOptions::default().create("guest memory")?;
//! let old = Orchestrator::new(Arc::new(Registry::linked()?));
//! old.preserve(Token(1), memfd.as_file())?;
//! old.prepare()?; // the workload still runs
//! old.freeze()?; // it does not run
//! let arrival = old.handover(|handover| Ok::<_, Error>(loopback::cross(&handover)?))?;
//! let new = Orchestrator::arrived(Arc::new(Registry::linked()?), arrival); // after the jump
//! let memfd = new.retrieve(Token(1))?;
//! new.finish()?;
//! # let _ = memfd;
//! # type Error = Box<dyn std::error::Error>;
//! # Ok::<(), Error>(())
//! ```
//!
//! `examples/exec.rs` is a whole program that takes a memfd through its own exec.
//!
//! # Map
//!
//! Each module knows only those below it.
//!
//! - [`guide`]: what a program has to know that updates itself; nothing but text
//! - `envelope`: the program's own state, for the next version and the one before
//! - `testing`: a real exec, for tests of handlers
//! - [`transport`]: the ways over the jump; `inspection`: what a handover holds
//! - [`orchestrator`]: the states; `old_side`, `new_side`: its file tables before and after the
//!   jump
//! - [`handover`]: what passes between the orchestrator and the transports
//! - [`registry`]: the handlers it calls; `plugin`: those that come from shared objects
//! - [`outgoing`], [`incoming`]: the bytes and files that handlers preserve, on either side
//! - [`files`]: the files that crossed; [`memory_file`]: the layout of the bytes
//! - [`devicetree`]: what crosses, as numbers and names
//! - [`error`]: what can fail; `reason`: what handlers report about it
//! - [`collapse`](mod@collapse): into huge pages before an update, which makes it cheaper
//! - [`holes`]: where a file has data; `sys`: the system calls that need `unsafe`
//!
//! # Features
//!
//! - `image`: the transport that writes contents to a directory, and `inspection`
//! - `plugin`: handlers out of shared objects
//! - `fdstore`: the transport that leaves files with systemd
//! - `state`: the program's own state, by versions
//! - `testing`: for tests of handlers, a real exec

#![deny(unsafe_code)]

pub mod collapse;
pub mod devicetree;
#[cfg(feature = "state")]
pub mod envelope;
pub mod error;
pub mod files;
pub mod guide;
pub mod handover;
pub mod holes;
pub mod incoming;
#[cfg(feature = "image")]
pub mod inspection;
mod member;
pub mod memory_file;
mod new_side;
mod old_side;
pub mod orchestrator;
pub mod outgoing;
#[cfg(feature = "plugin")]
pub mod plugin;
mod reason;
pub mod registry;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;

pub use sys::SharedMapping;
