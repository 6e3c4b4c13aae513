// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A typed client of `/dev/liveupdate`, the kernel's Live Update Orchestrator, and of the kexec
//! that follows.
//!
//! Mirrors [`include/uapi/linux/liveupdate.h`](https://docs.kernel.org/userspace-api/liveupdate.html).
//!
//! ```no_run
//! # fn example(memfd: std::os::fd::BorrowedFd) -> Result<(), luo_liveupdate::Error> {
//! use luo_handler_api::Token;
//! use luo_liveupdate::Device;
//!
//! let session = Device::open()?.create_session("my-workload")?;
//! session.preserve(Token(0x1), memfd)?;
//! // The session lives as long as its descriptor: hold it open over the kexec. In the next kernel:
//! let session = Device::open()?.retrieve_session("my-workload")?;
//! let memfd = session.retrieve(Token(0x1))?;
//! session.finish()?;
//! # Ok(()) }
//! ```
//!
//! # Map
//!
//! - [`device`]: the device and its sessions
//! - [`sessions`]: what all sessions hold
//! - [`kexec`]: loads the next kernel and jumps into it
//! - `sys`: the system calls that no library wraps

pub mod device;
pub mod kexec;
pub mod sessions;
mod sys;

pub use device::{is_available, Device, Error, Session, DEVICE_PATH, SESSION_NAME_MAX};
