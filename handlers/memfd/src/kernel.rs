// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The backend of the kernel: files are `struct file`s of shmem or hugetlbfs, and their frames
//! cross.
//!
//! # How a memfd is preserved
//!
//! `keep` forbids changes of the file's size and its holes, as mainline's `shmem_freeze` does for
//! its own handler. Page faults and writes still fill holes, so the page cache only grows from then
//! on. `populated` walks it: the page cache over a hole is asked, never filled. Each folio that is
//! found is pinned, which prevents reclaim, migration, collapse and splitting of it. Large folios
//! are preserved as such. Single pages are preserved after the walk, as they lie together in
//! memory: a file whose pages are scattered is few preservations of KHO, in large pieces. What is
//! held is remembered by its frames; where it is in the file is in the record alone. In a large
//! file other processors go ahead and find what comes next (`luo_shim_parts.c`).
//!
//! From `freeze` on nothing new comes in: tasks that fill a hole wait until `thaw`, or for the next
//! kernel (`shmem.patch`, in kmod/). At that moment the number of pages is compared, and only if
//! some were added the gaps between what is held are walked again. Memory that has failed since
//! prepare is looked for only if some of the machine's did.
//!
//! # How it comes back
//!
//! A frame is only touched if it lies in a piece that KHO marked as preserved and not restored. So
//! a number in a record leads at most to memory that the previous kernel preserved, for this file
//! or another; what is not claimed by then can be claimed for another file. A piece is taken back
//! when the first of its frames is asked for; the others wait for this record
//! (`luo_shim_pieces.c`), and what it does not name in the end is freed. Pages that follow each
//! other in the file go into the page cache, its accounts and the LRU together. They come back
//! dirty and up to date: a clean page could be reclaimed, and would be lost. A large folio comes
//! back as one; on a kernel without large folios as single pages. One of hugetlbfs becomes a huge
//! page again (`luo_shim_hugetlb.c`), which is not in this kernel's pool. Of a large file several
//! processors insert parts, while this one decodes the record (`luo_shim_parts.c`).

#![allow(unsafe_code)]

use core::{ffi::c_void, marker::PhantomData};

use ::kernel::{alloc::KVVec, prelude::GFP_KERNEL};
use luo_handler_api::{
    kernel::{frame_and_length, handle_of},
    register_handler, status, Errno, FileRef, Host, OwnedFile,
};

use crate::{
    backend::{MainlineBackend, MemfdBackend, ShowRun},
    chain::Extents,
    extent::{Contents, Extent, Run},
    handler::MemfdHandler,
    name::Name,
    pieces::{Block, Pieces, Slots},
    record::{Attributes, Kind, Record, EARLIER_LAYOUT, LAYOUT},
};

register_handler!(
    /// The handler of this kernel.
    pub MEMFD: MemfdHandler<KernelBackend> = MemfdHandler(KernelBackend {
        folio_by_folio: false
    })
);

#[cfg(not(CONFIG_LIVEUPDATE_MEMFD))]
register_handler!(
    /// The handler of mainline's format in a kernel without mainline's handler.
    pub MAINLINE_MEMFD: crate::MainlineHandler<KernelBackend> =
        crate::MainlineHandler(KernelBackend {
            folio_by_folio: true
        })
);

/// The kernel, whose frames cross a kexec.
#[derive(Clone, Copy, Debug)]
pub struct KernelBackend {
    /// Whether each folio is a preservation of its own, as mainline's format wants it.
    folio_by_folio: bool,
}

/// What is remembered of a memfd that is preserved.
///
/// # Invariants
///
/// Each frame in `single` is a page that is pinned once, and preserved if `single_preserved`. Each
/// folio of each extent is pinned once and preserved. `late` ascends between two walks. Nothing is
/// there twice.
#[derive(Debug)]
pub struct PreservedFrames {
    /// The single pages that prepare found.
    single: Pieces<Blocks>,
    /// Whether they are preserved, in the runs that `single` has.
    single_preserved: bool,
    /// The large folios that prepare found.
    folios: KVVec<Extent>,
    /// What came later. Single pages of it are preserved as they were found.
    late: KVVec<Extent>,
    /// Pages in all of them.
    pages: u64,
    /// Pages of the machine that had failed when it was last looked for some in the file.
    poisoned: u64,
    /// As [`KernelBackend::folio_by_folio`].
    folio_by_folio: bool,
}

/// Memory for blocks of frames.
#[derive(Debug, Default)]
struct Blocks(KVVec<Block>);

impl AsRef<[Block]> for Blocks {
    fn as_ref(&self) -> &[Block] {
        &self.0
    }
}

impl AsMut<[Block]> for Blocks {
    fn as_mut(&mut self) -> &mut [Block] {
        &mut self.0
    }
}

