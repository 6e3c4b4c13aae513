// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Decides before a live update whether the next kernel can take what is preserved now.
//!
//! ```no_run
//! use luo_check::{image::Image, machine::Machine, verdict::{self, Boot}};
//!
//! let next = Image::open("/boot/vmlinuz-7.3".as_ref())?;
//! let report = verdict::compare(&Machine::read(), &next, &Boot::default());
//! for check in &report.checks {
//!     println!("{}: {}", check.subject, check.text);
//! }
//! assert!(report.can_jump);
//! # Ok::<(), luo_check::image::ImageError>(())
//! ```
//!
//! Images are untrusted: reading any file ends with an answer or an error, and takes no more memory
//! than [`image::LIMIT`] and what a decoder needs.
//!
//! # Map
//!
//! - [`image`]: bzImage, vmlinux and unified kernel images, and what they hold; `decoder`: their
//!   compressions, bounded; `elf`: notes and data
//! - [`facts`]: what a kernel can take, from its notes or guessed
//! - [`machine`]: what is preserved in the running kernel, and what room there is
//! - [`verdict`]: both compared

#![forbid(unsafe_code)]

mod decoder;
mod elf;
pub mod error;
pub mod facts;
pub mod image;
pub mod machine;
pub mod verdict;
