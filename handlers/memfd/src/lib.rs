// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Keeps memfds alive across a live update.
//!
//! Nothing has to be called: linking the crate in registers the handler, and a host finds it.
//!
//! ```
//! use luo_handler_api::{hosted::Handler, registry::registered_handlers};
//! use luo_handler_memfd as _; // without this line the linker drops the handler
//! use std::os::fd::AsFd;
//!
//! let memfd = memfd::MemfdOptions::new().create("guest memory")?;
//! let taken = registered_handlers()
//!     .map(|ops| Handler::new(ops).expect("a usable handler"))
//!     .find(|handler| handler.can_preserve(memfd.as_file().as_fd()) == Ok(true));
//! assert_eq!(taken.expect("a handler for memfds").compatible().as_str(), "luo-handlers,memfd-v1");
//! # Ok::<(), memfd::Error>(())
//! ```
//!
//! # Map
//!
//! - [`record`]: the bytes that cross, and the checks they pass before they are used
//! - [`extent`]: runs of pages, and the builder that merges them
//! - [`words`]: what an extent crosses as
//! - [`chain`]: blocks of extents, written as the file is walked and read back last to first
//! - [`pieces`]: where single pages lie together in memory, whatever their order in the file
//! - [`name`]: what was given to `memfd_create`
//! - [`handler`]: the policy, [`MemfdHandler`], the same in a process and in the kernel
//! - `backend`: what the policy asks of its surroundings; `user`: the answers of a process;
//!   `kernel`: those of the kernel
//! - [`mainline`], [`mainline_handler`]: the same in the format of the kernel's own handler
//! - [`summary`]: what a record contains, for people
//! - kmod/: patches that the kernel's side needs; `luo integrate` puts them in
//!
//! # Huge pages
//!
//! A memfd of `MFD_HUGETLB` crosses a kexec in the pages that it is made of, whatever their size.
//! The next kernel has to know that size (`CONFIG_HUGETLBFS`; for 1 GiB also the processor), and
//! needs no `hugepages=`:
//!
//! - *While the file lives* its pages are surplus pages of their own. They count in
//!   `nr_hugepages` and `surplus_hugepages` and in nothing else: they are not free, not reserved,
//!   and take nothing of what `nr_overcommit_hugepages` allows. The pool, with its reservations,
//!   works as if they were not there; a write to `nr_hugepages` does not make them part of it.
//! - *When a page leaves the file*, because it is closed, truncated or punched, its memory goes
//!   back to the kernel's page allocator, and both counters fall. No other page takes its place.
//!   One that is migrated leaves its place to the page that it became.
//! - *Holes* stay holes. Reservations belong to mappings, which do not cross: what a mapping had
//!   reserved for holes is reserved again when the file is mapped, from the next kernel's pool. As
//!   for a new file, that fails with `ENOMEM` if it has too few pages, and not with
//!   `MAP_NORESERVE`.
//! - *hugetlb cgroups* charge pages and reservations to who retrieves, and memory cgroups with
//!   `memory_hugetlb_accounting` as well. If they have no room nothing is taken, retrieve fails
//!   with `EAGAIN`, and can be repeated with a higher limit.
//! - *Before the jump* no counter changes, at prepare or at cancel. Size and holes are fixed:
//!   truncate, fallocate and mappings beyond the end fail with `EPERM`. From freeze on a task that
//!   fills a hole waits, as in a file of base pages; one that asks in kernel mode is refused after
//!   some seconds, userfaultfd and pins of holes at once with `EAGAIN`.
//! - *Pages that have to move*: those that lie in the scratch memory of kexec handover, to a free
//!   page of the pool elsewhere or to new memory. A gigantic page never lies there. Pages of
//!   `hugetlb_cma` and of boot-time reservations stay where they are; after the jump they are
//!   memory like any other. Linux 7.2 takes those of boot-time reservations for memory of the
//!   kernel, and wants twice as much scratch: boot it with a `kho_scratch=` of a fixed size.
//! - Where the next kernel lacks the size, retrieve fails with `EOPNOTSUPP` and the log has the
//!   reason; finish frees the memory. An optimised vmemmap (HVO) is a matter of each kernel.
//!
//! Mainline's format has no such files; under `memfd_format=mainline` they are refused.
//!
//! *What they cost.* Prepare pins each page and sets a bit for it, whatever its size: 1.5 ms for 4
//! GiB in pages of 2 MiB; 1.4 ms in pages of 1 GiB, of which no small file goes first (Linux 7.3.4,
//! emulated by TCG, 2 cpus, nothing else on the host). It costs seconds where pages have to move,
//! which copies them, and may have the kernel compact memory to find a place. Pages that are
//! reserved at boot (`hugepages=`) never have to. Those that are added at run time do if they come
//! from scratch memory, which the kernel takes for them where more of it is free than of the rest.
//! `moved_bytes` and `moved_files` in `/sys/kernel/debug/luo_handlers` show it.
//!
//! Retrieve is bound by the `struct page`s of the next kernel: 262144 a GiB, 16 MiB of memory, in
//! pages of any size. Each is written to once, when it becomes part of a huge page; KHO's own way
//! writes to each twice. Under the same conditions a GiB takes 2.2 to 2.5 ms in pages of 1 GiB; 2.6
//! ms in pages of 2 MiB, with 512 insertions into the page cache and its accounts; and 2.0 ms in
//! transparent huge pages of shmem. Several processors share a large file, but for one of a few
//! gigantic pages, and one whose task is in a hugetlb cgroup, which workers cannot charge. They
//! gain little where one is enough for the memory: on this host, without emulation, to write what
//! must be written to each `struct page` takes 0.9 ms a GiB with one thread and 0.7 ms with two
//! (`cargo bench --package luo-benches --bench struct_pages`). What would go below that is a kernel
//! that makes these pages when it boots, as it does with huge pages that are reserved then.
//!
//! # Mainline's format
//!
//! A kernel that has our handlers and not its own for memfds (`LIVEUPDATE_MEMFD`) has a second one
//! here, [`MainlineHandler`]: it retrieves what the kernel's own preserved in `memfd-v2`, and, if
//! the parameter `luo_handlers.memfd_format` is `mainline`, preserves new memfds so that a kernel
//! without our handlers retrieves them. With both in one image the kernel's own takes what comes
//! in, and new files while the parameter has that value.
//!
//! # What is preserved
//!
//! The preservation follows the kernel's `mm/memfd_luo.c` and goes further where that fills holes
//! or refuses a file. Both kinds of memfd are taken, those of shmem and those of hugetlbfs. To a
//! process, a file of tmpfs or hugetlbfs that has lost its last name is as good as a memfd: it
//! lives on as it is. In the kernel it would come back without the limits and the huge page policy
//! of its mount, so it is refused; SysV shared memory and that of drivers likewise.
//!
//! *Contents and size.* Every byte that was written is there afterwards, and a hole is a hole. From
//! a process the file itself crosses: what its contents are is nobody's business but that of a host
//! that copies them, so that no phase costs more for a larger file. In the kernel the record holds
//! one extent for each run of pages that exists, in 4 bytes for a single page and 4 to 20 for a
//! run, so that prepare, record and retrieve grow with what is in the file and not with its size.
//! What is written between prepare and freeze crosses as well. After freeze the kernel runs on for
//! a while: a store to a page that is there crosses; one that would fill a hole waits, killably,
//! for the jump, or until the jump is refused. What comes from kernel mode, write(2) among it,
//! waits some seconds and fails then: its task may hold a lock that the reboot needs.
//! Memory that fails before freeze refuses the jump with `EIO`.
//!
//! *Position and status flags.* The file position, the access mode, and the flags that `F_SETFL`
//! can change: `O_APPEND`, `O_DIRECT`, `O_NOATIME` and `O_NONBLOCK`.
//!
//! *Seals.* `F_SEAL_SEAL`, `SHRINK`, `GROW`, `WRITE`, `FUTURE_WRITE` and `EXEC`. A seal that this
//! version does not know refuses the file with `EOPNOTSUPP`: a promise that cannot be kept is not
//! made. *Permission bits and owner* cross too: `F_SEAL_EXEC` means something else with and without
//! the execute bits, and who may open the file again through `/proc` depends on both. Set-uid and
//! set-gid bits never cross. In the kernel the *name* given to `memfd_create` crosses.
//!
//! # What is not preserved
//!
//! By the handler, that is; where the same open file crosses, as over an exec, all of it lives on.
//! What others who share it changed after freeze stays as they left it, and retrieve reports size
//! and attributes that differ. A copy is told from it by what it lacks: no seals, position 0,
//! opened to read and write without flags. Such a file gets what was recorded.
//!
//! - `FD_CLOEXEC`: it belongs to the descriptor. A retrieved file has it set if the host sets it.
//! - Time stamps and extended attributes.
//! - Position, flags, owner and seals, where they change after freeze.
//! - Mappings, file locks and leases of the old side, and `O_SYNC`, `O_DSYNC` and the like, which
//!   mean nothing for memory.
//! - Memory policy, and what `fallocate` reserved beyond the end of the file. Within it, what was
//!   reserved but never written comes back as pages of zeros from the kernel, as a hole from a
//!   process.
//! - Which pages were large folios: in the kernel they come back large, in a process nobody knows.
//!
//! # Trust
//!
//! What comes from the previous side is data, not truth. Before anything is rebuilt the whole
//! record is read once and every count, range, order and checksum in it is checked; the errors are
//! listed at [`Record`]. A checksum is not a signature: whoever can write a record can name any
//! of the host's handles in it, and in the kernel any frame that was preserved and not yet taken.

mod backend;
pub mod chain;
pub mod extent;
#[cfg(test)]
mod fake;
pub mod handler;
#[cfg(luo_kernel)]
mod kernel;
pub mod mainline;
pub mod mainline_handler;
pub mod name;
pub mod pieces;
pub mod record;
pub mod summary;
#[cfg(not(luo_kernel))]
mod user;
mod wire;
pub mod words;

pub use backend::{MainlineBackend, MemfdBackend, ShowRun};
pub use extent::{Contents, Extent, Run, RunBuilder};
pub use handler::{MemfdHandler, Private};
#[cfg(luo_kernel)]
pub use kernel::{KernelBackend, MEMFD};
pub use mainline::MainlineRecord;
pub use mainline_handler::MainlineHandler;
pub use name::Name;
pub use record::{Attributes, Kind, Record};
pub use summary::{Data, Summary};
#[cfg(not(luo_kernel))]
pub use user::{UserBackend, MEMFD};
