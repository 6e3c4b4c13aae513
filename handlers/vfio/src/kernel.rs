// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The hands of the handler in the kernel: devices are found again by segment and BDF, and opened anew.

use core::{ffi::c_void, ptr::NonNull};

use luo_handler_api::{register_handler, status, Errno, FileRef, Host, OwnedFile, Retrieved};

use crate::{
    backend::{Kind, VfioBackend},
    description::{Address, Compared, Description, Irq, List, Opened, Region},
    handler::VfioHandler,
    record::{Kept, Record},
};

register_handler!(
    /// The handler of this kernel.
    pub VFIO: VfioHandler<KernelBackend> = VfioHandler(KernelBackend)
);

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelBackend;

/// A device that cannot be unbound from vfio-pci and is kept nowhere else; given back when dropped, and
/// running as before.
///
/// # Invariants
///
/// `luo_vfio_pin` or `luo_vfio_find` answered with it, and nobody has unpinned it. If `was_master` is
/// some, `luo_vfio_quiesce` said so and nobody has resumed it.
#[derive(Debug)]
pub struct Held {
    device: NonNull<c_void>,
    was_master: Option<bool>,
}

// SAFETY: the device is no thread's: whatever is done to it is done under the locks of VFIO.
unsafe impl Send for Held {}

impl Held {
    fn resume(&mut self) {
        if let Some(was_master) = self.was_master.take() {
            // SAFETY: by the invariant it is pinned and quiet.
            unsafe { shim::luo_vfio_resume(self.device.as_ptr(), was_master) };
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.resume();
        // SAFETY: by the invariant it is pinned.
        unsafe { shim::luo_vfio_unpin(self.device.as_ptr()) };
    }
}

/// The device of a file, which holds it, and the file's flags.
fn device_of(file: FileRef<'_>) -> Result<(NonNull<c_void>, u32), Errno> {
    let mut flags = 0;
    // SAFETY: the file is open, and `flags` is ours.
    let device = unsafe { shim::luo_vfio_device(file.as_ptr(), &mut flags) };
    Ok((NonNull::new(device).ok_or(Errno::ENODEV)?, flags))
}

impl VfioBackend for KernelBackend {
    type Pin = Option<Held>;
    type Found = Held;

    fn kept(&self) -> Kept {
        Kept::Anew
    }

    fn compared(&self) -> Compared {
        Compared::Identity
    }

    fn kind(&self, file: FileRef<'_>) -> Kind {
        // SAFETY: the file is open.
        match unsafe { shim::luo_vfio_kind(file.as_ptr()) } {
            shim::DEVICE => Kind::Device(Opened::Cdev),
            shim::DEVICE_OF_GROUP => Kind::Device(Opened::Group),
            shim::UNBOUND => Kind::Unbound,
            shim::GROUP => Kind::Group,
            shim::CONTAINER => Kind::Container,
            shim::FOREIGN => Kind::Foreign,
            shim::VIRTUAL_FUNCTION => Kind::VirtualFunction,
            _ => Kind::Other,
        }
    }

    fn file_id(&self, _: FileRef<'_>) -> Option<u64> {
        None
    }

    fn pin(&self, file: FileRef<'_>, _: Host<'_>) -> Result<(u64, Option<Held>), Errno> {
        let (device, _) = device_of(file)?;
        // SAFETY: the file holds the device.
        Errno::check(unsafe { shim::luo_vfio_pin(device.as_ptr()) })?;
        let was_master = None;
        Ok((0, Some(Held { device, was_master })))
    }

    fn unpin(&self, _: FileRef<'_>, _: u64, pin: &mut Option<Held>, _: Host<'_>) {
        *pin = None;
    }

    fn describe(&self, file: FileRef<'_>) -> Result<Description, Errno> {
        let Kind::Device(opened) = self.kind(file) else {
            return Err(Errno::ENODEV);
        };
        let (device, flags) = device_of(file)?;
        // SAFETY: the file holds the device, which is open.
        let description = unsafe { describe(device, true) }?;
        Ok(Description {
            opened,
            status: status::from_flags(flags),
            ..description
        })
    }

    fn quiesce(&self, _: FileRef<'_>, pin: &mut Option<Held>) -> Result<(), Errno> {
        let held = pin.as_mut().ok_or(Errno::ENODEV)?;
        let mut was_master = false;
        // SAFETY: by the invariant it is pinned, and `was_master` is ours.
        let quiet = unsafe { shim::luo_vfio_quiesce(held.device.as_ptr(), &mut was_master) };
        Errno::check(quiet)?;
        held.was_master = Some(was_master);
        Ok(())
    }

    fn resume(&self, _: FileRef<'_>, pin: &mut Option<Held>) {
        if let Some(held) = pin {
            held.resume();
        }
    }

    fn find(&self, record: &Record, host: Host<'_>) -> Result<Held, Errno> {
        let address = record.description.address;
        let Address { segment, bus, .. } = address;
        // SAFETY: any three numbers may be asked for.
        let device = unsafe { shim::luo_vfio_find(segment, bus, address.devfn()) };
        let (errno, why) = match Errno::from_pointer(device).map(NonNull::new) {
            Ok(Some(device)) => {
                let was_master = None;
                return Ok(Held { device, was_master });
            }
            Err(Errno::ENODEV) => (Errno::ENODEV, "it is not bound to vfio-pci"),
            Err(Errno::EOPNOTSUPP) => (Errno::ENODEV, "it is a virtual function, or has no IOMMU"),
            Err(Errno::EBUSY) => (Errno::EBUSY, "it is kept already"),
            Err(Errno::EAGAIN) => (Errno::EBUSY, "it is being bound or unbound"),
            Ok(None) | Err(Errno::ENOENT) => (Errno::ENODEV, "there is no such device"),
            Err(errno) => (errno, "it cannot be held"),
        };
        Err(host.refuse(errno, format_args!("{address}: {why}")))
    }

