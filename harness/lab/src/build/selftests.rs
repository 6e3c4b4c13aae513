// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel's own live-update tests, unmodified, built from the kernel source as its `vmtest.sh`
//! builds them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::build::source::Source;
use crate::build::toolchain::Toolchain;
use crate::cache::directory::Cache;
use crate::cache::key::Key;

/// Their names, which are those of their source files.
pub(crate) const NAMES: [&str; 4] = [
    "luo_kexec_simple",
    "luo_multi_session",
    "luo_stress_files",
    "luo_stress_sessions",
];

/// `$1` is where to build, the rest are the names. They need no C library where the kernel brings
/// its own small one.
const BUILD: &str = r#"
out=$1
shift
tests=tools/testing/selftests/liveupdate
common=$tests/lib/lu_utils.c
libc="-nostdinc -nostdlib -I tools/include/nolibc -I $tests/lib/include"
# Before Linux 7.3 they are for glibc.
[ -e $common ] || common=$tests/luo_test_utils.c libc=
make O="$out/headers-build" headers_install INSTALL_HDR_PATH="$out/usr"
for name; do
    gcc -static -O2 -I "$out/usr/include" $libc -o "$out/$name" "$tests/$name.c" $common
done
"#;

/// The tests, ready to run in a guest.
#[derive(Debug)]
pub(crate) struct Selftests {
    /// Holds one program per name.
    pub(crate) directory: PathBuf,
    /// What they were made from.
    pub(crate) key: Key,
}

/// Builds the tests unless they are there.
pub(crate) fn build(cache: &Cache, toolchain: &Toolchain, source: &Source) -> Result<Selftests> {
    let directory = source.beside("selftests");
    let key = Key::of(
        [source.version.as_str(), toolchain.key().as_str(), BUILD]
            .iter()
            .chain(&NAMES),
    );
    cache.step(
        "selftests",
        "building the kernel's live-update selftests",
        &key,
        |progress| {
            fs::create_dir_all(&directory)
                .with_context(|| format!("creating {}", directory.display()))?;
            let mut command = toolchain.command(&source.tree, &source.views(), "sh");
            command
                .args(["-exc", BUILD, "build"])
                .arg(&directory)
                .args(NAMES);
            progress.run(&mut command)
        },
    )?;
    Ok(Selftests { directory, key })
}
