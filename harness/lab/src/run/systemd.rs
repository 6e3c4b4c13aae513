// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Runs the guests with systemd: what its services found after each restart and each kexec.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use luo_bench::counters;
use luo_bench::report::Report;
use serde::Serialize;

use crate::build::built::Built;
use crate::build::systemd;
use crate::cache::directory::Cache;
use crate::cache::runs::Runs;
use crate::event::Event;
use crate::job::Job;
use crate::run::guest::guest;
use crate::run::timeline::{phases, Phase};
use crate::run::verdict::{failure, kernel_report};
use crate::systemd::driver::BENCH_REPORT;
use crate::systemd::found::{Found, FoundFile};
use crate::systemd::scenario::{step, Scenario, KEXECS};
use crate::units::duration;
use crate::vm::options::GuestOptions;
use crate::vm::probe;
use crate::vm::qemu::GuestRun;

/// Emulated, on a busy machine: three kernels, in each of which systemd starts and stops.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);
const WIDTH: u16 = 100;

/// What came of the guests. Its text is for people.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Of the systemd that ran.
    pub systemd_version: String,
    /// How the guests ran.
    pub accel: &'static str,
    /// What each of them showed.
    pub scenarios: Vec<ScenarioOutcome>,
    /// Everything that is not as it should be; nothing if all is.
    pub problems: Vec<String>,
}

/// What came of one guest.
#[derive(Debug, Serialize)]
pub struct ScenarioOutcome {
    /// Its name.
    pub name: &'static str,
    /// What the services found.
    pub found: Vec<AfterStep>,
    /// The parts of each kexec.
    pub kexecs: Vec<Vec<Phase>>,
    /// How many files our handlers retrieved in all kernels. What they prepared is not known: that
    /// happens after the last service.
    pub retrieved: u64,
}

/// What a service found, and after what.
#[derive(Debug, Serialize)]
pub struct AfterStep {
    /// What happened before.
    pub step: String,
    /// What it found.
    #[serde(flatten)]
    pub found: Found,
}

/// Runs a guest for each of the scenarios.
///
/// # Errors
///
/// A guest cannot be run. What it showed to be wrong is in the outcome.
pub fn run_systemd(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    scenarios: &[Scenario],
) -> Result<Outcome> {
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let mut outcome = Outcome {
        systemd_version: systemd::version(cache).unwrap_or_default(),
        accel: accel.name(),
        scenarios: Vec::new(),
        problems: Vec::new(),
    };
    for &scenario in scenarios {
        let name = scenario.name();
        eprintln!("lab: systemd {}: {name}", outcome.systemd_version);
        let job = Job::Systemd { scenario, stage: 1 };
        let mut guest = guest(
            &runs,
            built,
            options,
            accel,
            job,
            &format!("systemd-{name}"),
        );
        guest.parameters = format!("{} {}", guest.parameters, scenario.parameters());
        guest.timeout = options.timeout.or(Some(TIMEOUT));
        let run = guest.run_and_watch(&mut show)?;
        eprintln!("lab: {name}: {}", duration(run.elapsed.as_secs_f64()));
        let shown = ScenarioOutcome::of(scenario, &run);
        let mut problems = shown.problems(scenario, &run);
        if scenario == Scenario::Bench && problems.is_empty() {
            problems.extend(bench_problem(&guest.directory.join("results")).err());
        }
        if !problems.is_empty() {
            eprintln!("lab: {name}: {}", run.console_end());
        }
        let problems = problems.into_iter();
        outcome
            .problems
            .extend(problems.map(|problem| format!("{name}: {problem}")));
        outcome.scenarios.push(shown);
    }
    Ok(outcome)
}

/// A line for each thing that happens: it takes minutes.
fn show(event: &Event) {
    match event {
        Event::Stage { stage } => eprintln!("lab:   kernel {stage}: systemd is up"),
        Event::Step { name } => eprintln!("lab:   {name}"),
        Event::Found { service } => {
            let files = service.files.iter();
            let other = files.filter(|file| !file.differences.is_empty()).count();
            let what = match (service.has_arrived, other) {
                (false, _) => "begins".into(),
                (true, 0) => format!("{} files are as they were", service.files.len()),
                (true, _) => format!("{other} of {} files differ", service.files.len()),
            };
            eprintln!("lab:     {}: {what}", service.unit);
        }
        _ => {}
    }
}

