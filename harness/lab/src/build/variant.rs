// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Kernels that differ from the lab's in a few options, for tests that jump from one to another.
//! They are built when a test wants them, each from a copy of the lab's objects, so that one takes
//! little more than a link.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// As it comes from kernel.org: without our handlers, with the kernel's own.
    Stock,
    /// Without our handler of ports, and without the kernel's own handler of memfds.
    Lacking,
}

impl Variant {
    /// Its name, which is part of the names of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Lacking => "lacking",
        }
    }

    /// Where a guest finds it, in the directory that it shares with the host.
    pub(crate) fn file_in_results(self) -> String {
        format!("kernel-{}", self.name())
    }

    /// What it has instead: lines of a configuration that come after all others.
    pub(crate) fn options(self) -> &'static str {
        match self {
            Self::Stock => "# CONFIG_LUO_HANDLERS is not set\n",
            Self::Lacking => {
                "# CONFIG_LUO_HANDLER_IOPORT is not set\n# CONFIG_LIVEUPDATE_MEMFD is not set\n"
            }
        }
    }
}
