// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What our handlers did in tests, by their own counters.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::Table;

use crate::event::Event;
use crate::vm::qemu::GuestRun;
use luo_bench::counters::{self, Share, Shares};

/// What our handlers did in tests, by their own counters.
#[derive(Debug, Default)]
pub(crate) struct Crossed {
    pub(crate) kernels: u64,
    shares: Shares,
}

impl Crossed {
    pub(crate) fn add(&mut self, run: &GuestRun) {
        for event in &run.events {
            if let Event::Passed { ours, .. } = event {
                self.kernels += 1;
                for (name, share) in ours {
                    *self.shares.entry(name.clone()).or_default() += *share;
                }
            }
        }
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header(["handler", "files prepared", "files retrieved"]);
        for (name, share) in &self.shares {
            let counts = [share.prepared, share.retrieved].map(|count| count.to_string());
            table.add_row([name].into_iter().chain(&counts));
        }
        table
    }
}

/// What our handlers did in one test, in words.
pub(crate) fn ours(run: &GuestRun) -> String {
    let mut crossed = Crossed::default();
    crossed.add(run);
    let Share {
        prepared,
        retrieved,
    } = counters::sum(&crossed.shares);
    format!("our handlers prepared {prepared} and retrieved {retrieved} files")
}
