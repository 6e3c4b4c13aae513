// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of a process, the kernel, or a test.

use luo_handler_api::{Errno, FileRef, Host, OwnedFile};

use crate::{
    chain::Extents,
    extent::{Contents, Run},
    name::Name,
    record::{Attributes, Record, EARLIER_LAYOUT, LAYOUT},
};

/// Takes one run of pages after the other.
pub type ShowRun<'a> = dyn FnMut(Run) -> Result<(), Errno> + 'a;

/// All that touches files and memory.
///
/// The policy calls `keep` before anything else about a file, and ends with one `release`, or with
/// the jump. Nothing here allocates but `buffer`, or unless an implementation has to.
pub trait MemfdBackend: Sync + 'static {
    /// What an implementation has to remember of a file that it preserves.
    type Kept: Send + 'static;

    /// Memory of its own.
    type Buffer: AsMut<[u8]>;

    /// What of a record it can take: layouts and kinds of files, as [`FileHandler::READS`] has
    /// them.
    ///
    /// [`FileHandler::READS`]: luo_handler_api::FileHandler::READS
    const READS: &'static [&'static str] = &[LAYOUT, EARLIER_LAYOUT, "shmem", "hugetlb"];

    /// Where the contents are while they cross.
    fn contents_in(&self) -> Contents;

    /// Binary logarithm of the base page in bytes.
    fn page_shift(&self) -> u8;

    /// The machine's frames are below this number.
    fn frame_end(&self) -> u64;

    /// As many bytes of zeros; asked for with the first of the extents that are shown.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn buffer(&self, length: usize) -> Result<Self::Buffer, Errno>;

    /// Whether `file` is for this handler, to preserve or to refuse. Cheap, without side effects.
    fn can_preserve(&self, file: FileRef<'_>) -> bool;

    /// Under which identity a second offer of the same memfd is refused; `None` leaves it to the
    /// host, which is right where contents cross as a file.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        let _ = file;
        None
    }

    /// Begins to preserve the contents of `file`; returns their handle and what to remember. From
    /// here on whatever would make that impossible is held off, as mainline's `shmem_freeze` does.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a file that would not come back as it is, whatever `can_preserve` returned
    /// for it; others. Nothing is preserved then.
    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, Self::Kept), Errno>;

    /// Gives the contents up again, with every page that was ever shown, frozen or not.
    fn release(&self, file: FileRef<'_>, contents: u64, kept: &mut Self::Kept, host: Host<'_>);

    /// What makes `file` besides its contents.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a kind of file that is not known here.
    fn attributes(&self, file: FileRef<'_>) -> Result<Attributes, Errno>;

    /// The name of `file`, empty where it cannot be given to another one.
    fn name(&self, file: FileRef<'_>) -> Name;

    /// Where the contents cross as [`Frames`](Contents::Frames), shows the pages within the first
    /// `size` bytes that exist, in ascending order and disjoint, and preserves them. The workload
    /// may be running: what it changes meanwhile is for `freeze`. Where they cross as a
    /// [`File`](Contents::File), shows nothing.
    ///
    /// # Errors
    ///
    /// Any, and those of `show`.
    fn populated(
        &self,
        file: FileRef<'_>,
        kept: &mut Self::Kept,
        size: u64,
        host: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let _ = (file, kept, size, host, show);
        Ok(())
    }

    /// From here on no page comes into the file: whoever fills a hole waits for `thaw`. Shows the
    /// pages that came after `populated`, all of them also if it is called again. What that showed
    /// is read from `held`; without it the backend has to remember it by itself. Where the contents
    /// cross as a [`File`](Contents::File), all that comes into it crosses: it holds nobody off and
    /// shows nothing.
    ///
    /// # Errors
    ///
    /// Any, and those of `show`; the policy calls `thaw` then. `EIO` for memory that has failed.
    fn freeze(
        &self,
        file: FileRef<'_>,
        kept: &mut Self::Kept,
        held: Option<&Extents<'_>>,
        size: u64,
        host: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let _ = (file, kept, held, size, host, show);
        Ok(())
    }

    /// Undoes what `freeze` did to others, if anything.
    fn thaw(&self, file: FileRef<'_>) {
        let _ = file;
    }

    /// Rebuilds the file. The record and each chain of frames were checked, as far as that is
    /// possible without looking at files and memory: whether `contents` is a file of the recorded
    /// kind, whether a frame holds a page that was preserved and not yet taken, or whether a place
    /// in the file is named twice, is checked here.
    ///
    /// A file that crossed whole may have changed since freeze. It is handed over as it is, and
    /// [explained](Host::explain) is what changed.
    ///
    /// # Errors
    ///
    /// `EINVAL` if not; others.
    fn restore(&self, record: &Record, host: Host<'_>) -> Result<OwnedFile, Errno>;

    /// Releases contents that crossed and that nobody took, or not successfully. The record and
    /// each of its chains were checked.
    fn discard(&self, record: &Record, host: Host<'_>);
}

/// What mainline's format takes besides: it names memory by physical addresses.
///
/// Contents are [`Frames`](Contents::Frames), and each folio is a preservation of its own.
pub trait MainlineBackend: MemfdBackend {
    /// The physical address of bytes that the host preserves; they begin a page.
    fn address(&self, handle: u64) -> u64;

    /// The host's handle of `length` bytes at a physical address, whether they are preserved or
    /// not; `None` if they do not begin a page.
    fn handle(&self, address: u64, length: u64) -> Option<u64>;

    /// How large a folio was preserved in this frame, as the binary logarithm of its pages; `None`
    /// if none was, or it was taken since.
    fn preserved_order(&self, frame: u64) -> Option<u8>;

    /// The user and the group that own what the running task makes.
    fn owner(&self) -> (u32, u32);

    /// Makes a file of `pages` pages that `walk` shows, with these attributes. Whether a frame
    /// holds what was preserved and not yet taken, or a place in the file is named twice, is
    /// checked here.
    ///
    /// # Errors
    ///
    /// Any, and those of `walk`.
    fn restore_runs(
        &self,
        attributes: &Attributes,
        pages: u64,
        host: Host<'_>,
        walk: &mut dyn FnMut(&mut ShowRun<'_>) -> Result<(), Errno>,
    ) -> Result<OwnedFile, Errno>;

    /// Releases the contents of a folio that crossed, if nobody took them.
    fn discard_run(&self, run: Run);
}
