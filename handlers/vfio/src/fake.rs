// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A backend in memory, for tests of the policy.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard},
};

use luo_handler_api::{Errno, FileRef, Host, OwnedFile, Retrieved};
use rustix::fs::{fstat, memfd_create, MemfdFlags};

use crate::{
    backend::{Kind, VfioBackend},
    description::{Address, Compared, Description, Opened},
    imagined::edu,
    record::{Crossing, DeviceRecord},
};

/// A machine with devices. A memfd stands for each file of one; whose it is is by its inode.
#[derive(Debug)]
pub(crate) struct FakeBackend {
    crossing: Crossing,
    compared: Compared,
    devices: Mutex<Vec<&'static Mutex<FakeDevice>>>,
    /// Inodes, and the numbers of their devices.
    files: Mutex<BTreeMap<u64, usize>>,
}

#[derive(Debug)]
pub(crate) struct FakeDevice {
    pub(crate) kind: Kind,
    pub(crate) description: Description,
    pub(crate) interrupts: bool,
    /// Its owner has put it to sleep.
    pub(crate) low_power: bool,
    pub(crate) is_missing: bool,
    /// Whether it stands still.
    pub(crate) quiet: bool,
    /// Whether it is held.
    pub(crate) is_pinned: bool,
    /// Whether only its file can be opened that crossed.
    pub(crate) reserved: bool,
    /// How many files were made of it and not finished.
    pub(crate) opened: u32,
}

impl FakeBackend {
    pub(crate) const fn new(crossing: Crossing, compared: Compared) -> Self {
        Self {
            crossing,
            compared,
            devices: Mutex::new(Vec::new()),
            files: Mutex::new(BTreeMap::new()),
        }
    }

    /// A file of a new device. The first is that of QEMU, the next ones are on buses of their own.
    pub(crate) fn file(&self) -> OwnedFd {
        let mut devices = self.devices.lock().unwrap();
        let number = devices.len();
        let mut description = edu();
        let [.., segment, bus] = number.to_be_bytes();
        description.address.segment = segment.into();
        description.address.bus = bus;
        devices.push(Box::leak(Box::new(Mutex::new(FakeDevice {
            kind: Kind::Device(Opened::Cdev),
            description,
            interrupts: false,
            low_power: false,
            is_missing: false,
            quiet: false,
            is_pinned: false,
            reserved: true,
            opened: 0,
        }))));
        self.file_of(number)
    }

    fn file_of(&self, number: usize) -> OwnedFd {
        let file = memfd_create("device", MemfdFlags::CLOEXEC).unwrap();
        self.files
            .lock()
            .unwrap()
            .insert(inode(file.as_fd().into()), number);
        file
    }

    pub(crate) fn device(&self, file: FileRef<'_>) -> MutexGuard<'static, FakeDevice> {
        let number = self.files.lock().unwrap()[&inode(file)];
        self.number(number)
    }

    fn number(&self, number: usize) -> MutexGuard<'static, FakeDevice> {
        let device = self.devices.lock().unwrap()[number];
        device.lock().unwrap()
    }

    /// The number of the device at `address`.
    fn at(&self, address: Address) -> Result<usize, Errno> {
        let devices = self.devices.lock().unwrap();
        let is_at = |device: &&Mutex<FakeDevice>| {
            let device = device.lock().unwrap();
            device.description.address == address && !device.is_missing
        };
        devices.iter().position(is_at).ok_or(Errno::ENODEV)
    }
}

fn inode(file: FileRef<'_>) -> u64 {
    fstat(file.as_fd()).unwrap().st_ino
}

impl VfioBackend for FakeBackend {
    type Pin = ();
    /// Its file, if that crossed, and its number.
    type Found = (Option<OwnedFd>, usize);

    fn crossing(&self) -> Crossing {
        self.crossing
    }

    fn compared(&self) -> Compared {
        self.compared
    }

    fn kind(&self, file: FileRef<'_>) -> Kind {
        self.device(file).kind
    }

    fn address(&self, file: FileRef<'_>) -> Result<Address, Errno> {
        Ok(self.device(file).description.address)
    }

    fn file_id(&self, _: FileRef<'_>) -> Option<u64> {
        None
    }

    fn pin(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, ()), Errno> {
        let mut device = self.device(file);
        if device.is_pinned {
            return Err(Errno::EBUSY);
        }
        let handle = match self.crossing {
            Crossing::OpenFile => host.preserve_file(file)?,
            Crossing::Reopened => 0,
        };
        device.is_pinned = true;
        Ok((handle, ()))
    }

    fn unpin(&self, file: FileRef<'_>, handle: u64, (): &mut (), host: Host<'_>) {
        host.release_file(handle);
        self.device(file).is_pinned = false;
    }

    fn describe(&self, file: FileRef<'_>) -> Result<Description, Errno> {
        let device = self.device(file);
        if device.low_power {
            return Err(Errno::EBUSY);
        }
        Ok(device.description)
    }

    fn quiesce(&self, file: FileRef<'_>, (): &mut ()) -> Result<(), Errno> {
        let mut device = self.device(file);
        if device.interrupts {
            return Err(Errno::EINVAL);
        }
        device.quiet = true;
        Ok(())
    }

    fn resume(&self, file: FileRef<'_>, (): &mut ()) {
        self.device(file).quiet = false;
    }

    fn find(&self, record: &DeviceRecord, host: Host<'_>) -> Result<Self::Found, Errno> {
        let found = match self.crossing {
            Crossing::OpenFile => {
                let file = OwnedFd::from(host.take_file(record.file)?);
                let files = self.files.lock().unwrap();
                let number = files.get(&inode(file.as_fd().into())).copied();
                (Some(file), number.ok_or(Errno::ENODEV)?)
            }
            Crossing::Reopened => (None, self.at(record.description.address)?),
        };
        match self.number(found.1).opened {
            0 => Ok(found),
            _ => Err(Errno::EBUSY),
        }
    }

    fn describe_found(&self, found: &Self::Found) -> Result<Description, Errno> {
        Ok(self.number(found.1).description)
    }

    fn open(&self, (file, number): Self::Found, _: &DeviceRecord) -> Result<OwnedFile, Errno> {
        let mut device = self.number(number);
        // The jump has left nothing of what held it.
        (device.opened, device.quiet, device.is_pinned) = (1, false, false);
        Ok(file.unwrap_or_else(|| self.file_of(number)).into())
    }

    fn finish(&self, record: Option<&DeviceRecord>, retrieved: Retrieved<'_>, host: Host<'_>) {
        if let Some(file) = retrieved.file() {
            self.device(file).opened -= 1;
        } else if let Some(record) = record {
            host.release_file(record.file);
            if let Ok(number) = self.at(record.description.address) {
                self.number(number).reserved = false;
            }
        }
    }
}
