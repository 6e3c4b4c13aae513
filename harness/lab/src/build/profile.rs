// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The two kernels that the lab builds.

/// Which kernel: the one to measure, or the one that checks itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Built as integrators build it.
    #[default]
    Release,
    /// With the kernel's own checks.
    Debug,
}

impl Profile {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Release, Self::Debug];

    /// Its name, which is part of the names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }

    /// Kernel parameters that every boot of it needs.
    pub(crate) fn parameters(self) -> &'static str {
        match self {
            Self::Release => "",
            // KASAN's shadow memory makes KHO ask for scratch memory of a quarter of the machine,
            // in one piece: a kernel at a random address often leaves no such piece. An interrupt
            // while the kernel identifies the processor, when it takes five levels of page tables
            // for four, makes KASAN report memory that is fine.
            Self::Debug => "nokaslr no5lvl",
        }
    }

    /// Bytes of memory that a guest needs for every job.
    pub(crate) fn guest_memory(self) -> u64 {
        match self {
            Self::Release => 4 << 30,
            // Of 4 GiB more than half would be scratch memory, where nothing can be preserved.
            Self::Debug => 8 << 30,
        }
    }

    /// The compiler, as make takes it: KASAN is allowed beside Rust only with clang.
    pub(crate) fn make_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Release => &[],
            Self::Debug => &["LLVM=-19"],
        }
    }
}
