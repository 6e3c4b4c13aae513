// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A report against an older one, case by case: is the downtime longer than it was?
//!
//! A case got slower if its median grew by more than a threshold *and* a rank test finds it
//! unlikely that both come from the same distribution: the one-sided test of Mann and Whitney,
//! exact for few runs. With three runs on each side that takes every new run to be slower than
//! every old one.

use crate::format::duration;
use crate::report::{Report, Row, SCHEMA};
use crate::spread::Spread;

/// A change that is less likely than this by chance alone is taken for real.
pub const SIGNIFICANCE: f64 = 0.05;
/// Samples on each side up to which the test counts all orders.
const EXACT_MAX: usize = 30;

/// How a case changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Beyond the threshold, and not by chance.
    Slower,
    /// Likewise.
    Faster,
    /// Less than the threshold, or too little to rule out chance.
    Same,
}

/// A case in both reports.
#[derive(Clone, Debug)]
pub struct Change {
    /// What was measured.
    pub case: String,
    /// Median of the downtime in the older report, in nanoseconds.
    pub old_ns: u64,
    /// In the newer one.
    pub new_ns: u64,
    /// How likely a difference like this is by chance alone, from 0 to 1.
    pub probability: f64,
    /// What it comes to.
    pub verdict: Verdict,
}

/// Two reports, compared.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Cases in both.
    pub changes: Vec<Change>,
    /// Cases in one of them alone.
    pub unmatched: Vec<String>,
    /// What differs between the machines, if anything.
    pub differences: Vec<String>,
}

/// Compares a report with an older one. The threshold is a share of the older median, 0.1 for 10 %.
///
/// # Errors
///
/// An older report without samples.
pub fn compare(old: &Report, new: &Report, threshold: f64) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    for row in &new.results {
        match old.results.iter().find(|older| older.case == row.case) {
            Some(older) => comparison.changes.push(change(older, row, threshold)),
            None => comparison
                .unmatched
                .push(format!("{}: not in the older report", row.case)),
        }
    }
    for older in &old.results {
        if !new.results.iter().any(|row| row.case == older.case) {
            let unmatched = format!("{}: in the older report alone", older.case);
            comparison.unmatched.push(unmatched);
        }
    }
    anyhow::ensure!(
        !comparison.changes.is_empty(),
        "the two reports have no case in common"
    );
    let (one, other) = (&old.environment, &new.environment);
    for (what, old, new) in [
        ("kernel", &one.kernel, &other.kernel),
        ("processor", &one.cpu, &other.cpu),
        ("hypervisor", &one.accel, &other.accel),
        ("version of luo", &one.luo_version, &other.luo_version),
    ] {
        if old != new {
            let difference = format!("The {what} was {old} and is {new}.");
            comparison.differences.push(difference);
        }
    }
    Ok(comparison)
}

/// Reads an older report.
///
/// # Errors
///
/// What is not a report of this version: older ones have no samples to compare.
pub fn parse(json: &[u8]) -> anyhow::Result<Report> {
    use anyhow::Context;
    let value: serde_json::Value =
        serde_json::from_slice(json).context("it is not a report of luo bench")?;
    let schema = value["schema"].as_u64();
    anyhow::ensure!(
        schema == Some(u64::from(SCHEMA)),
        "it has schema {}, expected {SCHEMA}: measure again with this luo",
        schema.map_or_else(|| "none".to_owned(), |schema| schema.to_string())
    );
    serde_json::from_value(value).context("it is not a report of luo bench")
}

fn change(old: &Row, new: &Row, threshold: f64) -> Change {
    let (before, after) = (&old.downtime_ns, &new.downtime_ns);
    let (old_ns, new_ns) = (before.median as f64, after.median as f64);
    let verdict = |is_beyond: bool, probability: f64, verdict| {
        let is_real = is_beyond && probability <= SIGNIFICANCE;
        is_real.then_some((verdict, probability))
    };
    let slower = probability_of_greater(before, after);
    let faster = probability_of_greater(after, before);
    let changed = verdict(new_ns > old_ns * (1.0 + threshold), slower, Verdict::Slower)
        .or_else(|| verdict(new_ns < old_ns * (1.0 - threshold), faster, Verdict::Faster));
    let (verdict, probability) = changed.unwrap_or((Verdict::Same, slower.min(faster)));
    Change {
        case: new.case.to_string(),
        old_ns: before.median,
        new_ns: after.median,
        probability,
        verdict,
    }
}

