// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Preserves VFIO PCI device files across a live update.
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
//! assert_eq!(handler.can_preserve(null.as_fd()), Ok(false)); // not a file of VFIO
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Map
//!
//! - [`record`]: the bytes that cross, and the checks they pass before they are used
//! - [`description`]: what is known of a device, and how two of these differ
//! - [`handler`]: the policy, [`VfioHandler`], the same in a process and in the kernel
//! - `backend`: what the policy asks of its surroundings; `user`: the answers of a process, which
//!   knows devices through the seam [`ioctls`], and that through `sys`; `kernel`: those of the
//!   kernel
//! - `imagined`: a device at that seam, for tests on machines without one (feature `testing`)
//!
//! # What is preserved
//!
//! The file of a PCI device that is bound to vfio-pci, whether it was opened from its own character
//! device or from a group.
//!
//! *In a process* the open file itself crosses an exec, and with it everything that hangs on it:
//! the device runs on, its interrupts stay enabled, its iommufd or its container lives on. On the
//! new side all that was recorded is compared with what the device reports now.
//!
//! *In the kernel* the device is found again by segment and BDF. If it is the same one and bound to
//! vfio-pci, retrieve returns a file as if freshly opened from the character device: not bound to
//! an iommufd yet, also where the old one came from a group. Between prepare and the jump the
//! device cannot be unbound.
//!
//! # From freeze to the jump
//!
//! In the kernel the device stands still. A device whose interrupts are enabled refuses to freeze.
//! Bus mastering is switched off and INTx disabled, the BARs are unmapped, and a task that touches
//! the BARs, the configuration, the interrupts or the power state waits: for the jump, in which all
//! tasks end, or until the jump is aborted, and then it goes on as if nothing had happened. A task
//! that is killed meanwhile ends after that wait. Only a reset through sysfs is refused instead of
//! waiting (`ENOTTY`), for it would wait with the device's lock, and the kernel's shutdown of
//! devices takes that lock as well. For the same reason a device is refused (`EAGAIN`) that is
//! being reset, bound or unbound when it is frozen; and nobody should unbind one, or change its
//! number of virtual functions, in between. Accesses to BARs of I/O ports still reach the device:
//! VFIO has no lock for them.
//!
//! A device that its owner has put into low power (`VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`) is
//! refused by prepare and by freeze (`EBUSY`): to look at it would wake it, and take the wake event
//! from its owner.
//!
//! # After the jump
//!
//! A device that was preserved is reserved before the first process runs: until its session is
//! finished nobody else can open its character device or its group (`EBUSY`). One that is not bound
//! to vfio-pci by then is reserved as soon as it is. Unbinding a device ends its reservation.
//!
//! **Bind the devices before they are retrieved**, by `vfio-pci.ids=` on the kernel's command line
//! or by `driver_override`. LUO remembers a failed retrieve, and a device that is not bound to
//! vfio-pci when it is retrieved is lost to its session. The kernel's log names at boot the devices
//! that are preserved and not bound. Retrieve waits ten seconds at most, unless the task is killed,
//! for what passes by itself: a reset, a driver that is just being bound, somebody else who has the
//! device open. The log then names them.
//!
//! A session may be finished, or closed, whether or not its devices were retrieved: those that
//! nobody asked for are released, and may be opened by everybody again.
//!
//! # What is not preserved
//!
//! In the kernel, that is:
//!
//! - **DMA mappings and I/O page tables.** They belong to the IOMMU, the iommufd or the container,
//!   and those do not cross: the new kernel sets the IOMMU up from nothing. A device that went on
//!   with its DMA would meet translations that are gone. So *running DMA* does not cross either.
//! - **The device's own state.** vfio-pci resets a device when its file is first bound. What its
//!   registers held is lost unless it cannot be reset. An INTx that is still asserted then comes
//!   back when the file is bound, as with every open of vfio-pci.
//! - **Interrupts**, their eventfds among them: they are set up again after the jump, as after an
//!   open.
//! - Mappings of BARs, power state, `VFIO_DEVICE_FEATURE` state, and the link to a KVM.
//! - Virtual functions: they exist only once the driver of their physical function has made them.
//!   Mediated devices, drivers of their own beside vfio-pci, and devices without an IOMMU.
//!
//! What mainline's pending series preserve: *vfio/pci: Base support to preserve a VFIO device file
//! across Live Update* (D. Matlack, V. Sharma) preserves what this handler does, for files of the
//! character device alone; *PCI: liveupdate* (D. Matlack) preserves bus numbers, and bus mastering
//! during the kexec, of devices that are preserved; *iommu: live update state preservation* (S.
//! Khawaja) preserves the I/O page tables of an iommufd. Only all of them together let DMA go on.
//!
//! # Trust
//!
//! Nothing in a record is ever written to a device. All that a record can do is to name an address:
//! the new kernel then wakes the device there and reads its identity. It is opened only if it looks
//! as recorded and an administrator has given it to vfio-pci; the process that retrieves it then
//! has what opening `/dev/vfio/devices/vfioN` gives, and no IOMMU mapping. Two records that name
//! one device get one file. The list of reserved devices comes from the previous kernel as well:
//! with a wrong one devices are reserved that nobody retrieves, until the last session is finished
//! or they are unbound.

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
mod sys;
#[cfg(not(luo_kernel))]
mod user;
mod wire;

pub use backend::{Kind, VfioBackend};
pub use description::{Address, Description};
pub use handler::{Private, VfioHandler};
#[cfg(luo_kernel)]
pub use kernel::{KernelBackend, VFIO};
pub use record::DeviceRecord;
#[cfg(not(luo_kernel))]
pub use user::{UserBackend, VFIO};