    fn describe_found(&self, found: &Held) -> Result<Description, Errno> {
        // SAFETY: by the invariant it is pinned.
        unsafe { describe(found.device, false) }
    }

    fn open(&self, found: Held, record: &Record) -> Result<OwnedFile, Errno> {
        let flags = status::to_flags(record.description.status);
        // SAFETY: by the invariant it is pinned; nobody else has what is returned.
        let file = unsafe { shim::luo_vfio_open(found.device.as_ptr(), flags) };
        // SAFETY: as above.
        let file = unsafe { OwnedFile::from_err_ptr(file) }?;
        // The file has taken the registration over, and `finish` ends the rest.
        core::mem::forget(found);
        Ok(file)
    }

    fn finish(&self, _: Option<&Record>, retrieved: Retrieved<'_>, _: Host<'_>) {
        let device = retrieved.file().map(device_of);
        if let Some(Ok((device, _))) = device {
            // SAFETY: the file holds its device.
            unsafe { shim::luo_vfio_let_go(device.as_ptr()) };
        }
    }
}

/// # Safety
///
/// Somebody holds the device, and `is_open` says whether it is open.
unsafe fn describe(device: NonNull<c_void>, is_open: bool) -> Result<Description, Errno> {
    let mut found = shim::Description::default();
    let (device, size) = (device.as_ptr(), size_of_val(&found));
    // SAFETY: the caller says so, and `found` is ours.
    Errno::check(unsafe { shim::luo_vfio_describe(device, is_open, &mut found, size) })?;
    let regions = found.region.iter().take(found.regions as usize);
    let irqs = found.irq.iter().take(found.irqs as usize);
    Ok(Description {
        address: Address::new(found.segment, found.bus, found.devfn),
        opened: Opened::Cdev,
        status: 0,
        flags: found.info_flags,
        header: found.header,
        regions: List::of(regions.map(|region| Region {
            offset: region.offset,
            size: region.size,
            flags: region.flags,
        }))
        .ok_or(Errno::EOPNOTSUPP)?,
        irqs: List::of(irqs.map(|irq| Irq {
            flags: irq.flags,
            count: irq.count,
        }))
        .ok_or(Errno::EOPNOTSUPP)?,
    })
}

/// The functions of `luo_shim_vfio.c`; see `luo_shim.h`.
mod shim {
    use core::ffi::c_void;

    use crate::description::{HEADER_LENGTH, IRQS_MAX, REGIONS_MAX};

    /// `struct luo_vfio_region`.
    #[derive(Default)]
    #[repr(C)]
    pub(super) struct Region {
        pub(super) offset: u64,
        pub(super) size: u64,
        pub(super) flags: u32,
    }

    /// `struct luo_vfio_irq`.
    #[derive(Default)]
    #[repr(C)]
    pub(super) struct Irq {
        pub(super) flags: u32,
        pub(super) count: u32,
    }

    /// `struct luo_vfio_description`.
    #[repr(C)]
    pub(super) struct Description {
        pub(super) segment: u32,
        pub(super) info_flags: u32,
        pub(super) regions: u32,
        pub(super) irqs: u32,
        pub(super) bus: u8,
        pub(super) devfn: u8,
        pub(super) header: [u8; HEADER_LENGTH],
        pub(super) region: [Region; REGIONS_MAX],
        pub(super) irq: [Irq; IRQS_MAX],
    }

    impl Default for Description {
        fn default() -> Self {
            Self {
                segment: 0,
                info_flags: 0,
                regions: 0,
                irqs: 0,
                bus: 0,
                devfn: 0,
                header: [0; HEADER_LENGTH],
                region: Default::default(),
                irq: Default::default(),
            }
        }
    }

    // `enum luo_vfio_kind`.
    pub(super) const DEVICE: u8 = 1;
    pub(super) const DEVICE_OF_GROUP: u8 = 2;
    pub(super) const UNBOUND: u8 = 3;
    pub(super) const GROUP: u8 = 4;
    pub(super) const CONTAINER: u8 = 5;
    pub(super) const FOREIGN: u8 = 6;
    pub(super) const VIRTUAL_FUNCTION: u8 = 7;

    extern "C" {
        pub(super) fn luo_vfio_kind(file: *mut c_void) -> u8;
        pub(super) fn luo_vfio_device(file: *mut c_void, flags: *mut u32) -> *mut c_void;
        pub(super) fn luo_vfio_pin(device: *mut c_void) -> i32;
        pub(super) fn luo_vfio_unpin(device: *mut c_void);
        pub(super) fn luo_vfio_let_go(device: *mut c_void);
        pub(super) fn luo_vfio_describe(
            device: *mut c_void,
            is_open: bool,
            found: *mut Description,
            size: usize,
        ) -> i32;
        pub(super) fn luo_vfio_quiesce(device: *mut c_void, was_master: *mut bool) -> i32;
        pub(super) fn luo_vfio_resume(device: *mut c_void, was_master: bool);
        pub(super) fn luo_vfio_find(segment: u32, bus: u8, devfn: u8) -> *mut c_void;
        pub(super) fn luo_vfio_open(device: *mut c_void, flags: u32) -> *mut c_void;
    }
}
