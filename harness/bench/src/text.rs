// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The report as text for a terminal: a table that fits its width, and a few sentences.

use bytesize::ByteSize;

use crate::comparison::comparison;
use crate::format::{duration, wrap};
use crate::phase::Phase;
use crate::report::{Report, Row};
use crate::scale;
use crate::spread::Spread;
use crate::trade::trades;
use crate::transport::Transport;

const KEXEC_REMARK: &str =
    "kexec: the kernel freezes the files and jumps in one call, so freeze is a part of the \
     blackout, which ends when the program that continues in the next kernel has opened \
     /dev/liveupdate: in the lab that is its init process, elsewhere all that starts before it \
     counts too. It is measured by the processor's time stamp counter, which a kexec leaves \
     running, and checked against the battery clock. Memory taken is what prepare took from the \
     kernel's free pages. Before the files that are measured a small memfd like them crosses, \
     which does not count: code that a kernel runs for the first time is slow.";

const HOSTED_REMARK: &str =
    "exec and image: before each freeze the jump is rehearsed with a child that gives up, until \
     that gets no faster, which does not count: all of it rested while the files were made.";

/// Images below this are dominated by what they cost at all.
const COMPARED_IMAGE_BYTES: u64 = 32 << 20;

/// Between two columns.
const GAP: &str = "  ";

/// A column of the table.
struct Column {
    heading: &'static str,
    cell: fn(&Row) -> String,
    /// Those with a lower rank stay longer when the terminal is narrow.
    rank: u32,
}

/// In the order in which they are read.
const COLUMNS: [Column; 14] = [
    column(0, "measured", |row| row.case.to_string()),
    column(0, "downtime", |row| duration(row.downtime_ns.median)),
    column(3, "least–greatest", |row| range(&row.downtime_ns)),
    column(0, "verified", |row| {
        match row.verified {
            true => "yes",
            false => "NO",
        }
        .to_owned()
    }),
    column(3, "collapse", |row| {
        let collapse = row.collapse.as_ref();
        collapse.map_or_else(String::new, |it| duration(it.collapse_ns.median))
    }),
    column(1, "prepare", |row| phase(row, Phase::Prepare)),
    column(2, "finish", |row| phase(row, Phase::Finish)),
    column(6, "freeze", |row| phase(row, Phase::Freeze)),
    column(7, "handover", |row| phase(row, Phase::Handover)),
    column(5, "blackout", |row| phase(row, Phase::Blackout)),
    column(4, "retrieve", |row| phase(row, Phase::Retrieve)),
    column(8, "ms/GiB", |row| {
        row.downtime_ms_per_gib()
            .map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
    }),
    column(9, "metadata", |row| {
        ByteSize(row.metadata_bytes).to_string()
    }),
    column(10, "memory taken", |row| {
        ByteSize(row.extra_memory_bytes).to_string()
    }),
];

const fn column(rank: u32, heading: &'static str, cell: fn(&Row) -> String) -> Column {
    Column {
        heading,
        cell,
        rank,
    }
}

fn phase(row: &Row, phase: Phase) -> String {
    duration(row.phases[phase].median)
}

fn range(spread: &Spread) -> String {
    let (min, max) = (duration(spread.min), duration(spread.max));
    // One unit is enough where both have the same.
    match (min.split_once(' '), max.split_once(' ')) {
        (Some((least, unit)), Some((_, same))) if unit == same => format!("{least}–{max}"),
        _ => format!("{min}–{max}"),
    }
}

fn width_of(text: &str) -> usize {
    text.chars().count()
}

/// All of it: the table, the sentences, and ours against a peer's where both were measured.
pub fn page(report: &Report, width: usize) -> String {
    let mut page = format!("{}\n\n{}\n", table(report, width), summary(report, width));
    for line in comparison(report) {
        page += &format!("{}\n", wrap(&line, width).join("\n"));
    }
    page
}

