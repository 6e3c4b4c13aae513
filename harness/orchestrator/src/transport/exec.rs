// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Zero copy: the process replaces itself by an `execve(2)`, and inherits what handlers kept.
//!
//! Three sealed memfds cross beside the kept files: the devicetree, the memory file (see
//! [`outgoing`](crate::outgoing)) and the list of files. Their numbers are in the environment variable
//! [`HANDOVER_VARIABLE`], as `devicetree:memory:files`. The list has 32 bytes a file, little-endian:
//!
//! ```text
//! handle u64 | descriptor u64 | device u64 | inode u64
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use luo_handler_api::Errno;
use memfd::{FileSeal, MemfdOptions};
use memmap2::Mmap;
use thiserror::Error;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::incoming::{BadMemory, FileSource, Incoming};
use crate::orchestrator::{Arrival, Handover};
use crate::sys;

/// Where the new process finds the handover.
pub const HANDOVER_VARIABLE: &str = "LUO_HANDOVER";

/// Why a handover could not be taken over.
#[derive(Debug, Error)]
pub enum ArriveError {
    /// The variable does not name three inherited descriptors.
    #[error("{HANDOVER_VARIABLE}={0:?} does not name three inherited memfds; it is set by the exec transport alone")]
    Variable(String),
    /// One of the three cannot be read.
    #[error("cannot read the {0} that was handed over: {1}")]
    Unreadable(&'static str, io::Error),
    /// The memory file is bad.
    #[error(transparent)]
    Memory(#[from] BadMemory),
}

/// A file as the list has it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ListedFile {
    handle: U64,
    descriptor: U64,
    device: U64,
    inode: U64,
}

/// Everything that is to be inherited is ready; one call is left.
#[derive(Debug)]
pub struct Departure<'a> {
    command: &'a mut Command,
    /// The devicetree, the memory file and the list; they close when the jump fails.
    handed: [OwnedFd; 3],
}

impl<'a> Departure<'a> {
    /// Makes `command` inherit the standard streams, what the handover names, and nothing else.
    ///
    /// From here on other threads that start programs hand these files to them as well.
    ///
    /// # Errors
    ///
    /// Those of the system calls: nothing is inheritable then.
    pub fn new(handover: &Handover<'_>, command: &'a mut Command) -> io::Result<Self> {
        let devicetree = sealed("luo-devicetree", |mut file| {
            file.write_all(&handover.devicetree)
        })?;
        let memory = sealed("luo-memory", |file| handover.outgoing.write_memory(file))?;
        let list = sealed("luo-files", |mut file| {
            file.write_all(list_files(handover)?.as_bytes())
        })?;
        let handed = [devicetree, memory, list];
        let numbers = handed.each_ref().map(|fd| fd.as_raw_fd().to_string());
        command.env(HANDOVER_VARIABLE, numbers.join(":"));
        let departure = Self { command, handed };
        sys::inherit_only(departure.handed.iter().map(AsFd::as_fd))?;
        handover.outgoing.each_file(|_, file| {
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).map_err(io::Error::from)
        })?;
        Ok(departure)
    }

    /// The program to come, to tell it more.
    pub fn command(&mut self) -> &mut Command {
        self.command
    }

    /// Replaces this process.
    ///
    /// Returns only if that failed. The update can be unfrozen then; no descriptor above the standard
    /// streams is inheritable any more.
    pub fn jump(self) -> io::Error {
        sys::exec(self.command)
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.command.env_remove(HANDOVER_VARIABLE);
        // If even this fails, descriptors leak to programs started later, and nothing worse.
        let _ = sys::inherit_nothing();
    }
}

fn sealed(name: &str, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<OwnedFd> {
    let memfd = MemfdOptions::default()
        .allow_sealing(true)
        .create(name)
        .map_err(io::Error::other)?;
    write(memfd.as_file())?;
    memfd
        .add_seals(&[
            FileSeal::SealShrink,
            FileSeal::SealGrow,
            FileSeal::SealWrite,
            FileSeal::SealSeal,
        ])
        .map_err(io::Error::other)?;
    Ok(memfd.into_file().into())
}

fn list_files(handover: &Handover<'_>) -> io::Result<Vec<ListedFile>> {
    let mut list = Vec::new();
    handover.outgoing.each_file(|handle, file| {
        let (device, inode) = identity(file)?;
        list.push(ListedFile {
            handle: handle.into(),
            descriptor: (file.as_raw_fd() as u64).into(),
            device: device.into(),
            inode: inode.into(),
        });
        Ok::<_, io::Error>(())
    })?;
    Ok(list)
}

fn identity(file: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// What an exec of the old side brought to this process; `None` if this process was started otherwise.
///
/// To be called once, before other threads are started: it takes the environment variable away.
///
/// # Errors
///
/// [`ArriveError`], if the handover as a whole cannot be used. A file that is missing or is another
/// one than was kept is `ENOENT` to its handler.
pub fn arrive() -> Result<Option<Arrival>, ArriveError> {
    let Some(value) = std::env::var_os(HANDOVER_VARIABLE) else {
        return Ok(None);
    };
    std::env::remove_var(HANDOVER_VARIABLE);
    let value = value.to_string_lossy().into_owned();
    let Some([devicetree, memory, list]) = adopt_three(&value) else {
        return Err(ArriveError::Variable(value));
    };
    let devicetree = map(&devicetree, "devicetree")?;
    let memory = map(&memory, "memory file")?;
    let files = Inherited::adopt(&map(&list, "list of files")?);
    Ok(Some(Arrival {
        devicetree: devicetree.to_vec(),
        incoming: Incoming::new(memory, files)?,
    }))
}

fn map(file: &OwnedFd, name: &'static str) -> Result<Mmap, ArriveError> {
    sys::map_sealed(file).map_err(|error| ArriveError::Unreadable(name, error))
}

fn adopt_three(value: &str) -> Option<[OwnedFd; 3]> {
    let numbers: Vec<RawFd> = value
        .split(':')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let fds: Vec<OwnedFd> = numbers
        .into_iter()
        .map(sys::adopt_inherited)
        .collect::<Option<_>>()?;
    fds.try_into().ok()
}

/// Kept files on the new side, by handle. Those that nobody takes close with it.
#[derive(Debug)]
struct Inherited {
    files: Mutex<HashMap<u64, OwnedFd>>,
}

impl Inherited {
    /// Takes over what the list names, as far as it is what was kept.
    fn adopt(list: &[u8]) -> Self {
        let listed = list.chunks_exact(size_of::<ListedFile>());
        let files = listed.filter_map(|bytes| {
            let entry = ListedFile::ref_from_bytes(bytes).ok()?;
            let number = RawFd::try_from(entry.descriptor.get()).ok()?;
            let file = sys::adopt_inherited(number)?;
            let expected = (entry.device.get(), entry.inode.get());
            let same = identity(&file).is_ok_and(|found| found == expected);
            same.then(|| (entry.handle.get(), file))
        });
        Self {
            files: Mutex::new(files.collect()),
        }
    }

    fn remove(&self, handle: u64) -> Option<OwnedFd> {
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&handle)
    }
}

impl FileSource for Inherited {
    fn take(&self, handle: u64) -> Result<OwnedFd, Errno> {
        self.remove(handle).ok_or(Errno::ENOENT)
    }

    fn release(&self, handle: u64) {
        drop(self.remove(handle));
    }
}
