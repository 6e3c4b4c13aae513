// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The hands of the handler in the kernel: files are `struct file`s of shmem, and their frames cross.
//!
//! # How a memfd is kept
//!
//! `keep` forbids changes of the file's size and its holes, as mainline's `shmem_freeze` does for
//! its own handler. Page faults still fill holes, so the page cache only grows from then on.
//! `populated` walks it where nothing is held yet: the page cache over a hole is asked, never filled.
//! Each folio that is found is held by a reference, which keeps reclaim, migration and splitting away
//! from it, and each run of frames is one preservation of KHO. A second walk, at freeze, first
//! compares the number of pages: if nothing was added there is nothing to look for.
//!
//! # How it comes back
//!
//! A frame is only touched if KHO marked it as preserved and not restored, so no number in a record
//! leads to memory that is anybody else's. Pages that follow each other in the file go into the page
//! cache, its accounts and the LRU together. They come back dirty and up to date: a clean page could
//! be reclaimed, and would be lost. A large folio comes back as one; on a kernel without large folios
//! as single pages.

use ::kernel::{alloc::KVVec, prelude::GFP_KERNEL};
use luo_handler_api::{register_handler, status, Errno, FileRef, Host, OwnedFile};

use crate::{
    backend::{MemfdBackend, ShowRun},
    chain::{Extents, BLOCK_LENGTH},
    extent::Extent,
    handler::MemfdHandler,
    record::{Attributes, Contents, Kind, Record},
};

register_handler!(
    /// The handler of this kernel.
    pub MEMFD: MemfdHandler<KernelBackend> = MemfdHandler(KernelBackend)
);

/// The kernel, whose frames cross a kexec.
#[derive(Clone, Copy, Debug)]
pub struct KernelBackend;

/// What is remembered of a memfd that is kept.
///
/// # Invariants
///
/// Each folio of each extent is referenced once and preserved. `runs` ascends, and no two extents in
/// `runs` and `late` overlap.
#[derive(Debug)]
pub struct Kept {
    runs: KVVec<Extent>,
    /// Runs that the present walk found; merged into `runs` at its end.
    late: KVVec<Extent>,
    /// Pages in all of them.
    pages: u64,
}

/// Memory for one block of extents.
#[derive(Debug)]
pub struct Buffer(KVVec<u8>);

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl MemfdBackend for KernelBackend {
    type Kept = Kept;
    type Buffer = Buffer;

    fn contents_in(&self) -> Contents {
        Contents::Frames
    }

    fn page_shift(&self) -> u8 {
        PAGE_SHIFT
    }

    fn buffer(&self) -> Result<Buffer, Errno> {
        let buffer = KVVec::from_elem(0, BLOCK_LENGTH, GFP_KERNEL);
        buffer.map(Buffer).map_err(|_| Errno::ENOMEM)
    }

    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        // SAFETY: the file is open.
        unsafe { shim::luo_memfd_is_known(file.as_ptr()) }
    }

    /// The inode: frames cross, so a memfd must not cross twice through two open files.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        // SAFETY: the file is open.
        Some(unsafe { shim::luo_memfd_id(file.as_ptr()) } as u64)
    }

    fn keep(&self, file: FileRef<'_>, _: Host<'_>) -> Result<(u64, Kept), Errno> {
        // SAFETY: the file is open, and `can_preserve` said that it is one of shmem.
        unsafe { shim::luo_memfd_freeze(file.as_ptr(), true) };
        let kept = Kept {
            runs: KVVec::new(),
            late: KVVec::new(),
            pages: 0,
        };
        Ok((0, kept))
    }

    fn release(&self, file: FileRef<'_>, _: u64, kept: &mut Kept, _: Host<'_>) {
        kept.give_up();
        // SAFETY: as in `keep`.
        unsafe { shim::luo_memfd_freeze(file.as_ptr(), false) };
    }

    fn attributes(&self, file: FileRef<'_>) -> Result<Attributes, Errno> {
        let mut found = shim::MemfdAttributes::default();
        // SAFETY: the file is open, and `found` is ours.
        Errno::check(unsafe { shim::luo_memfd_attributes(file.as_ptr(), &mut found) })?;
        Ok(Attributes {
            size: found.size,
            position: found.position,
            seals: found.seals,
            status: status::from_flags(found.flags),
            mode: found.mode,
            kind: Kind::Shmem,
            file_page_shift: PAGE_SHIFT,
        })
    }

    fn populated(
        &self,
        file: FileRef<'_>,
        kept: &mut Kept,
        size: u64,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        kept.merge()?;
        // SAFETY: the file is open and one of shmem.
        if unsafe { shim::luo_memfd_pages(file.as_ptr()) } != kept.pages {
            kept.fill_gaps(file, size.div_ceil(1 << PAGE_SHIFT))?;
            kept.merge()?;
        }
        for run in &kept.runs {
            show(run.index(), run.frame(), run.length(), run.order())?;
        }
        Ok(())
    }

    fn restore(
        &self,
        record: &Record,
        extents: &Extents<'_>,
        _: Host<'_>,
    ) -> Result<OwnedFile, Errno> {
        if record.attributes.kind != Kind::Shmem {
            return Err(Errno::EOPNOTSUPP);
        }
        let file = create(&record.attributes)?;
        fill(&file, extents)?;
        Ok(file)
    }

    fn discard(&self, _: &Record, extents: &Extents<'_>, _: Host<'_>) {
        // Frames are not released on the word of a record that is not sound.
        if extents.verify().is_err() {
            return;
        }
        let _ = extents.for_each(&mut |extent| {
            // SAFETY: what is not preserved there is left alone.
            unsafe { shim::luo_frames_discard(extent.frame(), extent.length(), extent.order()) };
            Ok(())
        });
    }
}

