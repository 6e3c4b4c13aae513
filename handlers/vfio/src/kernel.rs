// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The backend in the kernel: devices are found again by segment and BDF, and opened again.

#![allow(unsafe_code)]

use core::{ffi::c_void, ptr::NonNull};

use luo_handler_api::{register_handler, status, Errno, FileRef, Host, OwnedFile, Retrieved};

use crate::{
    backend::{Kind, VfioBackend},
    description::{Address, Compared, Description, Irq, List, Opened, Region},
    handler::VfioHandler,
    record::{Crossing, DeviceRecord},
};

register_handler!(
    /// The handler of this kernel.
    pub VFIO: VfioHandler<KernelBackend> = VfioHandler(KernelBackend)
);

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelBackend;

/// A prepared device: it cannot be unbound from vfio-pci, and is prepared once.
///
/// # Invariants
///
/// `luo_vfio_pin` took `device`, and nobody has unpinned it. If `quiet` is some, `luo_vfio_quiesce`
/// filled it, and nobody has resumed the device since.
#[derive(Debug)]
pub struct Pinned {
    device: NonNull<c_void>,
    quiet: Option<shim::Quiet>,
}

// SAFETY: the device belongs to no thread: all that is done to it is done under the locks of VFIO.
// What quiesce locks is unlocked by the thread that froze, for mainline unfreezes in the call that
// froze.
unsafe impl Send for Pinned {}

impl Pinned {
    fn resume(&mut self) {
        if let Some(quiet) = self.quiet.take() {
            // SAFETY: by the invariant the device is pinned, and quiet since it filled `quiet`.
            unsafe { shim::luo_vfio_resume(self.device.as_ptr(), &quiet) };
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.resume();
        // SAFETY: by the invariant the device is pinned; the value with this invariant ends here.
        unsafe { shim::luo_vfio_unpin(self.device.as_ptr()) };
    }
}

/// A device that was found after the kexec, and that nobody else can open.
///
/// # Invariants
///
/// `luo_vfio_find` returned it, and it was neither opened nor lost.
#[derive(Debug)]
pub struct Found(NonNull<c_void>);

impl Drop for Found {
    fn drop(&mut self) {
        // SAFETY: by the invariant the device is held; the value with this invariant ends here.
        unsafe { shim::luo_vfio_lose(self.0.as_ptr()) };
    }
}

/// The device of a file, which holds it, and the file's flags.
fn device_of(file: FileRef<'_>) -> Result<(NonNull<c_void>, u32), Errno> {
    let mut flags = 0;
    // SAFETY: a `FileRef` is an open file, and `flags` is ours.
    let device = unsafe { shim::luo_vfio_device(file.as_ptr(), &mut flags) };
    Ok((NonNull::new(device).ok_or(Errno::ENODEV)?, flags))
}

impl VfioBackend for KernelBackend {
    type Pin = Option<Pinned>;
    type Found = Found;

    fn crossing(&self) -> Crossing {
        Crossing::Reopened
    }

    fn compared(&self) -> Compared {
        Compared::Identity
    }

