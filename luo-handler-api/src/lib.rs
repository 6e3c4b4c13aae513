// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the author of a live-update file handler sees.
//!
//! Linux's Live Update Orchestrator (LUO) preserves chosen file descriptors across a kexec. Code
//! that knows one type of file implements [`FileHandler`] and registers it; hosts, which are the
//! kernel module of this project or an ordinary process, find it and call it:
//!
//! ```
//! use luo_handler_api::*;
//!
//! /// Preserves nothing, and reports that.
//! struct Reluctant;
//!
//! impl FileHandler for Reluctant {
//!     const COMPATIBLE: Compatible = Compatible::new("reluctant-v1");
//!     type Private = ();
//!
//!     fn can_preserve(&self, _: FileRef<'_>) -> bool {
//!         false
//!     }
//!     fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
//!         Err(Errno::EOPNOTSUPP)
//!     }
//!     fn cancel(&self, _: Preserved<'_, ()>) {}
//!     fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
//!         Err(Errno::EOPNOTSUPP)
//!     }
//!     fn finish(&self, _: Crossed<'_>) {}
//! }
//!
//! register_handler!(RELUCTANT: Reluctant = Reluctant);
//! ```
//!
//! [The contract](contract) has on one page when each call comes and what it may do.
//!
//! # Map
//!
//! - [`contract`]: the order of calls, locks, memory, panics, who owns handles; nothing but text
//! - [`handler`]: the trait [`FileHandler`]; [`subsystem`]: its sibling for state that files share
//! - [`registry`]: the macros that register, and what hosts find
//! - [`host`]: the services of a host; [`pairs`]: what a handler reports of a record
//! - [`ops`]: the C form, which a process and a plugin call; [`plugin`]: what a dlopen finds;
//!   `hosted`: how a host with std calls handlers, and what several of them need
//! - `kernel`: the ops of mainline's Live Update Orchestrator, made from the traits
//! - `record`, `checksum`, `status`: what the records of handlers have in common
//! - `testing`: for the tests of handlers, a host in memory and a live update without a jump
//! - [`mod@compatible`], [`mod@errno`], [`mod@file`], [`mod@text`], [`mod@token`]: the small types
//!
//! The crate is `no_std` and allocates nothing; the feature `std` adds what hosted processes need,
//! the feature `testing` what tests do.

#![cfg_attr(not(any(test, luo_kernel)), no_std)]

#[cfg(feature = "std")]
extern crate std;

mod c;
#[cfg(any(feature = "std", luo_kernel))]
mod checksum;
pub mod compatible;
#[cfg(all(doc, not(luo_kernel)))]
#[doc = include_str!("../contract.md")]
pub mod contract {}
pub mod errno;
pub mod file;
pub mod handler;
pub mod host;
#[cfg(feature = "std")]
pub mod hosted;
#[cfg(luo_kernel)]
pub mod kernel;
#[doc(hidden)]
pub mod note;
#[cfg(not(luo_kernel))]
pub mod ops;
pub mod pairs;
mod panics;
#[cfg(not(luo_kernel))]
pub mod plugin;
#[cfg(any(feature = "std", luo_kernel))]
pub mod record;
pub mod registry;
#[cfg(any(feature = "std", luo_kernel))]
pub mod status;
pub mod subsystem;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod token;

#[cfg(any(feature = "std", luo_kernel))]
pub use checksum::crc32c;
pub use compatible::{Compatible, InvalidCompatible, COMPATIBLE_LENGTH};
pub use errno::Errno;
pub use file::{FileRef, OwnedFile, RawFile, NO_FILE};
pub use handler::{Crossed, FileHandler, Hosts, Prepared, Preserved, Retrieved};
pub use host::{Host, HostServices, REASON_MAX};
#[cfg(not(luo_kernel))]
pub use ops::{HandlerOps, InvalidHandler, InvalidReason, SubsystemOps, ABI_VERSION};
pub use pairs::Pairs;
pub use subsystem::{NeededBy, Subsystem};
pub use text::Text;
pub use token::{InvalidToken, Token};

/// What the macros need from this crate's dependencies.
#[doc(hidden)]
pub mod __private {
    #[cfg(feature = "inventory")]
    pub use inventory;
    #[cfg(feature = "linkme")]
    pub use linkme;
}
