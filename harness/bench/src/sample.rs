// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One file of a case: made on the old side, compared on the new one.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use luo_handler_api::Token;
use serde::{Deserialize, Serialize};

use crate::subject::ioport::PortFile;
use crate::subject::memfd::{MakeError, MemfdBefore, Workload};
use crate::subject::{program, vfio, Subject};

/// One file of a case: the same values always make the same file.
pub struct Sample {
    /// The name under which it crosses.
    pub token: Token,
    contents: Contents,
}

enum Contents {
    Memfd(Workload),
    /// The device that is the so-manyth by its address, counted from 0.
    Vfio(usize),
    Ioport(PortFile),
    /// A program, and the number of the file that it makes.
    Program(PathBuf, u64),
}

/// What was known of a sample before the jump, beside what it is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Before {
    /// Of a memfd.
    Memfd(MemfdBefore),
    /// Of a file without anything that its host could change.
    Nothing,
}

impl Before {
    /// Bytes that lie in huge pages; `None` where that is not known.
    pub const fn huge_page_bytes(&self) -> Option<u64> {
        match self {
            Self::Memfd(before) => before.huge_page_bytes,
            Self::Nothing => Some(0),
        }
    }
}

impl Sample {
    /// File `number` of a case; they are counted from 1.
    pub fn new(subject: &Subject, number: u64) -> Self {
        let contents = match *subject {
            Subject::Memfd { size, pages, fill } => Contents::Memfd(Workload {
                size,
                pages,
                fill,
                seed: number,
            }),
            Subject::Vfio => Contents::Vfio(number as usize - 1),
            Subject::Ioport => Contents::Ioport(PortFile::numbered(number)),
            Subject::Program(ref path) => Contents::Program(path.clone(), number),
        };
        Self {
            token: Token(number),
            contents,
        }
    }

    /// Bytes of data in it.
    pub fn data_bytes(&self) -> u64 {
        match &self.contents {
            Contents::Memfd(workload) => workload.data_bytes(),
            Contents::Vfio(_) | Contents::Ioport(_) | Contents::Program(..) => 0,
        }
    }

    /// Makes it. `progress` gets the bytes as they are written.
    ///
    /// # Errors
    ///
    /// [`MakeError`], in particular if the machine has no such file.
    pub fn make(&self, progress: impl Fn(u64)) -> Result<File, MakeError> {
        let unavailable = |error| MakeError::Unavailable(format!("{error:#}"));
        match &self.contents {
            Contents::Memfd(workload) => workload.make(progress),
            Contents::Vfio(index) => vfio::device(*index)
                .and_then(|address| vfio::make(&address))
                .map_err(unavailable),
            Contents::Ioport(port) => port.make().map_err(unavailable),
            Contents::Program(path, number) => program::make(path, *number)
                .map_err(|error| MakeError::Program(format!("{error:#}"))),
        }
    }

    /// What has to be known of a file that was just made.
    ///
    /// # Errors
    ///
    /// Those of the system calls.
    pub fn look(&self, file: &File) -> io::Result<Before> {
        match &self.contents {
            Contents::Memfd(workload) => workload.look(file).map(Before::Memfd),
            Contents::Vfio(_) | Contents::Ioport(_) | Contents::Program(..) => Ok(Before::Nothing),
        }
    }

    /// Compares what crossed with what was made. `progress` gets the bytes as they are compared,
    /// from any thread.
    ///
    /// # Errors
    ///
    /// What differs.
    pub fn verify(
        &self,
        before: &Before,
        file: BorrowedFd<'_>,
        progress: impl Fn(u64) + Sync,
    ) -> Result<()> {
        let verified = match (&self.contents, before) {
            (Contents::Memfd(workload), Before::Memfd(before)) => workload
                .verify_as(*before, file, progress)
                .map_err(Into::into),
            (Contents::Vfio(index), _) => {
                vfio::device(*index).and_then(|address| vfio::verify(file, &address))
            }
            (Contents::Ioport(port), _) => port.verify(file),
            (Contents::Program(path, number), _) => program::verify(path, *number, file),
            (Contents::Memfd(_), Before::Nothing) => {
                ensure!(false, "what was known of it before the jump is missing");
                Ok(())
            }
        };
        verified.with_context(|| format!("file {}", self.token))
    }
}
