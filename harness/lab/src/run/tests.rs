// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Runs tests, each in a guest of its own: a line for each, and what our handlers did in all of
//! them.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::fs;
use std::path::Path;
use std::sync::{mpsc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use luo_bench::memory::available_bytes;

use crate::build::built::Built;
use crate::build::profile::Profile;
use crate::build::variant::Variant;
use crate::cache::directory::Cache;
use crate::cache::runs::Runs;
use crate::job::Job;
use crate::run::crossed::{ours, Crossed};
use crate::run::guest::guest;
use crate::run::verdict::{case_problem, verdict};
use crate::tests::table;
use crate::tests::test::Test;
use crate::units::duration;
use crate::vm::accel::Accel;
use crate::vm::options::GuestOptions;
use crate::vm::probe;
use crate::vm::qemu::GuestRun;

/// The kernel that checks itself is about this much slower.
const DEBUG_SLOWNESS: u64 = 6;
/// More guests at a time than this are a matter of asking for them.
const GUESTS_MAX: usize = 4;

/// What came out of all tests. Its text is for people.
#[derive(Debug)]
pub struct Summary {
    /// How many tests and cases passed.
    pub passed: u32,
    /// How many failed.
    pub failed: u32,
    /// Which kernel, and how it ran.
    subject: String,
    crossed: Crossed,
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            subject,
            crossed,
        } = self;
        writeln!(f, "lab tests on {subject}:")?;
        writeln!(
            f,
            "what our handlers did in {} kernels, by their own counters; some files are given up \
             or lost on purpose:",
            crossed.kernels
        )?;
        write!(f, "{}\n{passed} passed, {failed} failed", crossed.table())
    }
}

/// The result of one test or one case. Its text is for people.
#[derive(Debug)]
pub struct TestResult {
    /// The test, and after a slash the case.
    pub name: String,
    /// In brackets after the verdict.
    remark: String,
    /// Why it failed; `None` if it passed.
    pub problem: Option<String>,
}

impl Display for TestResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, remark, .. } = self;
        match &self.problem {
            None => write!(f, "test {name:<36} ok ({remark})"),
            Some(problem) => write!(f, "test {name:<36} FAILED ({remark}): {problem}"),
        }
    }
}

/// Which tests to run.
#[derive(Clone, Debug, Default)]
pub struct Selected {
    /// Those whose names contain one of these; all of them if this is empty.
    pub names: Vec<String>,
    /// Also the user's own test program, which is part of the build; alone, unless there are names.
    pub program: bool,
    /// Handlers from outside are in the kernel.
    pub outside: bool,
    /// How many guests run at a time; by default one for each processor, up to four, as far as
    /// there is memory for them.
    pub guests: Option<usize>,
}

impl Selected {
    /// The kernels that they need beside the lab's own.
    ///
    /// # Errors
    ///
    /// No test has such a name.
    pub fn variants(&self) -> Result<Vec<Variant>> {
        let tests = self.tests()?;
        let stages = tests.iter().flat_map(|test| test.stages);
        let kernels: BTreeSet<Variant> = stages.filter_map(|stage| stage.kernel).collect();
        Ok(kernels.into_iter().collect())
    }

    fn tests(&self) -> Result<Vec<&'static Test>> {
        let program = self.program.then_some(table::USERS_TESTS);
        let mut tests = match self.names.is_empty() && self.program {
            true => Vec::new(),
            false => table::select(&self.names)?,
        };
        tests.extend(program.into_iter().flatten());
        let outside = (self.program && self.outside).then_some(table::OUTSIDE_TESTS);
        tests.extend(outside.into_iter().flatten());
        Ok(tests)
    }
}

