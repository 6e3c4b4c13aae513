// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What may be asked of a build.

use std::path::PathBuf;

use crate::build::profile::Profile;
use crate::build::variant::Variant;

/// The init of the guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// The program that does one job after the other.
    #[default]
    Luo,
    /// Debian's systemd.
    Systemd,
}

/// Where the kernel's source is from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KernelSource {
    /// Debian's package of the series that the handlers are developed on.
    #[default]
    Preferred,
    /// Another package of Debian's, such as `linux-source-7.2`.
    Package(String),
    /// A tree of the user's, which gets the handlers as `luo integrate` puts them in. It must not
    /// have been built in: objects are in the cache.
    Tree(PathBuf),
}

/// What to build, and from what. The default builds what `luo lab build` builds.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Which kernel.
    pub profile: Profile,
    /// Parallel jobs of the kernel build; by default one a processor.
    pub jobs: Option<usize>,
    /// A Debian mirror to use instead of the one in the machine's apt set-up.
    pub mirror: Option<String>,
    /// The kernel's source.
    pub source: KernelSource,
    /// The checkout whose handlers go into the kernel; by default the one around the current
    /// directory.
    pub checkout: Option<PathBuf>,
    /// Crates of handlers, anywhere, that go into the kernel beside those of the checkout.
    pub handlers: Vec<PathBuf>,
    /// A statically linked luo to put into the guest, instead of building one from the checkout.
    pub guest_binary: Option<PathBuf>,
    /// The init of the guests.
    pub init: Init,
    /// A test program of the user, a script or statically linked, to put into the guest.
    pub program: Option<PathBuf>,
    /// The kernels that the tests to be run want beside the lab's own.
    pub variants: Vec<Variant>,
}
