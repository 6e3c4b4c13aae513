// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What was measured: as JSON for programs, as a table for people.

use bytesize::ByteSize;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::run::{Outcome, Phases};
use crate::subject::Subject;
use crate::workload::{Fill, Pages};
use crate::{times, Case, Transport};

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

const KEXEC_REMARK: &str = "kexec: the kernel freezes the files and jumps in one call, so freeze is a part of the blackout, \
     which ends when the program that continues in the next kernel has opened /dev/liveupdate: in the lab that is its \
     init process, elsewhere all that starts before it counts too. It is measured by the processor's time \
     stamp counter, which a kexec leaves running, and checked against the battery clock. Memory taken is what prepare \
     took from the kernel's free pages.";

const GIB: f64 = (1u64 << 30) as f64;

/// Whose code preserved the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Implementation {
    /// The handlers of this repository.
    #[serde(rename = "luo-handlers")]
    Ours,
    /// The handler in C that the kernel brings along.
    #[serde(rename = "mainline-c")]
    MainlineC,
}

impl Implementation {
    /// The compatible of its handler of such files.
    const fn compatible(self, subject: &Subject) -> &'static str {
        match (subject, self) {
            (Subject::Memfd { .. }, Self::Ours) => "memfd-v1",
            (Subject::Memfd { .. }, Self::MainlineC) => "memfd-v2",
            (Subject::Vfio, _) => "vfio-v1",
            (Subject::Ioport, _) => "ioport-v1",
        }
    }
}

impl std::fmt::Display for Implementation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ours => "luo-handlers",
            Self::MainlineC => "mainline-c",
        })
    }
}

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where it was measured.
    pub environment: Environment,
    /// One row a case.
    pub results: Vec<Row>,
    /// What the machine could not do.
    pub skipped: Vec<Skipped>,
}

/// A case that was not measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// What was asked for.
    #[serde(flatten)]
    pub case: Case,
    /// Why it could not be done.
    pub reason: String,
}

/// Of several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: u64,
    /// The one in the middle; of two, the lower.
    pub median: u64,
    /// The greatest.
    pub max: u64,
}

/// One case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The way over the jump.
    pub transport: Transport,
    /// Whose code preserved the files.
    pub implementation: Implementation,
    /// The handler's compatible.
    pub handler: String,
    /// The size of one memfd, in bytes; 0 of what is none.
    pub size_bytes: u64,
    /// Its page kind; none of what is no memfd.
    pub pages: Option<Pages>,
    /// What was filled; likewise.
    pub fill: Option<Fill>,
    /// How many files crossed together.
    pub files: u32,
    /// How often it was measured.
    pub runs: u32,
    /// How long each phase took.
    pub phases: PhaseSpreads,
    /// Bytes of data that crossed, in all files.
    pub data_bytes: u64,
    /// Bytes of metadata that crossed.
    pub metadata_bytes: u64,
    /// Memory taken beyond what the files had.
    pub extra_memory_bytes: u64,
    /// One thread copying as many bytes of memory to a fresh file beside the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_write_ns: Option<Spread>,
    /// Whether every byte, size, seal, position and hole was as before, in every run; of devices where they are and what,
    /// of port files position, access mode and flags.
    pub verified: bool,
    /// What was not, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
}

/// [`Phases`], each of several runs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PhaseSpreads {
    /// See [`Phases::prepare_ns`].
    pub prepare_ns: Spread,
    /// See [`Phases::freeze_ns`].
    pub freeze_ns: Spread,
    /// See [`Phases::handover_ns`].
    pub handover_ns: Spread,
    /// See [`Phases::blackout_ns`].
    pub blackout_ns: Spread,
    /// See [`Phases::retrieve_ns`].
    pub retrieve_ns: Spread,
    /// See [`Phases::finish_ns`].
    pub finish_ns: Spread,
    /// All of them together.
    pub total_ns: Spread,
}

impl Spread {
    /// The spread of `values`; zero of none.
    pub fn of(values: impl IntoIterator<Item = u64>) -> Self {
        let mut values: Vec<u64> = values.into_iter().collect();
        values.sort_unstable();
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        Self {
            min,
            median: values[(values.len() - 1) / 2],
            max,
        }
    }
}

impl PhaseSpreads {
    fn of(outcomes: &[Outcome]) -> Self {
        let spread = |phase: fn(&Phases) -> u64| {
            Spread::of(outcomes.iter().map(|outcome| phase(&outcome.phases)))
        };
        Self {
            prepare_ns: spread(|phases| phases.prepare_ns),
            freeze_ns: spread(|phases| phases.freeze_ns),
            handover_ns: spread(|phases| phases.handover_ns),
            blackout_ns: spread(|phases| phases.blackout_ns),
            retrieve_ns: spread(|phases| phases.retrieve_ns),
            finish_ns: spread(|phases| phases.finish_ns),
            total_ns: spread(Phases::total),
        }
    }

