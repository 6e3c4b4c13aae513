// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A backend in memory, for tests of the policy.

use std::{fs::File, os::fd::OwnedFd, sync::Mutex};

use luo_handler_api::{Errno, FileRef, Host, OwnedFile, Retrieved};

use crate::{
    backend::{Kind, VfioBackend},
    description::{Address, Compared, Description, Opened},
    imagined::edu,
    record::{Crossing, DeviceRecord},
};

/// A backend that has one device.
#[derive(Debug)]
pub(crate) struct FakeBackend {
    crossing: Crossing,
    compared: Compared,
    pub(crate) device: Mutex<FakeDevice>,
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
    /// How many times it is held.
    pub(crate) pins: u32,
    /// Whether only its file can be opened that crossed.
    pub(crate) reserved: bool,
    /// How many files were made of it and not finished.
    pub(crate) opened: u32,
}

impl FakeBackend {
    pub(crate) fn new(crossing: Crossing, compared: Compared) -> Self {
        Self {
            crossing,
            compared,
            device: Mutex::new(FakeDevice {
                kind: Kind::Device(Opened::Cdev),
                description: edu(),
                interrupts: false,
                low_power: false,
                is_missing: false,
                quiet: false,
                pins: 0,
                reserved: true,
                opened: 0,
            }),
        }
    }
}

impl VfioBackend for FakeBackend {
    type Pin = ();
    type Found = Option<OwnedFile>;

    fn crossing(&self) -> Crossing {
        self.crossing
    }

    fn compared(&self) -> Compared {
        self.compared
    }

    fn kind(&self, _: FileRef<'_>) -> Kind {
        self.device.lock().unwrap().kind
    }

    fn address(&self, _: FileRef<'_>) -> Result<Address, Errno> {
        Ok(self.device.lock().unwrap().description.address)
    }

    fn file_id(&self, _: FileRef<'_>) -> Option<u64> {
        None
    }

    fn pin(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, ()), Errno> {
        let handle = match self.crossing {
            Crossing::OpenFile => host.preserve_file(file)?,
            Crossing::Reopened => 0,
        };
        self.device.lock().unwrap().pins += 1;
        Ok((handle, ()))
    }

    fn unpin(&self, _: FileRef<'_>, handle: u64, (): &mut (), host: Host<'_>) {
        host.release_file(handle);
        self.device.lock().unwrap().pins -= 1;
    }

    fn describe(&self, _: FileRef<'_>) -> Result<Description, Errno> {
        let device = self.device.lock().unwrap();
        if device.low_power {
            return Err(Errno::EBUSY);
        }
        Ok(device.description)
    }

    fn quiesce(&self, _: FileRef<'_>, (): &mut ()) -> Result<(), Errno> {
        let mut device = self.device.lock().unwrap();
        if device.interrupts {
            return Err(Errno::EINVAL);
        }
        device.quiet = true;
        Ok(())
    }

    fn resume(&self, _: FileRef<'_>, (): &mut ()) {
        self.device.lock().unwrap().quiet = false;
    }

    fn find(&self, record: &DeviceRecord, host: Host<'_>) -> Result<Self::Found, Errno> {
        let device = self.device.lock().unwrap();
        if device.is_missing {
            return Err(Errno::ENODEV);
        }
        if device.opened > 0 {
            return Err(Errno::EBUSY);
        }
        match self.crossing {
            Crossing::OpenFile => host.take_file(record.file).map(Some),
            Crossing::Reopened => Ok(None),
        }
    }

    fn describe_found(&self, _: &Self::Found) -> Result<Description, Errno> {
        Ok(self.device.lock().unwrap().description)
    }

    fn open(&self, found: Self::Found, _: &DeviceRecord) -> Result<OwnedFile, Errno> {
        self.device.lock().unwrap().opened += 1;
        match found {
            Some(file) => Ok(file),
            None => Ok(OwnedFd::from(File::open("/dev/null")?).into()),
        }
    }

    fn finish(&self, record: Option<&DeviceRecord>, retrieved: Retrieved<'_>, host: Host<'_>) {
        let mut device = self.device.lock().unwrap();
        device.reserved = false;
        match retrieved.file() {
            Some(_) => device.opened -= 1,
            None => host.release_file(record.map_or(0, |record| record.file)),
        }
    }
}