impl Slots for Blocks {
    fn with_room(count: usize) -> Result<Self, Errno> {
        let blocks = KVVec::from_elem(Block::default(), count, GFP_KERNEL);
        blocks.map(Self).map_err(|_| Errno::ENOMEM)
    }
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
    type Kept = PreservedFrames;
    type Buffer = Buffer;
    const READS: &'static [&'static str] = match cfg!(CONFIG_HUGETLBFS) {
        true => &[LAYOUT, EARLIER_LAYOUT, "shmem", "hugetlb"],
        false => &[LAYOUT, EARLIER_LAYOUT, "shmem"],
    };

    fn contents_in(&self) -> Contents {
        Contents::Frames
    }

    fn page_shift(&self) -> u8 {
        PAGE_SHIFT
    }

    fn frame_end(&self) -> u64 {
        // SAFETY: it reads a number that does not change after boot.
        unsafe { shim::luo_frame_end() }
    }

    fn buffer(&self, length: usize) -> Result<Buffer, Errno> {
        let buffer = KVVec::from_elem(0, length, GFP_KERNEL);
        buffer.map(Buffer).map_err(|_| Errno::ENOMEM)
    }

    /// Files of shmem and hugetlbfs that only descriptors and mappings lead to. Those that are not
    /// memfds are taken to be refused with a reason: mainline's handler would lose what makes them
    /// other files.
    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        // SAFETY: it reads a parameter.
        let format = unsafe { shim::luo_memfd_writes_mainlines() };
        // SAFETY: a `FileRef` is an open file.
        format == self.folio_by_folio && unsafe { shim::luo_memfd_is_known(file.as_ptr()) }
    }

    /// The inode: frames cross, so a memfd must not cross twice through two open files.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        // SAFETY: a `FileRef` is an open file.
        Some(unsafe { shim::luo_memfd_id(file.as_ptr()) } as u64)
    }

    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, PreservedFrames), Errno> {
        let memfd = Memfd::new(file).ok_or_else(|| {
            host.refuse(
                Errno::EOPNOTSUPP,
                format_args!(
                    "only memfds are preserved, not files of other tmpfs and hugetlbfs mounts, of \
                     SysV shared memory or of drivers"
                ),
            )
        })?;
        if self.folio_by_folio && memfd.huge_shift() != 0 {
            return Err(host.refuse(
                Errno::EOPNOTSUPP,
                format_args!(
                    "memfd:{}: mainline's format has no huge pages",
                    memfd.name()
                ),
            ));
        }
        memfd.fix_size(true);
        let frames = PreservedFrames {
            single: Pieces::default(),
            single_preserved: false,
            folios: KVVec::new(),
            late: KVVec::new(),
            pages: 0,
            poisoned: poisoned_pages(),
            folio_by_folio: self.folio_by_folio,
        };
        Ok((0, frames))
    }

    fn release(&self, file: FileRef<'_>, _: u64, frames: &mut PreservedFrames, _: Host<'_>) {
        frames.give_up();
        if let Some(memfd) = Memfd::new(file) {
            // Who waits to fill a hole may hold the lock that the size is changed under.
            memfd.release_holes();
            memfd.fix_size(false);
        }
    }

    fn attributes(&self, file: FileRef<'_>) -> Result<Attributes, Errno> {
        let found = Memfd::new(file).ok_or(Errno::EOPNOTSUPP)?.attributes()?;
        let (kind, file_page_shift) = match found.huge_shift {
            0 => (Kind::Shmem, PAGE_SHIFT),
            shift => (Kind::Hugetlb, shift as u8),
        };
        Ok(Attributes {
            size: found.size,
            position: found.position,
            seals: found.seals,
            status: status::from_flags(found.flags),
            mode: found.mode,
            uid: found.uid,
            gid: found.gid,
            kind,
            file_page_shift,
        })
    }

    fn name(&self, file: FileRef<'_>) -> Name {
        Memfd::new(file).map_or(Name::EMPTY, |memfd| memfd.name())
    }

    fn populated(
        &self,
        file: FileRef<'_>,
        frames: &mut PreservedFrames,
        size: u64,
        host: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let memfd = Memfd::new(file).ok_or(Errno::EOPNOTSUPP)?;
        walk(memfd, 0, pages_of(size), host, |held| {
            let run = held.0;
            frames.hold(held)?;
            show(run)
        })?;
        frames.preserve_single()
    }

    fn freeze(
        &self,
        file: FileRef<'_>,
        frames: &mut PreservedFrames,
        held: Option<&Extents<'_>>,
        size: u64,
        host: Host<'_>,
        show: &mut ShowRun<'_>,
    ) -> Result<(), Errno> {
        let memfd = Memfd::new(file).ok_or(Errno::EOPNOTSUPP)?;
        if memfd.hold_holes() != frames.pages {
            frames.fill_gaps(memfd, held, size, host)?;
        }
        frames.look_for_poison(memfd, host)?;
        let mut late = frames.late.iter().filter_map(|extent| extent.run());
        late.try_for_each(show)
    }

    fn thaw(&self, file: FileRef<'_>) {
        if let Some(memfd) = Memfd::new(file) {
            memfd.release_holes();
        }
    }

    fn restore(&self, record: &Record, host: Host<'_>) -> Result<OwnedFile, Errno> {
        expect_room(&record.attributes, record.pages(), &record.name, host)?;
        let file = create(&record.attributes, &record.name)?;
        let chains = record.chains(self.frame_end(), host);
        let mut insertion = Insertion::new(&file, record.pages())?;
        let mut filled = Ok(());
        for extents in &chains {
            filled = filled.and_then(|()| extents.for_each(|run| insertion.push(run)));
        }
        let (filled, mut claim) = insertion.end(filled);
        claim.give_back(&chains);
        filled.map(|()| file)
    }

    /// Goes on even in a task that was killed: nobody else gives these frames back. The policy has
    /// seen to it that they are no more than the machine has.
    fn discard(&self, record: &Record, host: Host<'_>) {
        let chains = record.chains(self.frame_end(), host);
        let mut claim = Claim::new();
        for extents in &chains {
            let _ = extents.for_each(|run| {
                claim.discard(run.frame(), run.length(), run.order());
                Ok(())
            });
        }
        claim.give_back(&chains);
    }
}

