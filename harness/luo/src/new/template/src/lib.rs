// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Preserves sample files across a live update.
//!
//! `luo new` wrote this crate. It works as it is, for `/dev/full`: change it step by step into a
//! handler of the files you mean, and keep its tests passing.
//!
//! # Map, in the order of changing it
//!
//! - [`record`]: what crosses, and the checks it passes before it is used
//! - [`backend`]: what the policy asks of its surroundings
//! - `user`: the answers of a process; `kernel` and `kmod/`: those of the kernel
//! - [`handler`]: the policy, the same in a process and in the kernel
//! - `tests/hosted.rs`: conformance, and an exec; `tests/kexec.sh`: a kexec; `fuzz/`: hostile
//!   records
//!
//! # Commands
//!
//! ```text
//! cargo test                                                 # hosted
//! luo lab test --handler . --program tests/kexec.sh          # in the kernel, across kexecs
//! cargo rustc --lib --crate-type cdylib --features plugin    # a plugin: luo handlers --plugin
//! cargo run --release --manifest-path fuzz/Cargo.toml        # with the flags of `make fuzz`
//! ```

pub mod backend;
pub mod handler;
#[cfg(luo_kernel)]
mod kernel;
pub mod record;
#[cfg(not(luo_kernel))]
mod user;

pub use handler::SampleHandler;
#[cfg(luo_kernel)]
pub use kernel::{KernelBackend, SAMPLE};
pub use record::SampleRecord;
#[cfg(not(luo_kernel))]
pub use user::{UserBackend, SAMPLE};

#[cfg(feature = "plugin")]
mod plugin;
