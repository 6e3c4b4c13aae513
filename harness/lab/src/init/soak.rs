// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A soak, from kernel to kernel.

use std::time::Instant;

use anyhow::{bail, Context, Result};

use crate::event::Event;
use crate::guest::kmemleak;
use crate::guest::next_kernel::load_next;
use crate::guest::reporter::Reporter;
use crate::job::next_stage;
use crate::soak::options::SoakOptions;
use crate::soak::plan::{updates, Update};
use crate::soak::update::{arrive, depart};
use crate::soak::writer;
use crate::tests::held_open::HeldOpen;
use luo_bench::counters;
use luo_liveupdate::kexec;

/// In each kernel: compares what arrived, makes what departs, jumps. Stages count from 1.
pub(crate) fn soak(
    reporter: &mut Reporter,
    command_line: &str,
    options: SoakOptions,
    stage: usize,
) -> Result<()> {
    reporter.report(&Event::Stage { stage })?;
    let started = Instant::now();
    let index = stage.checked_sub(1).context("stages count from 1")?;
    let mut updates = updates(options);
    let previous = index.checked_sub(1).map(|index| {
        let update = updates.nth(index);
        update.with_context(|| format!("the soak has no update {stage}"))
    });
    let arrived = match previous.transpose()? {
        Some(update) => arrive(&update).with_context(|| format!("after jump {index}"))?,
        None => Vec::new(),
    };
    let departing: Option<Update> = updates.next();
    let mut held = HeldOpen::default();
    let mut writer = None;
    if let Some(update) = &departing {
        load_next(&next_stage(command_line, stage + 1, "", ""))?;
        writer =
            depart(update, arrived, &mut held).with_context(|| format!("before jump {stage}"))?;
    }
    kmemleak::check()?;
    reporter.report(&Event::Passed {
        stage,
        seconds: started.elapsed().as_secs_f64(),
        ours: counters::shares()?,
    })?;
    if let Some(writer) = writer {
        writer::start(writer)?;
    }
    if departing.is_some() {
        bail!("before jump {stage}: {}", kexec::jump());
    }
    Ok(())
}
