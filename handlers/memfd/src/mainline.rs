// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Mainline's format, `memfd-v2`: what the kernel's own handler writes and takes.
//!
//! C headers: [`include/linux/kho/abi/memfd.h`](srctree/include/linux/kho/abi/memfd.h) and
//! [`kexec_handover.h`](srctree/include/linux/kho/abi/kexec_handover.h), `struct kho_vmalloc`.
//!
//! ```text
//! data ──► Header               48 bytes: position, size, seals, number of folios
//!            first ───────────► a chunk: the next chunk, addresses of pages, a zero
//!                                 each page ──► folios: frame, flags, place in the file
//!                                 next ───────► a chunk …
//! ```
//!
//! Every arrow is a physical address, and everything but the header is a page of memory. Our own
//! list differs from mainline's in what its reader does not mind: holes of the file have no
//! folio, the rest of a page is filled with folios without a frame, which are skipped, and a
//! chunk that is written later leads to those before it. So what prepare wrote stays as it is,
//! and freeze adds a chunk for what came late.
//!
//! How large a folio is, only its preservation tells. There are no checksums.

use luo_handler_api::{Errno, Host};

use crate::{
    backend::MainlineBackend,
    extent::Run,
    record::{ALL_SEALS, SEAL_EXEC, SEAL_FUTURE_WRITE, SEAL_GROW, SEAL_SHRINK, SEAL_WRITE},
    wire::{
        little_endian::{U16, U32, U64},
        FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    },
};

/// The folio's contents are the file's; in memory that is written, as ours always is.
const FOLIO_DIRTY: u64 = 1;
/// The folio has contents. One without would have to be filled with zeros first.
const FOLIO_UPTODATE: u64 = 2;
const FRAME_BITS: u32 = 52;

/// `KHO_VMALLOC_ALLOC`: memory of vmalloc().
const LIST_FLAGS: u16 = 1;

/// Numbers that are read at once: 512 bytes of a chunk, 1 KiB of a page of folios.
const READ_AT_ONCE: usize = 64;

/// `struct memfd_luo_ser`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    position: U64,
    size: U64,
    seals: U32,
    flags: U32,
    folios: U64,
    /// `struct kho_vmalloc`, to its end.
    first: U64,
    pages: U32,
    list_flags: U16,
    order: U16,
}

const HEADER_LENGTH: u64 = size_of::<Header>() as u64;
const _: () = assert!(HEADER_LENGTH == 48);

/// `struct memfd_luo_folio_ser`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Folio {
    frame_and_flags: U64,
    index: U64,
}

const FOLIO_LENGTH: u64 = size_of::<Folio>() as u64;

/// The folios of a file, as a header names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FolioList {
    /// Physical address of the first chunk; 0 without any folio.
    pub first: u64,
    /// Pages of folios.
    pub pages: u32,
    /// Folios in them, also those without a frame.
    pub folios: u64,
}

/// A header that was checked.
///
/// # Errors
///
/// What [`read`](Self::read) returns: the previous side is not trusted.
///
/// | errno | what is wrong |
/// |---|---|
/// | `ENOENT` | nothing is preserved where the header or a part of the list should be |
/// | `EFBIG` | the size is above `i64::MAX` |
/// | `EINVAL` | anything else that is malformed: position, counts, a list that is a circle, … |
/// | `EOPNOTSUPP` | a seal, a flag or a kind of list that this version does not know |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MainlineRecord {
    /// Size in bytes, at most `i64::MAX`.
    pub size: u64,
    /// File position in bytes, at most `i64::MAX`.
    pub position: u64,
    /// Seals, a subset of [`ALL_SEALS`].
    pub seals: u32,
    /// Its folios. They are checked as they are read: see [`for_each`](Self::for_each).
    pub list: FolioList,
}