    /// The phases in their order, with the names people read.
    pub const fn in_order(&self) -> [(&'static str, Spread); 6] {
        [
            ("prepare", self.prepare_ns),
            ("freeze", self.freeze_ns),
            ("handover", self.handover_ns),
            ("blackout", self.blackout_ns),
            ("retrieve", self.retrieve_ns),
            ("finish", self.finish_ns),
        ]
    }
}

impl Row {
    pub fn new(case: &Case, implementation: Implementation, outcomes: &[Outcome]) -> Self {
        let greatest = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
        let references: Vec<u64> = outcomes
            .iter()
            .filter_map(|o| o.reference_write_ns)
            .collect();
        let mismatch = outcomes.iter().find_map(|outcome| outcome.mismatch.clone());
        let (pages, fill) = match case.subject {
            Subject::Memfd { pages, fill, .. } => (Some(pages), Some(fill)),
            Subject::Vfio | Subject::Ioport => (None, None),
        };
        Self {
            transport: case.transport,
            implementation,
            handler: implementation.compatible(&case.subject).to_owned(),
            size_bytes: case.subject.size(),
            pages,
            fill,
            files: case.files,
            runs: outcomes.len() as u32,
            phases: PhaseSpreads::of(outcomes),
            data_bytes: greatest(|outcome| outcome.data_bytes),
            metadata_bytes: greatest(|outcome| outcome.metadata_bytes),
            extra_memory_bytes: greatest(|outcome| outcome.extra_memory_bytes),
            reference_write_ns: (!references.is_empty()).then(|| Spread::of(references)),
            verified: mismatch.is_none() && !outcomes.is_empty(),
            mismatch,
        }
    }

    /// What crossed, as people read it: of what is no memfd, the compatible without its version.
    pub fn name(&self) -> String {
        let name = match self.kind() {
            Some((fill, pages)) => {
                let size = self.size_bytes;
                Subject::Memfd { size, pages, fill }.to_string()
            }
            None => {
                let name = self.handler.split('-').next();
                name.unwrap_or_default().to_owned()
            }
        };
        name + &times(self.files)
    }

    /// What is filled and with which pages, of memfds.
    pub fn kind(&self) -> Option<(Fill, Pages)> {
        self.fill.zip(self.pages)
    }

    /// The transport, and the implementation unless it is ours.
    pub fn way(&self) -> String {
        match self.implementation {
            Implementation::Ours => self.transport.to_string(),
            Implementation::MainlineC => format!("{} {}", self.transport, self.implementation),
        }
    }

    fn gib(&self) -> f64 {
        self.data_bytes as f64 / GIB
    }

    /// GiB of data a second, through the whole update.
    pub fn gib_per_second(&self) -> f64 {
        self.gib() / (self.phases.total_ns.median as f64 / 1e9)
    }

    /// A figure that only files with data have.
    pub fn of_data(&self, figure: impl Fn() -> String) -> String {
        match self.data_bytes {
            0 => "–".to_owned(),
            _ => figure(),
        }
    }

    /// Writing the image against copying memory to a fresh file in the same place, by one thread: 1 is as
    /// fast. None where nothing was written.
    pub fn image_to_reference(&self) -> Option<f64> {
        let reference = self.reference_write_ns?.median as f64;
        (self.data_bytes > 0).then(|| reference / self.phases.handover_ns.median as f64)
    }
}

impl Report {
    /// Whether everything that was measured of ours was also right.
    pub fn verified(&self) -> bool {
        let ours = |row: &&Row| row.implementation == Implementation::Ours;
        self.results.iter().filter(ours).all(|row| row.verified)
    }

