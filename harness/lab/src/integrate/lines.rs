// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A line that is added to a file of the kernel, and taken out again to the byte.

use anyhow::{Context, Result};

/// One line in one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edit {
    /// The file, seen from the tree.
    pub(super) file: &'static str,
    pub(super) line: &'static str,
    pub(super) place: Place,
}

/// Where the line goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Before the last `endmenu`, with an empty line after it.
    BeforeEndmenu,
    /// Before the first occurrence of a text.
    Before(&'static str),
    /// At the end.
    Last,
}

impl Edit {
    /// The text with the line in it, which may be there already.
    pub(super) fn add(&self, text: &str) -> Result<String> {
        if text.lines().any(|present| self.is_it(present)) {
            return Ok(text.to_owned());
        }
        let line = self.line;
        let before = |place: Option<usize>, what: &str, empty: &str| {
            let place = place.with_context(|| {
                format!(
                    "{} has no `{}` to put a line before",
                    self.file,
                    what.trim()
                )
            })?;
            Ok(format!(
                "{}{line}\n{empty}{}",
                &text[..place],
                &text[place..]
            ))
        };
        match self.place {
            Place::BeforeEndmenu => before(text.rfind("endmenu"), "endmenu", "\n"),
            Place::Before(next) => before(text.find(next), next, ""),
            Place::Last => {
                let newline = if text.ends_with('\n') { "" } else { "\n" };
                Ok(format!("{text}{newline}{line}\n"))
            }
        }
    }

    /// The text without the line.
    pub(super) fn take_out(&self, text: &str) -> String {
        let with_empty = format!("\n{}\n\nendmenu", self.line);
        if matches!(self.place, Place::BeforeEndmenu) && text.contains(&with_empty) {
            return text.replacen(&with_empty, "\nendmenu", 1);
        }
        text.split_inclusive('\n')
            .filter(|present| !self.is_it(present))
            .collect()
    }

    /// Whether a line is ours, also if an editor changed its blanks.
    fn is_it(&self, line: &str) -> bool {
        line.split_whitespace().eq(self.line.split_whitespace())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KCONFIG: &str = "menu \"D\"\n\nsource \"a\"\n\nendmenu\n";

    fn edit(place: Place) -> Edit {
        Edit {
            file: "file",
            line: "obj-y\t+= ours/",
            place,
        }
    }

    #[test]
    fn a_line_is_added_once_and_taken_out_to_the_byte() {
        for (text, place) in [
            (KCONFIG, Place::BeforeEndmenu),
            ("obj-y += a/\n", Place::Last),
            ("one\ntwo\n", Place::Before("two")),
        ] {
            let edit = edit(place);
            let added = edit.add(text).unwrap();
            assert_ne!(added, text);
            assert_eq!(edit.add(&added).unwrap(), added);
            assert_eq!(edit.take_out(&added), text);
            let respaced = added.replace('\t', "   ");
            assert_eq!(edit.add(&respaced).unwrap(), respaced);
            assert!(!edit.take_out(&respaced).contains("ours"));
        }
    }

    #[test]
    fn a_file_without_the_place_is_named() {
        let error = edit(Place::Before("nonesuch")).add("text").unwrap_err();
        assert_eq!(
            error.to_string(),
            "file has no `nonesuch` to put a line before"
        );
    }
}
