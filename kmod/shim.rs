// SPDX-License-Identifier: GPL-2.0-only
//! The functions of `luo_shim.c`; see `luo_shim.h`.

use core::ffi::{c_char, c_void};

/// `struct luo_session_item`.
#[repr(C)]
pub(crate) struct SessionItem {
    pub(crate) session: *const c_char,
    pub(crate) compatible: *const c_char,
    pub(crate) name: *const c_char,
    pub(crate) token: u64,
    pub(crate) data: u64,
    pub(crate) size: u64,
    pub(crate) inode: u64,
    pub(crate) status: i32,
    pub(crate) session_retrieved: bool,
    pub(crate) busy: bool,
    pub(crate) stand_in: bool,
}

const _: () = assert!(size_of::<SessionItem>() == 64);

extern "C" {
    pub(crate) fn luo_disabled() -> *const c_char;
    pub(crate) fn luo_switched_on() -> *const c_char;
    pub(crate) fn luo_handlers_section(start: *mut *const c_void, stop: *mut *const c_void);
    pub(crate) fn luo_subsystems_section(start: *mut *const c_void, stop: *mut *const c_void);

    pub(crate) fn luo_show_sessions(
        incoming: bool,
        show: unsafe extern "C" fn(*const SessionItem, *mut c_void),
        context: *mut c_void,
    ) -> i32;

    pub(crate) fn luo_bytes_preserve(len: usize, bytes: *mut *mut u8, pfn: *mut usize) -> i32;
    pub(crate) fn luo_bytes_outgoing(pfn: usize, len: usize) -> *mut u8;
    pub(crate) fn luo_bytes_are_incoming(pfn: usize, len: usize) -> bool;
    pub(crate) fn luo_bytes_copy(
        pfn: usize,
        len: usize,
        offset: usize,
        buffer: *mut u8,
        count: usize,
    ) -> i32;
    pub(crate) fn luo_bytes_unpreserve(bytes: *mut u8);
    pub(crate) fn luo_bytes_free(pfn: usize, len: usize);
}
