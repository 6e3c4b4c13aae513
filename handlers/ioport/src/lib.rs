// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Keeps an open `/dev/port` alive across a live update.
//!
//! The smallest honest handler: all that makes such a file fits into the `u64` that crosses, so there
//! is no memory to keep and nothing to give back. Whoever writes a handler can begin here.
//!
//! ```
//! use luo_handler_api::registry::registered_handlers;
//! use luo_handler_ioport as _; // without this line the linker drops the handler
//!
//! assert!(registered_handlers().any(|ops| ops.origin() == "luo_handler_ioport"));
//! ```
//!
//! # Map
//!
//! - [`record`]: the `u64` that crosses, and the checks it passes before it is used
//! - [`handler`]: the policy, [`IoportHandler`], the same in a process and in the kernel
//! - `backend`: what the policy asks of its surroundings; `user`: the answers of a process;
//!   `kernel`: those of the kernel
//!
//! # What is preserved, and what is not
//!
//! The position, which is the port that is read or written next; the access mode; the status flags of
//! [`luo_handler_api::status`]. Not what the devices behind the ports do meanwhile, and not
//! `FD_CLOEXEC`, which belongs to the descriptor.
//!
//! # Trust
//!
//! The file is opened anew, by its device number and never by what a name leads to, with the rights
//! of whoever retrieves it: without `CAP_SYS_RAWIO` that is `EPERM`. The worst a forged `u64` can do
//! is to name another port, another access mode or another flag, all of which whoever may open the
//! device can choose anyway.

mod backend;
pub mod handler;
#[cfg(luo_kernel)]
mod kernel;
pub mod record;
#[cfg(not(luo_kernel))]
mod user;

pub use backend::PortBackend;
pub use handler::IoportHandler;
#[cfg(luo_kernel)]
pub use kernel::{KernelBackend, IOPORT};
pub use record::Record;
#[cfg(not(luo_kernel))]
pub use user::{UserBackend, IOPORT};