/// What `luo bench` left has to be one update, measured and verified.
fn bench_problem(results: &Path) -> Result<(), String> {
    let read = || -> Result<Report> {
        let report = results.join(BENCH_REPORT);
        let report = fs::read(&report).with_context(|| format!("reading {}", report.display()))?;
        serde_json::from_slice(&report).context("the report is garbled")
    };
    let report = read().map_err(|error| format!("{error:#}"))?;
    let rows = &report.results;
    match rows.first() {
        Some(row) if rows.len() == 1 && row.runs == 1 && row.verified => Ok(()),
        _ => Err(format!("luo bench has not verified one update: {rows:?}")),
    }
}

impl ScenarioOutcome {
    fn of(scenario: Scenario, run: &GuestRun) -> Self {
        let mut step = String::new();
        let mut outcome = Self {
            name: scenario.name(),
            found: Vec::new(),
            kexecs: Vec::new(),
            retrieved: 0,
        };
        let mut totals = Vec::new();
        for event in &run.events {
            match event {
                Event::Step { name } => step.clone_from(name),
                Event::Found { service } => outcome.found.push(AfterStep {
                    step: step.clone(),
                    found: service.clone(),
                }),
                Event::Jumped { seconds } => totals.push(*seconds),
                Event::Passed { ours, .. } => outcome.retrieved += counters::sum(ours).retrieved,
                _ => {}
            }
        }
        outcome.kexecs = phases(&run.console_text(), &totals);
        outcome
    }

    /// Everything that is not as it should be.
    fn problems(&self, scenario: Scenario, run: &GuestRun) -> Vec<String> {
        let mut problems: Vec<String> = failure(run).map(str::to_owned).into_iter().collect();
        let console = run.console_text();
        problems.extend(kernel_report(&console).map(|line| format!("the kernel reports: {line}")));
        let kernels = |event: &&Event| matches!(event, Event::Passed { .. });
        let passed = run.events.iter().filter(kernels).count();
        let expected = scenario.kernels();
        if passed < expected && problems.is_empty() {
            let how = match run.timed_out {
                true => "timed out",
                false => "ended",
            };
            problems.push(format!(
                "the guest {how} after {passed} of {expected} kernels"
            ));
        }
        // That a file crossed does not show which handler took it.
        let are_ours = scenario != Scenario::MainlineC;
        if are_ours != (self.retrieved > 0) && problems.is_empty() {
            let count = self.retrieved;
            problems.push(format!("our handlers retrieved {count} files"));
        }
        if !scenario.has_services() {
            return problems;
        }
        for (step, unit) in expected_reports(scenario) {
            let mut reports = self.found.iter();
            let report = reports.find(|report| report.step == step && report.found.unit == unit);
            match report {
                None => problems.push(format!("{unit} reports nothing after {step}")),
                Some(report) => problems.extend(report.problems(scenario)),
            }
        }
        problems
    }

    /// What is to be seen in a column of the table: of a file, after each kexec.
    fn column(&self) -> BTreeMap<(&str, &str), String> {
        let mut column = BTreeMap::new();
        for AfterStep { found, step } in &self.found {
            if !step.starts_with("kexec") {
                continue;
            }
            for FoundFile { name, differences } in &found.files {
                let text = match differences.as_slice() {
                    [] => "as it was".to_owned(),
                    differences => differences.join("\n"),
                };
                let cell: &mut String = column
                    .entry((found.unit.as_str(), name.as_str()))
                    .or_default();
                if *cell != text {
                    *cell = match cell.is_empty() {
                        true => text,
                        false => format!("{cell}\nthen: {text}"),
                    };
                }
            }
        }
        column
    }
}