impl MainlineRecord {
    /// Reads the header at a physical address, and checks all of it but the list.
    ///
    /// # Errors
    ///
    /// As listed above, and those of the host.
    pub fn read<B: MainlineBackend>(
        backend: &B,
        host: Host<'_>,
        address: u64,
    ) -> Result<Self, Errno> {
        let mut header = Header::new_zeroed();
        let handle = backend
            .handle(address, HEADER_LENGTH)
            .ok_or(Errno::EINVAL)?;
        host.read_bytes(handle, 0, header.as_mut_bytes())?;
        let largest = i64::MAX as u64;
        let (size, position, folios) = (
            header.size.get(),
            header.position.get(),
            header.folios.get(),
        );
        if size > largest {
            return Err(Errno::EFBIG);
        }
        if header.flags.get() != 0 || header.seals.get() & !ALL_SEALS != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let list = match folios {
            // Mainline leaves the rest as it is.
            0 => FolioList::default(),
            _ if header.order.get() != 0 => return Err(Errno::EOPNOTSUPP),
            _ => FolioList {
                first: header.first.get(),
                pages: header.pages.get(),
                folios,
            },
        };
        // A frame crosses once. So the bytes of the folios are far below 2^64.
        let pages = (folios.min(backend.frame_end()) * FOLIO_LENGTH).div_ceil(page_bytes(backend));
        let sound =
            position <= largest && folios <= backend.frame_end() && u64::from(list.pages) == pages;
        sound
            .then_some(Self {
                size,
                position,
                seals: header.seals.get(),
                list,
            })
            .ok_or(Errno::EINVAL)
    }

    /// Has the host preserve the header; returns its handle.
    pub(crate) fn keep(&self, host: Host<'_>) -> Result<u64, Errno> {
        let header = Header {
            position: U64::new(self.position),
            size: U64::new(self.size),
            seals: U32::new(self.seals),
            flags: U32::ZERO,
            folios: U64::new(self.list.folios),
            first: U64::new(self.list.first),
            pages: U32::new(self.list.pages),
            list_flags: U16::new(LIST_FLAGS),
            order: U16::ZERO,
        };
        host.preserve_bytes(header.as_bytes())
    }

    /// The permission bits, which do not cross: mainline's. But the seal that fixes the execute
    /// bits implies others on a file that has some, so a file without those has none.
    pub fn mode(&self) -> u32 {
        let implied = SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE;
        match self.seals & SEAL_EXEC != 0 && self.seals & implied != implied {
            true => 0o666,
            false => 0o777,
        }
    }

    /// Shows each folio that has a frame to `visit`, in any order. That none comes twice is for the
    /// caller to find out, as it takes them.
    ///
    /// # Errors
    ///
    /// As listed above, and those of `visit`.
    pub fn for_each<B: MainlineBackend>(
        &self,
        backend: &B,
        host: Host<'_>,
        visit: &mut dyn FnMut(Run) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.for_each_folio(backend, host, &mut |folio| match self.check(
            backend,
            folio,
            Errno::EINVAL,
        )? {
            Some(run) => visit(run),
            None => Ok(()),
        })
    }

