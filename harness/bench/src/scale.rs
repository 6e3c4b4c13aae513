// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! How costs grow: with the size of a memfd, and with the number of files that have the same bytes
//! together.

use bytesize::ByteSize;

use crate::format::duration;
use crate::phase::Phase;
use crate::plan::Set;
use crate::report::{Report, Row};
use crate::spread::Spread;

/// The phases that a handler's work is in.
pub const PHASES: [Phase; 3] = [Phase::Prepare, Phase::Blackout, Phase::Retrieve];
/// With fewer sizes nothing is told about growth.
const SIZES_MIN: usize = 4;
const SIZES: [u64; 7] = [
    256 << 20,
    512 << 20,
    1 << 30,
    2 << 30,
    4 << 30,
    8 << 30,
    12 << 30,
];
/// The same bytes in one file and in many.
const ONE: Set = Set {
    files: 1,
    size: 1000 << 20,
};
const MANY: Set = Set {
    files: 1000,
    size: 1 << 20,
};

/// The sizes that show how costs grow on a machine with so much memory: up to two thirds of it.
pub fn sizes(memory: u64) -> Vec<u64> {
    let room = memory / 3 * 2;
    SIZES.into_iter().filter(|size| *size <= room).collect()
}

/// The files that show what their number costs.
pub const fn sets() -> [Set; 2] {
    [ONE, MANY]
}

/// Rows of one file each that differ in nothing but the size, where there are enough of them.
pub fn series(report: &Report) -> Vec<Vec<&Row>> {
    let mut all: Vec<Vec<&Row>> = Vec::new();
    let single = |row: &&Row| row.case.files == 1 && row.case.kind().is_some();
    for row in report.results.iter().filter(single) {
        let is_mine = |series: &&mut Vec<&Row>| {
            let other = series[0];
            other.way() == row.way() && other.case.kind() == row.case.kind()
        };
        match all.iter_mut().find(is_mine) {
            Some(series) => series.push(row),
            None => all.push(vec![row]),
        }
    }
    all.retain(|series| series.len() >= SIZES_MIN);
    all
}

/// A time for each GiB of data.
pub fn per_gib(time: &Spread, row: &Row) -> Spread {
    let each = |ns: u64| (ns as f64 / row.gib().max(f64::MIN_POSITIVE)) as u64;
    Spread::of(time.samples.iter().map(|&ns| each(ns)))
}

/// How costs grow with the size, and with the number of files, as far as that was measured.
pub fn sentences(report: &Report) -> Vec<String> {
    let growth = series(report).into_iter().filter_map(|rows| growth(&rows));
    let many = report
        .results
        .iter()
        .filter_map(|row| against_one(row, report));
    growth.chain(many).collect()
}

fn growth(rows: &[&Row]) -> Option<String> {
    let first = rows.iter().min_by_key(|row| row.case.size_bytes)?;
    let last = rows.iter().max_by_key(|row| row.case.size_bytes)?;
    let (fill, pages) = first.case.kind()?;
    let phases = PHASES.iter().filter_map(|&phase| {
        let points = rows
            .iter()
            .map(|row| (row.gib(), row.phases[phase].median as f64));
        let line = Line::through(&points.collect::<Vec<_>>())?;
        Some(format!("{} {line}", phase.name()))
    });
    Some(format!(
        "{} {pages} {fill} from {} to {}: {}.",
        first.way(),
        ByteSize(first.case.size_bytes),
        ByteSize(last.case.size_bytes),
        phases.collect::<Vec<_>>().join("; ")
    ))
}

/// Many files against one that holds as much.
fn against_one(many: &Row, report: &Report) -> Option<String> {
    let is_one = |row: &&Row| {
        let bytes = many.case.size_bytes * u64::from(many.case.files);
        let same_kind = row.way() == many.way() && row.case.kind() == many.case.kind();
        same_kind && row.case.files == 1 && row.case.size_bytes == bytes
    };
    let one = (many.case.files > 1).then(|| report.results.iter().find(is_one))??;
    let phases = PHASES.iter().map(|&phase| {
        let (many, one) = (&many.phases[phase], &one.phases[phase]);
        let ratio = many.median as f64 / one.median.max(1) as f64;
        format!(
            "{} {ratio:.2} times ({} against {})",
            phase.name(),
            duration(many.median),
            duration(one.median)
        )
    });
    Some(format!(
        "{} against {}: {}.",
        many.case,
        one.case.files(),
        phases.collect::<Vec<_>>().join("; ")
    ))
}