/// Which services report after which step.
fn expected_reports(scenario: Scenario) -> Vec<(String, String)> {
    use crate::systemd::image::USER;
    let files = ["root", USER].map(|user| format!("luo-files@{user}"));
    let [writer, store] = ["luo-writer", "luo-store"].map(str::to_owned);
    let ours = scenario == Scenario::Ours;
    let mut expected = Vec::new();
    let mut add = |step: &str, units: &[&String]| {
        expected.extend(units.iter().map(|unit| (step.to_owned(), (*unit).clone())));
    };
    let mut all: Vec<&String> = files.iter().chain([&writer]).collect();
    if ours {
        all.push(&store);
    }
    add(step::START, &all);
    if ours {
        for step in [step::RESTART, step::CRASH, step::REEXEC] {
            add(step, &[&store]);
        }
        // The writer survives it.
        add(step::SOFT_REBOOT, &[&files[0], &files[1], &store]);
    }
    for number in 1..=KEXECS {
        add(&step::kexec(number), &all);
    }
    expected
}

impl AfterStep {
    fn problems(&self, scenario: Scenario) -> Vec<String> {
        let Self { step, found } = self;
        let unit = &found.unit;
        if found.has_arrived != (step != step::START) {
            return vec![match found.has_arrived {
                true => format!("{unit}: something was in its store at its {step}"),
                false => format!("{unit}: its store was empty after {step}"),
            }];
        }
        let mut problems = Vec::new();
        for FoundFile { name, differences } in &found.files {
            let is_socket = name == "listener";
            let expected: &[&str] = match is_socket && step.starts_with("kexec") {
                true => &["missing"],
                false => &[],
            };
            let is_right = match scenario {
                // What the kernel's own handler changes is not for us to judge, unless it is lost.
                Scenario::MainlineC => !differences.iter().any(|text| is_loss(text)),
                _ => differences == expected,
            };
            if !is_right {
                let differences = differences.join(", ");
                problems.push(format!("{unit}, {name}, after {step}: {differences}"));
            }
        }
        problems
    }
}

fn is_loss(difference: &str) -> bool {
    ["missing", "contents", "size"]
        .iter()
        .any(|loss| difference.starts_with(loss))
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            systemd_version,
            accel,
            scenarios,
            problems,
        } = self;
        writeln!(f, "systemd {systemd_version} as init, with {accel}")?;
        let with_kexecs: Vec<&ScenarioOutcome> = scenarios
            .iter()
            .filter(|scenario| !scenario.found.is_empty())
            .collect();
        if !with_kexecs.is_empty() {
            writeln!(f, "what came back after systemctl kexec, twice:")?;
            writeln!(f, "{}", files_table(&with_kexecs))?;
            writeln!(f, "what else the services report:")?;
            writeln!(f, "{}", remarks_table(&with_kexecs))?;
            writeln!(f, "seconds of each kexec:")?;
            writeln!(f, "{}", phases_table(&with_kexecs))?;
        }
        for ScenarioOutcome {
            name, retrieved, ..
        } in scenarios
        {
            writeln!(f, "{name}: our handlers retrieved {retrieved} files")?;
        }
        match problems.is_empty() {
            true => write!(f, "all is as it should be"),
            false => write!(f, "FAILED:\n  {}", problems.join("\n  ")),
        }
    }
}

fn table(header: &[String]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header);
    table
}

fn files_table(scenarios: &[&ScenarioOutcome]) -> Table {
    let names = scenarios.iter().map(|scenario| scenario.name.to_owned());
    let header: Vec<String> = ["service", "file"]
        .map(str::to_owned)
        .into_iter()
        .chain(names)
        .collect();
    let mut table = table(&header);
    let columns: Vec<_> = scenarios.iter().map(|scenario| scenario.column()).collect();
    let mut rows: Vec<(&str, &str)> = columns
        .iter()
        .flat_map(|column| column.keys().copied())
        .collect();
    rows.sort_unstable();
    rows.dedup();
    for row in rows {
        let cells = columns
            .iter()
            .map(|column| column.get(&row).cloned().unwrap_or_default());
        let names = [row.0, row.1].map(str::to_owned);
        table.add_row(names.into_iter().chain(cells));
    }
    table
}

fn remarks_table(scenarios: &[&ScenarioOutcome]) -> Table {
    let mut table = table(&["after", "service", "reports"].map(str::to_owned));
    for scenario in scenarios {
        for AfterStep { step, found } in &scenario.found {
            if found.remarks.is_empty() {
                continue;
            }
            let after = format!("{}: {step}", scenario.name);
            table.add_row([after, found.unit.clone(), found.remarks.join("\n")]);
        }
    }
    table
}

