// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel lab: builds kernels with the handlers in them, boots them in QEMU, tests live updates
//! over real kexecs.
//!
//! ```no_run
//! use luo_lab::build::{options::BuildOptions, pipeline::build};
//! use luo_lab::cache::directory::Cache;
//! use luo_lab::run::tests::{run_tests, Selected};
//! use luo_lab::vm::options::GuestOptions;
//!
//! let cache = Cache::open()?; // ~/.cache/luo-lab
//! let built = build(&cache, &BuildOptions::default())?;
//! let all = Selected::default();
//! let summary = run_tests(&cache, &built, &GuestOptions::default(), &all, &mut |result| {
//!     println!("{result}")
//! })?;
//! println!("{summary}");
//! # anyhow::Ok(())
//! ```
//!
//! The program that runs in the guest is the one that `build` finds in the checkout, `luo`: its
//! `luo lab guest-init` calls [`init::entry::run`].
//!
//! # Map
//!
//! On the host, from nothing to a result:
//!
//! - [`cache`]: what is there, what is up to date, how long it took; [`status`] reports it
//! - [`build`]: Debian's toolchain, the kernel source, configuration, image, selftests, initramfs;
//!   [`integrate`] puts the handlers into the source
//! - [`vm`]: the virtual machine's board and accelerator, one bounded run of a guest
//! - [`run`]: tests and how they ended, a command, a shell, a series of measurements, a soak,
//!   services of systemd
//!
//! On both sides: `job` is what the guest is to do, `event` what it reports, `archive` the
//! initramfs that it was booted with and puts together again for its next kernel. [`tests`] is the
//! table of tests, each with a file for what its kernels do; [`soak`] makes random updates from a
//! seed.
//!
//! - [`stick`]: the image of a stick that measures real machines, its init, and its test
//!
//! In the guest:
//!
//! - [`init`]: the init process: one stage of a job, then the jump to the next
//! - [`systemd`]: instead of it systemd, with services that store files
//! - `guest`: what that needs of its machine
//!
//! `sys` is the only place with unsafe code.

#![deny(unsafe_code)]

mod archive;
pub mod build;
pub mod cache;
mod event;
mod guest;
pub mod init;
pub mod integrate;
mod job;
mod namespace;
pub mod run;
pub mod soak;
pub mod status;
pub mod stick;
mod sys;
pub mod systemd;
pub mod tests;
mod units;
pub mod vm;
