// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the lab puts into a root file system with systemd.

/// The init of such a guest.
pub(crate) const INIT: &str = "/usr/lib/systemd/systemd";

/// A user of the guest who is not root, and its group.
pub(crate) const USER: &str = "service";

/// What it starts.
pub(crate) const TARGET: &str = "luo-lab.target";

/// Units, below `/etc/systemd/system`.
pub(crate) const UNITS: [(&str, &str); 6] = [
    (TARGET, include_str!("units/luo-lab.target")),
    ("results.mount", include_str!("units/results.mount")),
    (
        "luo-driver.service",
        include_str!("units/luo-driver.service"),
    ),
    (
        "luo-files@.service",
        include_str!("units/luo-files@.service"),
    ),
    ("luo-store.service", include_str!("units/luo-store.service")),
    (
        "luo-writer.service",
        include_str!("units/luo-writer.service"),
    ),
];

/// Other files, from the root.
pub(crate) const FILES: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nservice:x:1000:1000::/:/bin/sh\n\
         nobody:x:65534:65534::/:/bin/sh\n",
    ),
    (
        "etc/group",
        "root:x:0:\nservice:x:1000:\nnogroup:x:65534:\n",
    ),
    // The same in each kernel: it is not a first boot, and nothing is set up.
    ("etc/machine-id", "6c756f2d6c61622d67756573742d3031\n"),
    (
        "etc/os-release",
        "ID=luo-lab\nPRETTY_NAME=\"the lab's guest\"\n",
    ),
    // Emulated, on a busy machine, nothing is as fast as systemd expects.
    (
        "etc/systemd/system.conf",
        "[Manager]\nDefaultTimeoutStartSec=10min\nDefaultTimeoutStopSec=5min\n\
         DefaultDeviceTimeoutSec=5min\n",
    ),
];