impl Kept {
    /// Holds every folio in the first `size_in_pages` pages that is not held yet.
    fn fill_gaps(&mut self, file: FileRef<'_>, size_in_pages: u64) -> Result<(), Errno> {
        let mut next = 0;
        for place in 0..=self.runs.len() {
            let (gap_end, run_end) = match self.runs.get(place) {
                Some(run) => (run.index(), run.end()),
                None => (size_in_pages, size_in_pages),
            };
            if next < gap_end {
                self.fill_gap(file, next, gap_end)?;
            }
            next = run_end;
        }
        Ok(())
    }

    /// Holds the folios from page `next` up to `end`, where none is held.
    fn fill_gap(&mut self, file: FileRef<'_>, mut next: u64, end: u64) -> Result<(), Errno> {
        let mut open: Option<Held> = None;
        while next < end {
            let mut batch = Batch::find(file, &mut next, end - 1);
            if batch.is_empty() {
                break;
            }
            while let Some(found) = batch.take() {
                if !found.is_held() {
                    // The rest of the batch is found again, after this one.
                    next = found.index;
                    batch.make_way(&found, file, end)?;
                    break;
                }
                let held = Held::new(&found);
                let rest = match &mut open {
                    Some(run) => run.join(held),
                    None => Some(held),
                };
                if let Some(held) = rest {
                    self.close(open.replace(held))?;
                }
            }
        }
        self.close(open)
    }

    /// Preserves a run that does not grow any more, and remembers it.
    fn close(&mut self, run: Option<Held>) -> Result<(), Errno> {
        let Some(run) = run else { return Ok(()) };
        let extent = run.extent()?;
        self.late
            .reserve(1, GFP_KERNEL)
            .map_err(|_| Errno::ENOMEM)?;
        // SAFETY: the run is held, so its frames are those of folios of this order.
        Errno::check(unsafe { shim::luo_frames_preserve(run.frame, run.length, run.order) })?;
        if self.late.push_within_capacity(extent).is_err() {
            // SAFETY: it was preserved a moment ago.
            unsafe { shim::luo_frames_unpreserve(run.frame, run.length, run.order) };
            return Err(Errno::ENOMEM);
        }
        self.pages += run.length;
        core::mem::forget(run);
        Ok(())
    }

    /// Sorts what the last walk found in between what was known. Both ascend.
    fn merge(&mut self) -> Result<(), Errno> {
        if self.runs.is_empty() {
            core::mem::swap(&mut self.runs, &mut self.late);
            return Ok(());
        }
        if self.late.is_empty() {
            return Ok(());
        }
        // A walk that failed may have left late runs that a later one continued.
        self.late.sort_unstable_by_key(|run| run.index());
        let capacity = self.runs.len() + self.late.len();
        let mut merged = KVVec::with_capacity(capacity, GFP_KERNEL).map_err(|_| Errno::ENOMEM)?;
        let (mut runs, mut late) = (self.runs.iter().peekable(), self.late.iter().peekable());
        while let Some(&run) = match (runs.peek(), late.peek()) {
            (Some(run), Some(new)) if new.index() < run.index() => late.next(),
            (Some(_), _) => runs.next(),
            (None, _) => late.next(),
        } {
            merged
                .push_within_capacity(run)
                .map_err(|_| Errno::ENOMEM)?;
        }
        self.runs = merged;
        self.late.clear();
        Ok(())
    }

    /// Gives every frame back.
    fn give_up(&mut self) {
        for run in self.runs.iter().chain(&self.late) {
            // SAFETY: by the type's invariant each of them is preserved and referenced once; they
            // are forgotten below.
            unsafe {
                shim::luo_frames_unpreserve(run.frame(), run.length(), run.order());
                shim::luo_frames_put(run.frame(), run.length(), run.order());
            }
        }
        self.runs = KVVec::new();
        self.late = KVVec::new();
        self.pages = 0;
    }
}

