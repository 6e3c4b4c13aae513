// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Handlers out of a shared object that is built here, from `fixtures/plugin`.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use luo_handler_api::plugin::PLUGIN_SYMBOL;
use luo_handler_api::{Errno, Token};
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::plugin::{self, PluginErrorCause};
use luo_orchestrator::registry::Registry;
use support::{example, Crossing};
use tempfile::TempDir;

/// Builds the plugin with these features, with the workspace's own dependencies: the sources are
/// copied, so that the build leaves nothing among them.
fn build(features: &[&str]) -> (TempDir, PathBuf) {
    let this = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = this.join("tests/fixtures/plugin");
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path();
    let api = this.join("../../luo-handler-api").canonicalize().unwrap();
    let manifest = fs::read_to_string(source.join("Cargo.toml")).unwrap();
    let manifest = manifest.replace("../../../../../luo-handler-api", api.to_str().unwrap());
    fs::write(copy.join("Cargo.toml"), manifest).unwrap();
    fs::create_dir(copy.join("src")).unwrap();
    fs::copy(source.join("src/lib.rs"), copy.join("src/lib.rs")).unwrap();
    fs::copy(this.join("../../Cargo.lock"), copy.join("Cargo.lock")).unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--offline", "--quiet", "--manifest-path"])
        .arg(copy.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(copy.join("target"))
        .arg("--features")
        .arg(features.join(","))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let built = copy.join("target/debug/libluo_null_plugin.so");
    (directory, built)
}

#[test]
fn a_handler_of_a_plugin_takes_a_file_across() {
    let (_directory, path) = build(&[]);
    let registry = Arc::new(Registry::new());
    let names = plugin::load(&path, &registry).unwrap();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].as_str(), "null-v1");
    assert_eq!(registry.handlers()[0].origin(), "luo_null_plugin");

    let update = Orchestrator::new(registry.clone());
    let null = File::open("/dev/null").unwrap();
    let zero = File::open("/dev/zero").unwrap();
    assert_eq!(update.preserve(Token(1), &null), Ok(names[0]));
    let refused = update.preserve(Token(2), &zero).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOENT);
    update.prepare().unwrap();
    update.cancel().unwrap();
    assert_eq!(update.preserved(), (0, 0));
    update.prepare().unwrap();
    update.freeze().unwrap();
    let arrival = Crossing::of(&update).arrival();
    update.depart();

    let new = Orchestrator::arrived(registry.clone(), arrival);
    let file = File::from(new.retrieve(Token(1)).unwrap().try_clone().unwrap());
    let device = |file: &File| file.metadata().unwrap().rdev();
    assert_eq!(device(&file), device(&null));
    assert_eq!(new.finish().unwrap(), []);

    let again = plugin::load(&path, &registry).unwrap_err();
    assert!(matches!(again.cause, PluginErrorCause::Handler(_)));
    let message = again.to_string();
    for part in ["libluo_null_plugin.so", "null-v1", "leave one of them out"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(registry.handlers().len(), 1);
}

#[test]
fn an_example_program_uses_a_plugin() {
    let (_directory, path) = build(&[]);
    let output = Command::new(example("plugin"))
        .arg(path)
        .arg("/dev/null")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        printed,
        "null-v1 takes the file\n/dev/null is open after the exec\n"
    );
}

#[test]
fn a_plugin_of_another_abi_version_is_to_be_rebuilt() {
    let (_directory, path) = build(&["foreign"]);
    let registry = Registry::new();
    let error = plugin::load(&path, &registry).unwrap_err();
    assert!(matches!(error.cause, PluginErrorCause::Foreign(_)));
    let message = error.to_string();
    for part in ["libluo_null_plugin.so", "version 999", "rebuild it"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(registry.handlers().is_empty());
}

fn refused(path: &Path) -> (PluginErrorCause, String) {
    let registry = Registry::new();
    let error = plugin::load(path, &registry).unwrap_err();
    assert!(registry.handlers().is_empty());
    let message = error.to_string();
    assert!(message.contains(path.to_str().unwrap()), "{message}");
    (error.cause, message)
}

#[test]
fn a_file_that_is_no_shared_object_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for contents in ["", "#!/bin/sh\n", "\x7fELF"] {
        fs::write(&file, contents).unwrap();
        let (cause, message) = refused(file.path());
        assert!(
            matches!(cause, PluginErrorCause::NotLoadable(_)),
            "{message}"
        );
        assert!(message.contains("cdylib"), "{message}");
    }
}

#[test]
fn a_shared_object_that_is_no_plugin_is_refused() {
    // One that this program has anyway.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let library = maps
        .lines()
        .filter_map(|line| line.find('/').map(|path| &line[path..]))
        .find(|path| path.contains("libc.so"));
    let Some(library) = library else {
        return eprintln!("skipped: this program has no libc.so");
    };
    let (cause, message) = refused(Path::new(library));
    assert!(matches!(cause, PluginErrorCause::NotAPlugin), "{message}");
    assert!(message.contains(PLUGIN_SYMBOL), "{message}");
}

#[test]
fn a_plugin_that_is_not_there_is_not_looked_for_elsewhere() {
    for path in ["missing.so", "libc.so.6", "/", ""] {
        let registry = Registry::new();
        let error = plugin::load(Path::new(path), &registry).unwrap_err();
        let found = matches!(error.cause, PluginErrorCause::NotFound(_));
        assert!(found || path == "/", "{error}");
    }
}
