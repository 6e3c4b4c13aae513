// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel configuration: tinyconfig plus fragments, every line of which has to survive.

use std::path::Path;

use anyhow::{bail, Context, Result};

use crate::build::profile::Profile;

const BASE: &str = include_str!("kernel.config");
const DEBUG: &str = include_str!("kernel-debug.config");
const STICK: &str = include_str!("kernel-stick.config");

/// The fragment of a profile, with the lines that kmod/ asks for once it is in the tree.
pub(crate) fn fragment(profile: Profile, handlers: &str) -> String {
    let profile = match profile {
        Profile::Release => "",
        Profile::Debug => DEBUG,
        Profile::Stick => STICK,
    };
    [BASE, profile, handlers].join("\n")
}

/// Refuses a configuration in which a line of the fragment did not survive.
pub(crate) fn check(fragment: &str, config: &Path) -> Result<()> {
    let written =
        std::fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    let lost = lost_settings(fragment, &written);
    if lost.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel's configuration did not take these lines, something they depend on is \
         missing:\n  {}\nsee {}",
        lost.join("\n  "),
        config.display()
    )
}

fn lost_settings<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let present: std::collections::HashSet<&str> = config.lines().collect();
    let survives = |line: &str| match line.strip_suffix("=n").or(disabled(line)) {
        Some(option) => !present
            .iter()
            .any(|set| set.starts_with(&format!("{option}="))),
        None => present.contains(line),
    };
    settings(fragment).filter(|line| !survives(line)).collect()
}

/// The lines that set something; other lines are comments.
fn settings(fragment: &str) -> impl Iterator<Item = &str> {
    fragment
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("CONFIG_") || disabled(line).is_some())
}

/// The option that a line of the form `# CONFIG_X is not set` switches off.
fn disabled(line: &str) -> Option<&str> {
    line.strip_prefix("# ")?
        .strip_suffix(" is not set")
        .filter(|option| option.starts_with("CONFIG_"))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn each_lost_line_is_named() {
        let fragment =
            "# a comment\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=n\nCONFIG_E=64\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_E=8\n";
        assert_eq!(
            lost_settings(fragment, config),
            ["CONFIG_B=y", "# CONFIG_C is not set", "CONFIG_E=64"]
        );
    }

    #[test]
    fn an_absent_option_counts_as_switched_off() {
        assert!(lost_settings("# CONFIG_C is not set\nCONFIG_D=n\n", "").is_empty());
    }

    #[test]
    fn no_option_is_set_twice() {
        for profile in Profile::ALL {
            let fragment = fragment(profile, "");
            let mut names: Vec<&str> = settings(&fragment)
                .map(|line| disabled(line).or(line.split('=').next()).unwrap())
                .collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", profile.name());
        }
    }
}
