// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of its surroundings: a process, the kernel, or a test.

use luo_handler_api::{Errno, FileRef, Host, OwnedFile, Retrieved};

use crate::{
    description::{Address, Compared, Description, Opened},
    record::{Crossing, DeviceRecord},
};

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A PCI device, open and usable.
    Device(Opened),
    /// The character device of a VFIO device, not bound to an iommufd.
    Unbound,
    /// A VFIO group.
    Group,
    /// A VFIO container.
    Container,
    /// A VFIO device that is not PCI, or a mediated one, or has a driver of its own or no IOMMU.
    Foreign,
    /// A virtual function that cannot be preserved here.
    VirtualFunction,
    /// Not a file of VFIO.
    Other,
}

impl Kind {
    /// Why such a file is not preserved.
    pub(crate) const fn objection(self) -> Option<(Errno, &'static str)> {
        let (errno, reason) = match self {
            Self::Device(_) => return None,
            Self::Unbound => (
                Errno::EINVAL,
                "a device that is not bound to an iommufd has no state to preserve: bind it first",
            ),
            Self::Group => (
                Errno::EOPNOTSUPP,
                "a group is not preserved: preserve the files of its devices",
            ),
            Self::Container => (
                Errno::EOPNOTSUPP,
                "a container is not preserved, nor are its DMA mappings: preserve device files",
            ),
            Self::Foreign => (
                Errno::EOPNOTSUPP,
                "only PCI devices with an IOMMU that are bound to vfio-pci itself are preserved",
            ),
            Self::VirtualFunction => (
                Errno::EOPNOTSUPP,
                "a virtual function goes with its physical function's driver, which does not cross",
            ),
            Self::Other => (Errno::EOPNOTSUPP, "it is not a file of VFIO"),
        };
        Some((errno, reason))
    }
}

/// All that touches devices and files.
///
/// The policy calls `pin` before anything else about a file, and ends with one `unpin`, or with the
/// jump.
pub trait VfioBackend: Sync + 'static {
    /// Prevents a device from being removed, and remembers what is needed to release it.
    type Pin: Send + 'static;

    /// A device after the jump, before its file is handed over.
    type Found;

    /// How the file crosses.
    fn crossing(&self) -> Crossing;

    /// How much of a device has to be as it was.
    fn compared(&self) -> Compared;

    /// What `file` is. Cheap, without side effects.
    fn kind(&self, file: FileRef<'_>) -> Kind;

    /// Where the device of `file` is. Cheap, without side effects.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn address(&self, file: FileRef<'_>) -> Result<Address, Errno>;

    /// The identity under which a second offer of the same device is refused; `None` if `pin`
    /// refuses it.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64>;

    /// Holds the device of `file`; yields the handle of the file where the host holds it, else 0.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it is held already, `ENODEV` if it is about to go, `ENOSPC` if too many are held.
    fn pin(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, Self::Pin), Errno>;

    /// Releases it.
    fn unpin(&self, file: FileRef<'_>, handle: u64, pin: &mut Self::Pin, host: Host<'_>);

    /// The device as it is now.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for more regions or interrupt indexes than a record has room for; `EBUSY` if it
    /// is in low power, from which only its owner wakes it; those of the system.
    fn describe(&self, file: FileRef<'_>) -> Result<Description, Errno>;

    /// Stops the device and its users until [`resume`](Self::resume) or the jump, on a host where
    /// it has to stand still for the jump. It must not be described meanwhile.
    ///
    /// # Errors
    ///
    /// `EINVAL` while interrupts are enabled, `EBUSY` if it is in low power, `EAGAIN` while it is
    /// reset, bound or unbound; those of the system.
    fn quiesce(&self, file: FileRef<'_>, pin: &mut Self::Pin) -> Result<(), Errno>;

    /// Lets it and its users go on as if nothing had been.
    fn resume(&self, file: FileRef<'_>, pin: &mut Self::Pin);

    /// Finds the device that a record names. The record was checked, but the device may be any.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is no device that could be it, `EBUSY` if it is held already or in use,
    /// `ENOENT` if the host has no such file. Gives the reason.
    fn find(&self, record: &DeviceRecord, host: Host<'_>) -> Result<Self::Found, Errno>;

    /// The device that was found, as far as it is known before it is opened.
    ///
    /// # Errors
    ///
    /// Those of [`describe`](Self::describe).
    fn describe_found(&self, found: &Self::Found) -> Result<Description, Errno>;

    /// Makes a file of what was found and is the right one.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn open(&self, found: Self::Found, record: &DeviceRecord) -> Result<OwnedFile, Errno>;

    /// Releases what the file holds as one that crossed; if nobody retrieved it, all of it.
    /// `record` is `None` if it cannot be read.
    fn finish(&self, record: Option<&DeviceRecord>, retrieved: Retrieved<'_>, host: Host<'_>);
}
