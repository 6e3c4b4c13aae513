// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A series of measured live updates, from kernel to kernel.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::event::Event;
use crate::guest::next_kernel::load_next;
use crate::guest::reporter::Reporter;
use crate::job::{next_stage, value_of};
use crate::vm::accel::Accel;
use luo_bench::environment::{cpuinfo, Environment};
use luo_bench::journey::Journey;
use luo_bench::series::Series;
use luo_liveupdate::kexec::with_parameters;

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
            let next = with_parameters(&next, &tsc_frequency(command_line)?);
            // A guest makes one step of it, and leaves no note.
            Journey::new(series, &next, PathBuf::new(), ())
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

/// An emulated timer often is too late for a kernel to find out by it how fast the time stamp
/// counter runs. Then it tries again, for up to a second: a blackout would depend on luck. So the
/// next kernels use what this one has found. Whatever is not emulated has better ways.
fn tsc_frequency(command_line: &str) -> Result<String> {
    if value_of(command_line, "luo.accel") != Some(Accel::Tcg.name()) {
        return Ok(String::new());
    }
    let mhz = cpuinfo("cpu MHz").unwrap_or_default();
    let khz = parse_khz(&mhz).with_context(|| format!("a processor of {mhz:?} MHz"))?;
    Ok(format!("tsc_early_khz={khz}"))
}

/// Without frequency scaling, as in a guest, a processor runs at the speed of its counter.
fn parse_khz(mhz: &str) -> Option<u64> {
    let khz = mhz.parse::<f64>().ok()? * 1000.0;
    (khz >= 1.0).then_some(khz.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequency_is_read() {
        assert_eq!(parse_khz("2596.115"), Some(2_596_115));
        for garbled in ["", "unknown", "0.000", "-1", "nan"] {
            assert_eq!(parse_khz(garbled), None, "{garbled}");
        }
    }
}