    /// The same, but leaves out what somebody took.
    ///
    /// # Errors
    ///
    /// As [`for_each`](Self::for_each).
    pub fn for_each_left<B: MainlineBackend>(
        &self,
        backend: &B,
        host: Host<'_>,
        visit: &mut dyn FnMut(Run),
    ) -> Result<(), Errno> {
        self.for_each_folio(backend, host, &mut |folio| {
            match self.check(backend, folio, Errno::ENOENT) {
                Ok(run) => run.into_iter().for_each(&mut *visit),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            Ok(())
        })
    }

    fn for_each_folio<B: MainlineBackend>(
        &self,
        backend: &B,
        host: Host<'_>,
        visit: &mut dyn FnMut(&Folio) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut left = self.list.folios;
        self.list.for_each_page(backend, host, &mut |page| {
            let handle = backend
                .handle(page, page_bytes(backend))
                .ok_or(Errno::EINVAL)?;
            let here = left.min(page_bytes(backend) / FOLIO_LENGTH);
            left -= here;
            let mut done = 0;
            while done < here {
                let mut some = [Folio::new_zeroed(); READ_AT_ONCE];
                let count = READ_AT_ONCE.min((here - done) as usize);
                let some = &mut some[..count];
                host.read_bytes(handle, done * FOLIO_LENGTH, some.as_mut_bytes())?;
                some.iter().try_for_each(&mut *visit)?;
                done += count as u64;
            }
            Ok(())
        })
    }

    /// The run of pages that a folio stands for; `None` if it has no frame, `gone` if nobody
    /// preserved that, or it was taken.
    fn check<B: MainlineBackend>(
        &self,
        backend: &B,
        folio: &Folio,
        gone: Errno,
    ) -> Result<Option<Run>, Errno> {
        let (word, index) = (folio.frame_and_flags.get(), folio.index.get());
        let (frame, flags) = (word & ((1 << FRAME_BITS) - 1), word >> FRAME_BITS);
        if frame == 0 {
            return Ok(None);
        }
        if flags | FOLIO_DIRTY != FOLIO_DIRTY | FOLIO_UPTODATE {
            return Err(Errno::EOPNOTSUPP);
        }
        let order = backend.preserved_order(frame).ok_or(gone)?;
        let length = 1u64.checked_shl(order.into()).ok_or(Errno::EINVAL)?;
        let run = Run::new(index, frame, length, order).ok_or(Errno::EINVAL)?;
        // The last folio may reach beyond the end.
        let end = self
            .size
            .div_ceil(page_bytes(backend))
            .next_multiple_of(length);
        (run.end() <= end).then_some(Some(run)).ok_or(Errno::EINVAL)
    }
}

/// Bytes of a page.
fn page_bytes<B: MainlineBackend>(backend: &B) -> u64 {
    1 << backend.page_shift()
}

impl FolioList {
    /// Shows the address of each page, chunk by chunk.
    fn for_each_page<B: MainlineBackend>(
        &self,
        backend: &B,
        host: Host<'_>,
        visit: &mut dyn FnMut(u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let (mut chunk, mut left) = (self.first, self.pages);
        while chunk != 0 {
            let before = left;
            let next = for_each_in_chunk(backend, host, chunk, &mut |page| {
                left = left.checked_sub(1).ok_or(Errno::EINVAL)?;
                visit(page)
            })?;
            // Only the last one may be empty: so one that goes in a circle ends.
            if left == before && next != 0 {
                return Err(Errno::EINVAL);
            }
            chunk = next;
        }
        (left == 0).then_some(()).ok_or(Errno::EINVAL)
    }

    /// Gives all pages and chunks back, up to the chunk at `until`. Stops at the first that is not
    /// there: what follows is not known to belong to this list.
    pub(crate) fn release<B: MainlineBackend>(&self, backend: &B, host: Host<'_>, until: u64) {
        let length = page_bytes(backend);
        let release = |address| {
            if let Some(handle) = backend.handle(address, length) {
                host.release_bytes(handle);
            }
        };
        let (mut chunk, mut left) = (self.first, self.pages);
        while chunk != until && chunk != 0 {
            let next = for_each_in_chunk(backend, host, chunk, &mut |page| {
                left = left.checked_sub(1).ok_or(Errno::EINVAL)?;
                release(page);
                Ok(())
            });
            release(chunk);
            let Ok(next) = next else { return };
            chunk = next;
        }
    }
}

/// Shows the address of each page in a chunk; returns that of the next chunk.
fn for_each_in_chunk<B: MainlineBackend>(
    backend: &B,
    host: Host<'_>,
    chunk: u64,
    visit: &mut dyn FnMut(u64) -> Result<(), Errno>,
) -> Result<u64, Errno> {
    let handle = backend
        .handle(chunk, page_bytes(backend))
        .ok_or(Errno::EINVAL)?;
    let words = (page_bytes(backend) / 8) as usize;
    let (mut next, mut done) = (0, 0);
    while done < words {
        let mut some = [U64::ZERO; READ_AT_ONCE];
        let some = &mut some[..READ_AT_ONCE.min(words - done)];
        host.read_bytes(handle, done as u64 * 8, some.as_mut_bytes())?;
        let mut addresses = some.iter().map(|word| word.get());
        if done == 0 {
            next = addresses.next().ok_or(Errno::EINVAL)?;
        }
        for address in addresses {
            if address == 0 {
                return Ok(next);
            }
            visit(address)?;
        }
        done += some.len();
    }
    Ok(next)
}

/// Writes the folios of a file, page by page.
pub(crate) struct ListWriter<'a, B: MainlineBackend> {
    backend: &'a B,
    host: Host<'a>,
    /// A page of folios and after it a chunk, made for the first folio.
    buffer: Option<B::Buffer>,
    /// Folios in the page so far.
    folios: usize,
    /// Words in the chunk so far, without its first.
    entries: usize,
    /// What is in chunks that the host preserves.
    written: FolioList,
    /// The first chunk of what was there before.
    until: u64,
}

impl<'a, B: MainlineBackend> ListWriter<'a, B> {
    /// A writer that adds to what was written `before`.
    pub(crate) fn new(backend: &'a B, host: Host<'a>, before: FolioList) -> Self {
        Self {
            backend,
            host,
            buffer: None,
            folios: 0,
            entries: 0,
            written: before,
            until: before.first,
        }
    }

