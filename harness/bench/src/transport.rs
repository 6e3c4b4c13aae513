// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The ways over the jump.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the jump is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The process replaces itself and inherits everything: nothing is copied.
    Exec,
    /// Contents go to a directory, and a process that inherits nothing reads them.
    Image,
    /// The kernel preserves the files while this machine jumps into the next one.
    Kexec,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Exec => "exec",
            Self::Image => "image",
            Self::Kexec => "kexec",
        })
    }
}
