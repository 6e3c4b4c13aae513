// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Records which kernel preserved the files, and how many live updates they have crossed.
//!
//! The smallest honest subsystem: it crosses with the first file of any handler, and is finished
//! with the last. After a kexec, `luo_subsystems/lineage` in debugfs shows what came in, until that
//! is finished:
//!
//! ```text
//! preserved_by 7.3.4
//! live_updates 2
//! ```
//!
//! A program takes it in with `use luo_handler_lineage as _;`:
//!
//! ```
//! use luo_handler_api::registry::registered_subsystems;
//! use luo_handler_lineage as _; // without this line the linker drops it
//!
//! assert!(registered_subsystems().any(|ops| ops.origin() == "luo_handler_lineage"));
//! ```
//!
//! # Map
//!
//! - [`record`]: the `u64` that crosses
//! - [`lineage`]: the subsystem, [`Lineage`]
//! - `user` and `kernel`: which kernel this is, as a process and as the kernel know it

#[cfg(luo_kernel)]
mod kernel;
pub mod lineage;
pub mod record;
#[cfg(not(luo_kernel))]
mod user;

#[cfg(luo_kernel)]
pub use kernel::LINEAGE;
pub use lineage::Lineage;
pub use record::{LineageRecord, Release};
#[cfg(not(luo_kernel))]
pub use user::LINEAGE;
