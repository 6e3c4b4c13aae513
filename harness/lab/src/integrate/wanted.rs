// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Whether a kernel's configuration has what the handlers want, and what is missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::crates::HandlerCrate;

/// What a configuration lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// The lines that have to be added, with the comments on them: a fragment for
    /// `merge_config.sh`. Empty if the configuration has all that is wanted.
    pub fragment: String,
    /// What the configuration has instead: an option, what is wanted of it, what it is.
    pub options: Vec<(String, String, String)>,
    /// Handlers that Kconfig drops, each with the reason.
    pub dropped: Vec<String>,
}

/// Compares what is wanted with the text of a `.config`.
pub(super) fn compare(wanted: &str, handlers: &[HandlerCrate], config: &str) -> Missing {
    let present = settings(config);
    let value = |option: &str| present.get(option).copied().unwrap_or("n");
    let mut missing = Missing::default();
    let mut comments = String::new();
    for line in wanted.lines() {
        match line.split_once('=') {
            Some((option, wanted)) if option.starts_with("CONFIG_") => {
                if value(option) != wanted {
                    let found = value(option).to_owned();
                    missing
                        .options
                        .push((option.to_owned(), wanted.to_owned(), found));
                    // Writing to a string cannot fail.
                    let _ = writeln!(missing.fragment, "{comments}{line}");
                }
                comments.clear();
            }
            _ if line.starts_with('#') && !line.contains("SPDX-") => {
                let _ = writeln!(comments, "{line}");
            }
            _ => comments.clear(),
        }
    }
    let is_dropped = |handler: &&HandlerCrate| {
        // Kconfig writes a line for every option that can be switched on, whether it is on or off.
        !present.contains_key(format!("CONFIG_{}", handler.switch).as_str())
            && present.get("CONFIG_LUO_HANDLERS") == Some(&"y")
    };
    for handler in handlers.iter().filter(is_dropped) {
        missing.dropped.push(reason(handler, value));
    }
    missing
}

/// Why Kconfig drops a handler.
fn reason<'a>(handler: &HandlerCrate, value: impl Fn(&str) -> &'a str) -> String {
    let mut reason = format!("Kconfig drops {}", handler.switch);
    if handler.depends.is_empty() {
        reason += ", or has not seen it yet: make olddefconfig";
    }
    for depends in &handler.depends {
        let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let states = depends
            .split(|c| !is_part(c))
            .filter(|symbol| !symbol.is_empty());
        let states =
            states.map(|symbol| format!("{symbol} is {}", value(&format!("CONFIG_{symbol}"))));
        let states = states.collect::<Vec<_>>().join(", ");
        // Writing to a string cannot fail.
        let _ = write!(reason, ": it depends on {depends}, and {states}");
    }
    reason
}

/// The options that a configuration has a line for.
fn settings(config: &str) -> BTreeMap<&str, &str> {
    let settings = config.lines().filter_map(|line| {
        let off = || Some((line.strip_prefix("# ")?.strip_suffix(" is not set")?, "n"));
        line.split_once('=').or_else(off)
    });
    settings
        .filter(|(option, _)| option.starts_with("CONFIG_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &str =
        "# SPDX-License-Identifier: GPL-2.0-only\n# Why.\nCONFIG_A=y\nCONFIG_B=y\n\
                          # In detail.\nCONFIG_C=y\nCONFIG_LUO_HANDLER_X=y\n";

    fn handler() -> HandlerCrate {
        HandlerCrate {
            name: "x".into(),
            switch: "LUO_HANDLER_X".into(),
            wants: String::new(),
            depends: vec!["B=y && C1".into()],
            sources: Vec::new(),
        }
    }

    #[test]
    fn what_is_off_or_a_module_is_missing() {
        let config = "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_LUO_HANDLERS=y\n# \
                      CONFIG_LUO_HANDLER_X is not set\n";
        let missing = compare(WANTED, &[handler()], config);
        assert_eq!(
            missing.fragment,
            "CONFIG_B=y\n# In detail.\nCONFIG_C=y\nCONFIG_LUO_HANDLER_X=y\n"
        );
        assert_eq!(
            missing.options[0],
            ("CONFIG_B".into(), "y".into(), "m".into())
        );
        assert_eq!(missing.dropped, Vec::<String>::new());
    }

    #[test]
    fn a_handler_that_kconfig_drops_is_named_with_the_reason() {
        let config = "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=y\nCONFIG_LUO_HANDLERS=y\n";
        let missing = compare(WANTED, &[handler()], config);
        assert_eq!(
            missing.dropped,
            ["Kconfig drops LUO_HANDLER_X: it depends on B=y && C1, and B is m, C1 is n"]
        );
    }

    #[test]
    fn a_configuration_with_all_of_it_lacks_nothing() {
        let config = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_LUO_HANDLERS=y\n\
                      CONFIG_LUO_HANDLER_X=y\n";
        assert_eq!(compare(WANTED, &[handler()], config), Missing::default());
    }
}
