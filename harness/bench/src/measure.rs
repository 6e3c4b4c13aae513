// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Measures what is planned in ordinary processes, by exec and as images.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use anyhow::{bail, Context, Result};
use rustix::process::Signal;

use crate::case::{Case, Implementation};
use crate::environment::Environment;
use crate::hosted;
use crate::message::Message;
use crate::obstacle::{image_bytes, obstacle};
use crate::outcome::Outcome;
use crate::place::Place;
use crate::plan::Plan;
use crate::report::{Report, Row, Skipped};
use crate::stop::Stop;
use crate::transport::Transport;
use crate::worker::{Task, Worker};

/// What happens during a measurement.
#[derive(Debug)]
pub enum Event<'a> {
    /// It begins: so many rounds after the one that warms up, with so many bytes to handle in all.
    Begun {
        /// Rounds.
        runs: u32,
        /// Bytes that will be filled, written, read or compared.
        bytes: u64,
    },
    /// A run begins. Round 0 warms up and does not count.
    Started {
        /// Counted from 1.
        round: u32,
        /// What is measured.
        case: &'a Case,
    },
    /// So many bytes more were filled, written, read or compared.
    Bytes(u64),
    /// A run ended.
    Ended {
        /// As it started.
        round: u32,
        /// As it started.
        case: &'a Case,
        /// What came of it.
        outcome: &'a Outcome,
    },
    /// A case is not measured.
    Skipped {
        /// What was planned.
        case: &'a Case,
        /// Why it cannot be done.
        reason: &'a str,
    },
}

/// A case and what came of it so far.
struct Measured {
    case: Case,
    outcomes: Vec<Outcome>,
    /// What the round that warms up found changed.
    warm_up_mismatch: Option<String>,
}

struct Measurement<'a> {
    worker: &'a Worker,
    place: Option<Place>,
    stop: &'a Stop,
    notify: &'a mut dyn FnMut(Event<'_>),
    measured: Vec<Measured>,
    skipped: Vec<Skipped>,
}

