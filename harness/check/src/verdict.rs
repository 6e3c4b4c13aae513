// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Whether the next kernel can take what is preserved, file by file and as a whole.

use serde::Serialize;

use crate::facts::{short_name, Facts, Origin};
use crate::image::Image;
use crate::machine::{Machine, PreservedFile};

/// How the next kernel is going to be started.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Its command line; `None` if that is not known.
    pub command_line: Option<String>,
    /// The length of its initramfs, in bytes.
    pub initramfs: u64,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It fits.
    Yes,
    /// It does not: the update would lose files.
    No,
    /// It cannot be known from here.
    Unknown,
}

/// One thing that was compared.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub subject: &'static str,
    /// Whether it fits.
    pub answer: Answer,
    /// Why, and what to do if it does not.
    pub text: String,
}

/// Whether the files of one format can be taken.
#[derive(Clone, Debug, Serialize)]
pub struct Files {
    /// The format, which names the handler.
    pub compatible: String,
    /// How many are preserved; 0 if that is not known.
    pub count: u64,
    /// Whether the next kernel takes them.
    pub answer: Answer,
    /// Why.
    pub text: String,
}

/// Whether one file can be taken.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Which.
    #[serde(flatten)]
    pub file: PreservedFile,
    /// Whether the next kernel takes it.
    pub answer: Answer,
    /// Why it does not, where that is not so for all files of its format: see [`Files`].
    pub text: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The next kernel.
    pub next: Image,
    /// What was compared.
    pub checks: Vec<Check>,
    /// The formats of what is preserved.
    pub formats: Vec<Files>,
    /// What is preserved, file by file, as far as that is known.
    pub files: Vec<File>,
    /// Whether none of the answers is [`Answer::No`].
    pub can_jump: bool,
}

impl Report {
    /// What speaks against the jump.
    pub fn refusals(&self) -> impl Iterator<Item = &str> {
        let checks = self.checks.iter().map(|it| (it.answer, &it.text));
        let formats = self.formats.iter().map(|it| (it.answer, &it.text));
        let refusals = checks
            .chain(formats)
            .filter(|(answer, _)| *answer == Answer::No);
        refusals.map(|(_, text)| text.as_str())
    }
}

/// Compares what there is with what comes.
pub fn compare(machine: &Machine, next: &Image, boot: &Boot) -> Report {
    let current = machine.facts.as_ref();
    let command_line = boot.command_line.as_ref().or(next.command_line.as_ref());
    let command_line = command_line.map(String::as_str);
    let mut checks = vec![
        abi(
            "LUO ABI",
            current.map(|facts| &facts.luo),
            &next.facts.luo,
            "the Live Update Orchestrator",
        ),
        abi(
            "KHO ABI",
            current.map(|facts| &facts.kho),
            &next.facts.kho,
            "Kexec Handover",
        ),
        switched_on(command_line, &next.facts),
        scratch(machine, next, boot),
        memory(machine, next, boot),
    ];
    checks.extend(machine.busy_sessions.iter().map(|name| busy(name)));
    let mut formats: Vec<Files> = machine
        .preserved
        .iter()
        .map(|(compatible, count)| taken(compatible, *count, &next.facts, command_line))
        .collect();
    let files = machine.files.iter();
    let files: Vec<File> = files
        .map(|file| of_file(file, &formats, &next.facts))
        .collect();
    for format in formats.iter_mut().filter(|it| it.answer == Answer::Yes) {
        compare_reads(format, current, &next.facts, &files);
    }
    let mut report = Report {
        can_jump: false,
        next: next.clone(),
        checks,
        files,
        formats,
    };
    let is_refused = report.refusals().next().is_some();
    report.can_jump = !is_refused;
    report
}

fn busy(session: &str) -> Check {
    Check {
        subject: "session",
        answer: Answer::Unknown,
        text: format!("{session} is at work and does not show its files; check again"),
    }
}

fn abi(
    subject: &'static str,
    current: Option<&Option<String>>,
    next: &Option<String>,
    what: &str,
) -> Check {
    let (answer, text) = match (current, next) {
        (_, None) => (
            Answer::No,
            format!("the next kernel has no trace of {what}; build it with it"),
        ),
        (None | Some(None), Some(next)) => (
            Answer::Unknown,
            format!("the next kernel has {next}; this one has no notes from kmod to compare with"),
        ),
        (Some(Some(current)), Some(next)) if current == next => {
            (Answer::Yes, format!("{next}, as this kernel"))
        }
        (Some(Some(current)), Some(next)) => (
            Answer::No,
            format!("the next kernel has {next}, this one {current}: it takes nothing over"),
        ),
    };
    Check {
        subject,
        answer,
        text,
    }
}

