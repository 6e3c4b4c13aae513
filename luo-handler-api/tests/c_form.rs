// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A plugin in C, built from `c/plugin.c` against this layout of the C form, the previous one and a
//! later one. Takes a C compiler: `cc`, or what `CC` names.

#![allow(unsafe_code)] // an edge of the tests

mod c;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use libloading::{Library, Symbol};
use luo_handler_api::hosted::{Handler, SubsystemRef};
use luo_handler_api::plugin::{PluginDescriptor, PLUGIN_SYMBOL};
use luo_handler_api::testing::FakeHost;
use luo_handler_api::{Compatible, Errno, NeededBy, Retrieved};
use tempfile::TempDir;

const API: &str = env!("CARGO_MANIFEST_DIR");

fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    (reader.into(), writer.into())
}

/// The plugin, open for good, and what it brings.
fn open(flags: &[&str]) -> (TempDir, Handler, Vec<SubsystemRef>) {
    let directory = tempfile::tempdir().unwrap();
    let path = c::compile(API.as_ref(), directory.path(), flags);
    // SAFETY: the plugin runs no code when it is opened.
    let library = Box::leak(Box::new(unsafe { Library::new(path) }.unwrap()));
    // SAFETY: the symbol is a `struct luo_plugin`.
    let symbol: Symbol<'_, *const PluginDescriptor> =
        unsafe { library.get(PLUGIN_SYMBOL) }.unwrap();
    // SAFETY: the library stays open, and its descriptor is as `luo_handler.h` has it.
    let plugin = unsafe { PluginDescriptor::read(*symbol) }.unwrap();
    let handlers = plugin.handlers().unwrap();
    assert_eq!(handlers.len(), 1);
    (directory, handlers[0], plugin.subsystems().unwrap())
}

/// Takes a pipe across a jump that leaves everything where it is; yields what the handler
/// describes.
fn cross(handler: Handler) -> Vec<(String, String)> {
    assert_eq!(handler.compatible().as_str(), "c-pipe-v1");
    assert_eq!(handler.origin(), "plugin.c");
    let host = FakeHost::default();
    let (reader, mut writer) = pipe();
    let null = File::open("/dev/null").unwrap();
    assert_eq!(handler.can_preserve(null.as_fd()), Ok(false));
    assert_eq!(handler.can_preserve(reader.as_fd()), Ok(true));
    assert_eq!(handler.file_id(reader.as_fd()), Ok(None));
    writer.write_all(b"waiting").unwrap();

    let prepared = handler.prepare(reader.as_fd(), host.lend()).unwrap();
    prepared.cancel(reader.as_fd(), host.lend()).unwrap();
    assert!(host.is_empty(), "nothing is left of what was cancelled");

    let mut prepared = handler.prepare(reader.as_fd(), host.lend()).unwrap();
    prepared.freeze(reader.as_fd(), host.lend()).unwrap();
    let data = prepared.data();
    drop((prepared, reader));

    let (pairs, end) = handler.describe(data, host.lend());
    assert_eq!(end, Ok(()));
    let fd = handler.retrieve(data, host.lend()).unwrap();
    let retrieved = Retrieved::File(fd.as_fd().into());
    assert_eq!(handler.can_finish(data, retrieved, host.lend()), Ok(true));
    handler.finish(data, retrieved, host.lend()).unwrap();
    assert!(host.is_empty());
    drop(writer);
    let mut read = String::new();
    File::from(fd).read_to_string(&mut read).unwrap();
    assert_eq!(read, "waiting");
    pairs
}

#[test]
fn a_handler_in_c_crosses_and_is_described() {
    let (_directory, handler, subsystems) = open(&[]);
    let expected = ("waiting_bytes".to_owned(), "7".to_owned());
    assert_eq!(cross(handler), [expected]);

    let [clock] = subsystems[..] else {
        panic!("{subsystems:?}");
    };
    static NEEDING: [Compatible; 1] = [Compatible::new("c-pipe-v1")];
    assert_eq!(clock.needed_by(), NeededBy::Handlers(&NEEDING));
    let host = FakeHost::default();
    let mut prepared = clock.prepare(host.lend()).unwrap();
    prepared.freeze(host.lend()).unwrap();
    assert_eq!(prepared.data(), 12);
    assert_eq!(clock.retrieve(13, host.lend()), Err(Errno::EINVAL));
    assert_eq!(clock.retrieve(12, host.lend()), Ok(()));
    assert_eq!(clock.finish(12, true, host.lend()), Ok(()));
    prepared.cancel(host.lend()).unwrap();
}

#[test]
fn a_handler_in_c_explains_a_refusal() {
    let (_directory, handler, _) = open(&[]);
    let (reader, mut writer) = pipe();
    writer.write_all(&[0; 5000]).unwrap();
    let host = FakeHost::default();
    let refused = handler.prepare(reader.as_fd(), host.lend()).unwrap_err();
    assert_eq!(refused, Errno::EFBIG);
    assert_eq!(host.reason(), "there is too much in the pipe");
}

#[test]
fn a_host_takes_a_plugin_of_the_previous_layout() {
    // After its structs comes memory that is not theirs: a read of it crashes.
    let (_directory, handler, subsystems) = open(&["-DPREVIOUS_LAYOUT"]);
    assert_eq!(cross(handler), []);
    assert!(subsystems.is_empty());
}

#[test]
fn a_host_takes_a_plugin_of_a_later_layout() {
    let (_directory, handler, subsystems) = open(&["-DLATER_LAYOUT"]);
    assert_eq!(cross(handler).len(), 1);
    assert_eq!(subsystems.len(), 1);
}

#[test]
fn a_plugin_of_another_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = c::compile(API.as_ref(), directory.path(), &[]);
    // SAFETY: the plugin runs no code when it is opened.
    let library = Box::leak(Box::new(unsafe { Library::new(path) }.unwrap()));
    // SAFETY: the symbol is a `struct luo_plugin`, which begins with its version.
    let [version, size] = unsafe {
        let symbol: Symbol<'_, *const [u32; 2]> = library.get(PLUGIN_SYMBOL).unwrap();
        symbol.read()
    };
    // Memory that ends with these two fields.
    let older = [u64::from(version - 1) | u64::from(size) << 32];
    // SAFETY: these are the two fields that every version has.
    let foreign = unsafe { PluginDescriptor::read(older.as_ptr().cast()) }.unwrap_err();
    assert_eq!(foreign.abi_version, version - 1);
    assert!(foreign.to_string().contains("rebuild it"), "{foreign}");
}