/// A run of folios that is held but not yet preserved.
///
/// # Invariants
///
/// Folios of 2^`order` pages in consecutive frames, at consecutive places of their file; the value
/// owns a reference to each of them.
struct Held {
    index: u64,
    frame: u64,
    length: u64,
    order: u8,
}

impl Held {
    /// Takes over the reference of what was found.
    fn new(found: &shim::Found) -> Self {
        Self {
            index: found.index,
            frame: found.pfn,
            length: found.pages.into(),
            order: found.order,
        }
    }

    /// Takes `next` in if it continues the run, or gives it back.
    fn join(&mut self, next: Self) -> Option<Self> {
        let continues = next.index == self.index + self.length
            && next.frame == self.frame + self.length
            && next.order == self.order;
        if !continues {
            return Some(next);
        }
        self.length += next.length;
        core::mem::forget(next);
        None
    }

    fn extent(&self) -> Result<Extent, Errno> {
        Extent::of_folios(self.index, self.frame, self.length, self.order).ok_or(Errno::EFBIG)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant the references are ours.
        unsafe { shim::luo_frames_put(self.frame, self.length, self.order) };
    }
}

/// What was found at once in a page cache.
///
/// # Invariants
///
/// The value owns the references of what is held from `next` up to `count`.
struct Batch {
    found: [shim::Found; shim::FOUND_MAX],
    next: usize,
    count: usize,
}

impl Batch {
    /// Looks from page `next` on up to `last`, and moves `next` behind what was found.
    fn find(file: FileRef<'_>, next: &mut u64, last: u64) -> Self {
        let mut found = [shim::Found::default(); shim::FOUND_MAX];
        // SAFETY: the file is open and one of shmem; there is room for as much as is found at once.
        let count = unsafe { shim::luo_memfd_find(file.as_ptr(), next, last, found.as_mut_ptr()) };
        Self {
            found,
            next: 0,
            count: count as usize,
        }
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn take(&mut self) -> Option<shim::Found> {
        let found = self.found.get(self.next).filter(|_| self.next < self.count);
        self.next += 1;
        found.copied()
    }
}

impl Batch {
    /// Does what has to be done before `found`, which was taken last, can be kept. What follows it
    /// and has to be moved as well is moved along, as far as it lies before page `end`: the last folio
    /// may reach beyond the file.
    fn make_way(&mut self, found: &shim::Found, file: FileRef<'_>, end: u64) -> Result<(), Errno> {
        match found.state {
            // SAFETY: the file is open and one of shmem.
            shim::FOUND_SWAPPED => {
                Errno::check(unsafe { shim::luo_memfd_swap_in(file.as_ptr(), found.index) })
            }
            shim::FOUND_MOVABLE => {
                let last = self.end_of_movable(found).min(end) - 1;
                // SAFETY: as above; there is no hole among folios that follow each other.
                Errno::check(unsafe { shim::luo_memfd_move(file.as_ptr(), found.index, last) })
            }
            shim::FOUND_GONE => Ok(()),
            _ => Err(Errno::EIO),
        }
    }

    fn end_of_movable(&mut self, first: &shim::Found) -> u64 {
        let mut end = first.end();
        while let Some(next) = self.found.get(self.next).filter(|_| self.next < self.count) {
            if next.state != shim::FOUND_MOVABLE || next.index != end {
                break;
            }
            end = next.end();
            self.next += 1;
        }
        end
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        while let Some(found) = self.take() {
            if found.has_reference() {
                drop(Held::new(&found));
            }
        }
    }
}

impl shim::Found {
    /// Whether the finder holds a reference.
    fn has_reference(&self) -> bool {
        matches!(self.state, shim::FOUND_HELD | shim::FOUND_UNWRITTEN)
    }

    /// Whether it can be kept as it is. What was allocated and never written is written with zeros,
    /// as the first fault would do.
    fn is_held(&self) -> bool {
        if self.state == shim::FOUND_UNWRITTEN {
            // SAFETY: the folio is referenced.
            unsafe { shim::luo_frames_write_zeros(self.pfn) };
        }
        self.has_reference()
    }

