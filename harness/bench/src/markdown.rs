// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The report as a table in Markdown, to be put into documentation: the conditions, and a row for
//! each case, ours against the peer's where both were measured.

use bytesize::ByteSize;

use crate::case::Implementation;
use crate::comparison::peer_of;
use crate::format::duration;
use crate::phase::Phase;
use crate::report::{Report, Row};
use crate::spread::Spread;
use crate::text::place;

/// The conditions and the table.
pub fn page(report: &Report) -> String {
    let runs = report.results.iter().map(|row| row.runs).max().unwrap_or(0);
    let mut lines = vec![format!("Medians of {runs} runs. {}", place(report))];
    let is_compared = report
        .results
        .iter()
        .any(|row| peer_of(row, report).is_some());
    if is_compared {
        let remark = "Ours/the kernel's own handler = ratio (least–greatest of single runs).";
        lines.push(remark.to_owned());
    }
    lines.push(String::new());
    lines.push(
        "| files | prepare | blackout | retrieve | downtime | memory taken | metadata |".to_owned(),
    );
    lines.push("|---|---|---|---|---|---|---|".to_owned());
    let ours = |row: &&Row| row.case.implementation == Implementation::Ours;
    for row in report.results.iter().filter(ours) {
        let peer = peer_of(row, report);
        let time = |of: fn(&Row) -> &Spread| times(of(row), peer.map(of));
        let bytes = |of: fn(&Row) -> u64| sizes(of(row), peer.map(of));
        lines.push(format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.case,
            time(|row| &row.phases[Phase::Prepare]),
            time(|row| &row.phases[Phase::Blackout]),
            time(|row| &row.phases[Phase::Retrieve]),
            time(|row| &row.downtime_ns),
            bytes(|row| row.extra_memory_bytes),
            bytes(|row| row.metadata_bytes),
        ));
    }
    lines.join("\n") + "\n"
}

fn times(ours: &Spread, theirs: Option<&Spread>) -> String {
    let Some(theirs) = theirs else {
        return duration(ours.median);
    };
    let medians = format!("{} / {}", duration(ours.median), duration(theirs.median));
    match ours.times(theirs) {
        Some([ratio, least, greatest]) => {
            format!("{medians} = **{ratio:.2}** ({least:.2}–{greatest:.2})")
        }
        None => medians,
    }
}

fn sizes(ours: u64, theirs: Option<u64>) -> String {
    match theirs {
        None => ByteSize(ours).to_string(),
        Some(0) => format!("{} / 0 B", ByteSize(ours)),
        Some(theirs) => format!(
            "{} / {} = **{:.2}**",
            ByteSize(ours),
            ByteSize(theirs),
            ours as f64 / theirs as f64
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::report;

    #[test]
    fn a_row_has_ours_against_the_peers() {
        let mut report = report();
        report.results.truncate(2);
        let page_without = page(&report);
        assert!(!page_without.contains("own handler"), "{page_without}");
        assert_eq!(page_without.lines().count(), 1 + 1 + 2 + 2);

        let mut theirs = report.results[0].clone();
        theirs.case.implementation = Implementation::MainlineC;
        theirs.case.handler = "memfd-v2".to_owned();
        let twice = theirs.downtime_ns.samples.iter().map(|ns| ns * 2);
        theirs.downtime_ns = Spread::of(twice);
        theirs.metadata_bytes = 16;
        report.results.insert(1, theirs);
        let page = page(&report);
        assert!(page.contains("own handler"), "{page}");
        assert!(page.contains("= **0.50** (0.17–1.50)"), "{page}");
        assert!(page.contains("0 B / 16 B = **0.00**"), "{page}");
        assert_eq!(page.lines().count(), 2 + 1 + 2 + 2);
    }
}