impl Comparison {
    /// Whether a case got slower.
    pub fn has_regressed(&self) -> bool {
        let slower = |change: &Change| change.verdict == Verdict::Slower;
        self.changes.iter().any(slower)
    }

    /// A line a case, and what else there is to know.
    pub fn lines(&self) -> Vec<String> {
        let changes = self.changes.iter().map(|change| {
            let percent = match change.old_ns {
                0 => 0.0,
                old => (change.new_ns as f64 / old as f64 - 1.0) * 100.0,
            };
            format!(
                "{}: downtime {} → {} ({percent:+.1} %, p = {:.3}){}",
                change.case,
                duration(change.old_ns),
                duration(change.new_ns),
                change.probability,
                match change.verdict {
                    Verdict::Slower => ": SLOWER",
                    Verdict::Faster => ": faster",
                    Verdict::Same => "",
                }
            )
        });
        let unmatched = self.unmatched.iter().cloned();
        changes
            .chain(unmatched)
            .chain(self.differences.iter().cloned())
            .collect()
    }
}

/// How likely samples of the same distribution differ at least as much in favour of `greater`.
fn probability_of_greater(less: &Spread, greater: &Spread) -> f64 {
    let (less, greater) = (&less.samples, &greater.samples);
    if less.is_empty() || greater.is_empty() {
        return 1.0;
    }
    // Twice the statistic, so that a tie, which counts one half, stays a whole number.
    let twice_u: u64 = greater
        .iter()
        .flat_map(|new| less.iter().map(move |old| new.cmp(old)))
        .map(|order| order as i8 + 1)
        .map(|score| score as u64)
        .sum();
    match less.len().max(greater.len()) <= EXACT_MAX {
        true => exact(less.len(), greater.len(), twice_u),
        false => approximate(less, greater, twice_u),
    }
}

/// The share of all orders of `m + n` different samples whose statistic is at least this. With
/// ties the half is rounded down, which makes a change less likely to be taken for real.
fn exact(m: usize, n: usize, twice_u: u64) -> f64 {
    let least = (twice_u / 2) as usize;
    // Orders of `i` old and `j` new samples by their statistic: the last sample is an old one, or
    // a new one that is greater than all `i` old ones. Of floating point, as there are many.
    let mut counts = vec![vec![vec![0.0_f64; m * n + 1]; n + 1]; m + 1];
    for i in 0..=m {
        for j in 0..=n {
            if i == 0 || j == 0 {
                counts[i][j][0] = 1.0;
                continue;
            }
            for u in 0..=i * j {
                let last_is_old = counts[i - 1][j][u];
                let last_is_new = match u.checked_sub(i) {
                    Some(rest) => counts[i][j - 1][rest],
                    None => 0.0,
                };
                counts[i][j][u] = last_is_old + last_is_new;
            }
        }
    }
    let orders = &counts[m][n];
    orders[least..].iter().sum::<f64>() / orders.iter().sum::<f64>()
}

/// By the normal distribution, with the correction for ties and for whole numbers.
fn approximate(less: &[u64], greater: &[u64], twice_u: u64) -> f64 {
    let (m, n) = (less.len() as f64, greater.len() as f64);
    let mut all: Vec<u64> = less.iter().chain(greater).copied().collect();
    all.sort_unstable();
    let ties = all
        .chunk_by(|one, other| one == other)
        .map(|tie| tie.len() as f64);
    let ties: f64 = ties.map(|count| count.powi(3) - count).sum();
    let total = m + n;
    let variance = m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let distance = twice_u as f64 / 2.0 - m * n / 2.0 - 0.5;
    upper_tail(distance / variance.sqrt())
}