/// The table, as wide as fits into `width` characters. What does not fit is left out: it is in the
/// JSON and on the HTML page.
pub fn table(report: &Report, width: usize) -> String {
    let cells =
        |column: &Column| -> Vec<String> { report.results.iter().map(column.cell).collect() };
    let filled: Vec<(&Column, Vec<String>)> = COLUMNS
        .iter()
        .map(|column| (column, cells(column)))
        // What no case has is no column.
        .filter(|(_, cells)| cells.iter().any(|cell| !cell.is_empty()))
        .collect();
    let widths: Vec<usize> = filled
        .iter()
        .map(|(column, cells)| {
            let cells = cells.iter().map(|cell| width_of(cell));
            cells.chain([width_of(column.heading)]).max().unwrap_or(0)
        })
        .collect();
    let ranks: Vec<u32> = filled.iter().map(|(column, _)| column.rank).collect();
    let shown = fitting(&ranks, &widths, width);

    let mut lines = Vec::new();
    let headings = filled.iter().map(|(column, _)| column.heading.to_owned());
    lines.push(line(headings, &widths, &shown));
    let rule = widths.iter().map(|&width| "─".repeat(width));
    lines.push(line(rule, &widths, &shown));
    for row in 0..report.results.len() {
        let cells = filled.iter().map(|(_, cells)| cells[row].clone());
        lines.push(line(cells, &widths, &shown));
    }
    lines.join("\n")
}

/// Which columns fit: by rank, those that are needed in any case.
fn fitting(ranks: &[u32], widths: &[usize], width: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..widths.len()).collect();
    order.sort_by_key(|&index| ranks[index]);
    let mut shown = vec![false; widths.len()];
    let mut used = 0;
    for index in order {
        let gap = if used == 0 { 0 } else { GAP.len() };
        let needed = used + gap + widths[index];
        if needed > width && ranks[index] > 0 {
            break;
        }
        shown[index] = true;
        used = needed;
    }
    shown
}

/// One line: the first column to the left, the others to the right.
fn line(cells: impl Iterator<Item = String>, widths: &[usize], shown: &[bool]) -> String {
    let cells = cells.enumerate().filter(|(index, _)| shown[*index]);
    let padded = cells.map(|(index, cell)| {
        let padding = " ".repeat(widths[index].saturating_sub(width_of(&cell)));
        match index {
            0 => cell + &padding,
            _ => padding + &cell,
        }
    });
    let line = padded.collect::<Vec<_>>().join(GAP);
    line.trim_end().to_owned()
}

/// What the table does not show by itself, in lines of at most `width` characters.
pub fn summary(report: &Report, width: usize) -> String {
    let paragraphs = sentences(report);
    let lines = paragraphs.iter().flat_map(|text| wrap(text, width));
    lines.collect::<Vec<_>>().join("\n")
}

/// What it cost, what was compared, what was not verified or measured, and where it ran.
pub fn sentences(report: &Report) -> Vec<String> {
    let mut sentences = Vec::new();
    sentences.extend(cost(report));
    sentences.extend(verification(report));
    sentences.extend(image_speed(report));
    sentences.extend(trades(report));
    sentences.extend(scale::sentences(report));
    sentences.extend(report.results.iter().filter_map(per_file));
    sentences.extend(report.results.iter().filter_map(moved));
    sentences.extend(report.results.iter().filter_map(unrehearsed));
    let is_kexec = |row: &Row| row.case.transport == Transport::Kexec;
    if report.results.iter().any(is_kexec) {
        sentences.push(KEXEC_REMARK.to_owned());
    }
    if !report.results.iter().all(is_kexec) {
        sentences.push(HOSTED_REMARK.to_owned());
    }
    let skipped = report.skipped.iter();
    sentences
        .extend(skipped.map(|skipped| format!("Skipped: {}: {}.", skipped.case, skipped.reason)));
    sentences.push(place(report));
    sentences
}