/// Measures everything in the plan, round by round, so that a busy moment of the machine does not
/// fall on one case alone. A first round warms up; then the order of the cases alternates. What
/// the machine cannot do is reported and skipped.
///
/// # Errors
///
/// A plan that cannot be measured anywhere, and a run that failed to do its work. One that did it
/// wrongly is in the report, not `verified`.
pub fn measure(
    plan: &Plan,
    worker: &Worker,
    stop: &Stop,
    notify: &mut dyn FnMut(Event<'_>),
) -> Result<Report> {
    plan.check()?;
    let cases = plan.cases();
    let mut measurement = Measurement {
        worker,
        place: choose_place(plan, &cases)?,
        stop,
        notify,
        measured: Vec::new(),
        skipped: Vec::new(),
    };
    for case in cases {
        match obstacle(&case, measurement.place.as_ref()) {
            None => measurement.measured.push(Measured {
                case,
                outcomes: Vec::new(),
                warm_up_mismatch: None,
            }),
            Some(reason) => measurement.skip(case, reason),
        }
    }
    measurement.run(plan.runs)?;
    measurement.report()
}

/// A place with room for the largest image, if there are any.
fn choose_place(plan: &Plan, cases: &[Case]) -> Result<Option<Place>> {
    if !plan.transports.contains(&Transport::Image) {
        return Ok(None);
    }
    let wanted = cases.iter().map(image_bytes).max().unwrap_or(0);
    Place::choose(plan.image_directory.as_deref(), wanted).map(Some)
}

impl Measurement<'_> {
    fn run(&mut self, runs: u32) -> Result<()> {
        let cases = self.measured.iter().map(|measured| &measured.case);
        let bytes: u64 = cases.map(hosted::bytes_of).sum();
        (self.notify)(Event::Begun {
            runs,
            bytes: bytes * u64::from(runs + 1),
        });
        for round in 0..=runs {
            let mut cases: Vec<Case> = self
                .measured
                .iter()
                .map(|measured| measured.case.clone())
                .collect();
            if round % 2 == 1 {
                cases.reverse();
            }
            for case in cases {
                self.run_case(round, &case)?;
            }
        }
        Ok(())
    }

    fn run_case(&mut self, round: u32, case: &Case) -> Result<()> {
        (self.notify)(Event::Started { round, case });
        let ended = self.run_once(case);
        let is_it = |measured: &Measured| measured.case == *case;
        let Some(index) = self.measured.iter().position(is_it) else {
            bail!("{case} is not in the plan");
        };
        match ended? {
            Ended::Outcome(outcome) => {
                (self.notify)(Event::Ended {
                    round,
                    case,
                    outcome: &outcome,
                });
                let measured = &mut self.measured[index];
                match round {
                    0 => measured.warm_up_mismatch = outcome.mismatch,
                    _ => measured.outcomes.push(*outcome),
                }
            }
            Ended::Skipped(reason) => {
                let Measured { case, .. } = self.measured.remove(index);
                self.skip(case, reason);
            }
        }
        Ok(())
    }

    fn skip(&mut self, case: Case, reason: String) {
        (self.notify)(Event::Skipped {
            case: &case,
            reason: &reason,
        });
        self.skipped
            .push(Skipped::new(&case, Implementation::Ours, reason));
    }

    /// One live update in a process of its own.
    fn run_once(&mut self, case: &Case) -> Result<Ended> {
        let directory = match (case.transport, &self.place) {
            (Transport::Image, Some(place)) => Some(place.of_one_run()?),
            _ => None,
        };
        let mut child = self
            .worker
            .command(&Task::Depart {
                case: case.clone(),
                directory: directory
                    .as_ref()
                    .map_or(Path::new(""), |run| run.path())
                    .into(),
                worker: self.worker.clone(),
            })?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process for a run")?;
        let output = child.stdout.take().context("the run has no output")?;
        self.stop.watch(child);
        let ended = self.listen(case, BufReader::new(output));
        let child = self.stop.unwatch();
        let mut child = child.context("the process of a run was lost")?;
        if ended.is_err() {
            // It still has work to do, and nobody to report it to.
            let _ = child.kill();
        }
        let status = child.wait()?;
        if self.stop.is_stopped() {
            bail!("interrupted; all files of the bench are removed");
        }
        match ended? {
            Some(ended) if status.success() => Ok(ended),
            _ => bail!("the run of {case} {}", describe(status)),
        }
    }

    /// Passes on what a run reports, until it ends.
    fn listen(&mut self, case: &Case, output: impl BufRead) -> Result<Option<Ended>> {
        let mut ended = None;
        for line in output.lines() {
            let line = line?;
            let message = serde_json::from_str(&line)
                .with_context(|| format!("the run of {case} reported {line:?}"));
            match message {
                Ok(Message::Bytes(bytes)) => (self.notify)(Event::Bytes(bytes)),
                Ok(Message::Skipped(reason)) => ended = Some(Ended::Skipped(reason)),
                Ok(Message::Done(outcome)) => ended = Some(Ended::Outcome(outcome)),
                // A run that is killed may leave half a line.
                Err(_) if self.stop.is_stopped() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }

    fn report(self) -> Result<Report> {
        if self.measured.is_empty() {
            bail!("nothing of what was asked for can be measured on this machine");
        }
        let images = self.place.as_ref().map_or(Path::new("/"), Place::parent);
        let rows = self.measured.iter().map(|measured| {
            let mut row = Row::new(&measured.case, Implementation::Ours, &measured.outcomes);
            if let Some(mismatch) = &measured.warm_up_mismatch {
                row.refute(mismatch);
            }
            row
        });
        Ok(Report::new(
            Environment::of_this_machine(images),
            rows.collect(),
            self.skipped,
        ))
    }
}

enum Ended {
    Outcome(Box<Outcome>),
    Skipped(String),
}

fn describe(status: ExitStatus) -> String {
    const KILLED: i32 = Signal::KILL.as_raw();
    const BUS: i32 = Signal::BUS.as_raw();
    match status.signal() {
        Some(KILLED) => {
            "was killed, as the kernel does when the machine or its memory cgroup has no \
             memory left; measure less at once"
                .to_owned()
        }
        Some(BUS) => "was given no more memory; measure less at once".to_owned(),
        _ => format!("ended with {status}; what it reported is above"),
    }
}
