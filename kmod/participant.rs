// SPDX-License-Identifier: GPL-2.0-only
//! What this module knows of a handler or a subsystem.

#![allow(unsafe_code)] // an edge: a text of C

use core::ffi::CStr;

use kernel::prelude::*;
use luo_handler_api::{
    kernel::{Around, Callback},
    Compatible, Errno, Host,
};

use crate::{
    counters::Counters,
    host::{Incoming, Outgoing},
    shim,
};

/// A handler or a subsystem of this kernel.
pub(crate) struct Participant {
    outgoing: Outgoing,
    incoming: Incoming,
    disabled: bool,
    counters: Counters,
}

impl Participant {
    pub(crate) fn new(compatible: &Compatible) -> Self {
        Self {
            outgoing: Outgoing(*compatible),
            incoming: Incoming(*compatible),
            disabled: is_listed(disabled_names(), name_of(compatible)),
            counters: Counters::new(),
        }
    }

    pub(crate) fn compatible(&self) -> &Compatible {
        &self.outgoing.0
    }

    /// Its name in parameters and debugfs.
    pub(crate) fn name(&self) -> &str {
        name_of(self.compatible())
    }

    /// Whether the boot parameter names it.
    pub(crate) fn is_disabled(&self) -> bool {
        self.disabled
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Around for Participant {
    fn is_enabled(&self) -> bool {
        !self.disabled
    }

    fn outgoing(&self) -> Host<'_> {
        Host::new(&self.outgoing)
    }

    fn incoming(&self) -> Host<'_> {
        Host::new(&self.incoming)
    }

    fn ended(&self, callback: Callback, nanoseconds: u64, result: Result<(), Errno>) {
        self.counters.count(callback, nanoseconds, result.is_err());
        if let (Callback::Retrieve, Err(errno)) = (callback, result) {
            pr_warn!("{} was not retrieved: {}\n", self.name(), Shown(&errno));
        }
    }
}

/// Prints what the api can print: the kernel's own macros know only the kernel's types.
pub(crate) struct Shown<'a, T>(pub(crate) &'a T);

impl<T: core::fmt::Display> kernel::fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        self.0.fmt(f)
    }
}

/// A compatible without its vendor and its version: `memfd` of `luo-handlers,memfd-v1`.
pub(crate) fn name_of(compatible: &Compatible) -> &str {
    let compatible = compatible.as_str();
    let compatible = compatible
        .split_once(',')
        .map_or(compatible, |(_, rest)| rest);
    match compatible.rsplit_once("-v") {
        Some((name, version))
            if !name.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) =>
        {
            name
        }
        _ => compatible,
    }
}

/// Whether a list such as `memfd,vfio` names `name`.
fn is_listed(list: &str, name: &str) -> bool {
    list.split(',').any(|listed| listed.trim() == name)
}

/// The boot parameter `luo_handlers.disable`: names of handlers that take no new files, and of
/// subsystems that are not registered.
fn disabled_names() -> &'static str {
    // SAFETY: the shim returns a C string: the text of a parameter that cannot be written after
    // boot, or a literal. Both live as long as the kernel.
    let list = unsafe { CStr::from_ptr(shim::luo_disabled()) };
    list.to_str().unwrap_or("")
}
