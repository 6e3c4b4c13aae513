// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of its surroundings: a process, or the kernel.

use luo_handler_api::{Errno, FileRef, Host, OwnedFile};

use crate::record::SampleRecord;

/// The handler's backend: all that touches files.
pub trait SampleBackend: Sync + 'static {
    /// Whether `file` is of this type. Cheap, without side effects.
    fn is_known(&self, file: FileRef<'_>) -> bool;

    /// What distinguishes the file from others; `None` leaves that to the host.
    fn id(&self, file: FileRef<'_>) -> Option<u64> {
        let _ = file;
        None
    }

    /// Makes the file stand still while it is looked at, and from freeze to the jump: what is done
    /// to it after it was looked at would not cross.
    ///
    /// # Errors
    ///
    /// Those of the system; then it does not stand still.
    fn stop(&self, file: FileRef<'_>) -> Result<(), Errno> {
        let _ = file;
        Ok(())
    }

    /// Lets it go on.
    fn resume(&self, file: FileRef<'_>) {
        let _ = file;
    }

    /// The file as it is now, possible or not; preserves what the record does not hold itself.
    ///
    /// # Errors
    ///
    /// Those of the system and the host.
    fn look(&self, file: FileRef<'_>, host: Host<'_>) -> Result<SampleRecord, Errno>;

    /// Gives back what `look` preserved, also for a record that somebody forged.
    fn release(&self, record: SampleRecord, host: Host<'_>);

    /// Makes the file that was recorded, with the rights of the caller.
    ///
    /// # Errors
    ///
    /// Those of the system and the host.
    fn make(&self, record: SampleRecord, host: Host<'_>) -> Result<OwnedFile, Errno>;
}