    fn end(&self) -> u64 {
        self.index + u64::from(self.pages)
    }
}

/// An empty memfd with all of `attributes`.
fn create(attributes: &Attributes) -> Result<OwnedFile, Errno> {
    let wanted = shim::MemfdAttributes {
        size: attributes.size,
        position: attributes.position,
        seals: attributes.seals,
        flags: status::to_flags(attributes.status),
        mode: attributes.mode,
    };
    // SAFETY: `wanted` is valid for reads, and nobody else has what is returned.
    unsafe { OwnedFile::from_err_ptr(shim::luo_memfd_create(&wanted)) }
}

/// Fills an empty memfd with what crossed.
fn fill(file: &OwnedFile, extents: &Extents<'_>) -> Result<(), Errno> {
    let mut collected = Insertion::new(file);
    extents.for_each(&mut |extent| collected.push(extent))?;
    collected.flush()
}

/// Extents on their way into a file: several at once, so that pages that follow each other in the
/// file go in together, wherever they are in memory.
struct Insertion<'a> {
    /// Made by [`create`]: nobody else knows of it.
    file: &'a OwnedFile,
    runs: [shim::Run; 32],
    count: usize,
}

impl<'a> Insertion<'a> {
    fn new(file: &'a OwnedFile) -> Self {
        Self {
            file,
            runs: [shim::Run::default(); 32],
            count: 0,
        }
    }

    fn push(&mut self, extent: Extent) -> Result<(), Errno> {
        if self.count == self.runs.len() {
            self.flush()?;
        }
        if let Some(run) = self.runs.get_mut(self.count) {
            *run = shim::Run {
                index: extent.index(),
                pfn: extent.frame(),
                pages: extent.length(),
                order: extent.order(),
            };
            self.count += 1;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let count = core::mem::take(&mut self.count);
        // SAFETY: the file is one of shmem, and empty there: extents do not overlap. What is not
        // preserved in these frames is left alone. `count` is at most the length of the array.
        Errno::check(unsafe {
            shim::luo_memfd_insert(self.file.as_ptr(), self.runs.as_ptr(), count as u32)
        })
    }
}

const PAGE_SHIFT: u8 = ::kernel::page::PAGE_SHIFT as u8;

/// The functions of `luo_shim_memfd.c`; see `luo_shim.h`.
mod shim {
    use core::ffi::c_void;

    /// `struct luo_memfd_attributes`.
    #[derive(Default)]
    #[repr(C)]
    pub(super) struct MemfdAttributes {
        pub(super) size: u64,
        pub(super) position: u64,
        pub(super) seals: u32,
        pub(super) flags: u32,
        pub(super) mode: u32,
    }

    /// `struct luo_run`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    pub(super) struct Run {
        pub(super) index: u64,
        pub(super) pfn: u64,
        pub(super) pages: u64,
        pub(super) order: u8,
    }

    /// `struct luo_found`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    pub(super) struct Found {
        pub(super) index: u64,
        pub(super) pfn: u64,
        pub(super) pages: u32,
        pub(super) order: u8,
        pub(super) state: u8,
    }

    pub(super) const FOUND_HELD: u8 = 0;
    pub(super) const FOUND_UNWRITTEN: u8 = 1;
    pub(super) const FOUND_MOVABLE: u8 = 2;
    pub(super) const FOUND_SWAPPED: u8 = 3;
    pub(super) const FOUND_GONE: u8 = 4;

    /// `LUO_FOUND_MAX`.
    pub(super) const FOUND_MAX: usize = 31;

    extern "C" {
        pub(super) fn luo_memfd_is_known(file: *mut c_void) -> bool;
        pub(super) fn luo_memfd_id(file: *mut c_void) -> usize;
        pub(super) fn luo_memfd_freeze(file: *mut c_void, freeze: bool);
        pub(super) fn luo_memfd_attributes(
            file: *mut c_void,
            attributes: *mut MemfdAttributes,
        ) -> i32;
        pub(super) fn luo_memfd_pages(file: *mut c_void) -> u64;
        pub(super) fn luo_memfd_find(
            file: *mut c_void,
            start: *mut u64,
            last: u64,
            found: *mut Found,
        ) -> u32;
        pub(super) fn luo_memfd_swap_in(file: *mut c_void, index: u64) -> i32;
        pub(super) fn luo_memfd_move(file: *mut c_void, index: u64, last: u64) -> i32;
        pub(super) fn luo_frames_put(pfn: u64, pages: u64, order: u8);
        pub(super) fn luo_frames_write_zeros(pfn: u64);
        pub(super) fn luo_frames_preserve(pfn: u64, pages: u64, order: u8) -> i32;
        pub(super) fn luo_frames_unpreserve(pfn: u64, pages: u64, order: u8);
        pub(super) fn luo_frames_discard(pfn: u64, pages: u64, order: u8);
        pub(super) fn luo_memfd_create(attributes: *const MemfdAttributes) -> *mut c_void;
        pub(super) fn luo_memfd_insert(file: *mut c_void, runs: *const Run, count: u32) -> i32;
    }
}
