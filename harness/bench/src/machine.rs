// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The journey of a real machine through its kernels: what is loaded, and what has to be known
//! before the first jump.
//!
//! Nothing is done before all that can be known is checked. A session lives as long as a process
//! has it open, so the program that measures also jumps: an orderly shutdown would end it first.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};

use crate::counters;
use crate::environment::{file_system, Environment};
use crate::journey::Journey;
use crate::obstacle::obstacle;
use crate::outcome::Outcome;
use crate::outputs::Outputs;
use crate::report::Report;
use crate::series::{Series, Step};
use luo_check::image::Image;
use luo_check::machine::Machine;
use luo_check::verdict::{self, Boot};
use luo_liveupdate::kexec;

/// Where a note waits on a disk, unless another place is named.
pub const NOTE: &str = "/var/lib/luo-bench.json";
const UNIT: &str = include_str!("../systemd/luo-bench.service");
const UNIT_NAME: &str = "luo-bench.service";
/// The program as the unit has it.
const UNIT_PROGRAM: &str = "/usr/local/bin/luo";

/// The kernel to jump into, and how it boots.
#[derive(Clone, Debug, Default)]
pub struct NextKernel {
    /// The image; by default that of the running kernel in `/boot`.
    pub kernel: Option<PathBuf>,
    /// Its initrd; by default the one of the running kernel in `/boot`.
    pub initrd: Option<PathBuf>,
    /// Its command line; by default that of the running kernel.
    pub command_line: Option<String>,
    /// More kernel parameters.
    pub append: Option<String>,
    /// Where a note waits for kernels in which our handler is switched off; by default [`NOTE`].
    pub note: Option<PathBuf>,
}

/// What each of the kernels has to know.
#[derive(Debug, Serialize, Deserialize)]
struct Baggage {
    kernel: PathBuf,
    initrd: PathBuf,
    outputs: Outputs,
}

impl Baggage {
    fn new(next: &NextKernel, outputs: &Outputs) -> Result<Self> {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let kernel = match &next.kernel {
            Some(file) => file.clone(),
            None => format!("/boot/vmlinuz-{release}").into(),
        };
        let initrd = match &next.initrd {
            Some(file) => file.clone(),
            None => find_initrd(Path::new("/boot"), &release)?,
        };
        Ok(Self {
            kernel: existing(&kernel, "--kernel")?,
            initrd: existing(&initrd, "--initrd")?,
            outputs: outputs.absolute()?,
        })
    }

    /// Loads the kernel if it can take what crosses, in these `formats`, and what else is preserved
    /// here.
    fn load(
        &self,
        formats: &BTreeSet<&str>,
        command_line: &str,
        notify: &dyn Fn(&str),
    ) -> Result<()> {
        match Image::open(&self.kernel) {
            Ok(next) => self.check(&next, Machine::read(), formats, command_line)?,
            // The kernel loads images that the check cannot read, and reports what is not one.
            Err(error) => notify(&format!(
                "{} is not checked before the jump: {error}",
                self.kernel.display()
            )),
        }
        notify(&format!(
            "Loading {}, to jump into it.",
            self.kernel.display()
        ));
        Ok(kexec::load(&self.kernel, &self.initrd, command_line)?)
    }

    /// Refuses a kernel that would lose something.
    fn check(
        &self,
        next: &Image,
        mut machine: Machine,
        formats: &BTreeSet<&str>,
        command_line: &str,
    ) -> Result<()> {
        machine.needs(formats.iter().copied());
        let boot = Boot {
            command_line: Some(command_line.to_owned()),
            initramfs: fs::metadata(&self.initrd)?.len(),
        };
        let report = verdict::compare(&machine, next, &boot);
        let reasons: Vec<&str> = report.refusals().collect();
        ensure!(
            report.can_jump,
            "{}: {}; `luo check` shows all that was compared",
            self.kernel.display(),
            reasons.join("; ")
        );
        Ok(())
    }
}

/// By the names that distributions give it.
fn find_initrd(boot: &Path, release: &str) -> Result<PathBuf> {
    let names = ["initrd.img-{}", "initramfs-{}.img", "initrd-{}"];
    let mut files = names
        .map(|name| boot.join(name.replace("{}", release)))
        .into_iter();
    files.find(|file| file.exists()).with_context(|| {
        format!(
            "{release} has no initrd in {}; name one with --initrd",
            boot.display()
        )
    })
}

/// The file, by a name that also holds elsewhere.
fn existing(file: &Path, option: &str) -> Result<PathBuf> {
    let found = file.canonicalize().and_then(|file| {
        fs::File::open(&file)?;
        Ok(file)
    });
    found.with_context(|| {
        format!(
            "cannot read {}; {option} names another file",
            file.display()
        )
    })
}

