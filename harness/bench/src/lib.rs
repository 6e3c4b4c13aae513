// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Takes files through whole live updates, compares them after the jump, and reports what each
//! phase cost.
//!
//! ```no_run
//! use luo_bench::{measure::measure, plan::Plan, stop::Stop, text, worker::Worker};
//! use luo_handler_memfd as _; // links the handler in, so that the registry finds it
//!
//! // Each update is made by a process of its own: this program, started with one argument.
//! if let Some(task) = std::env::args().nth(1) {
//!     return luo_bench::hosted::work(&task);
//! }
//! let plan = Plan { sizes: vec![64 << 20], ..Plan::default() };
//! let worker = Worker::this_program(&[])?;
//! let report = measure(&plan, &worker, &Stop::default(), &mut |_| ())?;
//! println!("{}", text::table(&report, 80));
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! # Map
//!
//! What is measured:
//!
//! - [`plan`]: combinations; [`case`]: one of them; [`transport`]: the ways over the jump
//! - [`subject`]: files of each type; [`sample`]: one file, with its token
//! - [`phase`]: what is timed; [`outcome`]: what came of one update
//!
//! How:
//!
//! - [`update`]: what all ways have in common: make, retrieve, finish, compare
//! - [`measure`](mod@measure): rounds of updates in ordinary processes; [`hosted`]: both sides of
//!   one; [`worker`] and `message`: how they are started and what they report; [`stop`]: ends it
//!   early
//! - [`obstacle`], [`place`]: what this machine cannot do, and where images go
//! - [`series`], [`journey`]: rounds of updates over real kexecs; [`machine`]: on a real machine
//! - [`profile`]: which functions of the kernel a phase spends its time in
//! - [`clock`]: goes on through the jump; [`memory`]: how much there is; [`counters`]: what the
//!   kernel module reports; `limits`: of this process; `sys`: what needs `unsafe`
//!
//! What comes out:
//!
//! - [`report`]: figures, as JSON of [`spread`]s; [`environment`]: where they were taken
//! - [`text`]: a table and a few sentences; [`html`]: a page with plots; [`markdown`]: a table for
//!   documentation; [`outputs`]: the files
//! - [`scale`]: how costs grow with the size, and with the number of files
//! - [`trade`]: what collapsing pages costs and wins
//! - [`comparison`]: ours against a peer; [`regression`]: against an older report; `format`:
//!   numbers

#![deny(unsafe_code)]

pub mod case;
pub mod clock;
pub mod comparison;
pub mod counters;
pub mod environment;
pub mod format;
pub mod hosted;
pub mod html;
pub mod journey;
mod limits;
pub mod machine;
pub mod markdown;
pub mod measure;
pub mod memory;
mod message;
pub mod obstacle;
pub mod outcome;
pub mod outputs;
pub mod phase;
pub mod place;
pub mod plan;
pub mod profile;
pub mod regression;
mod rehearsal;
pub mod report;
pub mod sample;
pub mod scale;
pub mod series;
pub mod spread;
pub mod stop;
pub mod subject;
mod sys;
pub mod text;
pub mod trade;
pub mod transport;
pub mod update;
pub mod worker;