impl MainlineBackend for KernelBackend {
    fn address(&self, handle: u64) -> u64 {
        frame_and_length(handle).0 << PAGE_SHIFT
    }

    fn handle(&self, address: u64, length: u64) -> Option<u64> {
        let (frame, rest) = (address >> PAGE_SHIFT, address & ((1 << PAGE_SHIFT) - 1));
        (rest == 0).then(|| handle_of(frame, length)).flatten()
    }

    fn preserved_order(&self, frame: u64) -> Option<u8> {
        // SAFETY: it takes any number.
        let order = unsafe { shim::luo_preserved_order(frame as usize) };
        u8::try_from(order).ok()
    }

    fn owner(&self) -> (u32, u32) {
        let (mut uid, mut gid) = (0, 0);
        // SAFETY: both are borrowed until the call returns.
        unsafe { shim::luo_memfd_owner(&mut uid, &mut gid) };
        (uid, gid)
    }

    fn restore_runs(
        &self,
        attributes: &Attributes,
        pages: u64,
        host: Host<'_>,
        walk: &mut dyn FnMut(&mut ShowRun<'_>) -> Result<(), Errno>,
    ) -> Result<OwnedFile, Errno> {
        expect_room(attributes, pages, &Name::EMPTY, host)?;
        let file = create(attributes, &Name::EMPTY)?;
        let mut insertion = Insertion::new(&file, pages)?;
        let filled = walk(&mut |run| insertion.push(run));
        let (filled, mut claim) = insertion.end(filled);
        let _ = walk(&mut |run| claim.give_back_in(run.frame(), run.length()));
        filled.map(|()| file)
    }

    fn discard_run(&self, run: Run) {
        let mut claim = Claim::new();
        claim.discard(run.frame(), run.length(), run.order());
        let _ = claim.give_back_in(run.frame(), run.length());
    }
}

fn pages_of(size: u64) -> u64 {
    size.div_ceil(1 << PAGE_SHIFT)
}

/// Pages of the machine that have failed.
fn poisoned_pages() -> u64 {
    // SAFETY: it reads a counter.
    unsafe { shim::luo_poisoned_pages() }
}

/// Lets others run; `EINTR` if the task is killed.
fn pause() -> Result<(), Errno> {
    // SAFETY: a handler is called where it may sleep.
    Errno::check(unsafe { shim::luo_pause() })
}

/// An open memfd, of shmem or hugetlbfs.
///
/// # Invariants
///
/// [`new`](Self::new) has looked: the file is one of a mount of the kernel's own, whose inode and
/// name stay what they are while it is open.
#[derive(Clone, Copy)]
struct Memfd<'a>(FileRef<'a>);

impl<'a> Memfd<'a> {
    fn new(file: FileRef<'a>) -> Option<Self> {
        // SAFETY: a `FileRef` is an open file.
        unsafe { shim::luo_memfd_is_memfd(file.as_ptr()) }.then_some(Self(file))
    }

    /// As [`huge_shift`] of its attributes.
    fn huge_shift(self) -> u32 {
        // SAFETY: by the type's invariant it is an open memfd.
        unsafe { shim::luo_hugetlb_shift(self.0.as_ptr()) }
    }

    fn fix_size(self, fix: bool) {
        // SAFETY: by the type's invariant it is an open memfd.
        unsafe { shim::luo_memfd_fix_size(self.0.as_ptr(), fix) };
    }

    /// Holds off tasks that fill a hole; returns the number of pages, in memory and in swap.
    fn hold_holes(self) -> u64 {
        // SAFETY: by the type's invariant it is an open memfd.
        unsafe { shim::luo_memfd_hold_holes(self.0.as_ptr()) }
    }

    fn release_holes(self) {
        // SAFETY: by the type's invariant it is an open memfd.
        unsafe { shim::luo_memfd_release_holes(self.0.as_ptr()) };
    }

    fn attributes(self) -> Result<shim::MemfdAttributes, Errno> {
        let mut found = shim::MemfdAttributes::default();
        // SAFETY: by the type's invariant it is an open memfd, and `found` is ours to write.
        Errno::check(unsafe { shim::luo_memfd_attributes(self.0.as_ptr(), &mut found) })?;
        Ok(found)
    }

    fn name(self) -> Name {
        let mut name = [0; Name::ROOM];
        // SAFETY: by the type's invariant it is an open memfd, and `name` has the room it needs.
        unsafe { shim::luo_memfd_name(self.0.as_ptr(), name.as_mut_ptr()) };
        Name::new(name).unwrap_or(Name::EMPTY)
    }

    /// Looks at pages from `next` on up to `last`, and moves `next` after what was found.
    fn find<'b>(self, next: &mut u64, last: u64, found: &'b mut [shim::Found]) -> Batch<'b> {
        let (memory, room) = (found.as_mut_ptr(), found.len() as u32);
        // SAFETY: by the type's invariant it is an open memfd; `memory` has that much room.
        let count =
            unsafe { shim::luo_memfd_find(self.0.as_ptr(), next, last, memory, room) as usize };
        Batch {
            found,
            next: 0,
            count,
        }
    }

    fn swap_in(self, index: u64) -> Result<(), Errno> {
        // SAFETY: by the type's invariant it is an open memfd.
        Errno::check(unsafe { shim::luo_memfd_swap_in(self.0.as_ptr(), index) })
    }

    /// Moves the pages from `index` to `last`, among which is no hole.
    fn move_pages(self, index: u64, last: u64) -> Result<(), Errno> {
        // SAFETY: by the type's invariant it is an open memfd.
        Errno::check(unsafe { shim::luo_memfd_move(self.0.as_ptr(), index, last) })
    }

    /// What to return for pages that have to move and cannot.
    fn cannot_move(self, index: u64, errno: Errno, host: Host<'_>) -> Errno {
        let (name, offset) = (self.name(), index << PAGE_SHIFT);
        match (self.huge_shift(), errno) {
            (0, _) | (_, Errno::EINTR) => errno,
            _ => host.refuse(
                errno,
                format_args!(
                    "memfd:{name}: the huge page at offset {offset:#x} lies where the next kernel \
                     boots, and there is no free one to move it to"
                ),
            ),
        }
    }

    /// What to return for a page whose memory has failed.
    fn has_failed(self, index: u64, host: Host<'_>) -> Errno {
        let (name, offset) = (self.name(), index << PAGE_SHIFT);
        host.refuse(
            Errno::EIO,
            format_args!("memfd:{name}: the memory at offset {offset:#x} has failed"),
        )
    }
}