    /// The table.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_preset(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header([
            "files",
            "transport",
            "prepare",
            "freeze",
            "handover",
            "blackout",
            "retrieve",
            "finish",
            "total",
            "GiB/s",
            "ms/GiB",
            "metadata\na GiB",
            "memory\ntaken",
            "verified",
        ]);
        for row in &self.results {
            table.add_row(cells(row));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// What the table does not say by itself.
    pub fn remarks(&self) -> Vec<String> {
        let environment = &self.environment;
        let mut remarks = vec![
            format!(
                "Linux {}, {}, {} cpus, {} of memory, hypervisor: {}.",
                environment.kernel,
                environment.cpu,
                environment.cpus,
                ByteSize(environment.memory_bytes),
                environment.accel
            ),
            "Median over the runs, below it the least and the greatest. GiB are of data, holes are none; \
             GiB/s and ms/GiB are of all phases together."
                .to_owned(),
        ];
        let ratios = self.results.iter().filter_map(|row| {
            let ratio = row.image_to_reference()?;
            (row.data_bytes >= 32 << 20).then_some(ratio * 100.0)
        });
        let ratios = Spread::of(ratios.map(|percent| percent.round() as u64));
        if ratios.max > 0 {
            remarks.push(format!(
                "Images of 32 MiB and more were written to {} at {} % (least {} %, greatest {} %) of the \
                 speed at which one thread copies plain memory to a fresh file there. What bounds both is \
                 allocating the file's pages and copying into them; an image also reads each byte once and \
                 checksums it, with a thread and a file for each cpu.",
                environment.image_file_system, ratios.median, ratios.min, ratios.max
            ));
        }
        remarks.extend(self.results.iter().filter_map(per_file));
        if self
            .results
            .iter()
            .any(|row| row.transport == Transport::Kexec)
        {
            remarks.push(KEXEC_REMARK.to_owned());
        }
        for skipped in &self.skipped {
            remarks.push(format!("Skipped: {}: {}.", skipped.case, skipped.reason));
        }
        remarks
    }
}

fn cells(row: &Row) -> Vec<Cell> {
    let mut cells = vec![
        Cell::new(row.name()),
        Cell::new(row.way().replace(' ', "\n")),
    ];
    let phases = row.phases.in_order().map(|(_, spread)| spread);
    for spread in phases.into_iter().chain([row.phases.total_ns]) {
        cells.push(Cell::new(spread_text(&spread)));
    }
    let a_gib = |value: f64| value / row.gib();
    let milliseconds = row.phases.total_ns.median as f64 / 1e6;
    let metadata = || ByteSize(a_gib(row.metadata_bytes as f64) as u64).to_string();
    cells.extend([
        Cell::new(row.of_data(|| format!("{:.1}", row.gib_per_second()))),
        Cell::new(row.of_data(|| format!("{:.2}", a_gib(milliseconds)))),
        Cell::new(row.of_data(metadata)),
        Cell::new(ByteSize(row.extra_memory_bytes)),
        match row.verified {
            true => Cell::new("yes").fg(Color::Green),
            false => Cell::new("NO").fg(Color::Red),
        },
    ]);
    cells
}

/// What each phase costs a file, of files that have no data to compare them by.
fn per_file(row: &Row) -> Option<String> {
    let files = u64::from(row.files);
    let phases = row.phases.in_order();
    // The handover and the blackout are the transport's, whatever crosses.
    let of_handlers = phases
        .iter()
        .filter(|(name, spread)| spread.median > 0 && !["handover", "blackout"].contains(name));
    let phases: Vec<String> = of_handlers
        .map(|(name, spread)| format!("{name} {}", duration(spread.median / files)))
        .collect();
    row.kind().is_none().then(|| {
        format!(
            "{} {}, each file: {}; {} of metadata.",
            row.way(),
            row.name(),
            phases.join(", "),
            ByteSize(row.metadata_bytes / files)
        )
    })
}

fn spread_text(spread: &Spread) -> String {
    format!(
        "{}\n{}–{}",
        duration(spread.median),
        duration(spread.min),
        duration(spread.max)
    )
}

/// Nanoseconds as people read them, to three digits.
pub fn duration(nanoseconds: u64) -> String {
    let (value, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (nanoseconds as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanoseconds as f64 / 1e6, "ms"),
        _ => (nanoseconds as f64 / 1e9, "s"),
    };
    let digits = match value {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_three_digits() {
        for (nanoseconds, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (12_340, "12.3 µs"),
            (123_400_000, "123 ms"),
            (1_234_000_000, "1.23 s"),
        ] {
            assert_eq!(duration(nanoseconds), text);
        }
    }

    #[test]
    fn one_wrong_run_is_enough_to_be_not_verified() {
        let case = Case {
            transport: Transport::Exec,
            subject: Subject::Ioport,
            files: 1,
        };
        let right = Outcome::default();
        let wrong = Outcome {
            mismatch: Some("the size".to_owned()),
            ..Outcome::default()
        };
        assert!(Row::new(&case, Implementation::Ours, &[right.clone(), right.clone()]).verified);
        assert!(!Row::new(&case, Implementation::Ours, &[right.clone(), wrong, right]).verified);
        assert!(!Row::new(&case, Implementation::Ours, &[]).verified);
    }

    proptest! {
        #[test]
        fn a_spread_is_in_order(values in prop::collection::vec(any::<u64>(), 1..20)) {
            let spread = Spread::of(values.clone());
            prop_assert!(spread.min <= spread.median && spread.median <= spread.max);
            prop_assert!(values.contains(&spread.median));
        }
    }
}
