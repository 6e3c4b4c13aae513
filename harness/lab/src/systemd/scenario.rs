// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the guests with systemd do: a guest for each scenario.

/// What a guest with systemd does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Services store memfds; our handlers take them over two kexecs.
    Ours,
    /// The same with the kernel's own handler.
    MainlineC,
    /// The steps of systemd's own test, with our handlers.
    Upstream,
    /// `luo bench` jumps, and its unit continues.
    Bench,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ours, Self::MainlineC, Self::Upstream, Self::Bench];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::MainlineC => "mainline-c",
            Self::Upstream => "upstream",
            Self::Bench => "bench-unit",
        }
    }

    /// The one with this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.name() == name)
    }

    /// How many of its kernels have to report that all is well.
    pub(crate) fn kernels(self) -> usize {
        match self {
            Self::Ours | Self::MainlineC => KEXECS + 1,
            Self::Upstream => 2,
            // The first one is left by `luo bench`.
            Self::Bench => 1,
        }
    }

    /// Whether services store files, and report what they find again.
    pub(crate) fn has_services(self) -> bool {
        matches!(self, Self::Ours | Self::MainlineC)
    }

    /// The parameters of each of its kernels.
    pub(crate) fn parameters(self) -> &'static str {
        match self {
            Self::Ours | Self::Upstream | Self::Bench => "",
            Self::MainlineC => "luo_handlers.disable=memfd",
        }
    }
}

/// So many kexecs are made in a scenario with services.
pub(crate) const KEXECS: usize = 2;

/// What brings the services to look at what they stored.
pub(crate) mod step {
    pub(crate) const START: &str = "first start";
    pub(crate) const RESTART: &str = "restart";
    pub(crate) const CRASH: &str = "crash";
    pub(crate) const REEXEC: &str = "daemon-reexec";
    pub(crate) const SOFT_REBOOT: &str = "soft-reboot";

    /// The kexec after so many others.
    pub(crate) fn kexec(number: usize) -> String {
        format!("kexec {number}")
    }
}
