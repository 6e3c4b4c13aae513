// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo bench` with settings of a host that only root may change, and that hold for all programs:
//! the cases are what they are called, or are skipped with the reason.

use std::fs;

use anyhow::{ensure, Context, Result};

use crate::guest::programs::program;
use crate::tests::held_open::HeldOpen;
use luo_bench::report::Report;
use luo_bench::subject::pages::Pages;

const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";
const OVERCOMMIT_RATIO: &str = "/proc/sys/vm/overcommit_ratio";
const REPORT: &str = "/tmp/settings.json";

fn set(file: &str, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("writing {value} to {file}"))
}

/// What a bench reports that verifies all that it measures.
fn bench(workloads: &str) -> Result<Report> {
    let options = format!("bench --runs 1 --json {REPORT} {workloads}");
    let status = program("/bin/luo", &options.split(' ').collect::<Vec<_>>()).status();
    let status = status.context("starting luo bench")?;
    ensure!(status.success(), "luo bench ended with {status}");
    let report = fs::read(REPORT).with_context(|| format!("reading {REPORT}"))?;
    let report: Report = serde_json::from_slice(&report).context("the report is garbled")?;
    for row in &report.results {
        ensure!(row.verified, "{}: {:?}", row.case, row.mismatch);
    }
    Ok(report)
}

pub(crate) fn bench_with_each(_held: &mut HeldOpen) -> Result<()> {
    shmem_huge_pages()?;
    strict_overcommit()
}

/// Base pages are base pages, and huge pages huge, whatever the setting gives to those who do not
/// ask.
fn shmem_huge_pages() -> Result<()> {
    for setting in ["always", "within_size", "advise", "never"] {
        set(SHMEM, setting)?;
        let workloads = "--size 4M --pages 4k,thp --fill sparse:50%";
        // With exec the memfds that were made are those that are compared.
        let report = bench(&format!("--transport image {workloads}"))?;
        let cases = 2;
        let skipped = if setting == "never" { cases / 2 } else { 0 };
        ensure!(
            report.skipped.len() == skipped && report.results.len() == cases - skipped,
            "{setting}: {} rows, and skipped are {:?}",
            report.results.len(),
            report.skipped
        );
        for row in &report.results {
            let expected = match row.case.pages {
                Some(Pages::Thp) => row.data_bytes,
                _ => 0,
            };
            ensure!(
                row.huge_page_bytes == Some(expected),
                "{setting}: {}: {:?} bytes lay in huge pages, expected {expected}",
                row.case,
                row.huge_page_bytes
            );
        }
    }
    Ok(())
}

/// A kernel that promises no more memory than there is.
fn strict_overcommit() -> Result<()> {
    set(OVERCOMMIT_RATIO, "8")?;
    set(OVERCOMMIT, "2")?;
    let report = bench("--transport exec --size 1M,1G --fill dense")?;
    set(OVERCOMMIT, "0")?;
    let reasons: Vec<&str> = report.skipped.iter().map(|case| &*case.reason).collect();
    ensure!(
        report.results.len() == 1 && reasons.len() == 1 && reasons[0].contains("of memory"),
        "{} rows, and the reasons for those that are skipped are {reasons:?}",
        report.results.len()
    );
    Ok(())
}
