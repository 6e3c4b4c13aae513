// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Why an image could not be written or read: always with the file.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::memory_file::BadMemory;

/// Why an image could not be written or read.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A file could not be written or read.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    File {
        /// `write`, `read` and the like.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A preserved file is not one whose contents can be stored.
    #[error(
        "the file with handle {handle} is not a memfd, so an image cannot hold it; \
         use another transport"
    )]
    NotAMemfd {
        /// Its handle.
        handle: u64,
    },
    /// The directory holds no image.
    #[error("{} holds no image: no complete one was ever written there", .0.display())]
    NoImage(PathBuf),
    /// A file is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The memory file is bad.
    #[error(transparent)]
    Memory(#[from] BadMemory),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
            "; the image that was there before is untouched, make room and try again"
        }
        _ => "",
    }
}

/// Names the file of an error.
pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File {
        action,
        path,
        source,
    }
}
