// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The whole build, step by step: what is up to date is not done again.

use anyhow::Result;

use crate::build::apt::{Mirror, SOURCE_SUITE, SUITE};
use crate::build::built::{Artefacts, Built};
use crate::build::checkout::{find_checkout, select_handlers};
use crate::build::initramfs::Programs;
use crate::build::options::{BuildOptions, Init, KernelSource};
use crate::build::trees::Trees;
use crate::build::{
    guest_binary, initramfs, kernel_image, requirements, selftests, source, systemd, toolchain,
};
use crate::cache::directory::Cache;

/// Brings everything up to date.
///
/// # Errors
///
/// What the machine lacks, or the step that failed with the end of its output.
pub fn build(cache: &Cache, options: &BuildOptions) -> Result<Built> {
    let profile = options.profile;
    let checkout = find_checkout(options.checkout.as_deref())?;
    let _lock = cache.lock()?;

    requirements::check(cache, options.guest_binary.is_none())?;
    let mirror = Mirror::new(cache, options.mirror.as_deref(), &[SUITE, SOURCE_SUITE]);
    let toolchain = toolchain::prepare(cache, &mirror)?;
    let (part, source) = source::prepare(cache, &mirror, &options.source)?;
    let selftests = selftests::build(&part, &toolchain, &source)?;
    let trees = match options.handlers.is_empty() {
        true => Trees::of(&part, &source, &checkout)?,
        false => Trees::with_more(&part, &source, &checkout, profile)?,
    };
    let handlers = select_handlers(&checkout, &options.handlers)?;
    let kernel = kernel_image::build(
        &trees,
        &toolchain,
        (&checkout, &handlers),
        profile,
        options.jobs,
    )?;
    let variants = options
        .variants
        .iter()
        .map(|&variant| {
            let image = match variant.package() {
                None => kernel_image::build_variant(
                    &trees,
                    &toolchain,
                    (profile, variant),
                    options.jobs,
                    &kernel.key,
                )?,
                Some(package) => {
                    let package = KernelSource::Package(package.to_owned());
                    let (part, source) = source::prepare(cache, &mirror, &package)?;
                    let trees = Trees::of(&part, &source, &checkout)?;
                    let handlers = (&*checkout, &handlers);
                    kernel_image::build(&trees, &toolchain, handlers, profile, options.jobs)?.image
                }
            };
            Ok((variant.name().to_owned(), image))
        })
        .collect::<Result<_>>()?;
    let luo = match &options.guest_binary {
        Some(binary) => binary.clone(),
        None => guest_binary::build(cache, trees.part(), &checkout)?,
    };
    let initramfs = match options.init {
        Init::Luo => {
            let programs = Programs {
                luo: &luo,
                selftests: &selftests,
                of_user: options.program.as_deref(),
            };
            initramfs::assemble(trees.part(), &toolchain, &kernel, &programs, profile)?
        }
        Init::Systemd => {
            let mirror = options.mirror.as_deref();
            systemd::assemble(cache, mirror, trees.part(), &kernel, &luo, profile)?
        }
    };
    let built = Built {
        profile,
        artefacts: Artefacts {
            kernel_image: kernel.image,
            kernel_tree: trees.source(),
            build_tree: trees.objects(profile),
            initramfs,
            variants,
        },
    };
    if options.init == Init::Luo {
        built.record(trees.part())?;
    }
    Ok(built)
}