/// Where a note outlasts a kernel, by a name that fits on a command line.
fn note_place(note: Option<&Path>, is_needed: bool) -> Result<PathBuf> {
    let place = std::path::absolute(note.unwrap_or(Path::new(NOTE)))?;
    if !is_needed {
        return Ok(place);
    }
    let name = place
        .to_str()
        .filter(|name| !name.contains(char::is_whitespace));
    ensure!(
        name.is_some(),
        "--note takes a file with neither spaces nor odd bytes in its name"
    );
    let directory = place.parent().context("--note takes a file")?;
    ensure!(
        directory.is_dir() && !["tmpfs", "ramfs"].contains(&file_system(directory).as_str()),
        "{} is missing in the next kernel; --note names a file on a disk",
        directory.display()
    );
    Ok(place)
}

/// A journey that can begin: everything is checked, nothing is done.
#[derive(Debug)]
pub struct Ready {
    journey: Journey<Baggage>,
    announcement: String,
}

impl Ready {
    /// Checks whether this machine can measure a series of live updates.
    ///
    /// # Errors
    ///
    /// The reason why it cannot, with what to do about it.
    pub fn new(series: Series, next: &NextKernel, outputs: &Outputs) -> Result<Self> {
        if let Some(reason) = kexec::obstacle()
            .map(str::to_owned)
            .or_else(counters::obstacle)
        {
            bail!("{reason}; `luo lab bench` measures kexec in a virtual machine");
        }
        let baggage = Baggage::new(next, outputs)?;
        let note = note_place(next.note.as_deref(), series.needs_notes())?;
        let command_line = command_line(next)?;
        series.check()?;
        for case in series.cases() {
            if let Some(reason) = obstacle(&case, None) {
                bail!("{case} cannot be measured: {reason}");
            }
        }
        outputs.check()?;
        let announcement = announcement(&series, &baggage, &command_line);
        Ok(Self {
            journey: Journey::new(series, &command_line, note, baggage),
            announcement,
        })
    }

    /// What is going to happen, for the user to agree to.
    pub fn announcement(&self) -> &str {
        &self.announcement
    }

    /// Begins: jumps. `notify` gets what is done.
    ///
    /// # Errors
    ///
    /// The reason why this machine did not jump; then it runs on as before.
    pub fn go(&mut self, notify: &dyn Fn(&str)) -> Result<Infallible> {
        go_on(&mut self.journey, notify)?;
        bail!("there was nothing to measure")
    }
}

/// Jumps on, past what this machine cannot do; at its end, returns.
fn go_on(journey: &mut Journey<Baggage>, notify: &dyn Fn(&str)) -> Result<()> {
    let formats = journey.formats();
    let load = |baggage: &Baggage, command_line: &str| baggage.load(&formats, command_line, notify);
    while let Some((step, outcome)) = journey.go_on(load)? {
        notify(&format!("{step}: {}", outcome.summary()));
    }
    Ok(())
}

fn command_line(next: &NextKernel) -> Result<String> {
    let base = match &next.command_line {
        Some(command_line) => command_line.clone(),
        None => fs::read_to_string("/proc/cmdline").context("reading the command line")?,
    };
    let more = next.append.as_deref().unwrap_or_default();
    Ok(kexec::with_parameters(&base, more))
}

fn announcement(series: &Series, baggage: &Baggage, command_line: &str) -> String {
    let updates = series.steps().len();
    // Between two updates, one jump leads to a fresh kernel.
    let jumps = 2 * updates - 1;
    let mut text = format!(
        "Live updates to measure: {updates}. Jumps of this machine: {jumps}, into\n  \
         kernel        {}\n  initrd        {}\n  command line  {command_line}\n\
         Each jump ends all programs at once, as a loss of power would: services are not stopped. \
         File systems are synced before.\n",
        baggage.kernel.display(),
        baggage.initrd.display(),
    );
    text += match continues_by_itself() {
        true => {
            "The systemd unit luo-bench.service continues after each jump; its log and the report \
             are in the journal."
        }
        false => {
            "Beware: nothing continues by itself after a jump. To have systemd do it:\n  \
             luo bench --print-unit > /etc/systemd/system/luo-bench.service && \
             systemctl enable luo-bench.service\n\
             or run `luo bench --continue` as root after each jump."
        }
    };
    text
}

