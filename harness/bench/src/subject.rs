// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What is measured with: files of a type.
//!
//! - [`memfd`]: large memfds, by [`pages`], [`fill`], `pattern` and `permutation`
//! - [`vfio`]: devices that are bound to vfio-pci
//! - [`ioport`]: files of `/dev/port`
//! - [`program`]: files of any type, which a program of the user makes and compares

pub mod fill;
pub mod ioport;
pub mod memfd;
pub mod pages;
mod pattern;
mod permutation;
pub mod program;
pub mod vfio;

use std::fmt;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use fill::Fill;
use pages::Pages;

/// A type of files that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// Memfds of each size, page kind and fill.
    Memfd,
    /// Devices that are bound to vfio-pci, the first ones by their addresses; for root.
    Vfio,
    /// Files of `/dev/port`, each at another port; for root.
    Ioport,
}

/// The files of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// Memfds.
    Memfd {
        /// Of each, in bytes.
        size: u64,
        /// What it is made of.
        pages: Pages,
        /// What is filled.
        fill: Fill,
    },
    /// Devices.
    Vfio,
    /// Files of `/dev/port`.
    Ioport,
    /// What this program makes.
    Program(PathBuf),
}

impl Subject {
    /// Bytes of a file, holes among them; 0 if it is not a memfd.
    pub const fn size(&self) -> u64 {
        match self {
            Self::Memfd { size, .. } => *size,
            Self::Vfio | Self::Ioport | Self::Program(_) => 0,
        }
    }

    /// Whether its pages are put into huge ones before prepare.
    pub const fn is_collapsed(&self) -> bool {
        matches!(
            self,
            Self::Memfd {
                pages: Pages::Collapsed,
                ..
            }
        )
    }

    /// The compatible of this project's handler of such files, if there is one.
    pub const fn compatible(&self) -> &'static str {
        match self {
            Self::Memfd { .. } => "luo-handlers,memfd-v1",
            Self::Vfio => "luo-handlers,vfio-v1",
            Self::Ioport => "luo-handlers,ioport-v1",
            Self::Program(_) => "",
        }
    }

    /// The name of the program that makes them, if one does.
    pub fn program(&self) -> Option<String> {
        match self {
            Self::Program(path) => Some(name_of(path)),
            _ => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memfd { size, pages, fill } => write!(f, "{} {pages} {fill}", ByteSize(*size)),
            Self::Vfio => f.write_str("vfio"),
            Self::Ioport => f.write_str("ioport"),
            Self::Program(path) => f.write_str(&name_of(path)),
        }
    }
}

fn name_of(program: &Path) -> String {
    let name = program.file_name().unwrap_or(program.as_os_str());
    name.to_string_lossy().into_owned()
}
