// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Steps: work that is done once for its inputs.
//!
//! A step is done when its stamp has the key of its present inputs. The stamp is written last and
//! atomically, so an interrupted step is simply not done.

use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cache::directory::Cache;
use crate::cache::key::Key;
use crate::cache::progress::Progress;

/// What is remembered of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stamp {
    /// What it was made from; `None` while it is not done.
    key: Option<Key>,
    /// How long it took when it last ran to its end.
    seconds: f64,
}

impl Cache {
    /// Runs `work` unless it was already done with the same `key`. Prints which, and how long it
    /// took last time.
    pub(crate) fn step(
        &self,
        name: &str,
        what: &str,
        key: &Key,
        work: impl FnOnce(&Progress) -> Result<()>,
    ) -> Result<()> {
        let previous = self.stamp(name);
        if previous
            .as_ref()
            .is_some_and(|stamp| stamp.key.as_ref() == Some(key))
        {
            return Ok(());
        }
        let seconds = previous.map(|stamp| stamp.seconds);
        if let Some(seconds) = seconds {
            self.write_stamp(name, &Stamp { key: None, seconds })?;
        }
        let progress = Progress::start(name, what, seconds, self.path(format!("logs/{name}.log")))?;
        let started = Instant::now();
        work(&progress)?;
        let seconds = started.elapsed().as_secs_f64();
        progress.done(seconds);
        self.write_stamp(
            name,
            &Stamp {
                key: Some(key.clone()),
                seconds,
            },
        )
    }

    /// Has the step run again next time: what it made is about to change.
    pub(crate) fn undo(&self, name: &str) -> Result<()> {
        match self.stamp(name) {
            Some(stamp) => self.write_stamp(name, &Stamp { key: None, ..stamp }),
            None => Ok(()),
        }
    }

    /// Whether the step was done, with any inputs.
    pub(crate) fn is_done(&self, name: &str) -> bool {
        self.stamp(name).is_some_and(|stamp| stamp.key.is_some())
    }

    fn stamp(&self, name: &str) -> Option<Stamp> {
        self.read_json(format!("stamps/{name}.json"))
    }

    fn write_stamp(&self, name: &str, stamp: &Stamp) -> Result<()> {
        self.write_json(format!("stamps/{name}.json"), stamp)
    }
}

#[cfg(test)]
mod unit_tests {
    use std::process::Command;

    use anyhow::bail;

    use super::*;

    fn scratch() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().join("luo-lab"));
        (directory, cache)
    }

    #[test]
    fn a_step_runs_once_a_key_and_again_after_a_failure() {
        let (_directory, cache) = scratch();
        let mut runs = 0;
        let mut step = |key: &str, fails: bool| {
            let result = cache.step("step", "counting", &Key::of([key]), |_| {
                runs += 1;
                if fails {
                    bail!("on purpose")
                } else {
                    Ok(())
                }
            });
            (result.is_ok(), runs)
        };
        assert_eq!(step("one", false), (true, 1));
        assert_eq!(step("one", false), (true, 1));
        assert_eq!(step("two", true), (false, 2));
        assert_eq!(
            step("one", false),
            (true, 3),
            "a failed step has undone what was there"
        );
        assert!(cache.is_done("step"));
        cache.undo("step").unwrap();
        assert!(!cache.is_done("step"));
        cache.undo("another").unwrap();
        assert!(!cache.is_done("another"));
    }

    #[test]
    fn a_failing_command_shows_the_end_of_its_output() {
        let (_directory, cache) = scratch();
        let error = cache
            .step("step", "failing", &Key::of(["x"]), |progress| {
                progress.run(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]))
            })
            .unwrap_err();
        assert!(error.to_string().contains("one\ntwo"), "{error}");
    }
}