    /// Adds each folio of a run.
    ///
    /// # Errors
    ///
    /// Those of the host and of the buffer; the writer is of no use then but for
    /// [`abandon`](Self::abandon).
    pub(crate) fn push(&mut self, run: Run) -> Result<(), Errno> {
        for place in (0..run.length()).step_by(1 << run.order()) {
            let word = (run.frame() + place) | ((FOLIO_DIRTY | FOLIO_UPTODATE) << FRAME_BITS);
            let folio = Folio {
                frame_and_flags: U64::new(word),
                index: U64::new(run.index() + place),
            };
            let at = self.folios * size_of::<Folio>();
            let page = self.page()?;
            let room = page.get_mut(at..at + size_of::<Folio>());
            room.ok_or(Errno::EINVAL)?.copy_from_slice(folio.as_bytes());
            self.folios += 1;
            if self.folios as u64 * FOLIO_LENGTH == page_bytes(self.backend) {
                self.keep_page()?;
            }
        }
        Ok(())
    }

    /// Ends the list.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub(crate) fn finish(&mut self) -> Result<FolioList, Errno> {
        if self.folios > 0 {
            self.keep_page()?;
        }
        if self.entries > 0 {
            self.keep_chunk()?;
        }
        Ok(self.written)
    }

    /// Gives back what was written; what was there before stays.
    pub(crate) fn abandon(&mut self) {
        let (length, entries) = (page_bytes(self.backend), core::mem::take(&mut self.entries));
        let (backend, host) = (self.backend, self.host);
        if let Ok(chunk) = self.chunk() {
            for entry in chunk.chunks_exact(8).skip(1).take(entries) {
                let address = U64::read_from_bytes(entry).map_or(0, U64::get);
                if let Some(handle) = backend.handle(address, length) {
                    host.release_bytes(handle);
                }
            }
        }
        self.written.release(backend, host, self.until);
    }

    fn halves(&mut self) -> Result<(&mut [u8], &mut [u8]), Errno> {
        let length = page_bytes(self.backend) as usize;
        let buffer = match &mut self.buffer {
            Some(buffer) => buffer,
            none => none.insert(self.backend.buffer(2 * length)?),
        };
        let both = buffer.as_mut().get_mut(..2 * length).ok_or(Errno::EINVAL)?;
        Ok(both.split_at_mut(length))
    }

    fn page(&mut self) -> Result<&mut [u8], Errno> {
        self.halves().map(|(page, _)| page)
    }

    fn chunk(&mut self) -> Result<&mut [u8], Errno> {
        self.halves().map(|(_, chunk)| chunk)
    }

    fn keep_page(&mut self) -> Result<(), Errno> {
        let (backend, host) = (self.backend, self.host);
        let pages = self.written.pages.checked_add(1).ok_or(Errno::EFBIG)?;
        let page = self.page()?;
        let handle = host.preserve_bytes(page)?;
        page.fill(0);
        let at = 8 * (1 + self.entries);
        let address = U64::new(backend.address(handle));
        self.chunk()?[at..at + 8].copy_from_slice(address.as_bytes());
        self.entries += 1;
        self.folios = 0;
        self.written.pages = pages;
        self.written.folios += page_bytes(backend) / FOLIO_LENGTH;
        if 8 * (1 + self.entries as u64) == page_bytes(backend) {
            self.keep_chunk()?;
        }
        Ok(())
    }

    fn keep_chunk(&mut self) -> Result<(), Errno> {
        let (backend, host, next) = (self.backend, self.host, U64::new(self.written.first));
        let chunk = self.chunk()?;
        chunk[..8].copy_from_slice(next.as_bytes());
        let handle = host.preserve_bytes(chunk)?;
        chunk.fill(0);
        self.entries = 0;
        self.written.first = backend.address(handle);
        Ok(())
    }
}