fn cost(report: &Report) -> Option<String> {
    let downtime = |row: &&Row| row.downtime_ns.median;
    let least = report.results.iter().min_by_key(downtime)?;
    let greatest = report.results.iter().max_by_key(downtime)?;
    let runs = match report.results.iter().map(|row| row.runs).max()? {
        1 => "One run of each case".to_owned(),
        runs => format!("Medians of {runs} runs of each case"),
    };
    let range = match report.results.len() {
        1 => duration(least.downtime_ns.median),
        _ => format!(
            "{} ({}) to {} ({})",
            duration(least.downtime_ns.median),
            least.case,
            duration(greatest.downtime_ns.median),
            greatest.case
        ),
    };
    Some(format!(
        "{runs}. Downtime is freeze, handover, blackout and retrieve together, the time in which \
         the workload does not run: {range}. Prepare and finish happen while it runs."
    ))
}

fn verification(report: &Report) -> Vec<String> {
    if report.results.is_empty() {
        return vec!["Nothing was measured.".to_owned()];
    }
    let wrong: Vec<&Row> = report.results.iter().filter(|row| !row.verified).collect();
    if wrong.is_empty() {
        return vec![
            "Verified: after each jump, size, seals, position, holes and every byte of all files \
             were compared and are as they were before."
                .to_owned(),
        ];
    }
    let describe = |row: &&Row| {
        let mismatch = row.mismatch.as_deref().unwrap_or("nothing was measured");
        format!("NOT verified: {}: {mismatch}.", row.case)
    };
    wrong.iter().map(describe).collect()
}

fn image_speed(report: &Report) -> Option<String> {
    let ratios = report.results.iter().filter_map(|row| {
        let ratio = row.image_to_reference()?;
        (row.data_bytes >= COMPARED_IMAGE_BYTES).then_some(ratio * 100.0)
    });
    let ratios = Spread::of(ratios.map(|percent| percent.round() as u64));
    (ratios.max > 0).then(|| {
        format!(
            "Images of {} and more were written to {} at {} % (least {} %, greatest {} %) of the \
             speed at which one thread copies plain memory to a fresh file there.",
            ByteSize(COMPARED_IMAGE_BYTES),
            report.environment.image_file_system,
            ratios.median,
            ratios.min,
            ratios.max
        )
    })
}

/// What each phase costs a file, of files that have no data to compare them by.
fn per_file(row: &Row) -> Option<String> {
    // The handover and the blackout are the transport's, not a file's.
    const OF_HANDLERS: [Phase; 4] = [
        Phase::Prepare,
        Phase::Freeze,
        Phase::Retrieve,
        Phase::Finish,
    ];
    if row.case.kind().is_some() {
        return None;
    }
    let files = u64::from(row.case.files);
    let phases = OF_HANDLERS
        .iter()
        .filter(|&&phase| row.phases[phase].median > 0);
    let phases: Vec<String> = phases
        .map(|&phase| {
            let each = row.phases[phase].median / files;
            format!("{} {}", phase.name(), duration(each))
        })
        .collect();
    Some(format!(
        "{}, each file: {}; {} of metadata.",
        row.case,
        phases.join(", "),
        ByteSize(row.metadata_bytes / files)
    ))
}

fn moved(row: &Row) -> Option<String> {
    (row.moved_bytes > 0).then(|| {
        format!(
            "{}: prepare moved {} to other memory.",
            row.case,
            ByteSize(row.moved_bytes)
        )
    })
}

fn unrehearsed(row: &Row) -> Option<String> {
    let reason = row.unrehearsed.as_ref()?;
    Some(format!(
        "{}: the jump could not be rehearsed, so its downtime has all that a first start costs: \
         {reason}.",
        row.case
    ))
}

