// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Why a kernel image cannot be read.

use std::io;

/// The most that a part of an image may have, compressed or not, in bytes.
pub const LIMIT: u64 = 512 << 20;

/// Why a kernel image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("reading the file")]
    Read(#[from] io::Error),
    /// The file is something else.
    #[error(
        "this is not a kernel that can be checked: {0}; it takes a bzImage, a \
             vmlinux or a unified kernel image, for 64 bits"
    )]
    NotAKernel(&'static str),
    /// A part that the file names is not in it.
    #[error("the image is truncated: {0} is not in the file")]
    Truncated(&'static str),
    /// A part that no kernel has so large.
    #[error("{what} is larger than {limit} bytes, the most that a kernel is expected to have")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A part that cannot be understood.
    #[error("the image is damaged: {what}: {reason}")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// A compression without a decoder here.
    #[error(
        "the kernel is compressed with {0}, which this cannot read; check its vmlinux instead"
    )]
    Compression(&'static str),
}

impl ImageError {
    pub(crate) fn damaged(what: &'static str, reason: impl ToString) -> Self {
        Self::Damaged {
            what,
            reason: reason.to_string(),
        }
    }
}
