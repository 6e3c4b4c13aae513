// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The `luo` command as a library, so that a program with more handlers can be a `luo` too:
//!
//! ```no_run
//! use luo_handler_memfd as _; // names each handler crate, or the linker drops it
//!
//! fn main() -> std::process::ExitCode {
//!     luo_cli::cli::main()
//! }
//! ```
//!
//! # Map
//!
//! - [`cli`]: the command line
//! - [`mod@bench`]: measures; [`bench_arguments`]: what may be asked of a measurement
//! - [`check`]: whether the next kernel can take what is preserved
//! - [`integrate`]: the handlers into a kernel tree
//! - [`lab`]: the kernel lab
//! - [`mod@new`]: the crate of a new handler
//! - `manual`: man pages and completions
//! - [`inspect`]: prints what a handover holds
//! - [`session`]: sessions of the running kernel; [`descriptor`]: open files of processes

pub mod bench;
pub mod bench_arguments;
pub mod check;
pub mod cli;
pub mod descriptor;
pub mod inspect;
pub mod integrate;
pub mod lab;
mod manual;
pub mod new;
pub mod session;
mod sys;
mod table;
