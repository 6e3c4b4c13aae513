// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Two implementations that were measured in turn, against each other.

use bytesize::ByteSize;

use crate::case::Implementation;
use crate::format::duration;
use crate::phase::Phase;
use crate::report::{Report, Row};
use crate::spread::Spread;

/// Ours against the peer's, a line for each case that both were measured with.
pub fn comparison(report: &Report) -> Vec<String> {
    let pairs = report
        .results
        .iter()
        .filter_map(|ours| Some((ours, peer_of(ours, report)?)));
    pairs.map(|(ours, theirs)| compare(ours, theirs)).collect()
}

/// The peer's row of the same case.
pub fn peer_of<'r>(ours: &Row, report: &'r Report) -> Option<&'r Row> {
    report.results.iter().find(|theirs| is_pair(ours, theirs))
}

fn is_pair(ours: &Row, theirs: &Row) -> bool {
    let case = |row: &Row| {
        let case = &row.case;
        (
            case.transport,
            case.size_bytes,
            case.pages,
            case.fill,
            case.files,
        )
    };
    theirs.case.implementation == Implementation::MainlineC
        && ours.case.implementation == Implementation::Ours
        && case(ours) == case(theirs)
}

fn compare(ours: &Row, theirs: &Row) -> String {
    let phases = [Phase::Prepare, Phase::Blackout, Phase::Retrieve].map(|phase| {
        let (ours, theirs) = (&ours.phases[phase], &theirs.phases[phase]);
        against(phase.name(), ours, theirs)
    });
    format!(
        "{}, ours against {}: {}; {}; memory taken by prepare {} against {}",
        ours.name(),
        theirs.case.implementation,
        against("downtime", &ours.downtime_ns, &theirs.downtime_ns),
        phases.join("; "),
        ByteSize(ours.extra_memory_bytes),
        ByteSize(theirs.extra_memory_bytes),
    )
}

fn against(name: &str, ours: &Spread, theirs: &Spread) -> String {
    format!(
        "{name} {} against {}, {}",
        duration(ours.median),
        duration(theirs.median),
        ratio(ours, theirs)
    )
}

/// How many times as fast: by the medians, and between the runs that are worst and best for us.
fn ratio(ours: &Spread, theirs: &Spread) -> String {
    match theirs.times(ours).filter(|_| theirs.min > 0) {
        Some([times, worst, best]) => format!("{times:.2} times as fast ({worst:.2}–{best:.2})"),
        None => "not measured in every run".to_owned(),
    }
}
