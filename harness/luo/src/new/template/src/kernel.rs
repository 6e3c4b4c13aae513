// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The handler's backend in the kernel.

#![allow(unsafe_code)] // an edge: functions of C

use luo_handler_api::{register_handler, status, Errno, FileRef, Host, OwnedFile};

use crate::{backend::SampleBackend, handler::SampleHandler, record::SampleRecord};

register_handler!(
    /// The handler of this kernel.
    pub SAMPLE: SampleHandler<KernelBackend> = SampleHandler(KernelBackend)
);

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelBackend;

impl SampleBackend for KernelBackend {
    fn is_known(&self, file: FileRef<'_>) -> bool {
        // SAFETY: a FileRef is open as long as it is borrowed.
        unsafe { shim::luo_sample_is_known(file.as_ptr()) }
    }

    fn look(&self, file: FileRef<'_>, _: Host<'_>) -> Result<SampleRecord, Errno> {
        // SAFETY: a FileRef is open as long as it is borrowed.
        let flags = unsafe { shim::luo_sample_flags(file.as_ptr()) };
        Ok(SampleRecord {
            status: status::from_flags(flags),
            contents: 0,
        })
    }

    fn release(&self, _: SampleRecord, _: Host<'_>) {}

    fn make(&self, record: SampleRecord, _: Host<'_>) -> Result<OwnedFile, Errno> {
        let flags = status::to_flags(record.status);
        // SAFETY: luo_sample_make() returns an ERR_PTR(), or a file whose one reference is the
        // caller's.
        unsafe { OwnedFile::from_err_ptr(shim::luo_sample_make(flags)) }
    }
}

/// The functions of `kmod/luo_shim_sample.c`.
mod shim {
    use core::ffi::c_void;

    extern "C" {
        pub(super) fn luo_sample_is_known(file: *mut c_void) -> bool;
        pub(super) fn luo_sample_flags(file: *mut c_void) -> u32;
        pub(super) fn luo_sample_make(flags: u32) -> *mut c_void;
    }
}