/// A walk over a large file, in which other processors go ahead and find what comes next.
///
/// # Invariants
///
/// It is what `luo_scan_begin` returned, not null, and has not ended.
struct Ahead<'a>(*mut c_void, PhantomData<FileRef<'a>>);

impl<'a> Ahead<'a> {
    /// For pages from `first` on, before `end`; `None` if this task should walk alone.
    fn new(file: Memfd<'a>, first: u64, end: u64) -> Option<Self> {
        // SAFETY: by the type's invariant it is an open memfd; it is borrowed until the walk ends.
        let scan = unsafe { shim::luo_scan_begin(file.0.as_ptr(), first, end - 1) };
        // Nothing to end if it is null.
        (!scan.is_null()).then(|| Self(scan, PhantomData))
    }

    /// As [`Memfd::find`], of the pages that come next.
    fn find(&mut self, next: &mut u64) -> Batch<'_> {
        let mut found = core::ptr::null_mut();
        // SAFETY: by the type's invariant; both are ours to write.
        let count = unsafe { shim::luo_scan_next(self.0, next, &mut found) } as usize;
        let found: &mut [shim::Found] = match count {
            0 => &mut [],
            // SAFETY: `luo_scan_next` returns so many, which nobody touches until it is called
            // again. That takes the borrow that the batch has.
            _ => unsafe { core::slice::from_raw_parts_mut(found, count) },
        };
        Batch {
            found,
            next: 0,
            count,
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant; nobody uses it after this.
        unsafe { shim::luo_scan_end(self.0) };
    }
}

/// What finds the folios of a file: this task, and others as well once there turns out to be
/// enough for them.
struct Finder<'a> {
    file: Memfd<'a>,
    memory: KVVec<shim::Found>,
    ahead: Option<Ahead<'a>>,
    /// What this task has found by itself.
    folios: u64,
    pages: u64,
}

impl<'a> Finder<'a> {
    fn new(file: Memfd<'a>) -> Result<Self, Errno> {
        let memory = KVVec::from_elem(shim::Found::default(), FOUND_AT_ONCE, GFP_KERNEL);
        Ok(Self {
            file,
            memory: memory.map_err(|_| Errno::ENOMEM)?,
            ahead: None,
            folios: 0,
            pages: 0,
        })
    }

    /// As [`Memfd::find`], of the pages from `next` on, which follow the last ones, up to `end`.
    fn find(&mut self, next: &mut u64, end: u64) -> Batch<'_> {
        // A part is little work where folios are large.
        if self.folios >= FOLIOS_ALONE && self.pages / self.folios < 4 {
            (self.folios, self.pages) = (0, 0);
            self.ahead = Ahead::new(self.file, *next, end);
        }
        if let Some(ahead) = &mut self.ahead {
            return ahead.find(next);
        }
        let batch = self.file.find(next, end - 1, &mut self.memory);
        for found in batch.found.iter().take(batch.count) {
            let pages = u64::from(found.pages);
            self.pages += pages;
            self.folios += pages >> found.order;
        }
        batch
    }
}

/// Shows `take` the folios from page `next` up to `end`, pinned.
fn walk(
    file: Memfd<'_>,
    mut next: u64,
    end: u64,
    host: Host<'_>,
    mut take: impl FnMut(PinnedRun) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut finder = Finder::new(file)?;
    // Where the last run that was taken ends.
    let mut taken = next;
    while next < end {
        pause()?;
        let mut batch = finder.find(&mut next, end);
        if batch.is_empty() {
            break;
        }
        while let Some(found) = batch.take() {
            if found.is_held() {
                taken = found.end();
                take(PinnedRun::new(&found)?)?;
                continue;
            }
            // The rest of the batch stays pinned meanwhile. What took the place of what was found
            // may be larger, but not reach into what is pinned.
            let changed = batch.make_way(&found, file, end, host)?;
            taken = taken.max(found.index);
            take_again(file, &mut taken, changed.min(end), host, &mut take)?;
        }
        next = next.max(taken);
    }
    Ok(())
}

/// Does the same from page `next` up to `end`, where something has changed since it was found.
/// Moves `next` after what was taken.
fn take_again(
    file: Memfd<'_>,
    next: &mut u64,
    end: u64,
    host: Host<'_>,
    take: &mut impl FnMut(PinnedRun) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut few = [shim::Found::default(); 16];
    while *next < end {
        pause()?;
        let mut after = *next;
        let mut batch = file.find(&mut after, end - 1, &mut few);
        if batch.is_empty() {
            break;
        }
        while let Some(found) = batch.take() {
            if !found.is_held() {
                // The rest of the batch is found again, after this one.
                batch.make_way(&found, file, end, host)?;
                break;
            }
            *next = found.end();
            take(PinnedRun::new(&found)?)?;
        }
    }
    Ok(())
}

