// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Preserves an open `/dev/port` across a live update.
//!
//! The smallest honest handler: all that makes such a file fits into the `u64` that crosses, so no
//! memory has to be preserved and nothing given back. The author of a handler can begin here.
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
//! # Line by line
//!
//! To write the next one, take these files in this order; the names of modules are those of all
//! handlers.
//!
//! 1. **What crosses** is [`PortRecord`]: the least that makes the file again, as plain numbers
//!    whose layout is the same everywhere. `is_possible` checks that a real file can have these
//!    values, and `from_u64` refuses all others: the previous side is not trusted. Where the state
//!    does not fit the `u64`, the record is bytes that the host preserves, and the `u64` is their
//!    handle: [`luo_handler_api::record`].
//! 2. **The policy** is [`IoportHandler`], the implementation of
//!    [`FileHandler`](luo_handler_api::FileHandler). `COMPATIBLE` names the format: change the
//!    layout, change the name. `can_preserve` is asked of every file that anybody offers, so it
//!    only looks. `prepare` yields the record, and as nothing has to be undone, no private state:
//!    `Private` is `()` and `cancel` is empty. `freeze` looks again, because the workload went on
//!    after prepare. `retrieve` checks before it opens, and `refuse` reports why it does not.
//!    `finish` has nothing to release. `describe` lets programs that do not know the handler show
//!    its record.
//! 3. **What the policy needs of its surroundings** is [`PortBackend`], no more than three
//!    questions. The tests answer them from memory, and call `testing::conformance` of the api,
//!    which drives a handler through all that a host may do with it.
//! 4. **The answers** are in `user`, with std and rustix, and in `kernel`, with a function of C for
//!    each thing that Rust cannot express there. Each registers the handler with its own backend.
//! 5. **Into the kernel:** those functions are `kmod/luo_shim_ioport.c` of this crate; the switch
//!    in its `kmod/Kconfig` does the rest. Into a program: `use luo_handler_ioport as _;`.
//!
//! What each call may do, under which locks, and who owns what it preserves: the page *contract* of
//! `luo-handler-api`.
//!
//! # What is preserved, and what is not
//!
//! The position, which is the port that is read or written next; the access mode; the status flags
//! of [`luo_handler_api::status`]. Not what the devices at the ports do meanwhile, and not
//! `FD_CLOEXEC`, which belongs to the descriptor.
//!
//! # Trust
//!
//! The file is opened again, with the rights of the process that retrieves it: without
//! `CAP_SYS_RAWIO` that is `EPERM`. The kernel opens it by its device number; a process has to go
//! by the name, and closes again what is not the device. The worst a forged `u64` can do is to name
//! another port, another access mode or another flag, which anyone who may open the device can
//! choose anyway.

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
pub use record::PortRecord;
#[cfg(not(luo_kernel))]
pub use user::{UserBackend, IOPORT};