fn phases_table(scenarios: &[&ScenarioOutcome]) -> Table {
    let mut header = vec!["phase".to_owned()];
    let mut columns = Vec::new();
    for scenario in scenarios {
        for (number, kexec) in scenario.kexecs.iter().enumerate() {
            header.push(format!("{} {}", scenario.name, number + 1));
            columns.push(kexec);
        }
    }
    let mut table = table(&header);
    let names = columns
        .first()
        .map(|kexec| kexec.iter().map(|phase| phase.name));
    for (index, name) in names.into_iter().flatten().enumerate() {
        let cell = |kexec: &&Vec<Phase>| match kexec.get(index).and_then(|phase| phase.seconds) {
            Some(seconds) => format!("{seconds:.3}"),
            None => "?".into(),
        };
        table.add_row(
            [name.to_owned()]
                .into_iter()
                .chain(columns.iter().map(cell)),
        );
    }
    table
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    /// As it should be: each service has a file, and the one that updates itself a socket.
    fn outcome(scenario: Scenario) -> ScenarioOutcome {
        let reports = expected_reports(scenario).into_iter().map(|(step, unit)| {
            let mut files = vec![FoundFile::new("dense", Vec::new())];
            if unit == "luo-store" {
                let lost = step.starts_with("kexec").then(|| "missing".to_owned());
                files.push(FoundFile::new("listener", lost.into_iter().collect()));
            }
            let found = Found {
                has_arrived: step != step::START,
                files,
                remarks: Vec::new(),
                unit,
            };
            AfterStep { step, found }
        });
        ScenarioOutcome {
            name: scenario.name(),
            found: reports.collect(),
            kexecs: Vec::new(),
            retrieved: u64::from(scenario != Scenario::MainlineC),
        }
    }

    fn run(scenario: Scenario) -> (tempfile::TempDir, GuestRun) {
        let directory = tempfile::tempdir().unwrap();
        let console = directory.path().join("console.log");
        fs::write(&console, "").unwrap();
        let passed = |stage| Event::Passed {
            stage,
            seconds: 0.0,
            ours: counters::Shares::new(),
        };
        let run = GuestRun {
            events: (1..=scenario.kernels()).map(passed).collect(),
            console,
            timed_out: false,
            elapsed: Duration::from_secs(1),
        };
        (directory, run)
    }

    #[test]
    fn every_service_has_to_find_everything_after_every_step() {
        let (_directory, run) = run(Scenario::Ours);
        let check = |change: &dyn Fn(&mut Vec<AfterStep>)| {
            let mut outcome = outcome(Scenario::Ours);
            change(&mut outcome.found);
            outcome.problems(Scenario::Ours, &run)
        };
        assert_eq!(check(&|_| ()), [""; 0]);
        let silent = check(&|found| {
            found.pop();
        });
        assert_eq!(silent, ["luo-store reports nothing after kexec 2"]);
        let empty = check(&|found| found[4].found.has_arrived = false);
        assert_eq!(empty, ["luo-store: its store was empty after restart"]);
        let other = check(&|found| found[7].found.files[0].differences.push("mode 777".into()));
        assert_eq!(
            other,
            ["luo-files@root, dense, after soft-reboot: mode 777"]
        );
        let lost = check(&|found| found[4].found.files[1].differences.push("missing".into()));
        assert_eq!(lost, ["luo-store, listener, after restart: missing"]);
        let crossed = check(&|found| {
            let last = found.len() - 1;
            found[last].found.files[1].differences.clear();
        });
        assert_eq!(crossed, ["luo-store, listener, after kexec 2: "]);
    }

    #[test]
    fn a_guest_that_ended_early_is_a_problem() {
        let (_directory, mut run) = run(Scenario::Upstream);
        let mut nothing = ScenarioOutcome::of(Scenario::Upstream, &run);
        let problems = nothing.problems(Scenario::Upstream, &run);
        assert_eq!(problems, ["our handlers retrieved 0 files"]);
        nothing.retrieved = 1;
        assert_eq!(nothing.problems(Scenario::Upstream, &run), [""; 0]);
        run.events.pop();
        let problems = nothing.problems(Scenario::Upstream, &run);
        assert_eq!(problems, ["the guest ended after 1 of 2 kernels"]);
    }
}
