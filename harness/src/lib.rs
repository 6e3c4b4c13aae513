// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The library behind the `luo` command: live updates of file descriptors, hosted in an ordinary process.
//!
//! ```
//! use std::sync::Arc;
//! use luo_handler_api::Token;
//! use luo_handler_memfd as _; // links the handler in, so that the registry finds it
//! use luo_harness::{orchestrator::Orchestrator, registry::Registry};
//!
//! let memfd = memfd::MemfdOptions::default().create("guest memory")?;
//! let update = Orchestrator::new(Arc::new(Registry::linked()?));
//! update.preserve(Token(1), memfd.as_file())?;
//! update.prepare()?; // the workload still runs
//! update.freeze()?; // it stands still
//! update.handover(|handover| {
//!     assert!(!handover.devicetree.is_empty()); // a transport carries it over from here
//!     Ok::<_, luo_harness::error::Error>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Map
//!
//! The live update itself:
//!
//! - [`orchestrator`]: the file table and the state machine; [`error`]: what can fail;
//!   `reason`: what handlers say about it
//! - [`registry`]: the handlers it calls; [`plugin`]: those that come from shared objects
//! - [`devicetree`]: what crosses, as numbers and names
//! - [`outgoing`], [`incoming`]: the bytes and files that handlers keep, on either side
//! - [`transport`]: the ways over the jump
//!
//! Measuring it:
//!
//! - [`workload`]: large memfds, made and compared; `vfio` and `port`: devices and port files, opened and compared
//! - [`mod@bench`]: whole updates in processes of their own, and the reports
//!
//! Real kernels:
//!
//! - [`liveupdate`]: a client of `/dev/liveupdate`; [`session`]: the same from the shell; [`kexec`]: the jump into the next kernel
//! - [`integrate`]: puts the kernel module into a kernel tree
//! - [`lab`]: builds such a kernel, boots it in a virtual machine and tests it
//!
//! The command: [`cli`], [`inspect`].

mod arrived;
pub mod bench;
pub mod cli;
pub mod devicetree;
pub mod error;
mod holes;
pub mod incoming;
pub mod inspect;
pub mod integrate;
pub mod kexec;
pub mod lab;
pub mod liveupdate;
pub mod orchestrator;
pub mod outgoing;
pub mod plugin;
mod port;
mod reason;
pub mod registry;
pub mod session;
mod sys;
pub mod transport;
mod vfio;
pub mod workload;
