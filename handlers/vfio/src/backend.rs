// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the policy asks of its surroundings: a process, the kernel, or a test.

use luo_handler_api::{Errno, FileRef, Host, OwnedFile, Retrieved};

use crate::{
    description::{Compared, Description, Opened},
    record::{Kept, Record},
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
    /// A virtual function that cannot be kept here.
    VirtualFunction,
    /// Nothing of VFIO.
    Other,
}

impl Kind {
    /// Why such a file is not kept.
    pub(crate) const fn objection(self) -> Option<(Errno, &'static str)> {
        let (errno, reason) = match self {
            Self::Device(_) => return None,
            Self::Unbound => (
                Errno::EINVAL,
                "a device that is not bound to an iommufd has no state to keep: bind it first",
            ),
            Self::Group => (
                Errno::EOPNOTSUPP,
                "a group is not kept: preserve the files of its devices",
            ),
            Self::Container => (
                Errno::EOPNOTSUPP,
                "a container is not kept, nor are its DMA mappings: preserve device files",
            ),
            Self::Foreign => (
                Errno::EOPNOTSUPP,
                "only PCI devices behind an IOMMU that are bound to vfio-pci itself are kept",
            ),
            Self::VirtualFunction => (
                Errno::EOPNOTSUPP,
                "a virtual function goes with its physical function's driver, which does not cross",
            ),
            Self::Other => (Errno::EOPNOTSUPP, "it is no file of VFIO"),
        };
        Some((errno, reason))
    }
}

/// The hands of the handler: all that touches devices and files.
///
/// The policy calls `pin` before anything else about a file, and ends with one `unpin`, or with the
/// jump.
pub trait VfioBackend: Sync + 'static {
    /// What keeps a device from being removed, and what has to be remembered of it.
    type Pin: Send + 'static;

    /// A device behind the jump, before its file is handed over.
    type Found;

    /// Where the open file is while its record crosses.
    fn kept(&self) -> Kept;

    /// How much of a device has to be as it was.
    fn compared(&self) -> Compared;

    /// What `file` is. Cheap, without side effects.
    fn kind(&self, file: FileRef<'_>) -> Kind;

    /// Under which identity a second offer of the same device is refused; `None` if `pin` does that.
    fn file_id(&self, file: FileRef<'_>) -> Option<u64>;

    /// Holds the device of `file`; yields the handle of the file where the host keeps it, else 0.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it is held already, `ENODEV` if it is about to go.
    fn pin(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, Self::Pin), Errno>;

    /// Lets it go again.
    fn unpin(&self, file: FileRef<'_>, handle: u64, pin: &mut Self::Pin, host: Host<'_>);

    /// The device as it is now.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for more regions or interrupt indexes than a record has room for; those of the
    /// system.
    fn describe(&self, file: FileRef<'_>) -> Result<Description, Errno>;

    /// Sees to it that the device does nothing by itself, where it has to stand still for the jump.
    ///
    /// # Errors
    ///
    /// `EINVAL` while interrupts are enabled; those of the system.
    fn quiesce(&self, file: FileRef<'_>, pin: &mut Self::Pin) -> Result<(), Errno>;

    /// Lets it do again what it did before.
    fn resume(&self, file: FileRef<'_>, pin: &mut Self::Pin);

    /// Finds the device that a record names. The record was checked, but the device may be any.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is none that could be it, `EBUSY` if it is kept already, `ENOENT` if the host
    /// has no such file. Says why.
    fn find(&self, record: &Record, host: Host<'_>) -> Result<Self::Found, Errno>;

    /// What was found, as far as that is known before it is opened.
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
    fn open(&self, found: Self::Found, record: &Record) -> Result<OwnedFile, Errno>;

    /// Releases whatever `open` held, and what the host keeps of a file that nobody took. There is no
    /// record if it cannot be read, any more or at all.
    fn finish(&self, record: Option<&Record>, retrieved: Retrieved<'_>, host: Host<'_>);
}
