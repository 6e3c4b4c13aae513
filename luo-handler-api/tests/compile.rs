// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What must compile compiles; what must not is refused, with an error that names the reason.

use std::process::Command;

/// The compiler in whose words the expected errors are.
const WORDED_BY: &str = "rustc 1.95.";

#[test]
fn what_must_compile_does() {
    trybuild::TestCases::new().pass("tests/ui/pass-*.rs");
}

#[test]
fn what_must_not_compile_does_not() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if version.starts_with(WORDED_BY) {
        trybuild::TestCases::new().compile_fail("tests/ui/fail-*.rs");
    } else {
        eprintln!(
            "skipped: the errors are expected in the words of {WORDED_BY}, this is {version}"
        );
    }
}