fn continues_by_itself() -> bool {
    let mut command = Command::new("systemctl");
    command.args(["is-enabled", "--quiet", UNIT_NAME]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A journey under way, in one of its kernels.
#[derive(Debug)]
pub struct Underway(Journey<Baggage>);

impl Underway {
    /// The journey that came from the previous kernel, if one did. If that one measured, this is
    /// the new side.
    ///
    /// # Errors
    ///
    /// What crossed cannot be continued.
    pub fn arrived() -> Result<Option<Self>> {
        Ok(Journey::arrived()?.map(Self))
    }

    /// What was measured last, if this kernel is the new side of it.
    pub fn news(&self) -> Option<(Step, &Outcome)> {
        self.0.news()
    }

    /// Jumps on; at its end, returns. `notify` gets what is done.
    ///
    /// # Errors
    ///
    /// The reason why the machine did not jump.
    pub fn go_on(&mut self, notify: &dyn Fn(&str)) -> Result<()> {
        go_on(&mut self.0, notify)
    }

    /// What was measured so far.
    pub fn report(&self) -> Report {
        let environment = Environment::of_this_machine(Path::new("/"));
        let (rows, skipped) = self.0.results();
        Report::new(environment, rows, skipped)
    }

    /// Where the report goes.
    pub fn outputs(&self) -> &Outputs {
        &self.0.extra.outputs
    }
}

/// The systemd unit that continues the journey with the program that runs now.
///
/// # Errors
///
/// A program that does not know its own path.
pub fn unit() -> Result<String> {
    let program = std::env::current_exe().context("looking for this program")?;
    Ok(UNIT.replace(UNIT_PROGRAM, &program.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use luo_check::facts::{Facts, Origin};
    use luo_check::image::Format;
    use std::collections::BTreeMap;

    #[test]
    fn the_initrd_is_found_by_any_name_distributions_use() {
        let boot = tempfile::tempdir().unwrap();
        let error = find_initrd(boot.path(), "7.3").unwrap_err();
        assert!(error.to_string().contains("--initrd"), "{error}");
        for name in ["initrd-7.3", "initramfs-7.3.img", "initrd.img-7.3"] {
            fs::write(boot.path().join(name), "").unwrap();
            assert_eq!(
                find_initrd(boot.path(), "7.3").unwrap(),
                boot.path().join(name)
            );
        }
    }

    #[test]
    fn the_unit_continues_with_this_program() {
        let unit = unit().unwrap();
        let program = std::env::current_exe().unwrap();
        assert!(unit.contains(&format!(
            "ExecStart={} bench --continue\n",
            program.display()
        )));
    }

    #[test]
    fn the_command_line_is_given_whole_or_in_addition() {
        let next = NextKernel {
            command_line: Some("a -- b".into()),
            append: Some("c".into()),
            ..NextKernel::default()
        };
        assert_eq!(command_line(&next).unwrap(), "a c -- b");
    }

    /// A kernel with handlers of memfds and ports.
    fn image() -> Image {
        let handlers = ["luo-handlers,memfd-v1", "luo-handlers,ioport-v1"];
        Image {
            format: Format::BzImage,
            compression: None,
            banner: None,
            memory: None,
            command_line: None,
            facts: Facts {
                origin: Origin::Notes,
                luo: Some("luo-v5".into()),
                kho: Some("kho-v4".into()),
                kho_enabled: Some(false),
                stand_ins: true,
                handlers: handlers.map(str::to_owned).into(),
                own_handlers: BTreeSet::new(),
                reads: BTreeMap::new(),
            },
        }
    }

    #[test]
    fn a_kernel_that_would_lose_something_is_refused_before_it_is_loaded() {
        let initrd = tempfile::NamedTempFile::new().unwrap();
        let baggage = Baggage {
            kernel: "/boot/next".into(),
            initrd: initrd.path().into(),
            outputs: Outputs::default(),
        };
        let current = || Machine {
            facts: Some(image().facts),
            ..Machine::default()
        };
        let on = "liveupdate=on kho=on";
        let check = |machine, formats: &[&'static str], line| {
            let formats = formats.iter().copied().collect();
            let checked = baggage.check(&image(), machine, &formats, line);
            checked.map_err(|error| error.to_string())
        };
        let formats = ["luo-handlers,ioport-v1", "luo-handlers,memfd-v1"];
        check(current(), &formats, on).unwrap();
        let refused = check(current(), &["luo-handlers,vfio-v1"], on).unwrap_err();
        assert!(
            refused.contains("/boot/next")
                && refused.contains("no handler for luo-handlers,vfio-v1")
        );
        let refused = check(current(), &formats, "quiet").unwrap_err();
        assert!(
            refused.contains("liveupdate=on kho=on is missing"),
            "{refused}"
        );
        // Somebody else's files count as well.
        let mut others = current();
        others.needs(["other-v1"]);
        let refused = check(others, &formats, on).unwrap_err();
        assert!(refused.contains("no handler for other-v1"), "{refused}");
    }

    #[test]
    fn a_note_outlasts_the_kernel_and_fits_on_its_command_line() {
        assert!(note_place(Some(Path::new("/a b")), false).is_ok());
        assert!(note_place(Some(Path::new("/a b")), true).is_err());
        assert!(note_place(Some(Path::new("/nonexistent/note")), true).is_err());
        assert_eq!(note_place(None, false).unwrap(), Path::new(NOTE));
    }
}
