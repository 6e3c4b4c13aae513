// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Keeps VFIO PCI device files alive across a live update.
//!
//! Nothing has to be called: linking the crate in registers the handler, and a host finds it.
//!
//! ```
//! use luo_handler_api::{hosted::Handler, registry::registered_handlers};
//! use luo_handler_vfio as _; // without this line the linker drops the handler
//! use std::{fs::File, os::fd::AsFd};
//!
//! let null = File::open("/dev/null")?;
//! let handler = registered_handlers()
//!     .map(|ops| Handler::new(ops).expect("a usable handler"))
//!     .find(|handler| handler.origin() == "luo_handler_vfio")
//!     .expect("the handler");
//! assert_eq!(handler.can_preserve(null.as_fd()), Ok(false)); // no file of VFIO
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Map
//!
//! - [`record`]: the bytes that cross, and the checks they pass before they are used
//! - [`description`]: what is known of a device, and how two of these differ
//! - [`handler`]: the policy, [`VfioHandler`], the same in a process and in the kernel
//! - `backend`: what the policy asks of its surroundings; `user`: the answers of a process, which
//!   knows devices through the seam [`ioctls`]; `kernel`: those of the kernel
//! - `imagined`: a device behind that seam, for tests on machines without one (feature `testing`)
//!
//! # What is preserved
//!
//! The file of a PCI device that is bound to vfio-pci, whether it was opened from its own character
//! device or from a group.
//!
//! *In a process* the open file itself crosses an exec, and with it everything that hangs on it: the
//! device runs on, its interrupts stay enabled, its iommufd or its container lives on behind it. On
//! the new side all that was recorded is compared with what the device says now.
//!
//! *In the kernel* the device is found again by segment and BDF. If it is the same one and bound to
//! vfio-pci, whoever retrieves it gets a file as if freshly opened from the character device: not
//! bound to an iommufd yet, also where the old one came from a group. Between prepare and the jump
//! the device cannot be unbound. It stands still for the jump: a device whose interrupts are enabled
//! refuses to freeze, and bus mastering is switched off.
//!
//! # What is not preserved
//!
//! In the kernel, that is:
//!
//! - **DMA mappings and I/O page tables.** They belong to the IOMMU, the iommufd or the container,
//!   and those do not cross: the new kernel sets the IOMMU up from nothing. A device that went on with
//!   its DMA would meet translations that are gone. So bus mastering is switched off at freeze, and
//!   *running DMA* does not cross either. Whoever owns the device must leave it alone from then on;
//!   whatever they do, the PCI core switches bus mastering off again when it shuts the device down.
//! - **The device's own state.** vfio-pci resets a device when its file is first bound. What its
//!   registers held is lost unless it cannot be reset.
//! - **Interrupts**, their eventfds among them: they are set up again after the jump, as after an open.
//! - Mappings of BARs, power state, `VFIO_DEVICE_FEATURE` state, and the link to a KVM.
//! - Virtual functions: they exist only once the driver of their physical function has made them.
//!   Mediated devices, drivers of their own beside vfio-pci, and devices without an IOMMU.
//!
//! What mainline's pending series keep: *vfio/pci: Base support to preserve a VFIO device file across
//! Live Update* (D. Matlack, V. Sharma) keeps what this handler keeps, for files of the character device
//! alone; *PCI: liveupdate* (D. Matlack) keeps bus numbers, and bus mastering during the kexec, of devices
//! that are preserved; *iommu: live update state preservation* (S. Khawaja) keeps the I/O page tables of
//! an iommufd. Only all of them together let DMA go on.
//!
//! # Asking for a device
//!
//! A set is not finished before every device in it was asked for: otherwise one that nobody remembers
//! would be given up in silence. Whoever retrieves a session therefore has to ask for each. Mainline
//! closes a session by finishing it: one that is closed without its devices having been asked for
//! cannot be finished any more, and what it holds is lost until the next boot.
//!
//! # Trust
//!
//! Nothing in a record is ever written to a device. All that a record can do is to name an address: the
//! new kernel then wakes what is there and reads what it is. It is opened only if it looks as recorded
//! and an administrator has given it to vfio-pci; whoever retrieves it then has what opening
//! `/dev/vfio/devices/vfioN` gives, and no IOMMU mapping. Two records that name one device get one
//! file.

#![allow(unsafe_code)] // until its unsafe code lies in edge modules alone

mod backend;
pub mod description;
#[cfg(test)]
mod fake;
pub mod handler;
#[cfg(any(test, feature = "testing"))]
pub mod imagined;
#[cfg(not(luo_kernel))]
pub mod ioctls;
#[cfg(luo_kernel)]
mod kernel;
pub mod record;
#[cfg(not(luo_kernel))]
mod user;
mod wire;

pub use backend::{Kind, VfioBackend};
pub use description::{Address, Description};
pub use handler::{Private, VfioHandler};
#[cfg(luo_kernel)]
pub use kernel::{KernelBackend, VFIO};
pub use record::Record;
#[cfg(not(luo_kernel))]
pub use user::{UserBackend, VFIO};
