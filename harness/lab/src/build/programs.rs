// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Programs of the host.

use std::path::{Path, PathBuf};

/// The cargo that runs us, else the one on the path.
pub(crate) fn cargo() -> Option<PathBuf> {
    std::env::var_os("CARGO")
        .map(PathBuf::from)
        .or_else(|| find_program("cargo"))
}

/// Where a program is, as the shell would find it; `sbin` is not in everybody's path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories
        .map(|directory| directory.join(name))
        .find(|candidate: &PathBuf| Path::is_file(candidate))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn programs_are_found_on_the_path_only() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}