fn taken(compatible: &str, count: u64, next: &Facts, command_line: Option<&str>) -> Files {
    let by_name = || {
        next.handlers
            .iter()
            .any(|known| short_name(known) == compatible)
    };
    let known = next.takes(compatible) || by_name();
    let (answer, text) = match (known, next.origin) {
        (true, Origin::Notes) if is_disabled(command_line, short_name(compatible)) => (
            Answer::Yes,
            "the next kernel has a handler, which takes no new files (luo_handlers.disable)"
                .to_owned(),
        ),
        (true, Origin::Notes) => (Answer::Yes, "the next kernel has a handler".to_owned()),
        (true, Origin::Guess) => (
            Answer::Yes,
            "a guess: the next kernel's data have the name, and no notes".to_owned(),
        ),
        (false, origin) => {
            let guess = match origin {
                Origin::Notes => "",
                Origin::Guess => "a guess: ",
            };
            let cost = match next.stand_ins {
                true => "these files would be lost",
                false => "every session would be lost",
            };
            let other = other_format(compatible, next);
            let advice = other.map_or("build it in".to_owned(), |other| {
                format!("build it in, or preserve them as {other}, which it takes")
            });
            let name = short_name(compatible);
            (
                Answer::No,
                format!(
                    "{guess}the next kernel has no handler for {compatible} ({name}), {cost}: \
                     {advice}"
                ),
            )
        }
    };
    Files {
        compatible: compatible.to_owned(),
        count,
        answer,
        text,
    }
}

/// Whether a file is taken, going by its format and by what its handler has to be able to read.
fn of_file(file: &PreservedFile, formats: &[Files], next: &Facts) -> File {
    let mut its = formats.iter().filter(|it| it.compatible == file.compatible);
    let format = its.next().map_or(Answer::Unknown, |format| format.answer);
    let (answer, text) = match (format, missing_reads(&file.compatible, &file.needs, next)) {
        (Answer::Yes, Err(NotListed)) => (
            Answer::Unknown,
            Some("the next kernel's notes do not list what its handler can read".to_owned()),
        ),
        (Answer::Yes, Ok(missing)) if !missing.is_empty() => (
            Answer::No,
            Some(format!(
                "the next kernel's handler cannot read {}",
                missing.join(", ")
            )),
        ),
        (answer, _) => (answer, None),
    };
    File {
        file: file.clone(),
        answer,
        text,
    }
}

/// The same of all files of a format; where they are not known one by one, of what this kernel's
/// handler can read.
fn compare_reads(format: &mut Files, current: Option<&Facts>, next: &Facts, files: &[File]) {
    let its = files
        .iter()
        .filter(|it| it.file.compatible == format.compatible);
    let of_answer = |answer| its.clone().filter(move |it| it.answer == answer).count();
    let mut texts = its.clone().filter_map(|it| it.text.as_deref());
    let (no, unknown) = (of_answer(Answer::No), of_answer(Answer::Unknown));
    if no + unknown > 0 {
        format.answer = if no > 0 { Answer::No } else { Answer::Unknown };
        let (count, text) = (no.max(unknown), texts.next().unwrap_or_default());
        format.text = format!("{count} of them: {text}");
    } else if its.clone().next().is_none() {
        let reads = current.and_then(|facts| facts.reads.get(&format.compatible));
        let reads = reads.into_iter().flatten();
        if let Ok(missing) = missing_reads(&format.compatible, reads, next) {
            if !missing.is_empty() {
                format.answer = Answer::Unknown;
                format.text = format!(
                    "the next kernel has a handler, which cannot read {}",
                    missing.join(", ")
                );
            }
        }
    }
}

/// The next kernel's notes do not list what a handler can read.
struct NotListed;

/// What of these words the next kernel's handler does not list.
fn missing_reads<'a>(
    compatible: &str,
    words: impl IntoIterator<Item = &'a String>,
    next: &Facts,
) -> Result<Vec<&'a str>, NotListed> {
    let mut words = words.into_iter().peekable();
    if words.peek().is_none() {
        return Ok(Vec::new());
    }
    let reads = next.reads.get(compatible).ok_or(NotListed)?;
    let missing = words.filter(|word| !reads.contains(*word));
    Ok(missing.map(String::as_str).collect())
}

/// Another format that the next kernel takes of files of the same name.
fn other_format<'a>(compatible: &str, next: &'a Facts) -> Option<&'a str> {
    let mut all = next.own_handlers.iter().chain(&next.handlers);
    let same = |other: &&String| short_name(other) == short_name(compatible);
    all.find(same).map(String::as_str)
}

