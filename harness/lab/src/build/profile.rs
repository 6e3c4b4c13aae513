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

    /// Kernel parameters that every boot of it needs, with so many bytes of memory.
    pub(crate) fn parameters(self, memory: u64) -> String {
        match self {
            Self::Release => String::new(),
            // By default KHO takes twice what was reserved at boot, KASAN's shadow of an eighth of
            // the memory included, for scratch memory, and as much again on a node, in one piece: a
            // kernel at a random address, or a machine with two nodes, has no such piece. An
            // interrupt while the kernel identifies the processor, when it takes five levels of
            // page tables for four, makes KASAN report memory that is fine.
            Self::Debug => {
                let global = 1024 + (memory >> 20) * 3 / 16;
                format!("nokaslr no5lvl kho_scratch=128M,{global}M,256M")
            }
        }
    }

    /// Bytes of memory that a guest needs for every job.
    pub(crate) fn guest_memory(self) -> u64 {
        match self {
            Self::Release => 4 << 30,
            // Of 4 GiB about half would be scratch memory, where nothing can be preserved.
            Self::Debug => 6 << 30,
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
