// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A handover that a new program inherits as open files: what [`exec`](super::exec) and
//! [`spawn`](super::spawn) have in common.
//!
//! Three sealed memfds cross beside the preserved files: the devicetree, the memory file and the
//! list of files. The environment variable [`HANDOVER_VARIABLE`] names them as
//! `devicetree:memory:files`, each as `descriptor.device.inode`, in decimal. The list has 48 bytes
//! a file, little-endian:
//!
//! ```text
//! handle u64 | descriptor u64 | device u64 | inode u64 | token u64 | 1 if it has a token, u64
//! ```
//!
//! The new program takes a descriptor only if it stands for the file with that device and inode. A
//! variable that was left behind by somebody leads to nothing else.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::sync::Arc;

use luo_handler_api::Token;
use memfd::{FileSeal, MemfdOptions};
use memmap2::Mmap;
use thiserror::Error;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::files::{above_streams, HeldFile, OpenFiles};
use crate::handover::{Arrival, Handover};
use crate::incoming::Incoming;
use crate::memory_file::BadMemory;
use crate::sys::{self, Identity};

/// Where the new process finds the handover.
pub const HANDOVER_VARIABLE: &str = "LUO_HANDOVER";

/// Why a handover could not be taken over.
#[derive(Debug, Error)]
pub enum ArriveError {
    /// The variable does not name three inherited descriptors.
    #[error(
        "{HANDOVER_VARIABLE}={0:?} does not name three inherited memfds; \
         only the transports exec and spawn set it"
    )]
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
    token: U64,
    has_token: U64,
}

/// An inherited descriptor, as an environment variable names it: `descriptor.device.inode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    descriptor: RawFd,
    identity: Identity,
}

impl Inherited {
    /// How this process names `file` to a program that inherits it.
    pub(super) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            descriptor: file.as_raw_fd(),
            identity: Identity::of(file)?,
        })
    }

    /// Takes the descriptor over, if it is there and is the one that is named.
    pub(super) fn adopt(self) -> Option<OwnedFd> {
        sys::adopt_inherited(self.descriptor, self.identity)
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { device, inode } = self.identity;
        write!(f, "{}.{device}.{inode}", self.descriptor)
    }
}

impl FromStr for Inherited {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.splitn(3, '.');
        let mut number = || {
            let digits = numbers.next().filter(|text| !text.starts_with('+'));
            digits?.parse::<u64>().ok()
        };
        let (Some(descriptor), Some(device), Some(inode)) = (number(), number(), number()) else {
            return Err(());
        };
        Ok(Self {
            descriptor: RawFd::try_from(descriptor).map_err(|_| ())?,
            identity: Identity { device, inode },
        })
    }
}

/// The three memfds of a handover, and the files in it.
#[derive(Debug)]
pub(super) struct Packed {
    handed: [OwnedFd; 3],
    files: Vec<Arc<OwnedFd>>,
}

impl Packed {
    /// Packs a handover up. Nothing of it is inheritable yet.
    pub(super) fn new(handover: &Handover<'_>) -> io::Result<Self> {
        let mut files = Vec::new();
        let mut list = Vec::new();
        handover.outgoing.each_file(|held, file| {
            list.push(listed(held, file.as_fd())?);
            files.push(file.clone());
            Ok::<_, io::Error>(())
        })?;
        let devicetree = sealed("luo-devicetree", |mut file| {
            file.write_all(&handover.devicetree)
        })?;
        let memory = sealed("luo-memory", |file| handover.outgoing.write_memory(file))?;
        let list = sealed("luo-files", |mut file| file.write_all(list.as_bytes()))?;
        Ok(Self {
            handed: [devicetree, memory, list],
            files,
        })
    }

    /// The value of [`HANDOVER_VARIABLE`].
    pub(super) fn variable(&self) -> io::Result<String> {
        let names = self.handed.iter().map(|file| Inherited::of(file.as_fd()));
        let names: Vec<String> = names
            .map(|name| Ok(name?.to_string()))
            .collect::<io::Result<_>>()?;
        Ok(names.join(":"))
    }

    /// What the new program has to inherit.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let files = self.files.iter().map(|file| file.as_fd());
        self.handed.iter().map(AsFd::as_fd).chain(files).collect()
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
    // Sealed memfds of a program without standard streams would take their place.
    above_streams(memfd.as_file().as_fd())
}

fn listed(held: HeldFile, file: BorrowedFd<'_>) -> io::Result<ListedFile> {
    let Identity { device, inode } = Identity::of(file)?;
    Ok(ListedFile {
        handle: held.handle.into(),
        descriptor: (file.as_raw_fd() as u64).into(),
        device: device.into(),
        inode: inode.into(),
        token: held.token.map_or(0, |Token(token)| token).into(),
        has_token: u64::from(held.token.is_some()).into(),
    })
}

/// What the old side handed to this process; `None` if this process was started otherwise.
///
/// To be called once, before other threads are started: it takes the environment variable away. A
/// descriptor is taken over only if it is inheritable and stands for the very file that the old
/// side named, so that no descriptor of this process itself is taken, whatever the variable
/// contains. The other way round, this process must not use descriptors that it did not open, as
/// long as it has not called this.
///
/// # Errors
///
/// [`ArriveError`], if the handover as a whole cannot be used. A file that is missing or is another
/// one than was preserved is `ENOENT` to its handler.
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
    let files = adopt_listed(&map(&list, "list of files")?);
    Ok(Some(Arrival {
        devicetree: devicetree.to_vec(),
        incoming: Incoming::new(memory, files)?,
    }))
}

fn map(file: &OwnedFd, name: &'static str) -> Result<Mmap, ArriveError> {
    sys::map_sealed(file).map_err(|error| ArriveError::Unreadable(name, error))
}

fn adopt_three(value: &str) -> Option<[OwnedFd; 3]> {
    let names: Vec<Inherited> = value
        .split(':')
        .map(|name| name.parse().ok())
        .collect::<Option<_>>()?;
    let names: [Inherited; 3] = names.try_into().ok()?;
    let [devicetree, memory, list] = names.map(Inherited::adopt);
    Some([devicetree?, memory?, list?])
}

/// Takes over what the list names, as far as it is what was preserved.
fn adopt_listed(list: &[u8]) -> OpenFiles {
    let listed = list.chunks_exact(size_of::<ListedFile>());
    let files = listed.filter_map(|bytes| {
        let entry = ListedFile::ref_from_bytes(bytes).ok()?;
        let inherited = Inherited {
            descriptor: RawFd::try_from(entry.descriptor.get()).ok()?,
            identity: Identity {
                device: entry.device.get(),
                inode: entry.inode.get(),
            },
        };
        let held = HeldFile {
            handle: entry.handle.get(),
            token: (entry.has_token.get() == 1).then(|| Token(entry.token.get())),
        };
        Some((held, inherited.adopt()?))
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_descriptors_read_back_and_others_do_not() {
        let file = tempfile::tempfile().unwrap();
        let name = Inherited::of(file.as_fd()).unwrap();
        assert_eq!(name.to_string().parse(), Ok(name));
        for wrong in [
            "",
            "3",
            "3.",
            "3.4",
            "3.4.",
            "a.4.5",
            "3.4.5.6",
            "-3.4.5",
            "+3.4.5",
            "3.4.5 ",
            "4294967296.4.5",
        ] {
            assert_eq!(wrong.parse::<Inherited>(), Err(()), "{wrong:?}");
        }
    }
}