/// The share of the standard normal distribution above `z`: Abramowitz and Stegun, 26.2.17, to
/// 1e-7.
fn upper_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    const COEFFICIENTS: [f64; 5] = [
        0.319_381_530,
        -0.356_563_782,
        1.781_477_937,
        -1.821_255_978,
        1.330_274_429,
    ];
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let density = (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let polynomial = COEFFICIENTS
        .iter()
        .rev()
        .fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    density * polynomial
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Case, Implementation};
    use crate::outcome::Outcome;
    use crate::phase::Phase;
    use crate::subject::Subject;
    use crate::text::tests::report;
    use crate::transport::Transport;

    fn p(old: &[u64], new: &[u64]) -> f64 {
        let spread = |samples: &[u64]| Spread::of(samples.iter().copied());
        probability_of_greater(&spread(old), &spread(new))
    }

    #[test]
    fn the_test_agrees_with_published_tables() {
        // One of the 20 orders of three and three, and two of them.
        assert!((p(&[1, 2, 3], &[4, 5, 6]) - 0.05).abs() < 1e-12);
        assert!((p(&[1, 2, 4], &[3, 5, 6]) - 0.10).abs() < 1e-12);
        assert!((p(&[4, 5, 6], &[1, 2, 3]) - 1.0).abs() < 1e-12);
        // U = 21 of 5 and 5: 0.0476 in the tables.
        assert!((p(&[1, 2, 3, 4, 9], &[5, 6, 7, 8, 10]) - 0.0476).abs() < 1e-4);
        assert_eq!(p(&[], &[1]), 1.0);
        // All are equal: nothing distinguishes them.
        assert!(p(&[7; 5], &[7; 5]) > 0.4);
    }

    #[test]
    fn many_samples_are_approximated_well() {
        let old: Vec<u64> = (0..30).map(|number| number * 10).collect();
        let new: Vec<u64> = (0..30).map(|number| number * 10 + 65).collect();
        let (exact, twice_u) = (p(&old, &new), |_: ()| {
            new.iter()
                .flat_map(|new| old.iter().map(move |old| 2 * u64::from(new > old)))
                .sum()
        });
        let approximate = approximate(&old, &new, twice_u(()));
        assert!((exact - approximate).abs() < 0.002, "{exact} {approximate}");
        assert!((upper_tail(1.6449) - 0.05).abs() < 1e-5);
        assert!((upper_tail(-1.6449) - 0.95).abs() < 1e-5);
        let long: Vec<u64> = (0..40).collect();
        assert!(p(&[50; 40], &long) > 0.99 && p(&long, &[50; 40]) < 1e-6);
        assert_eq!(p(&[7; 40], &[7; 40]), 1.0);
    }

    fn row(downtimes: &[u64]) -> Row {
        let case = Case {
            transport: Transport::Exec,
            subject: Subject::Ioport,
            files: 1,
        };
        let outcomes: Vec<Outcome> = downtimes
            .iter()
            .map(|&ns| {
                let mut outcome = Outcome::default();
                outcome.phases[Phase::Blackout] = ns;
                outcome
            })
            .collect();
        Row::new(&case, Implementation::Ours, &outcomes)
    }

    #[test]
    fn a_case_is_slower_beyond_the_threshold_and_not_by_chance() {
        let verdict = |old: &[u64], new: &[u64]| change(&row(old), &row(new), 0.1).verdict;
        let old = [100, 101, 102];
        assert_eq!(verdict(&old, &[120, 121, 122]), Verdict::Slower);
        assert_eq!(verdict(&[120, 121, 122], &old), Verdict::Faster);
        assert_eq!(
            verdict(&old, &[105, 106, 107]),
            Verdict::Same,
            "below the threshold"
        );
        assert_eq!(
            verdict(&old, &[99, 121, 122]),
            Verdict::Same,
            "one run is not slower"
        );
        assert_eq!(
            verdict(&[100], &[200]),
            Verdict::Same,
            "one run is not enough"
        );
    }

    #[test]
    fn reports_are_compared_case_by_case() {
        let old = report();
        let mut new = report();
        let same = compare(&old, &new, 0.1).unwrap();
        assert!(!same.has_regressed() && same.changes.len() == 18 && same.lines().len() == 18);

        new.results.remove(0);
        new.environment.kernel = "another".to_owned();
        let row = &mut new.results[0];
        let slow = row.downtime_ns.samples.iter().map(|ns| ns * 100);
        row.downtime_ns = Spread::of(slow.collect::<Vec<_>>());
        let slower = compare(&old, &new, 0.1).unwrap();
        assert!(slower.has_regressed());
        let text = slower.lines().join("\n");
        for part in ["SLOWER", "in the older report alone", "The kernel was"] {
            assert!(text.contains(part), "{text}");
        }
        new.results.clear();
        assert!(compare(&old, &new, 0.1).is_err());
    }

    #[test]
    fn an_old_schema_is_an_error_that_says_what_to_do() {
        let json = serde_json::to_vec(&report()).unwrap();
        assert_eq!(parse(&json).unwrap().results.len(), 18);
        for (json, part) in [
            (&b"{\"schema\":1,\"results\":[]}"[..], "measure again"),
            (b"{}", "schema none"),
            (b"garbled", "not a report"),
            (b"{\"schema\":2}", "not a report"),
        ] {
            let error = format!("{:#}", parse(json).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