fn switched_on(command_line: Option<&str>, next: &Facts) -> Check {
    let (answer, text) = match command_line {
        None => {
            let need = match next.kho_enabled {
                Some(true) => "liveupdate=on",
                _ => "liveupdate=on kho=on",
            };
            (
                Answer::Unknown,
                format!("not given; the next kernel needs {need}"),
            )
        }
        Some(line) => match missing_parameters(line, next) {
            missing if !missing.is_empty() => (
                Answer::No,
                format!(
                    "{} is missing on the next kernel's command line",
                    missing.join(" ")
                ),
            ),
            _ => (Answer::Yes, "live update is on".to_owned()),
        },
    };
    Check {
        subject: "command line",
        answer,
        text,
    }
}

/// What the kernel does with a parameter: the last one counts.
fn parameter<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace().take_while(|word| *word != "--");
    let value = |word: &'a str| word.strip_prefix(name)?.strip_prefix('=');
    words.by_ref().filter_map(value).last()
}

/// As the kernel's `kstrtobool()` has it.
fn is_on(value: &str) -> bool {
    matches!(
        value.as_bytes(),
        [b'y' | b'Y' | b't' | b'T' | b'1', ..] | [b'o' | b'O', b'n' | b'N', ..]
    )
}

fn missing_parameters(line: &str, next: &Facts) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !parameter(line, "liveupdate").is_some_and(is_on) {
        missing.push("liveupdate=on");
    }
    let kho = parameter(line, "kho").map(is_on);
    if !kho.or(next.kho_enabled).unwrap_or(false) {
        missing.push("kho=on");
    }
    missing
}

/// Whether the command line leaves a handler out, by its short name.
fn is_disabled(command_line: Option<&str>, name: &str) -> bool {
    let names = command_line.and_then(|line| parameter(line, "luo_handlers.disable"));
    names.is_some_and(|names| names.split(',').any(|disabled| disabled == name))
}

fn scratch(machine: &Machine, next: &Image, boot: &Boot) -> Check {
    let (answer, text) = match (machine.scratch, next.memory) {
        (Some(scratch), Some(needed)) if needed.saturating_add(boot.initramfs) > scratch => (
            Answer::No,
            format!(
                "the next kernel starts in {} and its initramfs takes {}, but the largest piece of \
                 scratch memory has {}; boot with a larger kho_scratch=",
                mib(needed), mib(boot.initramfs), mib(scratch)
            ),
        ),
        (Some(scratch), Some(needed)) => (
            Answer::Yes,
            format!(
                "{} of {} for the next kernel",
                mib(needed + boot.initramfs),
                mib(scratch)
            ),
        ),
        _ => (
            Answer::Unknown,
            "not to be read here, or not in the image".to_owned(),
        ),
    };
    Check {
        subject: "scratch memory",
        answer,
        text,
    }
}

