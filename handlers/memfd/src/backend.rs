// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of its surroundings: a process, the kernel, or a test.

use luo_handler_api::{Errno, FileRef, Host, OwnedFile};

use crate::{
    chain::Extents,
    record::{Attributes, Contents, Record},
};

/// Shows a run of pages: index of the first in the file, its frame or
/// [`IN_FILE`](crate::extent::IN_FILE), and their number, all in units of base pages; and the order
/// of the folios they are in, 0 for single pages and those in a file.
pub type ShowRun<'a> = dyn FnMut(u64, u64, u64, u8) -> Result<(), Errno> + 'a;

/// The hands of the handler: all that touches files and memory.
///
/// The policy calls `keep` before anything else about a file, and ends with one `release`, or with
/// the jump. Nothing here allocates but `buffer`, or unless an implementation has to.
pub trait MemfdBackend: Sync + 'static {
    /// What an implementation has to remember of a file that it keeps.
    type Kept: Send + 'static;

    /// Memory of [`BLOCK_LENGTH`](crate::chain::BLOCK_LENGTH) bytes.
    type Buffer: AsMut<[u8]>;

    /// Where the contents are while they cross.
    fn contents_in(&self) -> Contents;

    /// Binary logarithm of the base page in bytes.
    fn page_shift(&self) -> u8;

    /// Memory for one block of extents.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn buffer(&self) -> Result<Self::Buffer, Errno>;

    /// Whether `file` is a memfd of a kind that is known here. Cheap, without side effects.
    fn can_preserve(&self, file: FileRef<'_>) -> bool;

    /// Under which identity a second offer of the same memfd is refused; `None` leaves it to the
    /// host, which is right where contents cross as a file.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        let _ = file;
        None
    }

    /// Begins to keep the contents of `file`; yields their handle and what to remember. From here on
    /// whatever would make keeping impossible is held off, as mainline's `shmem_freeze` does.
    ///
    /// # Errors
    ///
    /// Any; nothing is kept then.
    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, Self::Kept), Errno>;

    /// Gives the contents up again, with every page that was ever shown.
    fn release(&self, file: FileRef<'_>, contents: u64, kept: &mut Self::Kept, host: Host<'_>);

    /// What makes `file` besides its contents.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a kind of file that is not known here.
    fn attributes(&self, file: FileRef<'_>) -> Result<Attributes, Errno>;

    /// Shows the pages within the first `size` bytes that exist, in ascending order and disjoint,
    /// and keeps them. The workload may be running: what it changes meanwhile is shown by the next
    /// call or not at all.
    ///
    /// # Errors
    ///
    /// Any, and what `show` says.
    fn populated(
        &self,
        file: FileRef<'_>,
        kept: &mut Self::Kept,
        size: u64,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno>;

    /// Rebuilds the file. Record and extents were checked, as far as that is possible without
    /// looking at files and memory: whether `contents` is the file that was recorded, or a frame
    /// holds a page that was kept and not yet taken, is checked here.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not; others.
    fn restore(
        &self,
        record: &Record,
        extents: &Extents<'_>,
        host: Host<'_>,
    ) -> Result<OwnedFile, Errno>;

    /// Releases contents that crossed and that nobody took, or not successfully. The extents were
    /// not looked at.
    fn discard(&self, record: &Record, extents: &Extents<'_>, host: Host<'_>);
}