impl PreservedFrames {
    /// Takes over what prepare found. Single pages are preserved later.
    fn hold(&mut self, held: PinnedRun) -> Result<(), Errno> {
        let run = held.0;
        if run.order() > 0 || self.folio_by_folio {
            hold_alone(&mut self.folios, held, self.folio_by_folio)?;
        } else {
            self.single.add(&run)?;
            core::mem::forget(held);
        }
        self.pages += run.length();
        Ok(())
    }

    /// Preserves the single pages, all or none.
    fn preserve_single(&mut self) -> Result<(), Errno> {
        for (done, (frame, length)) in self.single.runs().enumerate() {
            // SAFETY: by the type's invariant they are pinned.
            let preserved =
                Errno::check(unsafe { shim::luo_frames_preserve(frame, length, 0, false) });
            if preserved.and_then(|()| pause()).is_err() {
                let done = done + usize::from(preserved.is_ok());
                self.unpreserve_single(done);
                return preserved.and(Err(Errno::EINTR));
            }
        }
        self.single_preserved = true;
        Ok(())
    }

    /// Undoes that for the first runs.
    fn unpreserve_single(&self, runs: usize) {
        for (frame, length) in self.single.runs().take(runs) {
            // SAFETY: the caller has preserved them.
            unsafe { shim::luo_frames_unpreserve(frame, length, 0, false) };
        }
    }

    /// Pins and preserves every folio in the first `size` bytes that is not held yet.
    fn fill_gaps(
        &mut self,
        file: Memfd<'_>,
        held: Option<&Extents<'_>>,
        size: u64,
        host: Host<'_>,
    ) -> Result<(), Errno> {
        let Self {
            folios,
            late,
            pages,
            folio_by_folio,
            ..
        } = self;
        let (end, known) = (pages_of(size), late.len());
        let mut fill = |first, end| {
            let mut gaps = Gaps::new(late, known, first);
            while let Some((first, gap_end)) = gaps.next(late, end) {
                walk(file, first, gap_end, host, |held| {
                    let length = held.0.length();
                    hold_alone(late, held, *folio_by_folio)?;
                    *pages += length;
                    Ok(())
                })?;
            }
            Ok(())
        };
        let filled = match held {
            Some(held) => held.for_each_gap(end, &mut fill),
            None => {
                let mut gaps = Gaps::new(folios, folios.len(), 0);
                let mut filled = Ok(());
                while let Some((first, gap_end)) = gaps.next(folios, end).filter(|_| filled.is_ok())
                {
                    filled = fill(first, gap_end);
                }
                filled
            }
        };
        // What an earlier walk found may come after what this one did.
        late.sort_unstable_by_key(|run| run.index());
        filled
    }

    /// Refuses memory that has failed, without a look at all of it if no page of the machine did.
    fn look_for_poison(&mut self, file: Memfd<'_>, host: Host<'_>) -> Result<(), Errno> {
        // A page is marked before it is counted. One that fails from here on fails too late.
        let poisoned = poisoned_pages();
        if poisoned == self.poisoned {
            return Ok(());
        }
        let extents = self.folios.iter().chain(&self.late);
        let extents = extents.map(|run| (run.frame(), run.length(), run.order()));
        let single = self.single.runs();
        for (frame, length, order) in
            extents.chain(single.map(|(frame, length)| (frame, length, 0)))
        {
            pause()?;
            // SAFETY: by the type's invariant the folios are pinned.
            let sound = unsafe { shim::luo_frames_sound(frame, length, order) };
            if sound < length {
                // SAFETY: as above; this is one of them.
                let index = unsafe { shim::luo_frames_index(frame + sound) };
                return Err(file.has_failed(index, host));
            }
        }
        self.poisoned = poisoned;
        Ok(())
    }

    /// Gives every frame back.
    fn give_up(&mut self) {
        for run in self.folios.iter().chain(&self.late) {
            // SAFETY: by the type's invariant each of them is preserved and pinned once; they are
            // forgotten below.
            unsafe {
                shim::luo_frames_unpreserve(
                    run.frame(),
                    run.length(),
                    run.order(),
                    self.folio_by_folio,
                );
                shim::luo_frames_unpin(run.frame(), run.length(), run.order());
            }
        }
        if self.single_preserved {
            self.unpreserve_single(usize::MAX);
        }
        for (frame, length) in self.single.runs() {
            // SAFETY: by the type's invariant each is pinned once; they are forgotten below.
            unsafe { shim::luo_frames_unpin(frame, length, 0) };
        }
        self.single = Pieces::default();
        self.single_preserved = false;
        self.folios = KVVec::new();
        self.late = KVVec::new();
        self.pages = 0;
    }
}

/// Preserves a run as it is, and remembers it.
fn hold_alone(
    extents: &mut KVVec<Extent>,
    held: PinnedRun,
    folio_by_folio: bool,
) -> Result<(), Errno> {
    let run = held.0;
    let extent = Extent::of_folios(run.index(), run.frame(), run.length(), run.order());
    let extent = extent.ok_or(Errno::EFBIG)?;
    extents.reserve(1, GFP_KERNEL).map_err(|_| Errno::ENOMEM)?;
    // SAFETY: the run is held, so its frames are those of folios of this order.
    Errno::check(unsafe {
        shim::luo_frames_preserve(run.frame(), run.length(), run.order(), folio_by_folio)
    })?;
    if extents.push_within_capacity(extent).is_err() {
        // SAFETY: it was preserved a moment ago.
        unsafe {
            shim::luo_frames_unpreserve(run.frame(), run.length(), run.order(), folio_by_folio);
        }
        return Err(Errno::ENOMEM);
    }
    core::mem::forget(held);
    Ok(())
}

