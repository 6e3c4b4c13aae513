// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What collapsing pages before an update costs the workload, and what it wins.

use std::io;

use bytesize::ByteSize;

use crate::format::duration;
use crate::phase::Phase;
use crate::report::{CollapseRow, Report, Row};
use crate::subject::pages::Pages;

/// A line for each case that was measured with its pages collapsed.
pub fn trades(report: &Report) -> Vec<String> {
    let rows = report.results.iter();
    let trades = rows.filter_map(|row| {
        let collapse = row.collapse.as_ref()?;
        let plain = report.results.iter().find(|other| is_plain(other, row));
        Some(describe(row, collapse, plain))
    });
    trades.collect()
}

/// Whether `plain` is the same case without that.
fn is_plain(plain: &Row, collapsed: &Row) -> bool {
    let mut case = collapsed.case.clone();
    case.pages = Some(Pages::Base);
    plain.case == case
}

fn describe(row: &Row, collapse: &CollapseRow, plain: Option<&Row>) -> String {
    let mut text = format!(
        "{}: collapsing took {} of the workload's time and put {} of {} into huge pages",
        row.case,
        duration(collapse.collapse_ns.median),
        ByteSize(collapse.collapsed_bytes),
        ByteSize(row.data_bytes),
    );
    if collapse.asked_bytes < row.data_bytes {
        let left = ByteSize(row.data_bytes - collapse.asked_bytes);
        text += &format!(" ({left} are not in whole blocks)");
    }
    for refused in &collapse.refused {
        let reason = io::Error::from_raw_os_error(refused.errno);
        text += &format!("; the kernel refused {}: {reason}", ByteSize(refused.bytes));
    }
    if let Some(plain) = plain {
        let instead = |name: &str, with: u64, without: u64| {
            format!(
                "; {name} {} instead of {}",
                duration(with),
                duration(without)
            )
        };
        let (with, without) = (&row.downtime_ns, &plain.downtime_ns);
        text += &instead("downtime", with.median, without.median);
        for phase in [Phase::Prepare, Phase::Blackout, Phase::Retrieve] {
            let (with, without) = (&row.phases[phase], &plain.phases[phase]);
            text += &instead(phase.name(), with.median, without.median);
        }
    }
    text + "."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Case, Implementation};
    use crate::outcome::{Collapse, Outcome, RefusedBlocks};
    use crate::subject::fill::Fill;
    use crate::subject::Subject;
    use crate::text::tests::report;
    use crate::transport::Transport;

    fn row(pages: Pages, milliseconds: u64) -> Row {
        let case = Case {
            transport: Transport::Exec,
            subject: Subject::Memfd {
                size: 8 << 20,
                pages,
                fill: Fill::Dense,
            },
            files: 1,
        };
        let mut outcome = Outcome {
            data_bytes: 8 << 20,
            ..Outcome::default()
        };
        outcome.phases[Phase::Retrieve] = milliseconds * 1_000_000;
        if pages == Pages::Collapsed {
            outcome.collapse = Some(Collapse {
                nanoseconds: 3_000_000,
                asked_bytes: 8 << 20,
                collapsed_bytes: 6 << 20,
                refused: vec![RefusedBlocks {
                    errno: libc::EAGAIN,
                    bytes: 2 << 20,
                }],
            });
        }
        Row::new(&case, Implementation::Ours, &[outcome])
    }

    #[test]
    fn a_trade_names_what_was_spent_and_what_was_won() {
        let mut report = report();
        assert!(trades(&report).is_empty());
        report
            .results
            .extend([row(Pages::Base, 100), row(Pages::Collapsed, 1)]);
        let [text] = &trades(&report)[..] else {
            panic!("{:?}", trades(&report));
        };
        for part in [
            "exec 8.0 MiB collapsed dense: collapsing took 3.00 ms",
            "put 6.0 MiB of 8.0 MiB into huge pages",
            "the kernel refused 2.0 MiB",
            "downtime 1.00 ms instead of 100 ms",
            "retrieve 1.00 ms instead of 100 ms",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = serde_json::to_value(report.results.last()).unwrap();
        assert_eq!(json["collapse"]["collapse_ns"]["median"], 3_000_000);
        assert_eq!(json["collapse"]["refused"][0]["errno"], libc::EAGAIN);
    }
}