/// The straight line that comes nearest to some points, each by its own measure.
#[derive(Debug)]
struct Line {
    /// In nanoseconds.
    at_zero: f64,
    /// Likewise, for each GiB.
    slope: f64,
    /// How far the furthest point is off, as a share of the line.
    off: f64,
}

impl Line {
    /// Least squares of the relative distances: 10 % off counts as much at any size.
    fn through(points: &[(f64, f64)]) -> Option<Self> {
        if points.iter().any(|(_, y)| *y <= 0.0) {
            return None;
        }
        let sum = |of: fn(f64, f64) -> f64| -> f64 {
            points.iter().map(|&(x, y)| of(x, y) / (y * y)).sum()
        };
        let (n, x, y) = (sum(|_, _| 1.0), sum(|x, _| x), sum(|_, y| y));
        let (xx, xy) = (sum(|x, _| x * x), sum(|x, y| x * y));
        let determinant = n * xx - x * x;
        if determinant <= 0.0 {
            return None;
        }
        let slope = (n * xy - x * y) / determinant;
        let at_zero = (y - slope * x) / n;
        let off = points
            .iter()
            .map(|&(x, y)| (y / (at_zero + slope * x) - 1.0).abs());
        Some(Self {
            at_zero,
            slope,
            off: off.fold(0.0, f64::max),
        })
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = |ns: f64| {
            let sign = if ns < 0.0 { "-" } else { "" };
            format!("{sign}{}", duration(ns.abs() as u64))
        };
        write!(
            f,
            "{} a GiB and {} at any size, at most {:.0} % off",
            time(self.slope),
            time(self.at_zero),
            self.off * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Case, Implementation};
    use crate::outcome::Outcome;
    use crate::subject::fill::Fill;
    use crate::subject::pages::Pages;
    use crate::subject::Subject;
    use crate::text::tests::report;
    use crate::transport::Transport;

    fn row(set: Set, prepare: u64) -> Row {
        let case = Case {
            transport: Transport::Kexec,
            subject: Subject::Memfd {
                size: set.size,
                pages: Pages::Base,
                fill: Fill::Dense,
            },
            files: set.files,
        };
        let mut outcome = Outcome {
            data_bytes: set.size * u64::from(set.files),
            ..Outcome::default()
        };
        outcome.phases[Phase::Prepare] = prepare;
        Row::new(&case, Implementation::Ours, &[outcome])
    }

    #[test]
    fn a_line_goes_through_points_that_lie_on_one() {
        let line = Line::through(&[(0.25, 30.0), (1.0, 60.0), (4.0, 180.0)]).unwrap();
        assert!((line.slope - 40.0).abs() < 1e-6 && (line.at_zero - 20.0).abs() < 1e-6);
        assert!(line.off < 1e-6, "{line:?}");
        let line = Line::through(&[(1.0, 100.0), (2.0, 200.0), (4.0, 480.0)]).unwrap();
        assert!((0.05..0.2).contains(&line.off), "{line:?}");
        assert!(Line::through(&[(1.0, 100.0), (1.0, 200.0)]).is_none());
        assert!(Line::through(&[(1.0, 0.0), (2.0, 1.0)]).is_none());
    }

    #[test]
    fn growth_takes_four_sizes_and_many_files_their_like() {
        let mut report = report();
        assert!(sentences(&report).is_empty());
        let one = |size| Set { files: 1, size };
        let sizes = sizes(6 << 30);
        assert_eq!(sizes.last(), Some(&(4 << 30)));
        for &size in &sizes {
            report.results.push(row(one(size), size >> 10));
        }
        report.results.push(row(ONE, 1000 << 10));
        report.results.push(row(MANY, 1200 << 10));
        let [growth, many] = &sentences(&report)[..] else {
            panic!("{:?}", sentences(&report));
        };
        assert!(growth.starts_with("kexec 4k dense from 256.0 MiB to 4.0 GiB: prepare 1.05 ms"));
        assert!(growth.contains("at most 0 % off"), "{growth}");
        assert!(many.contains("x1000 against 1000.0 MiB 4k dense: prepare 1.20 times"));
        let per_gib = per_gib(
            &report.results[20].phases[Phase::Prepare],
            &report.results[20],
        );
        assert_eq!(per_gib.median, 1 << 20);
    }
}
