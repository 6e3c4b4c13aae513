// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kernel image: kmod/ put into the source tree, configured, built in a tree of its own per profile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, Context, Result};

use crate::cache::{write_atomically, Cache, Key, Progress};
use crate::config;
use crate::integrate::{self, Integrated, LocalEdits, Selection};
use crate::source::Source;
use crate::toolchain::Toolchain;

/// Which kernel: the one to measure, or the one that checks itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// Built as integrators build it.
    Release,
    /// With the kernel's own checks.
    Debug,
}

impl Profile {
    pub(super) const ALL: [Self; 2] = [Self::Release, Self::Debug];

    pub(super) fn of(debug: bool) -> Self {
        if debug {
            Self::Debug
        } else {
            Self::Release
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }

    /// Kernel parameters that every boot of it needs.
    pub(super) fn parameters(self) -> &'static str {
        match self {
            Self::Release => "",
            // KASAN's shadow memory makes KHO ask for scratch memory of a quarter of the machine, in one piece: a kernel
            // that lies anywhere often leaves none. An interrupt while the kernel identifies the processor, when it takes
            // five levels of page tables for four, makes KASAN report memory that is fine.
            Self::Debug => "nokaslr no5lvl",
        }
    }

    /// What make is told of the compiler: KASAN is allowed beside Rust only with clang.
    fn make_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Release => &[],
            Self::Debug => &["LLVM=-19"],
        }
    }
}

/// A kernel that is built.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The image, as a boot loader or `kexec_file_load` wants it.
    pub(super) image: PathBuf,
    /// Where the objects and the configuration are.
    pub(super) build_tree: PathBuf,
    /// What it was made from.
    pub(super) key: Key,
}

/// Builds the kernel unless it is there. make itself does only what a change asks for.
pub(super) fn build(
    cache: &Cache,
    toolchain: &Toolchain,
    source: &Source,
    checkout: &Path,
    profile: Profile,
    jobs: Option<usize>,
) -> Result<Kernel> {
    let handlers = integrate_handlers(checkout, source)?;
    let fragment = config::fragment(profile, &handlers.fragment);
    let build_tree = source.beside(&format!("build-{}", profile.name()));
    let make = |progress: &Progress, targets: &[&str]| {
        let mut command = toolchain.command(&source.tree, "make");
        command
            .arg(format!("O={}", build_tree.display()))
            .args(profile.make_arguments())
            .args(targets);
        progress.run(&mut command).map_err(|error| handlers.with_sources_named(error))
    };

    let config_key = Key::of([
        &source.version,
        toolchain.key().as_str(),
        &fragment,
        handlers.options.as_str(),
    ]);
    cache.step(
        &format!("config-{}", profile.name()),
        "configuring the kernel",
        &config_key,
        |progress| configure(&build_tree, &fragment, |targets| make(progress, targets)),
    )?;

    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let key = Key::of([&config_key, &handlers.sources].map(Key::as_str));
    cache.step(
        &format!("kernel-{}", profile.name()),
        "building the kernel",
        &key,
        |progress| make(progress, &[&format!("-j{jobs}"), "bzImage"]),
    )?;
    Ok(Kernel {
        image: build_tree.join("arch/x86/boot/bzImage"),
        build_tree,
        key,
    })
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

/// Puts the checkout's kmod/ into the source tree. A checkout without one gets the kernel's own handlers only.
fn integrate_handlers(checkout: &Path, source: &Source) -> Result<Handlers> {
    // The tree is the lab's, so what was changed in it is nobody's.
    let edits = LocalEdits::Overwrite;
    if !checkout.join("kmod").is_dir() {
        integrate::remove(&source.tree, edits)?;
        let none = || Key::of(["no kmod"]);
        return Ok(Handlers {
            fragment: String::new(),
            options: none(),
            sources: none(),
            integrated: None,
        });
    }
    let integrated = integrate::put(checkout, &source.tree, &Selection::All, edits)?;
    let kconfigs = integrated.kconfigs().map(|file| source.tree.join(file));
    Ok(Handlers {
        fragment: integrated.fragment.clone(),
        options: Key::of_trees(kconfigs)?,
        sources: Key::of_trees([&integrated.directory])?,
        integrated: Some(integrated),
    })
}

fn configure(
    build_tree: &Path,
    fragment: &str,
    make: impl Fn(&[&str]) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(build_tree).with_context(|| format!("creating {}", build_tree.display()))?;
    let config = build_tree.join(".config");
    make(&["rustavailable"]).context("the toolchain cannot build Rust for the kernel")?;
    make(&["tinyconfig"])?;
    let tiny =
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    // The last line about an option counts, so appending is merging.
    write_atomically(&config, format!("{tiny}\n{fragment}").as_bytes())?;
    make(&["olddefconfig"])?;
    config::check(fragment, &config)
}