/// Runs tests, and calls `report` for each result as it comes.
///
/// # Errors
///
/// No test has such a name, or a guest cannot be run. A test that fails is in the summary.
pub fn run_tests(
    cache: &Cache,
    built: &Built,
    options: &GuestOptions,
    selected: &Selected,
    report: &mut dyn FnMut(&TestResult),
) -> Result<Summary> {
    let tests = selected.tests()?;
    let runs = Runs::begin(cache)?;
    let accel = probe::choose(cache, &runs, built)?;
    let mut summary = Summary {
        passed: 0,
        failed: 0,
        subject: format!(
            "{} with {}",
            built.artefacts.kernel_image.display(),
            accel.name()
        ),
        crossed: Crossed::default(),
    };
    let guests = selected
        .guests
        .unwrap_or_else(|| guests_at_a_time(built, options));
    let bench = Bench {
        runs: &runs,
        built,
        options,
        accel,
    };
    let waiting = Mutex::new(tests.into_iter());
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..guests.max(1) {
            let (sender, bench, waiting) = (sender.clone(), &bench, &waiting);
            // It waits for its guests itself: each ends with the thread that started it.
            scope.spawn(move || {
                let next = || waiting.lock().ok()?.next();
                while let Some(test) = next() {
                    let run = bench.run(test);
                    if sender.send((test, run)).is_err() {
                        break; // another one could not be run
                    }
                }
            });
        }
        drop(sender);
        for (test, run) in receiver {
            let run = run?;
            summary.crossed.add(&run);
            for result in results(test, &run) {
                summary.passed += u32::from(result.problem.is_none());
                summary.failed += u32::from(result.problem.is_some());
                report(&result);
            }
        }
        Ok(summary)
    })
}

fn guests_at_a_time(built: &Built, options: &GuestOptions) -> usize {
    // They would listen on the same port.
    if options.gdb {
        return 1;
    }
    let memory = options.memory_with(built.profile);
    let room = available_bytes().map_or(1, |available| available / memory.max(1));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors.min(room as usize).clamp(1, GUESTS_MAX)
}

/// What a test needs to be run.
struct Bench<'a> {
    runs: &'a Runs,
    built: &'a Built,
    options: &'a GuestOptions,
    accel: Accel,
}

impl Bench<'_> {
    fn run(&self, test: &Test) -> Result<GuestRun> {
        let Self { built, options, .. } = *self;
        let job = Job::Test {
            name: test.name.into(),
            stage: 1,
        };
        let mut guest = guest(self.runs, built, options, self.accel, job, test.name);
        let first = test.stages.first().map_or("", |stage| stage.parameters);
        guest.machine = test.machine;
        let kernels = kernels_of(test, built)?;
        put_beside(&kernels, &guest.directory)?;
        let first_kernel = test.stages.first().and_then(|stage| stage.kernel);
        if let Some((_, image)) = kernels.iter().find(|(it, _)| Some(*it) == first_kernel) {
            guest.image = image;
        }
        // The last one counts: the user's, then what the kernel needs, then the test's.
        guest.parameters = format!("{first} {}", guest.parameters);
        guest.timeout = options.timeout.or(Some(test_timeout(built.profile, test)));
        guest.run()
    }
}

/// The other kernels that a test runs in, and their images.
fn kernels_of<'b>(test: &Test, built: &'b Built) -> Result<Vec<(Variant, &'b Path)>> {
    let kernels: BTreeSet<Variant> = test.stages.iter().filter_map(|it| it.kernel).collect();
    let images = kernels.into_iter().map(|kernel| {
        let image = built.artefacts.variants.get(kernel.name());
        let image = image.with_context(|| format!("the kernel {} is not built", kernel.name()))?;
        Ok((kernel, image.as_path()))
    });
    images.collect()
}

/// Puts kernels where a guest finds them.
fn put_beside(kernels: &[(Variant, &Path)], directory: &Path) -> Result<()> {
    for (kernel, image) in kernels {
        let results = directory.join("results");
        fs::create_dir_all(&results)?;
        let file = results.join(kernel.file_in_results());
        fs::copy(image, &file).with_context(|| format!("copying {}", image.display()))?;
    }
    Ok(())
}

/// One for the test, and one for each case that shared its jump.
fn results(test: &Test, run: &GuestRun) -> Vec<TestResult> {
    let elapsed = duration(run.elapsed.as_secs_f64());
    let whole = TestResult {
        name: test.name.into(),
        remark: format!("{elapsed}; {}", ours(run)),
        problem: verdict(test, run)
            .err()
            .map(|reason| format!("{reason}\n  {}", run.console_end())),
    };
    let cases = test.cases().iter().map(|case| TestResult {
        name: format!("{}/{}", test.name, case.name),
        remark: case.about.into(),
        problem: case_problem(case, run),
    });
    [whole].into_iter().chain(cases).collect()
}

fn test_timeout(profile: Profile, test: &Test) -> Duration {
    let slowness = match profile {
        Profile::Release | Profile::Stick => 1,
        Profile::Debug => DEBUG_SLOWNESS,
    };
    Duration::from_secs(test.seconds * slowness)
}
