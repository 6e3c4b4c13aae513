// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of its surroundings: a process, or the kernel.

use luo_handler_api::{Errno, FileRef, Host, OwnedFile};

use crate::record::SampleRecord;

/// The handler's backend: all that touches files.
pub trait SampleBackend: Sync + 'static {
    /// Whether `file` is of this type. Cheap, without side effects.
    fn is_known(&self, file: FileRef<'_>) -> bool;

    /// The file as it is now, possible or not.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn look(&self, file: FileRef<'_>, host: Host<'_>) -> Result<SampleRecord, Errno>;

    /// Makes the file that was recorded, with the rights of the caller.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn make(&self, record: SampleRecord, host: Host<'_>) -> Result<OwnedFile, Errno>;
}
