// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Kernels for tests that jump from one to another. They are built when a test wants them: those
//! that differ from the lab's in a few options each from a copy of the lab's objects, so that one
//! takes little more than a link.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// As it comes from kernel.org: without our handlers, with the kernel's own.
    Stock,
    /// Without our handler of ports, those that are not ours, and the kernel's own of memfds.
    Lacking,
    /// Without huge pages, which most of a kernel's objects depend on.
    WithoutHugetlb,
    /// As the lab's, of the series before the one that the handlers are developed on.
    Earlier,
}

/// The switches of the handlers that [`Variant::Lacking`] has.
const NOT_LACKING: [&str; 3] = ["MEMFD", "VFIO", "LINEAGE"];

impl Variant {
    /// Its name, which is part of the names of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Lacking => "lacking",
            Self::WithoutHugetlb => "without-hugetlb",
            Self::Earlier => "earlier",
        }
    }

    /// Where a guest finds it, in the directory that it shares with the host.
    pub(crate) fn file_in_results(self) -> String {
        format!("kernel-{}", self.name())
    }

    /// The package of its source, if that is another one than the lab's.
    pub(crate) fn package(self) -> Option<&'static str> {
        match self {
            Self::Stock | Self::Lacking | Self::WithoutHugetlb => None,
            Self::Earlier => Some("linux-source-7.2"),
        }
    }

    /// What it has instead of what the lab's kernel has by its configuration: lines that come after
    /// all others.
    pub(crate) fn options(self, configuration: &str) -> String {
        match self {
            Self::Stock => "# CONFIG_LUO_HANDLERS is not set\n".to_owned(),
            Self::Lacking => {
                let handlers = configuration.lines().filter_map(|line| {
                    let name = line.strip_prefix("CONFIG_LUO_HANDLER_")?;
                    name.strip_suffix("=y")
                });
                handlers
                    .filter(|name| !NOT_LACKING.contains(name))
                    .map(|name| format!("# CONFIG_LUO_HANDLER_{name} is not set\n"))
                    .chain(["# CONFIG_LIVEUPDATE_MEMFD is not set\n".to_owned()])
                    .collect()
            }
            Self::WithoutHugetlb => "# CONFIG_HUGETLBFS is not set\n".to_owned(),
            Self::Earlier => String::new(),
        }
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_kernel_lacks_the_handlers_that_are_not_named() {
        let configuration = "CONFIG_LUO_HANDLERS=y\nCONFIG_LUO_HANDLER_MEMFD=y\n\
                             CONFIG_LUO_HANDLER_IOPORT=y\nCONFIG_LUO_HANDLER_PIPE=y\n\
                             # CONFIG_LUO_HANDLER_OTHER is not set\n";
        assert_eq!(
            Variant::Lacking.options(configuration),
            "# CONFIG_LUO_HANDLER_IOPORT is not set\n# CONFIG_LUO_HANDLER_PIPE is not set\n\
             # CONFIG_LIVEUPDATE_MEMFD is not set\n"
        );
    }
}
