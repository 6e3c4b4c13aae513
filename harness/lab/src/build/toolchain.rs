// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The Debian build root: the compilers the kernel wants, beside the machine's own.
//!
//! Commands run in it with the cache visible under its own path, in a mount namespace of their own:
//! the mounts vanish with the command, also if it is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::apt::{Mirror, SUITE};
use crate::cache::directory::Cache;
use crate::cache::key::Key;
use crate::namespace::in_namespace;

const PACKAGES: [&str; 20] = [
    "build-essential",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "rustc",
    "rust-src",
    "rustfmt",
    "bindgen",
    "clang-19",
    "libclang-19-dev",
    "lld-19",
    "llvm-19",
    "cpio",
    "kmod",
    "xz-utils",
    "python3",
    "rsync",
    "busybox-static",
];

/// Device nodes cannot be made in a user namespace, so mmdebstrap leaves them to us, and we borrow
/// the host's.
const SKIP: &str = "--skip=chroot/mount/dev,output/dev,output/mknod";
const DEVICES: &str = r#"--setup-hook=mkdir -p "$1/dev"
for device in null zero full random urandom tty; do
    [ -e "$1/dev/$device" ] || : > "$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done"#;

/// Enters the build root. `$1` is the cache, `$2` the root, `$3` the directory to work in. Pairs of
/// directories follow, the first of which is to be seen where the second is; after `--` the
/// command.
const ENTER: &str = r#"
cache=$1 root=$2 directory=$3
shift 3
mkdir -p "$root$cache"
mount --bind "$cache" "$root$cache"
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"
    shift 2
done
shift
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
    sh -ec 'cd "$1"; shift; exec "$@"' sh "$directory" "$@"
"#;

/// A build root that is ready.
#[derive(Debug)]
pub(crate) struct Toolchain {
    cache: PathBuf,
    root: PathBuf,
    key: Key,
}

impl Toolchain {
    /// A command that runs in the build root, in `directory`, at a low priority: it takes all
    /// processors for minutes. It finds the first directory of each of the `views` where the second
    /// is, which has to exist.
    pub(crate) fn command(&self, directory: &Path, views: &[[&Path; 2]], program: &str) -> Command {
        let mut command = in_namespace("nice");
        command.args(["-n", "10", "sh", "-ec", ENTER, "enter"]);
        command
            .arg(&self.cache)
            .arg(&self.root)
            .arg(directory)
            .args(views.iter().flatten())
            .arg("--")
            .arg(program);
        command
    }

    /// A file of the build root, as seen from outside.
    pub(crate) fn file(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// What it was made from.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }
}

/// Makes the build root unless it is there.
pub(crate) fn prepare(cache: &Cache, mirror: &Mirror) -> Result<Toolchain> {
    let key = Key::of([SUITE, SKIP, DEVICES].iter().chain(&PACKAGES));
    let root = cache.path(format!("toolchain-{SUITE}/root"));
    cache.step(
        "toolchain",
        &format!("a Debian {SUITE} build root with rustc, bindgen and clang"),
        &key,
        |progress| {
            if root.exists() {
                progress.run(in_namespace("rm").arg("-rf").arg(&root))?;
            }
            let parent = root.parent().context("the root has a parent")?;
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            let mut mmdebstrap = in_namespace("mmdebstrap");
            mmdebstrap.args([
                "--mode=root",
                "--variant=apt",
                SKIP,
                DEVICES,
                &format!("--include={}", PACKAGES.join(",")),
            ]);
            mmdebstrap
                .arg(SUITE)
                .arg(&root)
                .arg(mirror.source_line(SUITE, progress)?);
            progress.run(&mut mmdebstrap)
        },
    )?;
    Ok(Toolchain {
        cache: cache.directory().into(),
        root,
        key,
    })
}