/// Where a walk is among what came late before it began.
struct Gaps {
    next: u64,
    /// The first run that does not end before `next`.
    place: usize,
    /// How many there were; what comes after them is found by this walk.
    known: usize,
}

impl Gaps {
    fn new(late: &[Extent], known: usize, next: u64) -> Self {
        let known_runs = late.get(..known).unwrap_or(&[]);
        Self {
            next,
            place: known_runs.partition_point(|run| run.end() <= next),
            known,
        }
    }

    /// The next pages before `end` that are not held: the first, and the one after the last.
    fn next(&mut self, late: &[Extent], end: u64) -> Option<(u64, u64)> {
        while self.next < end {
            let first = self.next;
            let run = late.get(self.place).filter(|_| self.place < self.known);
            let Some(run) = run.filter(|run| run.index() < end) else {
                self.next = end;
                return Some((first, end));
            };
            self.next = run.end();
            self.place += 1;
            if first < run.index() {
                return Some((first, run.index()));
            }
        }
        None
    }
}

/// A run of folios that is pinned but not yet preserved.
///
/// # Invariants
///
/// The frames are those of folios of the run's order; the value owns a pin of each of them.
struct PinnedRun(Run);

impl PinnedRun {
    /// Takes over the pin of what was found.
    fn new(found: &shim::Found) -> Result<Self, Errno> {
        let run = Run::new(found.index, found.pfn, found.pages.into(), found.order);
        run.map(Self).ok_or_else(|| {
            found.unpin();
            Errno::EFBIG
        })
    }
}

impl Drop for PinnedRun {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant the pins are ours.
        unsafe { shim::luo_frames_unpin(self.0.frame(), self.0.length(), self.0.order()) };
    }
}

/// What was found at once in a page cache.
///
/// # Invariants
///
/// The value owns the pins of what is held from `next` up to `count`.
struct Batch<'a> {
    found: &'a mut [shim::Found],
    next: usize,
    count: usize,
}

impl Batch<'_> {
    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn take(&mut self) -> Option<shim::Found> {
        let found = self.found.get(self.next).filter(|_| self.next < self.count);
        self.next += 1;
        found.copied()
    }

    /// Does what has to be done before `found`, which was taken last, can be preserved. What
    /// follows it and has to be moved as well is moved along, as far as it lies before page `end`:
    /// the last folio may reach beyond the file. Returns where that ends.
    fn make_way(
        &mut self,
        found: &shim::Found,
        file: Memfd<'_>,
        end: u64,
        host: Host<'_>,
    ) -> Result<u64, Errno> {
        match found.state {
            shim::FOUND_SWAPPED => file.swap_in(found.index).map(|()| found.end()),
            shim::FOUND_MOVABLE => {
                let end = self.end_of_movable(found).min(end);
                let moved = file.move_pages(found.index, end - 1);
                let moved = moved.map_err(|errno| file.cannot_move(found.index, errno, host));
                moved.map(|()| end)
            }
            shim::FOUND_GONE => Ok(found.end()),
            _ => Err(file.has_failed(found.index, host)),
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

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        while let Some(found) = self.take() {
            if found.is_pinned() {
                found.unpin();
            }
        }
    }
}

impl shim::Found {
    /// Whether the finder has pinned it.
    fn is_pinned(&self) -> bool {
        matches!(self.state, shim::FOUND_HELD | shim::FOUND_UNWRITTEN)
    }

    /// Gives the pin back; for what is pinned, and no more than once.
    fn unpin(&self) {
        if self.is_pinned() {
            // SAFETY: `luo_memfd_find` pins what it reports in these states, and the owner of the
            // batch or the folio gives the pin back once.
            unsafe { shim::luo_frames_unpin(self.pfn, self.pages.into(), self.order) };
        }
    }

    /// Whether it can be preserved as it is. What was allocated and never written is written with
    /// zeros, as the first fault would do.
    fn is_held(&self) -> bool {
        if self.state == shim::FOUND_UNWRITTEN {
            // SAFETY: `luo_memfd_find` pins what it reports in this state.
            unsafe { shim::luo_frames_write_zeros(self.pfn) };
        }
        self.is_pinned()
    }

    fn end(&self) -> u64 {
        self.index + u64::from(self.pages)
    }
}

/// Refuses what the memory limits have no room for, before anything is taken. The kernel's core
/// remembers every other failure for good (`retry.patch`, in kmod/).
fn expect_room(
    attributes: &Attributes,
    pages: u64,
    name: &Name,
    host: Host<'_>,
) -> Result<(), Errno> {
    let shift = huge_shift(attributes);
    let room = match shift {
        // SAFETY: a handler is called where it may sleep.
        0 => unsafe { shim::luo_memfd_has_room(pages) },
        // SAFETY: as above; it takes any number.
        _ => unsafe { shim::luo_hugetlb_has_room(shift, pages) },
    };
    Errno::check(room).inspect_err(|&errno| match errno {
        Errno::EOPNOTSUPP => host.explain(format_args!(
            "memfd:{name}: this kernel has no huge pages of {} KiB",
            (1_u64 << shift) >> 10
        )),
        _ => host.explain(format_args!(
            "memfd:{name}: the cgroup has no room for {} bytes; raise its {} limit, then retrieve \
             again",
            pages << PAGE_SHIFT,
            if shift == 0 { "memory" } else { "hugetlb" }
        )),
    })
}

