// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What is measured with: files of a type, made on the old side and compared on the new one.

use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::fd::BorrowedFd;

use anyhow::{anyhow, Context, Result};
use bytesize::ByteSize;
use luo_handler_ioport::record::PORTS;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::port::PortFile;
use crate::vfio;
use crate::workload::{meminfo, Fill, MakeError, Pages, Workload};
use crate::{Case, Transport};

/// A handler whose files can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Handler {
    /// Memfds of each size, page kind and fill
    Memfd,
    /// Devices that are bound to vfio-pci, the first ones by their addresses; for root
    Vfio,
    /// Files of /dev/port, each at another port; for root
    Ioport,
}

/// The files of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "handler")]
pub enum Subject {
    /// Memfds.
    #[serde(rename = "memfd-v1")]
    Memfd {
        /// Of each, in bytes.
        size: u64,
        /// What it is made of.
        pages: Pages,
        /// What is filled.
        fill: Fill,
    },
    /// Devices.
    #[serde(rename = "vfio-v1")]
    Vfio,
    /// Files of `/dev/port`.
    #[serde(rename = "ioport-v1")]
    Ioport,
}

/// One of these files: the same values always make the same file.
pub enum Sample {
    Memfd(Workload),
    /// The device that is the so-manyth by its address.
    Vfio(usize),
    Ioport(PortFile),
}

impl Subject {
    /// Bytes of a file, holes among them; what is no memfd has none.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memfd { size, .. } => *size,
            Self::Vfio | Self::Ioport => 0,
        }
    }

    /// File `number`; they are counted from 1.
    pub fn sample(&self, number: u64) -> Sample {
        match *self {
            Self::Memfd { size, pages, fill } => Sample::Memfd(Workload {
                size,
                pages,
                fill,
                seed: number,
            }),
            Self::Vfio => Sample::Vfio(number as usize - 1),
            Self::Ioport => Sample::Ioport(PortFile {
                position: number % PORTS,
                flags: OFlags::RDWR,
            }),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memfd { size, pages, fill } => write!(f, "{} {pages} {fill}", ByteSize(*size)),
            Self::Vfio => f.write_str("vfio"),
            Self::Ioport => f.write_str("ioport"),
        }
    }
}

impl Sample {
    /// Bytes of data in it.
    pub fn data_bytes(&self) -> u64 {
        match self {
            Self::Memfd(workload) => workload.data_bytes(),
            Self::Vfio(_) | Self::Ioport(_) => 0,
        }
    }

    /// Makes it. `progress` is told the bytes as they are written.
    pub fn make(&self, progress: impl Fn(u64)) -> Result<File, MakeError> {
        let unavailable = |error| MakeError::Unavailable(format!("{error:#}"));
        match self {
            Self::Memfd(workload) => workload.make(progress),
            Self::Vfio(index) => open_device(*index).map_err(unavailable),
            Self::Ioport(port) => open_port(port).map_err(unavailable),
        }
    }

    /// Compares what crossed with what was made. `progress` is told the bytes as they are compared, from any thread.
    pub fn verify(&self, file: BorrowedFd<'_>, progress: impl Fn(u64) + Sync) -> Result<()> {
        match self {
            Self::Memfd(workload) => {
                let verified = workload.verify(file, progress);
                verified.with_context(|| format!("memfd {}", workload.seed))
            }
            Self::Vfio(index) => vfio::verify(file, &device(*index)?),
            Self::Ioport(port) => {
                let verified = port.verify(file);
                verified.with_context(|| format!("the file of port {:#x}", port.position))
            }
        }
    }
}

fn device(index: usize) -> Result<String> {
    let devices = vfio::bound_devices();
    let device = devices.get(index).cloned();
    device.with_context(|| too_few_devices(index + 1, devices.len()))
}

fn open_device(index: usize) -> Result<File> {
    let cdev = vfio::open_cdev(&device(index)?)?;
    vfio::bind(cdev.try_clone()?)?;
    Ok(cdev)
}

fn open_port(port: &PortFile) -> Result<File> {
    let mut file = port.open().map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::NotFound => "; a kernel with CONFIG_DEVPORT has it",
            ErrorKind::PermissionDenied => {
                "; it takes root, CAP_SYS_RAWIO and a kernel that is not locked down"
            }
            _ => "",
        };
        anyhow!("cannot open /dev/port: {error}{advice}")
    })?;
    file.seek(SeekFrom::Start(port.position))?;
    Ok(file)
}

fn too_few_devices(needed: usize, found: usize) -> String {
    format!(
        "devices bound to vfio-pci: {found}, needed: {needed}; to bind one, as root: modprobe vfio-pci; \
         cd /sys/bus/pci/devices/ADDRESS; echo vfio-pci > driver_override; echo ADDRESS > driver/unbind; \
         echo ADDRESS > /sys/bus/pci/drivers_probe"
    )
}

/// Why this machine cannot do a case here and now, as far as that is known without making all of them.
pub fn obstacle(case: &Case) -> Option<String> {
    match case.subject {
        Subject::Memfd { pages, .. } => memfds_obstacle(case, pages),
        Subject::Vfio if case.transport == Transport::Image => Some(
            "an image holds contents, and a device has none; exec hands open files over".into(),
        ),
        Subject::Vfio => {
            let (needed, found) = (case.files as usize, vfio::bound_devices().len());
            (found < needed).then(|| too_few_devices(needed, found))
        }
        Subject::Ioport => {
            let port = case.subject.sample(1).make(|_| ());
            port.err().map(|error| error.to_string())
        }
    }
}

fn memfds_obstacle(case: &Case, pages: Pages) -> Option<String> {
    // An image and what is made from it are there beside the memfds themselves.
    let copies = match case.transport {
        Transport::Exec | Transport::Kexec => 1,
        Transport::Image => 3,
    };
    if case.transport == Transport::Kexec && pages == Pages::Hugetlb {
        return Some("the kernel keeps no memfds of hugetlb pages".to_owned());
    }
    let needed = case.data_bytes().saturating_mul(copies);
    let available = meminfo("MemAvailable:")?;
    (needed > available).then(|| {
        format!(
            "it needs {} of memory, {} are available",
            ByteSize(needed),
            ByteSize(available)
        )
    })
}
