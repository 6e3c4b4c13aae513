// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Compiles the plugin in C that is beside this file.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The plugin, made in `directory`, from the sources of the crate in `api`; `flags` are more
/// arguments for the compiler.
pub fn compile(api: &Path, directory: &Path, flags: &[&str]) -> PathBuf {
    let plugin = directory.join("plugin.so");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(compiler)
        .args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"])
        .args(["-Wno-int-conversion", "-shared", "-fPIC", "-I"])
        .arg(api.join("include"))
        .args(flags)
        .arg(api.join("tests/c/plugin.c"))
        .arg("-o")
        .arg(&plugin)
        .output()
        .expect("a C compiler is needed: install one, or name it in CC");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    plugin
}
