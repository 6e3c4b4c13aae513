// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the macros register is found, by linkme and, with the feature, by inventory.

use luo_handler_api::hosted::{Handler, SubsystemRef};
use luo_handler_api::registry::{refuse_duplicates, registered_handlers, registered_subsystems};
use luo_handler_api::{
    register_handler, register_subsystem, Compatible, Crossed, Errno, FileHandler, FileRef, Host,
    InvalidReason, OwnedFile, Prepared, Preserved, Subsystem,
};

#[derive(Debug)]
struct Null<const N: u8>;

impl<const N: u8> FileHandler for Null<N> {
    const COMPATIBLE: Compatible = match N {
        0 => Compatible::new("null-0"),
        _ => Compatible::new("null-1"),
    };
    type Private = ();

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        N == 0
    }
    fn prepare(&self, _: FileRef<'_>, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn cancel(&self, _: Preserved<'_, ()>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<OwnedFile, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn finish(&self, _: Crossed<'_>) {}
}

struct Clock;

impl Subsystem for Clock {
    const COMPATIBLE: Compatible = Compatible::new("clock-v1");
    type Private = ();

    fn prepare(&self, _: Host<'_>) -> Result<Prepared<()>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }
    fn cancel(&self, _: u64, (): &mut (), _: Host<'_>) {}
    fn retrieve(&self, _: u64, _: Host<'_>) -> Result<(), Errno> {
        Ok(())
    }
    fn finish(&self, _: u64, _: bool, _: Host<'_>) {}
}

register_handler!(
    /// Attributes and visibility are preserved.
    pub(crate) FIRST: Null<0> = Null
);

mod elsewhere {
    luo_handler_api::register_handler!(SECOND: super::Null<1> = super::Null);
}

register_subsystem!(CLOCK: Clock = Clock);

fn sorted<'a>(
    found: impl Iterator<Item = (&'a Compatible, &'static str)>,
) -> Vec<(String, &'static str)> {
    let mut names: Vec<_> = found
        .map(|(compatible, origin)| (compatible.to_string(), origin))
        .collect();
    names.sort();
    names
}

#[test]
fn every_handler_is_found_once_with_its_crate() {
    let expected = ["null-0", "null-1"].map(|name| (name.to_owned(), "registry"));
    let handlers: Vec<_> = registered_handlers()
        .map(|ops| Handler::new(ops).unwrap())
        .collect();
    let found = handlers
        .iter()
        .map(|handler| (handler.compatible(), handler.origin()));
    assert_eq!(sorted(found), expected);
    assert!(format!("{FIRST:?}").contains("Null"));
}

#[test]
fn every_subsystem_is_found_once_with_its_crate() {
    let expected = [("clock-v1".to_owned(), "registry")];
    let subsystems: Vec<_> = registered_subsystems()
        .map(|ops| SubsystemRef::new(ops).unwrap())
        .collect();
    let found = subsystems
        .iter()
        .map(|clock| (clock.compatible(), clock.origin()));
    assert_eq!(sorted(found), expected);
}

#[test]
fn a_handler_that_was_found_is_the_one_that_was_registered() {
    let file = std::fs::File::open("/dev/null").unwrap();
    for ops in registered_handlers() {
        let handler = Handler::new(ops).unwrap();
        let expected = handler.compatible().as_str() == "null-0";
        let fd = std::os::fd::AsFd::as_fd(&file);
        assert_eq!(handler.can_preserve(fd), Ok(expected));
    }
}

#[test]
fn no_two_have_one_name() {
    let mut found: Vec<_> = registered_handlers().collect();
    assert_eq!(refuse_duplicates(&found), Ok(()));
    found.push(found[0]);
    let refused = refuse_duplicates(&found).unwrap_err();
    assert_eq!(refused.reason, InvalidReason::Duplicate);
    assert_eq!(refused.compatible, found[0].compatible().ok());
}
