// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a guest's board has on it.

/// The addresses of all devices that vfio-pci takes on the board of [`Machine::Vfio`].
pub(crate) const VFIO_DEVICES: [&str; 9] = [
    "0000:00:10.0",
    "0000:00:11.0",
    "0000:00:12.0",
    "0000:00:13.0",
    "0000:00:14.0",
    "0000:00:15.0",
    "0000:00:16.0",
    "0000:01:00.0",
    "0000:02:00.0",
];

/// What a guest's board has on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// What every guest has, and nothing else.
    #[default]
    Plain,
    /// Also an IOMMU, and PCI devices that vfio-pci takes.
    Vfio,
    /// Its memory and its processors belong to two NUMA nodes.
    Numa,
}

impl Machine {
    /// All names, as `name` has them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Vfio, Self::Numa];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Vfio => "vfio",
            Self::Numa => "numa",
        }
    }

    /// A device with an `addr` is at the same address in every kernel; the buses below the two
    /// ports are 1 and 2.
    #[rustfmt::skip]
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-machine", "q35"],
            Self::Vfio => &[
                // Interrupts can be remapped only where KVM does not take them all itself.
                "-machine", "q35,kernel-irqchip=split",
                "-device", "intel-iommu,intremap=on",
                "-device", "edu,addr=10",
                "-device", "pci-testdev,addr=11",
                "-device", "edu,addr=12",
                "-device", "edu,addr=13",
                "-device", "edu,addr=14",
                "-device", "edu,addr=15",
                "-device", "edu,addr=16",
                "-device", "pcie-root-port,addr=18,id=one,chassis=1",
                "-device", "pcie-root-port,addr=19,id=other,chassis=2",
                "-device", "edu,bus=one",
                "-device", "pci-testdev,bus=other",
            ],
            Self::Numa => &[
                "-machine", "q35",
                "-numa", "node,nodeid=0,cpus=0,memdev=node0",
                "-numa", "node,nodeid=1,cpus=1,memdev=node1",
            ],
        }
    }

    /// Its memory, of so many bytes; the nodes of a board that has several have equal shares of it.
    pub(crate) fn memory_arguments(self, bytes: u64) -> Vec<String> {
        let mut arguments = vec!["-m".into(), format!("{}M", bytes >> 20)];
        if self == Self::Numa {
            for node in 0..2 {
                let object = format!("memory-backend-ram,id=node{node},size={}M", bytes >> 21);
                arguments.extend(["-object".into(), object]);
            }
        }
        arguments
    }

    /// Its processors: so many, but for a board with two nodes, each of which has one.
    pub(crate) fn processor_arguments(self, cpus: u32) -> [String; 2] {
        let processors = match self {
            Self::Plain | Self::Vfio => cpus.to_string(),
            Self::Numa => "2,sockets=2".into(),
        };
        ["-smp".into(), processors]
    }

    /// The parameters that its kernel needs.
    pub(crate) fn parameters(self) -> &'static str {
        match self {
            Self::Plain | Self::Numa => "",
            Self::Vfio => "intel_iommu=on vfio-pci.ids=1234:11e8,1b36:0005",
        }
    }
}
