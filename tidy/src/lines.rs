// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Rules about the lines of a file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The last column of a line.
const COLUMNS_MAX: usize = 100;
/// Source files: each names its licence in one of its first lines.
const SOURCES: [&str; 5] = ["rs", "c", "h", "lds", "S"];
/// Their lines end at [`COLUMNS_MAX`].
const NARROW: [&str; 6] = ["rs", "c", "h", "lds", "S", "md"];
/// The modules that may contain `unsafe`, by the end of their path: the kernel's side, one `sys.rs`
/// a crate, `plugin.rs`, which opens shared objects, and the C form in the api.
const EDGES: [&str; 10] = [
    "kernel.rs",
    "plugin.rs",
    "sys.rs",
    "luo-handler-api/src/c.rs",
    "luo-handler-api/src/file.rs",
    "luo-handler-api/src/host.rs",
    "luo-handler-api/src/hosted.rs",
    "luo-handler-api/src/ops.rs",
    "luo-handler-api/src/pairs.rs",
    "c_form.rs",
];
/// A directory of such modules.
const EDGE_DIRECTORY: &str = "sys";

/// One line for each finding in `file`.
pub(crate) fn check(root: &Path, file: &Path) -> Result<Vec<String>> {
    let extension = file.extension().and_then(|extension| extension.to_str());
    let Some(extension) = extension.filter(|extension| NARROW.contains(extension)) else {
        return Ok(Vec::new());
    };
    let text = fs::read_to_string(root.join(file))
        .with_context(|| format!("reading {}", file.display()))?;
    let mut findings = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let columns = columns(line);
        if columns > COLUMNS_MAX && !is_unbreakable(line) {
            findings.push(format!(
                "{}:{number}: {columns} columns; lines end at {COLUMNS_MAX}",
                file.display()
            ));
        }
        if allows_unsafe(line) && !is_edge(file) {
            findings.push(format!(
                "{}:{number}: allows unsafe code; only edge modules may",
                file.display()
            ));
        }
    }
    if SOURCES.contains(&extension) && !names_licence(&text) {
        findings.push(format!("{}:1: has no SPDX line", file.display()));
    }
    Ok(findings)
}

fn columns(line: &str) -> usize {
    // The kernel's C has tabs of eight columns.
    line.chars().fold(0, |column, character| match character {
        '\t' => column / 8 * 8 + 8,
        _ => column + 1,
    })
}

/// A row of a table, or a line of one long word, such as an address.
fn is_unbreakable(line: &str) -> bool {
    line.starts_with('|')
        || line
            .split_whitespace()
            .any(|word| columns(word) > COLUMNS_MAX - 20)
}

fn names_licence(text: &str) -> bool {
    text.lines()
        .take(3)
        .any(|line| line.contains("SPDX-License-Identifier:"))
}

fn allows_unsafe(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#") && line.contains("allow(unsafe_code")
}

fn is_edge(file: &Path) -> bool {
    let in_tests = file.components().any(|part| part.as_os_str() == "tests");
    let in_kmod = file.starts_with("kmod");
    let in_sys = file.iter().any(|name| name == EDGE_DIRECTORY);
    in_tests || in_kmod || in_sys || EDGES.iter().any(|edge| file.ends_with(edge))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(name), text).unwrap();
        check(root.path(), Path::new(name)).unwrap()
    }

    const SPDX: &str = "// SPDX-License-Identifier: GPL-2.0-only\n";

    #[test]
    fn long_lines_and_missing_licences_are_found() {
        let words = "word ".repeat(25);
        let found_here = found("a.rs", &format!("{SPDX}\n// {words}\n"));
        assert!(
            found_here[0].starts_with("a.rs:3: 128 columns"),
            "{found_here:?}"
        );
        assert_eq!(found("a.c", "int a;\n").len(), 1);
        assert!(found("a.toml", &words).is_empty());
        let address = format!("{SPDX}// {}\n", "x".repeat(120));
        assert!(found("a.rs", &address).is_empty());
    }

    #[test]
    fn unsafe_is_allowed_in_edges_alone() {
        let text = format!("{SPDX}#![allow(unsafe_code)]\n");
        assert_eq!(found("policy.rs", &text).len(), 1);
        assert!(found("kernel.rs", &text).is_empty());
    }
}
