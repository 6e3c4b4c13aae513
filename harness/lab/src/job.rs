// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the host wants of a guest: a job, on the kernel's command line.

use std::fmt::Write as _;

use anyhow::{bail, Context, Result};

use crate::soak::options::SoakOptions;
use crate::systemd::image::INIT;
use crate::systemd::scenario::Scenario;
use luo_bench::series::Series;

/// What a guest is to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Job {
    /// Report that it is up, and end.
    Probe,
    /// A shell on the console.
    Shell,
    /// One command.
    Run(Vec<String>),
    /// One stage, counted from 1, of a test of the table.
    Test { name: String, stage: usize },
    /// A soak: its first update, or what is left of it.
    Soak { options: SoakOptions, stage: usize },
    /// With systemd as init: one kernel, counted from 1, of a scenario.
    Systemd { scenario: Scenario, stage: usize },
    /// A series of live updates to be measured: its beginning in the first stage, or what is left
    /// of it.
    Bench { series: Series, stage: usize },
}

impl Job {
    /// As kernel parameters. Their prefix makes the kernel leave them to us.
    pub(crate) fn parameters(&self) -> String {
        match self {
            Self::Probe => "luo.probe=1".into(),
            Self::Shell => "luo.shell=1".into(),
            Self::Run(command) => format!("luo.run={}", encode(command)),
            Self::Test { name, stage } => format!("luo.test={name} luo.stage={stage}"),
            Self::Soak { options, stage } => {
                format!("luo.soak={} luo.stage={stage}", options.word())
            }
            Self::Systemd { scenario, stage } => {
                format!("luo.systemd={} luo.stage={stage}", scenario.name())
            }
            Self::Bench { series, stage } => {
                // Plain numbers and names: writing them as JSON cannot fail.
                let series = serde_json::to_string(series).unwrap_or_default();
                format!("luo.bench={} luo.stage={stage}", encode(&[series]))
            }
        }
    }

    /// The init program that does it, as kernel parameters. What follows the two dashes becomes its
    /// arguments.
    pub(crate) fn init(&self) -> String {
        match self {
            // Its messages are the kernel's, with the times of the kernel's.
            Self::Systemd { .. } => format!(
                "systemd.log_target=kmsg systemd.show_status=no printk.devkmsg=on rdinit={INIT}"
            ),
            _ => "rdinit=/bin/luo -- lab guest-init".into(),
        }
    }

    /// From a kernel command line.
    pub(crate) fn parse(command_line: &str) -> Result<Self> {
        if value_of(command_line, "luo.probe").is_some() {
            return Ok(Self::Probe);
        }
        if value_of(command_line, "luo.shell").is_some() {
            return Ok(Self::Shell);
        }
        if let Some(command) = value_of(command_line, "luo.run") {
            return Ok(Self::Run(decode(command)?));
        }
        let stage = || -> Result<usize> {
            let stage = value_of(command_line, "luo.stage").context("luo.stage is missing")?;
            stage
                .parse()
                .with_context(|| format!("luo.stage is not a number: {stage}"))
        };
        if let Some(options) = value_of(command_line, "luo.soak") {
            return Ok(Self::Soak {
                options: options.parse()?,
                stage: stage()?,
            });
        }
        if let Some(scenario) = value_of(command_line, "luo.systemd") {
            let named = Scenario::find(scenario);
            return Ok(Self::Systemd {
                scenario: named.with_context(|| format!("there is no scenario {scenario}"))?,
                stage: stage()?,
            });
        }
        if let Some(series) = value_of(command_line, "luo.bench") {
            let series = decode(series)?.concat();
            let series = serde_json::from_str(&series)
                .with_context(|| format!("luo.bench is not a series: {series}"))?;
            return Ok(Self::Bench {
                series,
                stage: stage()?,
            });
        }
        let Some(name) = value_of(command_line, "luo.test") else {
            bail!("the kernel's command line has no job for us: {command_line}");
        };
        Ok(Self::Test {
            name: name.to_owned(),
            stage: stage()?,
        })
    }
}

/// The value of a kernel parameter.
pub(crate) fn value_of<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The command line of the next stage: the present one with other stage parameters in their place.
pub(crate) fn next_stage(
    command_line: &str,
    stage: usize,
    leaving: &str,
    entering: &str,
) -> String {
    let next = format!("luo.stage={stage}");
    let mut words = Vec::new();
    for word in command_line.split_whitespace() {
        if word.starts_with("luo.stage=") {
            words.push(next.as_str());
            words.extend(entering.split_whitespace());
        } else if !leaving.split_whitespace().any(|left| left == word) {
            words.push(word);
        }
    }
    words.join(" ")
}

/// Arguments as one word: `+` between them, all but plain characters as `%XX`.
fn encode(arguments: &[String]) -> String {
    let mut word = String::new();
    for (index, argument) in arguments.iter().enumerate() {
        if index > 0 {
            word.push('+');
        }
        for byte in argument.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_./=:,@".contains(&byte) {
                word.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(word, "%{byte:02X}");
            }
        }
    }
    word
}

fn decode(word: &str) -> Result<Vec<String>> {
    word.split('+').map(decode_argument).collect()
}

fn decode_argument(argument: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let mut rest = argument.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = tail
                .get(..2)
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .context("a % without its digits")?;
            bytes.push(
                u8::from_str_radix(digits, 16)
                    .with_context(|| format!("%{digits} is not a byte"))?,
            );
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).context("an argument is not UTF-8")
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn jobs_cross_the_command_line() {
        let run = |words: &[&str]| Job::Run(words.iter().map(|&word| word.to_owned()).collect());
        let test = Job::Test {
            name: "luo_kexec_simple".into(),
            stage: 2,
        };
        let soak = Job::Soak {
            options: SoakOptions {
                jumps: 20,
                seed: 7,
                writes_during_freeze: false,
            },
            stage: 3,
        };
        let systemd = Job::Systemd {
            scenario: Scenario::MainlineC,
            stage: 2,
        };
        for job in [
            Job::Probe,
            Job::Shell,
            systemd,
            test,
            soak,
            run(&["sh", "-c", "echo \"a + b\" 100%"]),
            run(&["x", ""]),
        ] {
            let command_line = format!("console=ttyS0 {} {}", job.parameters(), job.init());
            assert_eq!(Job::parse(&command_line).unwrap(), job);
        }
        assert!(Job::parse("console=ttyS0").is_err());
        assert!(Job::parse("luo.run=%4").is_err());
    }

    #[test]
    fn the_next_stage_swaps_its_parameters() {
        let now = "console=ttyS0 luo.test=x luo.stage=1 luo_handlers.disable=vfio rdinit=/bin/luo \
                   -- lab guest-init";
        assert_eq!(
            next_stage(
                now,
                2,
                "luo_handlers.disable=vfio",
                "luo_handlers.disable=memfd"
            ),
            "console=ttyS0 luo.test=x luo.stage=2 luo_handlers.disable=memfd rdinit=/bin/luo -- \
             lab guest-init"
        );
    }

    proptest! {
        #[test]
        fn every_argument_survives(arguments in proptest::collection::vec(".*", 1..5)) {
            let word = encode(&arguments);
            prop_assert!(!word.contains(char::is_whitespace) && !word.contains('"'));
            prop_assert_eq!(decode(&word).unwrap(), arguments);
        }
    }
}
