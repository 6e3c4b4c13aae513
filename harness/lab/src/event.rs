// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a guest reports to the host: events, on its second serial port.

use serde::{Deserialize, Serialize};

use crate::systemd::found::Found;
use luo_bench::counters::Shares;
use luo_bench::environment::Environment;
use luo_bench::outcome::Outcome;

/// What a guest reports, one line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// It runs.
    Ready,
    /// A stage begins.
    Stage { stage: usize },
    /// A stage did what it should; the guest jumps to the next or ends.
    Passed {
        stage: usize,
        seconds: f64,
        ours: Shares,
    },
    /// One half of a case is done, well unless there is a problem.
    Case {
        name: String,
        problem: Option<String>,
    },
    /// The guest gives up.
    Failed { reason: String },
    /// The command ended.
    Exit { code: u8 },
    /// Where figures come from.
    Environment { environment: Box<Environment> },
    /// What the services find next, this has brought about.
    Step { name: String },
    /// A service found what it stored before.
    Found { service: Found },
    /// A kexec that systemd made: from the command to the services of the next kernel.
    Jumped { seconds: f64 },
    /// A live update was measured.
    Measured { outcome: Box<Outcome> },
}

/// The events of a run; a line that is cut off or garbled is skipped.
pub(crate) fn parse_events(text: &str) -> Vec<Event> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line.trim()).ok())
        .collect()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_cut_line_costs_only_its_event() {
        let text = "{\"event\":\"ready\"}\r\n{\"event\":\"stage\",\"stage\":1}\n{\"event\":\"pas";
        assert!(matches!(
            parse_events(text)[..],
            [Event::Ready, Event::Stage { stage: 1 }]
        ));
    }
}
