// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What this machine lacks for the lab: found out before anything is downloaded, reported at once.

use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::build::apt;
use crate::build::programs::{cargo, find_program};
use crate::cache::directory::Cache;
use crate::namespace::{is_root, user_namespaces_work};
use crate::units::human;

/// Toolchain 2 GiB, source 2 GiB, two build trees, and room to unpack.
const DISK_SPACE_WANTED: u64 = 8 << 30;

/// A program the lab runs on the host, and the Debian package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const TOOLS: [Tool; 4] = [
    Tool {
        program: "mmdebstrap",
        package: "mmdebstrap",
    },
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
    },
    Tool {
        program: "unshare",
        package: "util-linux",
    },
];

/// Maps a user's subordinate ids into a namespace, which root does not need.
const USER_TOOL: Tool = Tool {
    program: "newuidmap",
    package: "uidmap",
};

/// Refuses a machine that cannot do it; installs what is missing if that is ours to do.
pub(crate) fn check(cache: &Cache, builds_luo: bool) -> Result<()> {
    let missing = missing_packages();
    let mut obstacles = obstacles(cache, &missing);
    if builds_luo && cargo().is_none() {
        obstacles.push(
            "it has no cargo to build luo for the guest: install Rust, or give a \
                        static luo with --guest-binary"
                .into(),
        );
    }
    if !obstacles.is_empty() {
        bail!(
            "this machine cannot build the lab yet:\n  - {}",
            obstacles.join("\n  - ")
        );
    }
    if missing.is_empty() {
        Ok(())
    } else {
        install(&missing)
    }
}

/// Everything that only the user can change, each with what to do.
fn obstacles(cache: &Cache, missing: &[&str]) -> Vec<String> {
    let mut obstacles = Vec::new();
    if std::env::consts::ARCH != "x86_64" {
        obstacles.push(format!(
            "its processor is {}; the lab's kernel and guest are x86_64",
            std::env::consts::ARCH
        ));
    }
    if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
        obstacles.push(
            "it has no apt: toolchain and kernel source come from Debian; use a Debian \
                        or a container of it"
                .into(),
        );
    }
    if !is_root() {
        if !missing.is_empty() {
            obstacles.push(format!(
                "packages are missing: run `sudo apt-get install {}`",
                missing.join(" ")
            ));
        } else if !user_namespaces_work() {
            obstacles.push(
                "you are not root and cannot make user namespaces, one of which a build root \
                 needs: run as root, or allow them (sysctl kernel.unprivileged_userns_clone=1, \
                 and a range for you in /etc/subuid and /etc/subgid)"
                    .into(),
            );
        }
    }
    if let Some(obstacle) = disk_obstacle(cache) {
        obstacles.push(obstacle);
    }
    obstacles
}

/// Not asked for once the large parts are there.
fn disk_obstacle(cache: &Cache) -> Option<String> {
    if cache.is_done("toolchain") && cache.is_done("source") {
        return None;
    }
    let existing = cache
        .directory()
        .ancestors()
        .find(|directory| directory.exists())?;
    let statistics = rustix::fs::statvfs(existing).ok()?;
    let free = statistics.f_bavail * statistics.f_frsize;
    (free < DISK_SPACE_WANTED).then(|| {
        format!(
            "{} has {} free, the lab wants {}: make room, or point XDG_CACHE_HOME at a larger disk",
            existing.display(),
            human(free),
            human(DISK_SPACE_WANTED)
        )
    })
}

fn missing_packages() -> Vec<&'static str> {
    let user_tool = (!is_root()).then_some(&USER_TOOL);
    TOOLS
        .iter()
        .chain(user_tool)
        .filter(|tool| find_program(tool.program).is_none())
        .map(|tool| tool.package)
        .collect()
}

fn install(packages: &[&str]) -> Result<()> {
    eprintln!("lab: installing {}", packages.join(" "));
    let install = || -> Result<bool> {
        let mut command = Command::new("apt-get");
        command
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(command.status().context("starting apt-get")?.success())
    };
    // A fresh machine's package lists may be missing or old; the second try has new ones.
    if install()? || (apt::update_lists()? && install()?) {
        return Ok(());
    }
    bail!(
        "apt-get could not install {}; install them by hand, then run this again",
        packages.join(" ")
    )
}
