// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handler's backend in the kernel.

#![allow(unsafe_code)] // an edge: functions of C

use luo_handler_api::{register_handler, status, Errno, FileRef, OwnedFile};

use crate::{backend::PortBackend, handler::IoportHandler, record::PortRecord};

register_handler!(
    /// The handler of this kernel.
    pub IOPORT: IoportHandler<KernelBackend> = IoportHandler(KernelBackend)
);

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelBackend;

impl PortBackend for KernelBackend {
    fn is_port(&self, file: FileRef<'_>) -> bool {
        // SAFETY: a FileRef is open as long as it is borrowed.
        unsafe { shim::luo_port_is_known(file.as_ptr()) }
    }

    fn look(&self, file: FileRef<'_>) -> Result<PortRecord, Errno> {
        let mut flags = 0;
        // SAFETY: a FileRef is open as long as it is borrowed; `flags` is borrowed until the call
        // returns.
        let position = unsafe { shim::luo_port_look(file.as_ptr(), &mut flags) };
        let status = status::from_flags(flags);
        Ok(PortRecord { position, status })
    }

    fn open(&self, record: PortRecord) -> Result<OwnedFile, Errno> {
        let flags = status::to_flags(record.status);
        // SAFETY: luo_port_open() returns an ERR_PTR(), or a file whose one reference is the
        // caller's.
        unsafe { OwnedFile::from_err_ptr(shim::luo_port_open(flags, record.position)) }
    }
}

/// The functions of `luo_shim_ioport.c`; see `luo_shim.h`.
mod shim {
    use core::ffi::c_void;

    extern "C" {
        pub(super) fn luo_port_is_known(file: *mut c_void) -> bool;
        pub(super) fn luo_port_look(file: *mut c_void, flags: *mut u32) -> u64;
        pub(super) fn luo_port_open(flags: u32, position: u64) -> *mut c_void;
    }
}