/// Where it was measured.
pub fn place(report: &Report) -> String {
    let environment = &report.environment;
    format!(
        "Linux {}, {}, {} cpus, {} of memory, hypervisor: {}.",
        environment.kernel,
        environment.cpu,
        environment.cpus,
        ByteSize(environment.memory_bytes),
        environment.accel
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case::{Case, Implementation};
    use crate::environment::Environment;
    use crate::outcome::Outcome;
    use crate::plan::Plan;
    use crate::report::Skipped;
    use std::path::Path;

    /// A report of the plan that is measured by default, with figures in all units.
    pub(crate) fn report() -> Report {
        let rows = Plan::default().cases().into_iter().enumerate();
        let row = |(index, case): (usize, Case)| {
            let outcome = |run: u64| {
                let mut outcome = Outcome::default();
                for phase in Phase::ALL {
                    outcome.phases[phase] = 1013 * run * (index as u64 + 1).pow(6) + phase as u64;
                }
                outcome.data_bytes = case.data_bytes();
                outcome
            };
            Row::new(&case, Implementation::Ours, &[1, 2, 3].map(outcome))
        };
        let environment = Environment::of_this_machine(Path::new("/"));
        Report::new(environment, rows.map(row).collect(), Vec::new())
    }

    #[test]
    fn the_table_fits_the_terminal_with_the_headline_first() {
        for (width, columns) in [
            (80, &["prepare", "finish"][..]),
            (100, &["prepare", "finish", "least–greatest", "retrieve"]),
            (120, &["least–greatest", "retrieve", "blackout", "freeze"]),
            (200, &["handover", "ms/GiB", "metadata", "memory taken"]),
        ] {
            let table = table(&report(), width);
            let lines: Vec<&str> = table.lines().collect();
            assert_eq!(lines.len(), 2 + 18, "one line a case");
            for line in &lines {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            let headings: Vec<&str> = lines[0].split_whitespace().collect();
            assert_eq!(headings[..2], ["measured", "downtime"]);
            for column in columns.iter().chain(&["verified"]) {
                assert!(lines[0].contains(column), "{width}: {}", lines[0]);
            }
            assert!(
                lines[2].starts_with("exec 64.0 MiB 4k dense"),
                "{}",
                lines[2]
            );
        }
    }

    #[test]
    fn what_is_needed_is_shown_on_any_terminal() {
        let table = table(&report(), 1);
        let headings = table.lines().next().unwrap().split_whitespace();
        assert_eq!(
            headings.collect::<Vec<_>>(),
            ["measured", "downtime", "verified"]
        );
    }

    #[test]
    fn the_summary_names_what_was_not_verified_and_what_was_skipped() {
        let mut report = report();
        let text = summary(&report, 80);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        assert!(
            text.contains("Medians of 3 runs") && text.contains("Verified: "),
            "{text}"
        );

        assert!(!text.contains("could not be rehearsed"), "{text}");

        report.results[3].unrehearsed = Some("no child starts here".to_owned());
        report.results[4].refute("the seals differ");
        let case = &Plan::default().cases()[0];
        report.skipped.push(Skipped::new(
            case,
            Implementation::Ours,
            "no room".to_owned(),
        ));
        let text = summary(&report, 1000);
        let wrong = report.results[4].case.to_string();
        assert!(
            text.contains(&format!("NOT verified: {wrong}: the seals differ.")),
            "{text}"
        );
        assert!(!text.contains("Verified: "), "{text}");
        assert!(
            text.contains(&format!("Skipped: {case}: no room.")),
            "{text}"
        );
        assert!(
            text.contains("a first start costs: no child starts here."),
            "{text}"
        );
    }

    #[test]
    fn a_range_has_one_unit_where_that_is_enough() {
        assert_eq!(range(&Spread::of([1_000_000, 2_000_000])), "1.00–2.00 ms");
        assert_eq!(range(&Spread::of([999_000, 2_000_000])), "999 µs–2.00 ms");
    }
}
