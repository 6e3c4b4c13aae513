// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A series of measured live updates, from kernel to kernel.

use std::path::Path;

use anyhow::{Context, Result};

use crate::event::Event;
use crate::guest::next_kernel::load_next;
use crate::guest::reporter::Reporter;
use crate::job::next_stage;
use luo_bench::environment::Environment;
use luo_bench::journey::Journey;
use luo_bench::series::Series;

/// On the host: it has to outlast a kernel.
const NOTE: &str = "/results/journey.json";

/// Begins a series of live updates, or goes on with it.
pub(crate) fn measure(
    reporter: &mut Reporter,
    command_line: &str,
    series: Series,
    stage: usize,
) -> Result<()> {
    let mut journey = match stage {
        1 => {
            let environment = Box::new(Environment::of_this_machine(Path::new("/")));
            reporter.report(&Event::Environment { environment })?;
            let next = next_stage(command_line, 2, "", "");
            Journey::new(series, &next, NOTE.into(), ())
        }
        _ => Journey::arrived()?.context("nothing came from the previous kernel")?,
    };
    if let Some((_, outcome)) = journey.news() {
        let outcome = Box::new(outcome.clone());
        reporter.report(&Event::Measured { outcome })?;
    }
    let load = |(): &(), command_line: &str| load_next(command_line);
    while let Some((_, outcome)) = journey.go_on(load)? {
        let outcome = Box::new(outcome);
        reporter.report(&Event::Measured { outcome })?;
    }
    Ok(())
}