    fn kind(&self, file: FileRef<'_>) -> Kind {
        // SAFETY: a `FileRef` is an open file.
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

    fn address(&self, file: FileRef<'_>) -> Result<Address, Errno> {
        let (device, _) = device_of(file)?;
        // SAFETY: the file is open during this call, and holds its device.
        Ok(Address::from_u64(unsafe {
            shim::luo_vfio_address(device.as_ptr())
        }))
    }

    fn file_id(&self, _: FileRef<'_>) -> Option<u64> {
        None
    }

    fn pin(&self, file: FileRef<'_>, _: Host<'_>) -> Result<(u64, Option<Pinned>), Errno> {
        let (device, _) = device_of(file)?;
        // SAFETY: the file is open during this call, and holds its device.
        Errno::check(unsafe { shim::luo_vfio_pin(device.as_ptr()) })?;
        let quiet = None;
        Ok((0, Some(Pinned { device, quiet })))
    }

    fn unpin(&self, _: FileRef<'_>, _: u64, pin: &mut Option<Pinned>, _: Host<'_>) {
        *pin = None;
    }

    fn describe(&self, file: FileRef<'_>) -> Result<Description, Errno> {
        let Kind::Device(opened) = self.kind(file) else {
            return Err(Errno::ENODEV);
        };
        let (device, flags) = device_of(file)?;
        // SAFETY: the file is open during this call, and by its kind its device is as well.
        let description = unsafe { describe(device, true) }?;
        Ok(Description {
            opened,
            status: status::from_flags(flags),
            ..description
        })
    }

    fn quiesce(&self, _: FileRef<'_>, pin: &mut Option<Pinned>) -> Result<(), Errno> {
        let pinned = pin.as_mut().ok_or(Errno::ENODEV)?;
        if pinned.quiet.is_some() {
            return Err(Errno::EINVAL);
        }
        let mut quiet = shim::Quiet::default();
        // SAFETY: by the invariant of `Pinned` the device is pinned and not quiet; `quiet` is ours.
        Errno::check(unsafe { shim::luo_vfio_quiesce(pinned.device.as_ptr(), &mut quiet) })?;
        pinned.quiet = Some(quiet);
        Ok(())
    }

    fn resume(&self, _: FileRef<'_>, pin: &mut Option<Pinned>) {
        if let Some(pinned) = pin {
            pinned.resume();
        }
    }

    fn find(&self, record: &DeviceRecord, host: Host<'_>) -> Result<Found, Errno> {
        let address = record.description.address;
        let Address { segment, bus, .. } = address;
        let mut owner = shim::Owner::default();
        // SAFETY: any three numbers may be asked for, and `owner` is ours.
        let device = unsafe { shim::luo_vfio_find(segment, bus, address.devfn(), &mut owner) };
        let (errno, why) = match Errno::from_pointer(device).map(NonNull::new) {
            Ok(Some(device)) => return Ok(Found(device)),
            Err(Errno::EBUSY) => {
                return Err(host.refuse(
                    Errno::EBUSY,
                    format_args!("{address}: it is in use by {owner}, and was not closed in time"),
                ))
            }
            Err(Errno::ENODEV) => (
                Errno::ENODEV,
                "it is not bound to vfio-pci; bind devices before they are retrieved, for a \
                 failed retrieve is final",
            ),
            Err(Errno::EOPNOTSUPP) => (Errno::ENODEV, "it is a virtual function, or has no IOMMU"),
            Err(Errno::EEXIST) => (Errno::EBUSY, "it is preserved or retrieved already"),
            Err(Errno::EAGAIN) => (
                Errno::EBUSY,
                "its reset, or a change of its driver, did not end in time",
            ),
            Err(Errno::EINTR) => (Errno::EINTR, "the task that waited for it was killed"),
            Ok(None) | Err(Errno::ENOENT) => (Errno::ENODEV, "there is no such device"),
            Err(errno) => (errno, "it cannot be held"),
        };
        Err(host.refuse(errno, format_args!("{address}: {why}")))
    }

    fn describe_found(&self, found: &Found) -> Result<Description, Errno> {
        // SAFETY: by the invariant of `Found` the device is held.
        unsafe { describe(found.0, false) }
    }

    fn open(&self, found: Found, record: &DeviceRecord) -> Result<OwnedFile, Errno> {
        let flags = status::to_flags(record.description.status);
        // SAFETY: by the invariant of `Found` the device is held.
        let file = unsafe { shim::luo_vfio_open(found.0.as_ptr(), flags) };
        // SAFETY: `luo_vfio_open` returns a file that only we have, or an error pointer.
        let file = unsafe { OwnedFile::from_err_ptr(file) }?;
        // The file has taken the registration over, and `finish` ends the rest.
        core::mem::forget(found);
        Ok(file)
    }

    fn finish(&self, record: Option<&DeviceRecord>, retrieved: Retrieved<'_>, _: Host<'_>) {
        let device = match retrieved.file().map(device_of) {
            Some(Ok((device, _))) => device.as_ptr(),
            _ => core::ptr::null_mut(),
        };
        let address = record.map_or(shim::NOWHERE, |it| it.description.address.to_u64());
        // SAFETY: the retrieved file is open during this call and holds its device; null and any
        // address are allowed.
        unsafe { shim::luo_vfio_finish(device, address) };
    }
}

/// # Safety
///
/// Somebody holds the device, and `is_open` is whether it is open.
unsafe fn describe(device: NonNull<c_void>, is_open: bool) -> Result<Description, Errno> {
    let mut found = shim::Description::default();
    // SAFETY: by our contract the device is held and `is_open` is right; `found` is ours.
    Errno::check(unsafe { shim::luo_vfio_describe(device.as_ptr(), is_open, &mut found) })?;
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
    use core::{ffi::c_void, fmt};

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

    const _: () = assert!(size_of::<Description>() == 536);

    /// `struct luo_vfio_quiet`.
    #[derive(Debug, Default)]
    #[repr(C)]
    pub(super) struct Quiet {
        command: u16,
        reset_methods: [u8; 8],
    }

    const _: () = assert!(size_of::<Quiet>() == 10);

    /// `struct luo_vfio_owner`.
    #[derive(Default)]
    #[repr(C)]
    pub(super) struct Owner {
        pid: i32,
        name: [u8; 16],
    }

    const _: () = assert!(size_of::<Owner>() == 20);

    impl fmt::Display for Owner {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let name = self.name.split(|&byte| byte == 0).next();
            match name.map(core::str::from_utf8) {
                Some(Ok(name)) if self.pid > 0 => write!(f, "{name} (pid {})", self.pid),
                _ if self.pid > 0 => write!(f, "pid {}", self.pid),
                _ => f.write_str("somebody"),
            }
        }
    }

    /// `LUO_VFIO_NOWHERE`.
    pub(super) const NOWHERE: u64 = u64::MAX;

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
        pub(super) fn luo_vfio_address(device: *mut c_void) -> u64;
        pub(super) fn luo_vfio_pin(device: *mut c_void) -> i32;
        pub(super) fn luo_vfio_unpin(device: *mut c_void);
        pub(super) fn luo_vfio_describe(
            device: *mut c_void,
            is_open: bool,
            found: *mut Description,
        ) -> i32;
        pub(super) fn luo_vfio_quiesce(device: *mut c_void, quiet: *mut Quiet) -> i32;
        pub(super) fn luo_vfio_resume(device: *mut c_void, quiet: *const Quiet);
        pub(super) fn luo_vfio_find(
            segment: u32,
            bus: u8,
            devfn: u8,
            owner: *mut Owner,
        ) -> *mut c_void;
        pub(super) fn luo_vfio_lose(device: *mut c_void);
        pub(super) fn luo_vfio_open(device: *mut c_void, flags: u32) -> *mut c_void;
        pub(super) fn luo_vfio_finish(device: *mut c_void, address: u64);
    }
}
