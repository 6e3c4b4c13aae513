// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel image: the handlers put into the checkout's source tree, configured, built in a tree
//! of its own for each profile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, Context, Result};

use crate::build::config;
use crate::build::profile::Profile;
use crate::build::toolchain::Toolchain;
use crate::build::trees::{begin_with, Trees};
use crate::build::variant::Variant;
use crate::cache::files::write_atomically;
use crate::cache::key::Key;
use crate::cache::progress::Progress;
use crate::cache::removal::remove_tree;
use crate::integrate::{self, Integrated, LocalEdits, Selection};

/// Where make puts it.
const IMAGE: &str = "arch/x86/boot/bzImage";

/// A kernel that is built.
#[derive(Debug)]
pub(crate) struct KernelImage {
    /// The image, as a boot loader or `kexec_file_load` wants it.
    pub(crate) image: PathBuf,
    /// What it was made from.
    pub(crate) key: Key,
}

/// Builds the kernel with handlers of a checkout unless it is there. make itself does only what a
/// change asks for.
pub(crate) fn build(
    trees: &Trees,
    toolchain: &Toolchain,
    (checkout, selection): (&Path, &Selection),
    profile: Profile,
    jobs: Option<usize>,
) -> Result<KernelImage> {
    let handlers = integrate_handlers(checkout, selection, trees)?;
    let objects = trees.objects(profile);
    let [_, objects_seen_at] = trees.seen_at(profile);
    trees.begin_objects(profile)?;
    for directory in [&objects, &objects_seen_at] {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    let make = |progress: &Progress, targets: &[&str]| {
        let made = make(trees, toolchain, (profile, &objects), progress, targets);
        made.map_err(|error| handlers.with_sources_named(error))
    };
    let step = |name: &str| format!("{name}-{}", profile.name());

    // What the fragment does not set is tinyconfig's; it only has to be made again for another one.
    let fragment = config::fragment(profile, &handlers.fragment);
    let base_key = Key::of([trees.version(), toolchain.key().as_str(), &fragment]);
    let base = objects.join("lab-base.config");
    trees.part().step(
        &step("base-config"),
        "putting the kernel's configuration together",
        &base_key,
        |progress| {
            // tinyconfig writes to the same file.
            trees.part().undo(&step("config"))?;
            merge(&objects, &base, &fragment, |targets| {
                make(progress, targets)
            })
        },
    )?;
    // Another Kconfig of the handlers changes no more than their own options.
    let config_key = Key::of([&base_key, &handlers.options].map(Key::as_str));
    trees.part().step(
        &step("config"),
        "configuring the kernel",
        &config_key,
        |progress| {
            fs::copy(&base, objects.join(".config")).context("copying the configuration")?;
            make(progress, &["olddefconfig"])?;
            config::check(&fragment, &objects.join(".config"))
        },
    )?;

    let key = Key::of([&config_key, &handlers.sources].map(Key::as_str));
    trees
        .part()
        .step(&step("kernel"), "building the kernel", &key, |progress| {
            make(progress, &[&parallel(jobs), "bzImage"])
        })?;
    Ok(KernelImage {
        image: objects.join(IMAGE),
        key,
    })
}

/// Builds a kernel that differs a little from the one that was built before, whose key is `of`,
/// from a copy of its objects. Returns its image.
pub(crate) fn build_variant(
    trees: &Trees,
    toolchain: &Toolchain,
    (profile, variant): (Profile, Variant),
    jobs: Option<usize>,
    of: &Key,
) -> Result<PathBuf> {
    let (origin, objects) = (trees.objects(profile), trees.objects_of(profile, variant));
    let step = format!("kernel-{}-{}", profile.name(), variant.name());
    let what = format!("building the kernel {}", variant.name());
    let base = fs::read_to_string(origin.join(".config"))
        .context("reading the configuration of the kernel before")?;
    let options = variant.options(&base);
    let key = Key::of([of.as_str(), &options]);
    trees.part().step(&step, &what, &key, |progress| {
        // Those of an earlier build may miss more than what the few options change.
        if objects.exists() {
            remove_tree(&objects)?;
        }
        begin_with(&origin, &objects)?;
        let make =
            |targets: &[&str]| make(trees, toolchain, (profile, &objects), progress, targets);
        let config = objects.join(".config");
        write_atomically(&config, format!("{base}{options}").as_bytes())?;
        make(&["olddefconfig"])?;
        config::check(&options, &config)?;
        make(&[&parallel(jobs), "bzImage"])
    })?;
    Ok(objects.join(IMAGE))
}

fn parallel(jobs: Option<usize>) -> String {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    format!("-j{}", jobs.unwrap_or_else(processors))
}

/// Runs make, with the objects where they are expected.
fn make(
    trees: &Trees,
    toolchain: &Toolchain,
    (profile, objects): (Profile, &Path),
    progress: &Progress,
    targets: &[&str],
) -> Result<()> {
    let source = trees.source();
    let [source_seen_at, objects_seen_at] = trees.seen_at(profile);
    let views = [
        [source.as_path(), source_seen_at.as_path()],
        [objects, objects_seen_at.as_path()],
    ];
    let mut command = toolchain.command(&source_seen_at, &views, "make");
    command
        .arg(format!("O={}", objects_seen_at.display()))
        .args(profile.make_arguments())
        .args(targets);
    progress.run(&mut command)
}

/// What kmod/ adds to the kernel.
struct Handlers {
    /// The lines of the configuration that it wants.
    fragment: String,
    /// The key of what configuring depends on.
    options: Key,
    /// The key of what building depends on.
    sources: Key,
    /// `None` without kmod/.
    integrated: Option<Integrated>,
}

impl Handlers {
    /// The error of a build with the author's files in it, not their copies in the kernel tree.
    fn with_sources_named(&self, error: anyhow::Error) -> anyhow::Error {
        match &self.integrated {
            Some(integrated) => anyhow!("{}", integrated.with_sources_named(&format!("{error:#}"))),
            None => error,
        }
    }
}

/// Puts the checkout's kmod/ into the source tree. A checkout without one gets the kernel's own
/// handlers only.
fn integrate_handlers(checkout: &Path, selection: &Selection, trees: &Trees) -> Result<Handlers> {
    let source = &trees.source();
    let edits = match trees.source_is_of_user() {
        true => LocalEdits::Refuse,
        false => LocalEdits::Overwrite,
    };
    if !checkout.join("kmod").is_dir() {
        integrate::remove(source, edits)?;
        let empty = || Key::of(["no kmod"]);
        return Ok(Handlers {
            fragment: String::new(),
            options: empty(),
            sources: empty(),
            integrated: None,
        });
    }
    let integrated = integrate::put(checkout, source, selection, edits)?;
    let kconfigs = integrated.kconfigs().map(|file| source.join(file));
    Ok(Handlers {
        fragment: integrated.fragment.clone(),
        options: Key::of_trees(kconfigs)?,
        sources: Key::of_trees([&integrated.directory])?,
        integrated: Some(integrated),
    })
}

/// Writes tinyconfig and the fragment, the last line about an option of which counts.
fn merge(
    objects: &Path,
    base: &Path,
    fragment: &str,
    make: impl Fn(&[&str]) -> Result<()>,
) -> Result<()> {
    make(&["rustavailable"]).context("the toolchain cannot build Rust for the kernel")?;
    make(&["tinyconfig"])?;
    let config = objects.join(".config");
    let tiny =
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    write_atomically(base, format!("{tiny}\n{fragment}").as_bytes())
}