/// Binary logarithm of the size of the file's huge pages; 0 if it has base pages.
fn huge_shift(attributes: &Attributes) -> u32 {
    match attributes.kind {
        Kind::Shmem => 0,
        Kind::Hugetlb => attributes.file_page_shift.into(),
    }
}

/// A memfd with these attributes and no contents.
fn create(attributes: &Attributes, name: &Name) -> Result<OwnedFile, Errno> {
    let wanted = shim::MemfdAttributes {
        size: attributes.size,
        position: attributes.position,
        seals: attributes.seals,
        flags: status::to_flags(attributes.status),
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        huge_shift: huge_shift(attributes),
        name: name.to_bytes(),
    };
    // SAFETY: `wanted` is valid for reads and its name ends with a zero, by the invariant of
    // `Name`; nobody else has what is returned.
    unsafe { OwnedFile::from_err_ptr(shim::luo_memfd_create(&wanted)) }
}

/// The pieces that one record has taken back.
struct Claim(shim::Claim);

impl Claim {
    fn new() -> Self {
        let mut claim = shim::Claim::default();
        // SAFETY: `claim` is ours to write.
        unsafe { shim::luo_claim_begin(&mut claim) };
        Self(claim)
    }

    /// Frees what is preserved in these frames, if anything is.
    fn discard(&mut self, frame: u64, length: u64, order: u8) {
        // SAFETY: what is not preserved there is left alone.
        unsafe { shim::luo_frames_discard(&mut self.0, frame, length, order) };
    }

    /// Frees what was taken back with the pieces of a record and not asked for. That is only left
    /// if the record is forged, or could not be retrieved.
    fn give_back(&mut self, chains: &[Extents<'_>]) {
        for extents in chains {
            let _ = extents.for_each(|run| self.give_back_in(run.frame(), run.length()));
        }
    }

    /// That with the pieces of these frames; `ENOENT` if nothing is left.
    fn give_back_in(&mut self, frame: u64, length: u64) -> Result<(), Errno> {
        if self.0.unused == 0 {
            return Err(Errno::ENOENT);
        }
        // SAFETY: only what this claim took back and nobody uses is freed.
        unsafe { shim::luo_claim_end(&mut self.0, frame, length) };
        Ok(())
    }
}

/// Runs on their way into a file: several at once, so that pages that follow each other in the
/// file go in together, wherever they are in memory.
struct Insertion<'a> {
    /// Made by [`create`]: nobody else knows of it.
    file: &'a OwnedFile,
    claim: Claim,
    /// Of a file that several processors insert; null if this task does it alone.
    parts: *mut c_void,
    runs: KVVec<shim::Run>,
    count: usize,
}

const RUNS_AT_ONCE: usize = 128;

impl<'a> Insertion<'a> {
    /// For a file that will have so many pages. Ends with [`end`](Self::end), in any case.
    fn new(file: &'a OwnedFile, pages: u64) -> Result<Self, Errno> {
        let runs = KVVec::from_elem(shim::Run::default(), RUNS_AT_ONCE, GFP_KERNEL);
        let runs = runs.map_err(|_| Errno::ENOMEM)?;
        let claim = Claim::new();
        // SAFETY: the file is open until the parts end; the claim is borrowed for the call.
        let parts = unsafe { shim::luo_parts_begin(file.as_ptr(), &claim.0, pages) };
        Ok(Self {
            file,
            claim,
            parts,
            runs,
            count: 0,
        })
    }

    fn push(&mut self, run: Run) -> Result<(), Errno> {
        if self.count == self.runs.len() {
            self.flush()?;
        }
        if let Some(next) = self.runs.get_mut(self.count) {
            *next = shim::Run {
                index: run.index(),
                pfn: run.frame(),
                pages: run.length(),
                order: run.order(),
            };
            self.count += 1;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let count = core::mem::take(&mut self.count) as u32;
        let (file, claim, runs) = (self.file.as_ptr(), &mut self.claim.0, self.runs.as_ptr());
        // SAFETY: the file was made by `create`; a place that is taken already is an error, and
        // what is not preserved in these frames is left alone. `count` is at most the length of the
        // array. The parts, if there are any, have not ended: that takes the value.
        Errno::check(unsafe {
            match self.parts.is_null() {
                true => shim::luo_memfd_insert(file, claim, runs, count),
                false => shim::luo_parts_insert(self.parts, runs, count),
            }
        })
    }

    /// Inserts the rest, unless something has failed before. When this returns nobody is at work
    /// on the file, and the claim has what was not asked for.
    fn end(mut self, pushed: Result<(), Errno>) -> (Result<(), Errno>, Claim) {
        let mut inserted = pushed.and_then(|()| self.flush());
        if !self.parts.is_null() {
            let err = inserted.map_or_else(Errno::to_status, |()| 0);
            // SAFETY: they have not ended, and nobody uses them after this.
            inserted =
                Errno::check(unsafe { shim::luo_parts_end(self.parts, &mut self.claim.0, err) });
        }
        (inserted, self.claim)
    }
}

/// Folios that are looked at together; at most `LUO_FOUND_MAX`.
const FOUND_AT_ONCE: usize = 128;

/// Folios that this task finds before it asks others to help.
const FOLIOS_ALONE: u64 = 4096;

const PAGE_SHIFT: u8 = ::kernel::page::PAGE_SHIFT as u8;

/// The functions of `luo_shim_memfd.c`; see `luo_shim.h`.
mod shim {
    use core::ffi::c_void;

