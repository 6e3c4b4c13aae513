// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernels that the lab builds.

/// Which kernel: the one to measure, the one that checks itself, or the one for real machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Built as integrators build it.
    #[default]
    Release,
    /// With the kernel's own checks.
    Debug,
    /// For a stick: with the drivers of real machines.
    Stick,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Release, Self::Debug, Self::Stick];

    /// Its name, which is part of the names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
            Self::Stick => "stick",
        }
    }

    /// Kernel parameters that every boot of it needs.
    pub(crate) fn parameters(self) -> &'static str {
        match self {
            Self::Release | Self::Stick => "",
            // KASAN's shadow memory makes KHO ask for scratch memory of a quarter of the machine,
            // in one piece: a kernel at a random address often leaves no such piece. An interrupt
            // while the kernel identifies the processor, when it takes five levels of page tables
            // for four, makes KASAN report memory that is fine.
            Self::Debug => "nokaslr no5lvl",
        }
    }

    /// The compiler, as make takes it: KASAN is allowed beside Rust only with clang.
    pub(crate) fn make_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Release | Self::Stick => &[],
            Self::Debug => &["LLVM=-19"],
        }
    }
}