fn memory(machine: &Machine, next: &Image, boot: &Boot) -> Check {
    let needed = next
        .memory
        .map(|memory| memory.saturating_add(boot.initramfs));
    let (answer, text) = match (machine.available_memory, needed) {
        (Some(available), Some(needed)) if needed > available => (
            Answer::No,
            format!(
                "loading the next kernel takes {}, and {} are free",
                mib(needed),
                mib(available)
            ),
        ),
        (Some(available), Some(needed)) => (
            Answer::Yes,
            format!(
                "{} of {} to load the next kernel",
                mib(needed),
                mib(available)
            ),
        ),
        _ => (
            Answer::Unknown,
            "not to be read here, or not in the image".to_owned(),
        ),
    };
    Check {
        subject: "free memory",
        answer,
        text,
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::notes;
    use crate::image::tests::vmlinux;

    const RODATA: &[u8] = b"Linux version 7.3.4 \0";

    fn image(luo: &str, handlers: &[&str]) -> Image {
        let file = vmlinux(&notes(luo, handlers), RODATA);
        let mut image = Image::read(file.as_slice()).unwrap();
        image.memory = Some(64 << 20);
        image
    }

    fn machine() -> Machine {
        Machine {
            scratch: Some(128 << 20),
            available_memory: Some(1 << 30),
            ..Machine::of_kernel(image("luo-v5", &["memfd-v1", "vfio-v1"]).facts)
        }
    }

    fn boot(line: &str) -> Boot {
        Boot {
            command_line: Some(line.to_owned()),
            initramfs: 1 << 20,
        }
    }

    fn refusals(next: &Image, boot: &Boot) -> Vec<String> {
        let report = compare(&machine(), next, boot);
        let no: Vec<String> = report.refusals().map(str::to_owned).collect();
        assert_eq!(report.can_jump, no.is_empty());
        no
    }

    #[test]
    fn the_same_kernel_takes_everything() {
        let next = image("luo-v5", &["memfd-v1", "vfio-v1"]);
        assert_eq!(
            refusals(&next, &boot("liveupdate=on kho=on")),
            Vec::<String>::new()
        );
        let report = compare(&machine(), &next, &boot("liveupdate=1 kho=y"));
        assert!(
            report
                .checks
                .iter()
                .all(|check| check.answer == Answer::Yes),
            "{report:?}"
        );
        assert_eq!(report.formats.len(), 3);
    }

    #[test]
    fn each_file_has_its_verdict() {
        let mut machine = machine();
        machine.files = ["vfio-v1", "memfd-v1"]
            .into_iter()
            .zip(["0x1", "0x2"])
            .map(|(compatible, token)| PreservedFile {
                session: "guest".to_owned(),
                token: token.to_owned(),
                name: None,
                compatible: compatible.to_owned(),
                needs: Vec::new(),
            })
            .collect();
        let next = image("luo-v5", &["memfd-v1"]);
        let report = compare(&machine, &next, &boot("liveupdate=on kho=on"));
        let found: Vec<_> = report
            .files
            .iter()
            .map(|it| (it.file.token.as_str(), it.answer))
            .collect();
        assert_eq!(found, [("0x1", Answer::No), ("0x2", Answer::Yes)]);
        assert!(!report.can_jump);
    }

    /// Facts of a kernel whose handler of memfds can read this.
    fn reading(words: &[&str]) -> Facts {
        let mut facts = machine().facts.unwrap();
        let words = words.iter().copied().map(str::to_owned).collect();
        facts.reads.insert("memfd-v1".to_owned(), words);
        facts
    }

    #[test]
    fn a_file_that_its_handler_cannot_read_is_named() {
        use Answer::{No, Unknown, Yes};
        let mut current = Machine::of_kernel(reading(&["r3", "shmem", "hugetlb"]));
        for (token, kind) in [("0x1", "shmem"), ("0x2", "hugetlb"), ("0x3", "hugetlb")] {
            current.files.push(PreservedFile {
                session: "guest".to_owned(),
                token: token.to_owned(),
                name: None,
                compatible: "memfd-v1".to_owned(),
                needs: vec!["r3".to_owned(), kind.to_owned()],
            });
        }
        let mut next = image("luo-v5", &["memfd-v1", "vfio-v1"]);
        let mut answers = |facts: Facts| {
            next.facts = facts;
            let report = compare(&current, &next, &boot("liveupdate=on kho=on"));
            let of_name = |it: &&Files| it.compatible == "memfd-v1";
            let format = report.formats.iter().find(of_name).unwrap().clone();
            let files: Vec<_> = report.files.iter().map(|it| it.answer).collect();
            assert_eq!(report.can_jump, format.answer != No);
            (files, format.answer, format.text)
        };
        let (files, format, _) = answers(reading(&["r4", "r3", "shmem", "hugetlb"]));
        assert_eq!((files, format), (vec![Yes; 3], Yes));
        let (files, format, text) = answers(reading(&["r3", "shmem"]));
        assert_eq!((files, format), (vec![Yes, No, No], No));
        assert_eq!(
            text,
            "2 of them: the next kernel's handler cannot read hugetlb"
        );
        let (files, format, text) = answers(reading(&["r2", "shmem", "hugetlb"]));
        assert_eq!((files, format), (vec![No; 3], No));
        assert!(text.ends_with("cannot read r3"), "{text}");
        // An older kmod has no such notes.
        let (files, format, text) = answers(machine().facts.unwrap());
        assert_eq!((files, format), (vec![Unknown; 3], Unknown));
        assert!(text.contains("do not list"), "{text}");
    }

    #[test]
    fn what_another_kernel_may_hold_and_this_one_cannot_read_is_reported() {
        let machine = Machine::of_kernel(reading(&["r3", "shmem", "hugetlb"]));
        let mut next = image("luo-v5", &["memfd-v1", "vfio-v1"]);
        next.facts = reading(&["r3", "shmem"]);
        let report = compare(&machine, &next, &boot("liveupdate=on kho=on"));
        let mut formats = report.formats.iter();
        let memfd = formats.find(|it| it.compatible == "memfd-v1").unwrap();
        assert!(memfd.answer == Answer::Unknown && memfd.text.ends_with("cannot read hugetlb"));
        assert!(report.can_jump);
    }

    #[test]
    fn a_session_at_work_is_reported_and_no_obstacle() {
        let mut machine = machine();
        machine.busy_sessions.push("guest".to_owned());
        let next = image("luo-v5", &["memfd-v1", "vfio-v1"]);
        let report = compare(&machine, &next, &boot("liveupdate=on kho=on"));
        let unknown = |check: &&Check| check.answer == Answer::Unknown;
        let unknown: Vec<_> = report.checks.iter().filter(unknown).collect();
        assert!(unknown.len() == 1 && unknown[0].text.contains("guest is at work"));
        assert!(report.can_jump);
    }

    #[test]
    fn a_missing_handler_is_named() {
        let no = refusals(
            &image("luo-v5", &["memfd-v1"]),
            &boot("liveupdate=on kho=on"),
        );
        assert_eq!(no.len(), 1);
        assert!(no[0].contains("vfio-v1"), "{no:?}");
    }

    #[test]
    fn another_abi_is_refused() {
        let no = refusals(
            &image("luo-v6", &["memfd-v1", "vfio-v1"]),
            &boot("liveupdate=on kho=on"),
        );
        assert!(
            no.len() == 1 && no[0].contains("luo-v6") && no[0].contains("luo-v5"),
            "{no:?}"
        );
    }

    #[test]
    fn a_kernel_without_luo_is_refused() {
        let file = vmlinux(&[], RODATA);
        let no = refusals(
            &Image::read(file.as_slice()).unwrap(),
            &boot("liveupdate=on kho=on"),
        );
        assert!(
            no[0].contains("no trace of the Live Update Orchestrator"),
            "{no:?}"
        );
    }

    #[test]
    fn the_command_line_switches_it_on() {
        let mut next = image("luo-v5", &["memfd-v1", "vfio-v1"]);
        for (line, missing) in [
            ("quiet", "liveupdate=on kho=on is missing"),
            ("liveupdate=on", "kho=on is missing"),
            (
                "liveupdate=on kho=on liveupdate=off",
                "liveupdate=on is missing",
            ),
            ("kho=on -- liveupdate=on", "liveupdate=on is missing"),
            ("xliveupdate=on kho=on", "liveupdate=on is missing"),
        ] {
            let no = refusals(&next, &boot(line));
            assert!(no.len() == 1 && no[0].contains(missing), "{line}: {no:?}");
        }
        next.facts.kho_enabled = Some(true);
        assert_eq!(
            refusals(&next, &boot("liveupdate=on")),
            Vec::<String>::new()
        );
        assert_eq!(refusals(&next, &boot("liveupdate=on kho=off")).len(), 1);
        assert_eq!(refusals(&next, &Boot::default()), Vec::<String>::new());
        // A unified kernel image brings its own.
        next.command_line = Some("liveupdate=off".to_owned());
        assert_eq!(refusals(&next, &Boot::default()).len(), 1);
    }

    #[test]
    fn a_handler_that_takes_no_new_files_retrieves() {
        let next = image("luo-v5", &["memfd-v1", "vfio-v1"]);
        let line = boot("liveupdate=on kho=on luo_handlers.disable=ioport,vfio");
        let report = compare(&machine(), &next, &line);
        assert!(report.can_jump);
        let text = |name: &str| {
            let of_name = |format: &&Files| format.compatible == name;
            let format = report.formats.iter().find(of_name).unwrap();
            (format.answer, format.text.contains("takes no new files"))
        };
        assert_eq!(text("vfio-v1"), (Answer::Yes, true));
        assert_eq!(text("memfd-v1"), (Answer::Yes, false));
    }

    #[test]
    fn what_a_missing_handler_costs_is_reported_with_a_way_out() {
        let line = boot("liveupdate=on kho=on");
        let mut next = image("luo-v5", &["vfio-v1"]);
        let no = refusals(&next, &line);
        let expected = "every session would be lost: build it in, or preserve them as memfd-v2";
        assert!(no.len() == 1 && no[0].contains(expected), "{no:?}");
        next.facts.stand_ins = true;
        assert!(refusals(&next, &line)[0].contains("these files would be lost"));
    }

    #[test]
    fn room_is_needed() {
        let mut next = image("luo-v5", &["memfd-v1", "vfio-v1"]);
        next.memory = Some(2 << 30);
        let no = refusals(&next, &boot("liveupdate=on kho=on"));
        assert!(no.len() == 2 && no[0].contains("kho_scratch="), "{no:?}");
    }
}