    /// `LUO_MEMFD_NAME_ROOM`.
    const NAME_ROOM: usize = crate::name::Name::ROOM;

    /// `struct luo_memfd_attributes`.
    #[repr(C)]
    pub(super) struct MemfdAttributes {
        pub(super) size: u64,
        pub(super) position: u64,
        pub(super) seals: u32,
        pub(super) flags: u32,
        pub(super) mode: u32,
        pub(super) uid: u32,
        pub(super) gid: u32,
        pub(super) huge_shift: u32,
        pub(super) name: [u8; NAME_ROOM],
    }

    const _: () = assert!(size_of::<MemfdAttributes>() == 296);

    impl Default for MemfdAttributes {
        fn default() -> Self {
            Self {
                size: 0,
                position: 0,
                seals: 0,
                flags: 0,
                mode: 0,
                uid: 0,
                gid: 0,
                huge_shift: 0,
                name: [0; NAME_ROOM],
            }
        }
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

    const _: () = assert!(size_of::<Run>() == 32);

    /// `struct luo_claim`.
    #[derive(Default)]
    #[repr(C)]
    pub(super) struct Claim {
        number: u64,
        pub(super) unused: u64,
    }

    const _: () = assert!(size_of::<Claim>() == 16);

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

    const _: () = assert!(size_of::<Found>() == 24);

    pub(super) const FOUND_HELD: u8 = 0;
    pub(super) const FOUND_UNWRITTEN: u8 = 1;
    pub(super) const FOUND_MOVABLE: u8 = 2;
    pub(super) const FOUND_SWAPPED: u8 = 3;
    pub(super) const FOUND_GONE: u8 = 4;

    extern "C" {
        pub(super) fn luo_memfd_is_known(file: *mut c_void) -> bool;
        pub(super) fn luo_memfd_is_memfd(file: *mut c_void) -> bool;
        pub(super) fn luo_memfd_id(file: *mut c_void) -> usize;
        pub(super) fn luo_memfd_name(file: *mut c_void, name: *mut u8);
        pub(super) fn luo_memfd_fix_size(file: *mut c_void, fix: bool);
        pub(super) fn luo_memfd_hold_holes(file: *mut c_void) -> u64;
        pub(super) fn luo_memfd_release_holes(file: *mut c_void);
        pub(super) fn luo_pause() -> i32;
        pub(super) fn luo_frame_end() -> u64;
        pub(super) fn luo_memfd_attributes(
            file: *mut c_void,
            attributes: *mut MemfdAttributes,
        ) -> i32;
        pub(super) fn luo_memfd_find(
            file: *mut c_void,
            start: *mut u64,
            last: u64,
            found: *mut Found,
            room: u32,
        ) -> u32;
        pub(super) fn luo_memfd_swap_in(file: *mut c_void, index: u64) -> i32;
        pub(super) fn luo_memfd_move(file: *mut c_void, index: u64, last: u64) -> i32;
        pub(super) fn luo_frames_unpin(pfn: u64, pages: u64, order: u8);
        pub(super) fn luo_frames_sound(pfn: u64, pages: u64, order: u8) -> u64;
        pub(super) fn luo_poisoned_pages() -> u64;
        pub(super) fn luo_frames_write_zeros(pfn: u64);
        pub(super) fn luo_frames_preserve(
            pfn: u64,
            pages: u64,
            order: u8,
            folio_by_folio: bool,
        ) -> i32;
        pub(super) fn luo_frames_unpreserve(pfn: u64, pages: u64, order: u8, folio_by_folio: bool);
        pub(super) fn luo_memfd_writes_mainlines() -> bool;
        pub(super) fn luo_memfd_owner(uid: *mut u32, gid: *mut u32);
        pub(super) fn luo_preserved_order(pfn: usize) -> i32;
        pub(super) fn luo_frames_index(pfn: u64) -> u64;
        pub(super) fn luo_frames_discard(claim: *mut Claim, pfn: u64, pages: u64, order: u8);
        pub(super) fn luo_claim_begin(claim: *mut Claim);
        pub(super) fn luo_claim_end(claim: *mut Claim, pfn: u64, pages: u64);
        pub(super) fn luo_memfd_has_room(pages: u64) -> i32;
        pub(super) fn luo_hugetlb_has_room(shift: u32, pages: u64) -> i32;
        pub(super) fn luo_hugetlb_shift(file: *mut c_void) -> u32;
        pub(super) fn luo_memfd_create(attributes: *const MemfdAttributes) -> *mut c_void;
        pub(super) fn luo_parts_begin(
            file: *mut c_void,
            claim: *const Claim,
            pages: u64,
        ) -> *mut c_void;
        pub(super) fn luo_parts_insert(parts: *mut c_void, runs: *const Run, count: u32) -> i32;
        pub(super) fn luo_parts_end(parts: *mut c_void, claim: *mut Claim, err: i32) -> i32;
        pub(super) fn luo_scan_begin(file: *mut c_void, first: u64, last: u64) -> *mut c_void;
        pub(super) fn luo_scan_next(
            scan: *mut c_void,
            next: *mut u64,
            found: *mut *mut Found,
        ) -> u32;
        pub(super) fn luo_scan_end(scan: *mut c_void);
        pub(super) fn luo_memfd_insert(
            file: *mut c_void,
            claim: *mut Claim,
            runs: *const Run,
            count: u32,
        ) -> i32;
    }
}
