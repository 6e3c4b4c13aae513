// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of its surroundings: a process, the kernel, or a test.

use luo_handler_api::{Errno, FileRef, OwnedFile};

use crate::record::PortRecord;

/// The handler's backend: all that touches files.
pub trait PortBackend: Sync + 'static {
    /// Whether `file` is the port device. Cheap, without side effects.
    fn is_port(&self, file: FileRef<'_>) -> bool;

    /// The file as it is now, be it possible or not.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn look(&self, file: FileRef<'_>) -> Result<PortRecord, Errno>;

    /// Opens the port device as recorded, with the caller's rights.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_RAWIO`, others of the system.
    fn open(&self, record: PortRecord) -> Result<OwnedFile, Errno>;
}
