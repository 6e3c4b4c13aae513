// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The file systems of a guest.

use std::ffi::CStr;
use std::fs;

use anyhow::{Context, Result};
use rustix::mount::{mount, MountFlags};

use crate::vm::qemu::SHARE_TAG;

/// A file system of the guest. One that is not `needed` may be missing from an integrator's kernel.
struct Mount {
    kind: &'static CStr,
    source: &'static str,
    target: &'static str,
    options: Option<&'static CStr>,
    needed: bool,
}

const MOUNTS: [Mount; 7] = [
    Mount {
        kind: c"devtmpfs",
        source: "dev",
        target: "/dev",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"proc",
        source: "proc",
        target: "/proc",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"sysfs",
        source: "sys",
        target: "/sys",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"tmpfs",
        source: "tmp",
        target: "/tmp",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"tmpfs",
        source: "shm",
        target: "/dev/shm",
        options: None,
        needed: true,
    },
    Mount {
        kind: c"devpts",
        source: "pts",
        target: "/dev/pts",
        options: None,
        needed: false,
    },
    Mount {
        kind: c"debugfs",
        source: "debug",
        target: "/sys/kernel/debug",
        options: None,
        needed: false,
    },
];

/// The directory shared with the host.
const SHARE: Mount = Mount {
    kind: c"9p",
    source: SHARE_TAG,
    target: "/results",
    options: Some(c"trans=virtio,version=9p2000.L"),
    needed: false,
};

/// Mounts those that any machine has.
pub(crate) fn mount_system() -> Result<()> {
    MOUNTS.iter().try_for_each(Mount::mount)
}

/// Mounts those of a guest.
pub(crate) fn mount_all() -> Result<()> {
    mount_system()?;
    SHARE.mount()
}

impl Mount {
    fn mount(&self) -> Result<()> {
        // Where a target cannot be made, mounting fails as well, with the reason.
        let _ = fs::create_dir_all(self.target);
        let flags = MountFlags::empty();
        let mounted = mount(self.source, self.target, self.kind, flags, self.options);
        match self.needed {
            true => mounted.with_context(|| format!("mounting {}", self.target)),
            false => Ok(()),
        }
    }
}
