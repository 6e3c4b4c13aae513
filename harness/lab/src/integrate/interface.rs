// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The interface of the kernel that kmod/ is written for, against that of a tree.
//!
//! `kmod/kernel.interface` has the declarations, by the kernel's file. What is not among them may
//! differ; the compiler and the patches find that out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{bail, Context, Result};

/// In a checkout.
pub(super) const FILE: &str = "kmod/kernel.interface";
/// Before the name of a kernel's file.
const PART: &str = "=== ";

/// What a declaration consists of, by its name such as `struct file`.
type Declarations = BTreeMap<String, Vec<String>>;

/// Refuses a tree whose declarations are others than those that kmod/ is written for.
pub(super) fn check(checkout: &Path, kernel: &Path) -> Result<()> {
    let file = checkout.join(FILE);
    let known = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    for part in known.split(PART).skip(1) {
        let (file, known) = part.split_once('\n').unwrap_or((part, ""));
        let found = fs::read_to_string(kernel.join(file))
            .map_err(|error| error.to_string())
            .and_then(|text| compare(&declarations(known), &declarations(&text)));
        if let Err(difference) = found {
            bail!(
                "{} cannot take the handlers: its Live Update Orchestrator has another interface \
                 than the one kmod/ is written for, that of Linux 7.2 and 7.3 ({file}: \
                 {difference})",
                kernel.display()
            );
        }
    }
    Ok(())
}

/// # Errors
///
/// The first difference.
fn compare(known: &Declarations, found: &Declarations) -> Result<(), String> {
    for (name, known) in known {
        let found = found.get(name).ok_or(format!("it has no {name}"))?;
        let first = |of: &[String], without: &[String]| {
            of.iter().find(|member| !without.contains(member)).cloned()
        };
        if let Some(member) = first(found, known) {
            return Err(format!("{name} has `{member}`"));
        }
        if let Some(member) = first(known, found) {
            return Err(format!("{name} lacks `{member}`"));
        }
        if known != found {
            return Err(format!("{name} has the same in another order"));
        }
    }
    Ok(())
}

/// Structs, unions and enums that begin a line, and what is defined on one, without comments.
fn declarations(text: &str) -> Declarations {
    let text = without_comments(text);
    let mut declarations = Declarations::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["#define", name, ..] => {
                declarations.insert(format!("#define {name}"), vec![words[2..].join(" ")]);
            }
            [kind @ ("struct" | "union" | "enum"), name, "{"] if line.starts_with(kind) => {
                let mut body = Vec::new();
                for line in lines.by_ref() {
                    body.extend(line.split_whitespace());
                    if line.starts_with('}') {
                        break;
                    }
                }
                let body = body.join(" ");
                let members = body.split(';').map(str::trim).filter(|it| !it.is_empty());
                let members = members.map(str::to_owned).collect();
                declarations.insert(format!("{kind} {name}"), members);
            }
            _ => {}
        }
    }
    declarations
}

fn without_comments(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("/*") {
        kept += &rest[..place];
        let comment = &rest[place + 2..];
        rest = comment.find("*/").map_or("", |end| &comment[end + 2..]);
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERFACE: &str = include_str!("../../../../kmod/kernel.interface");
    const HEADER: &str = "include/linux/liveupdate.h";

    /// A checkout and a tree whose header differs by a replacement.
    fn checked(what: &str, other: &str) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let (checkout, kernel) = (
            directory.path().join("ours"),
            directory.path().join("linux"),
        );
        let write = |file: &Path, text: &str| {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write(&checkout.join(FILE), INTERFACE);
        for part in INTERFACE.split(PART).skip(1) {
            let (file, text) = part.split_once('\n').unwrap();
            let text = format!("/* A comment. */\n{text}\nstruct other {{\n\tint x;\n}};\n");
            assert!(file != HEADER || text.contains(what), "{what}");
            write(&kernel.join(file), &text.replace(what, other));
        }
        check(&checkout, &kernel).map_err(|error| error.to_string())
    }

    #[test]
    fn the_known_interface_is_taken_whatever_its_comments() {
        checked("x", "x").unwrap();
        let member = "struct file *file;";
        checked(
            member,
            "/* [IN] or\n * [OUT] */ struct  file *file; /* @file */",
        )
        .unwrap();
    }

    #[test]
    fn another_interface_is_refused_with_the_difference() {
        let status = "\tint retrieve_status;\n";
        for (what, other, difference) in [
            (
                status,
                "\tint retrieve_status;\n\tstruct liveupdate_session *session;\n",
                "struct liveupdate_file_op_args has `struct liveupdate_session *session`",
            ),
            (
                "\tu64 serialized_data;\n",
                "\tDECLARE_KHOSER_PTR(serialized_data, void *);\n",
                "struct liveupdate_file_op_args has `DECLARE_KHOSER_PTR(serialized_data, void *)`",
            ),
            (
                status,
                "",
                "struct liveupdate_file_op_args lacks `int retrieve_status`",
            ),
            (
                "struct liveupdate_file_ops {",
                "struct liveupdate_operations {",
                "it has no struct liveupdate_file_ops",
            ),
        ] {
            let error = checked(what, other).unwrap_err();
            assert!(error.contains(difference), "{error}");
            assert!(
                error.contains(HEADER) && error.contains("7.2 and 7.3"),
                "{error}"
            );
        }
    }
}
