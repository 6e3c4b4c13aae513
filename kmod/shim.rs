// SPDX-License-Identifier: GPL-2.0-only
//! The functions of `luo_shim.c`; see `luo_shim.h`.

use core::ffi::{c_char, c_void};

extern "C" {
    pub(crate) fn luo_disabled() -> *const c_char;
    pub(crate) fn luo_switched_on() -> *const c_char;
    pub(crate) fn luo_handlers_section(start: *mut *const c_void, stop: *mut *const c_void);
    pub(crate) fn luo_subsystems_section(start: *mut *const c_void, stop: *mut *const c_void);

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
