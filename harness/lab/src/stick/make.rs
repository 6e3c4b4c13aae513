// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Makes the image of a stick from a kernel that was built for it.

use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::archive::Archive;
use crate::build::built::Built;
use crate::cache::files::write_atomically;
use crate::stick::image::{Files, Image};
use crate::stick::plan::StickPlan;
use crate::stick::{GUID, INITRD, KERNEL, PLAN};

/// The files of a stick with an image of its own.
pub(crate) fn compose(built: &Built, plan: &StickPlan) -> Result<Vec<u8>> {
    let read = |file: &Path| fs::read(file).with_context(|| format!("reading {}", file.display()));
    let mut image = Image::new()?;
    let mut initrd = read(&built.artefacts.initramfs)?;
    let mut own = Archive::default();
    own.file(GUID, image.guid.as_bytes())?;
    initrd.extend(own.finish()?);
    image.add(&Files::from([
        (KERNEL.to_owned(), read(&built.artefacts.kernel_image)?),
        (INITRD.to_owned(), initrd),
        (PLAN.to_owned(), serde_json::to_vec_pretty(plan)?),
    ]))?;
    Ok(image.into_bytes())
}

/// Writes an image for a stick to a file.
///
/// # Errors
///
/// The file is a device, or cannot be written; or a part of the image is too large.
pub fn make(built: &Built, plan: &StickPlan, output: &Path) -> Result<()> {
    let is_special = fs::metadata(output).is_ok_and(|found| !found.is_file());
    ensure!(
        !is_special,
        "{} is not a file; name a new one, and write that to a stick with dd",
        output.display()
    );
    let output = std::path::absolute(output)?;
    write_atomically(&output, &compose(built, plan)?)
}

#[cfg(test)]
mod unit_tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::build::built::Artefacts;
    use crate::build::profile::Profile;
    use crate::stick::image;

    #[test]
    fn an_image_holds_what_the_firmware_and_the_kernels_look_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["kernel", "initramfs"] {
            fs::write(path(name), name).unwrap();
        }
        let built = Built {
            profile: Profile::Stick,
            artefacts: Artefacts {
                kernel_image: path("kernel"),
                kernel_tree: path("linux"),
                build_tree: path("build"),
                initramfs: path("initramfs"),
                variants: BTreeMap::new(),
            },
        };
        make(&built, &StickPlan::default(), &path("image")).unwrap();
        let files = image::read(&fs::read(path("image")).unwrap()).unwrap();
        assert_eq!(files[KERNEL], b"kernel");
        assert!(files[INITRD].starts_with(b"initramfs") && files[INITRD].len() > 9);
        let plan: StickPlan = serde_json::from_slice(&files[PLAN]).unwrap();
        assert_eq!(plan, StickPlan::default());
        assert!(make(&built, &plan, Path::new("/dev/null")).is_err());
    }
}
