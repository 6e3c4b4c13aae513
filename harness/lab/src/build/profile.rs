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

    /// Kernel parameters that every boot of it needs, with so many bytes of memory.
    pub(crate) fn parameters(self, memory: u64) -> String {
        match self {
            Self::Release | Self::Stick => String::new(),
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
    pub fn guest_memory(self) -> u64 {
        match self {
            Self::Release | Self::Stick => 4 << 30,
            // Of 4 GiB about half would be scratch memory, where nothing can be preserved; and of
            // 6 GiB none of it is in one piece beside a page of 1 GiB.
            Self::Debug => 8 << 30,
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
