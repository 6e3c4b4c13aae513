// SPDX-License-Identifier: GPL-2.0-only
//! What the linker put together: handlers, subsystems, and what Kconfig has switched on.

#![allow(unsafe_code)] // an edge: symbols of the linker

use core::ffi::CStr;

use kernel::prelude::*;
use luo_handler_api::kernel::{HandlerEntry, SubsystemEntry};

use crate::shim;

/// The handlers that were linked in.
pub(crate) fn handlers() -> &'static [&'static HandlerEntry] {
    let (mut start, mut stop) = (core::ptr::null(), core::ptr::null());
    // SAFETY: both are borrowed until the call returns.
    unsafe { shim::luo_handlers_section(&mut start, &mut stop) };
    // SAFETY: between these two symbols the linker has put what `register_handler!` gave this
    // section.
    unsafe { entries(start, stop) }
}

/// The subsystems that were linked in.
pub(crate) fn subsystems() -> &'static [&'static SubsystemEntry] {
    let (mut start, mut stop) = (core::ptr::null(), core::ptr::null());
    // SAFETY: both are borrowed until the call returns.
    unsafe { shim::luo_subsystems_section(&mut start, &mut stop) };
    // SAFETY: between these two symbols the linker has put what `register_subsystem!` gave this
    // section.
    unsafe { entries(start, stop) }
}

/// # Safety
///
/// Between `start` and `stop`, if they are not NULL, there is one `&'static T` after the other,
/// which nobody writes.
unsafe fn entries<T>(
    start: *const core::ffi::c_void,
    stop: *const core::ffi::c_void,
) -> &'static [&'static T] {
    let count = (stop as usize).saturating_sub(start as usize) / size_of::<&T>();
    if start.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the safety section has as many references there as fit.
    unsafe { core::slice::from_raw_parts(start.cast(), count) }
}

/// Names what is switched on but was not linked in: nothing refers to a handler's crate, so nothing
/// else would notice.
pub(crate) fn check() {
    // SAFETY: the shim returns a literal.
    let names = unsafe { CStr::from_ptr(shim::luo_switched_on()) };
    for name in names.to_str().unwrap_or("").split_whitespace() {
        let is_handler = handlers().iter().any(|entry| entry.origin == name);
        if !is_handler && !subsystems().iter().any(|entry| entry.origin == name) {
            pr_err!("{name} is switched on, but it registered nothing\n");
        }
    }
}
