// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The trees of one checkout: a kernel source tree with its handlers in it, and what is built from
//! that.
//!
//! ```text
//! source-VERSION/linux            the kernel source, as Debian has it; nobody changes it
//! checkouts/NAME/linux            hard links to it, and the checkout's handlers
//! checkouts/NAME/build-release    objects and configuration
//! checkouts/NAME/checkout.json    which checkout that is
//! checkouts/NAME-more             the same with handlers from elsewhere beside the checkout's own
//! ```
//!
//! A source other than the preferred one has a directory of its own in the cache, in which it looks
//! the same; a tree of the user's is not linked, and gets the handlers itself.
//!
//! So two checkouts do not undo each other's work, nor does a build with more handlers undo that of
//! one without. A build sees its trees where the unchanged source is, for every checkout: the
//! objects of one are good for another, and a new checkout starts with source and objects of the
//! one that was built last, or takes over the trees of one that is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::build::profile::Profile;
use crate::build::source::Source;
use crate::build::variant::Variant;
use crate::cache::directory::Cache;
use crate::cache::files::write_atomically;
use crate::cache::key::{distinct_name, Key};
use crate::cache::progress::Progress;
use crate::cache::removal::remove_tree;

const DIRECTORY: &str = "checkouts";
const RECORD: &str = "checkout.json";
const SOURCE: &str = "linux";
/// Of the page table checks, in the kernel's mm/Kconfig.
const CONDITION: &str = "\tdef_bool y\n\tdepends on !DEVMEM || STRICT_DEVMEM\n";
/// Where a part has the stamps of its steps, and that of the step that links the source.
const STAMPS: &str = "stamps";
const TREE_STAMP: &str = "tree.json";
/// Ends the name of a part with more handlers than the checkout's.
const MORE: &str = "-more";

/// The part of the cache that belongs to one checkout.
#[derive(Debug)]
pub(crate) struct Trees {
    part: Cache,
    source: Source,
}

/// Which checkout a directory is of.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    checkout: PathBuf,
    /// Whether there are more handlers in them than the checkout's.
    #[serde(default)]
    has_more: bool,
}

/// A part of the cache, and when it was last used.
struct Present {
    part: Cache,
    owner: Owner,
    used: SystemTime,
}

impl Trees {
    /// The trees of a checkout; they are made unless they are there.
    pub(crate) fn of(cache: &Cache, source: &Source, checkout: &Path) -> Result<Self> {
        let part = part_of(cache, checkout);
        if !part.directory().exists() {
            inherit(cache, &part)?;
        }
        let trees = Self::record(part, source, checkout, false)?;
        trees.adopt_objects()?;
        trees.link_source()?;
        Ok(trees)
    }

    /// Those of a checkout with handlers from elsewhere. They begin with the source and the objects
    /// of a kernel without, if there is one: patched headers keep their times, which make looks at.
    pub(crate) fn with_more(
        cache: &Cache,
        source: &Source,
        checkout: &Path,
        profile: Profile,
    ) -> Result<Self> {
        let plain = part_of(cache, checkout);
        let part = Cache::at(append(plain.directory(), MORE));
        if !part.directory().exists() && plain.path(STAMPS).join(TREE_STAMP).exists() {
            fs::create_dir_all(part.path(STAMPS))
                .with_context(|| format!("creating {}", part.directory().display()))?;
            link(&plain.path(SOURCE), &part.path(SOURCE))?;
            let [from, to] = [&plain, &part].map(|part| part.path(STAMPS).join(TREE_STAMP));
            copy(&from, &to)?;
        }
        let trees = Self::record(part, source, checkout, true)?;
        let objects = objects_name(profile);
        begin_with(&plain.path(&objects), &trees.part.path(&objects))?;
        trees.link_source()?;
        Ok(trees)
    }

    /// Its time is also when these trees were last used.
    fn record(part: Cache, source: &Source, checkout: &Path, has_more: bool) -> Result<Self> {
        let owner = Owner {
            checkout: checkout.into(),
            has_more,
        };
        fs::create_dir_all(part.directory())
            .with_context(|| format!("creating {}", part.directory().display()))?;
        part.write_json(RECORD, &owner)?;
        Ok(Self {
            part,
            source: source.clone(),
        })
    }

    /// The checkout's part of the cache: its stamps, logs, artefacts.
    pub(crate) fn part(&self) -> &Cache {
        &self.part
    }

    /// The version of the kernel source.
    pub(crate) fn version(&self) -> &str {
        &self.source.version
    }

    /// The kernel source with the handlers in it.
    pub(crate) fn source(&self) -> PathBuf {
        let of_user = self.source.of_user.clone();
        of_user.unwrap_or_else(|| self.part.path(SOURCE))
    }

    /// Whether it is a tree of the user's.
    pub(crate) fn source_is_of_user(&self) -> bool {
        self.source.of_user.is_some()
    }

    /// Objects and configuration of a kernel.
    pub(crate) fn objects(&self, profile: Profile) -> PathBuf {
        self.part.path(objects_name(profile))
    }

    /// Objects and configuration of a kernel that differs a little: a copy to begin with.
    pub(crate) fn objects_of(&self, profile: Profile, variant: Variant) -> PathBuf {
        let name = format!("build-{}-{}", profile.name(), variant.name());
        self.part.path(name)
    }

    /// Has the stick's kernel begin with the objects of the release kernel, which it is with more
    /// drivers: make builds what those change.
    pub(crate) fn begin_objects(&self, profile: Profile) -> Result<()> {
        match profile {
            Profile::Stick => begin_with(&self.objects(Profile::Release), &self.objects(profile)),
            Profile::Release | Profile::Debug => Ok(()),
        }
    }

    /// Where a build sees both: the same place for every checkout.
    pub(crate) fn seen_at(&self, profile: Profile) -> [PathBuf; 2] {
        [
            self.source.tree.clone(),
            self.source.beside(&objects_name(profile)),
        ]
    }

    /// Takes over what was built beside the unchanged source, before checkouts had trees of their
    /// own.
    fn adopt_objects(&self) -> Result<()> {
        for profile in Profile::ALL {
            let (own, [_, shared]) = (self.objects(profile), self.seen_at(profile));
            if !own.exists() && shared.join(".config").exists() {
                fs::rename(&shared, &own)
                    .with_context(|| format!("moving {}", shared.display()))?;
            }
        }
        Ok(())
    }

    fn link_source(&self) -> Result<()> {
        if self.source_is_of_user() {
            return Ok(());
        }
        let key = Key::of([self.source.version.as_str(), CONDITION]);
        let tree = self.source();
        let link = |progress: &Progress| {
            if tree.exists() {
                remove_tree(&tree)?;
            }
            progress.run(&mut copying(&self.source.tree, &tree, "--link"))?;
            allow_forging_with_page_table_checks(&tree)
        };
        self.part.step(
            "tree",
            "linking a kernel source tree for this checkout",
            &key,
            link,
        )
    }
}

/// Lets a kernel have both `/dev/mem` on all of memory, with which the tests forge records, and the
/// page table checks, which are only offered without it: what maps memory through `/dev/mem` could
/// trip them. The tests map nothing.
fn allow_forging_with_page_table_checks(tree: &Path) -> Result<()> {
    const KCONFIG: &str = "mm/Kconfig";
    let kconfig = tree.join(KCONFIG);
    let text =
        fs::read_to_string(&kconfig).with_context(|| format!("reading {}", kconfig.display()))?;
    write_atomically(
        &kconfig,
        text.replace(CONDITION, "\tdef_bool y\n").as_bytes(),
    )
}

fn objects_name(profile: Profile) -> String {
    format!("build-{}", profile.name())
}

fn append(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Copies objects of another kernel, if there are any and none yet of this one.
pub(crate) fn begin_with(others: &Path, objects: &Path) -> Result<()> {
    if objects.exists() || !others.exists() {
        return Ok(());
    }
    let unfinished = append(objects, ".part");
    if unfinished.exists() {
        remove_tree(&unfinished)?;
    }
    copy(others, &unfinished)?;
    fs::rename(&unfinished, objects).with_context(|| format!("moving {}", unfinished.display()))
}

/// The part of the cache that belongs to a checkout.
pub(crate) fn part_of(cache: &Cache, checkout: &Path) -> Cache {
    cache.part(format!("{DIRECTORY}/{}", distinct_name(checkout)))
}

/// Gives a new checkout the objects of another, so that only what differs is built.
fn inherit(cache: &Cache, part: &Cache) -> Result<()> {
    let mut present = present(cache)?;
    present.sort_by_key(|present| present.used);
    let (gone, alive): (Vec<_>, Vec<_>) = present
        .into_iter()
        .partition(|present| !present.owner.checkout.exists());
    let plain = gone.iter().chain(&alive).filter(|it| !it.owner.has_more);
    let Some(newest) = plain.max_by_key(|present| present.used) else {
        return Ok(());
    };
    if newest.owner.checkout.exists() {
        copy_part(&newest.part, part)?;
    } else {
        fs::rename(newest.part.directory(), part.directory())
            .with_context(|| format!("moving {}", newest.part.directory().display()))?;
    }
    // Of the others that are gone nobody will use the trees again.
    for other in gone.iter().filter(|other| other.part.directory().exists()) {
        remove_tree(other.part.directory())?;
    }
    Ok(())
}

fn present(cache: &Cache) -> Result<Vec<Present>> {
    let mut found = Vec::new();
    let directory = cache.path(DIRECTORY);
    if !directory.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(&directory).context("listing the checkouts of the cache")? {
        let part = Cache::at(entry?.path());
        let Some(owner) = part.read_json(RECORD) else {
            // Copying it was interrupted.
            remove_tree(part.directory())?;
            continue;
        };
        let used = fs::metadata(part.path(RECORD))?.modified()?;
        found.push(Present { part, owner, used });
    }
    Ok(found)
}

/// The record comes last, with the caller: without it a part is not complete.
fn copy_part(from: &Cache, to: &Cache) -> Result<()> {
    fs::create_dir_all(to.directory())
        .with_context(|| format!("creating {}", to.directory().display()))?;
    for entry in fs::read_dir(from.directory())? {
        let name = entry?.file_name();
        match name.to_str() {
            Some(RECORD) => {}
            // Whoever changes a file of it puts another one in its place.
            Some(SOURCE) => link(&from.path(SOURCE), &to.path(SOURCE))?,
            _ => copy(&from.path(&name), &to.path(&name))?,
        }
    }
    Ok(())
}

/// With the times, which make looks at.
fn copy(from: &Path, to: &Path) -> Result<()> {
    run(&mut copying(from, to, "--reflink=auto"))
}

fn link(from: &Path, to: &Path) -> Result<()> {
    run(&mut copying(from, to, "--link"))
}

fn copying(from: &Path, to: &Path, how: &str) -> Command {
    let mut cp = Command::new("cp");
    cp.args(["--archive", how, "--no-target-directory"])
        .args([from, to]);
    cp
}

fn run(cp: &mut Command) -> Result<()> {
    anyhow::ensure!(
        cp.status().context("starting cp")?.success(),
        "{cp:?} has failed"
    );
    Ok(())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    struct Fixture {
        _directory: tempfile::TempDir,
        cache: Cache,
        source: Source,
        base: PathBuf,
    }

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().join("cache"));
        let tree = cache.path("source-1/linux");
        fs::create_dir_all(tree.join("drivers")).unwrap();
        fs::write(tree.join("drivers/Kconfig"), "endmenu\n").unwrap();
        fs::create_dir_all(tree.join("mm")).unwrap();
        fs::write(tree.join("mm/Kconfig"), format!("config X\n{CONDITION}")).unwrap();
        Fixture {
            base: directory.path().into(),
            _directory: directory,
            cache,
            source: Source {
                version: "1".into(),
                tree,
                of_user: None,
            },
        }
    }

    impl Fixture {
        fn checkout(&self, name: &str) -> PathBuf {
            let path = self.base.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        }

        fn trees(&self, checkout: &Path) -> Trees {
            Trees::of(&self.cache, &self.source, checkout).unwrap()
        }
    }

    fn build_one(trees: &Trees) -> PathBuf {
        let object = trees.objects(Profile::Release).join("vmlinux");
        fs::create_dir_all(object.parent().unwrap()).unwrap();
        fs::write(&object, "objects").unwrap();
        object
    }

    #[test]
    fn a_changed_source_is_the_same_for_a_new_checkout_and_for_more_handlers() {
        let fixture = fixture();
        let [one, other] = ["one", "other"].map(|name| fixture.checkout(name));
        let first = fixture.trees(&one);
        build_one(&first);
        let header = |trees: &Trees| trees.source().join("header.h");
        write_atomically(&header(&first), b"patched").unwrap();
        let changed = |trees: &Trees| fs::metadata(header(trees)).unwrap().modified().unwrap();
        let more =
            Trees::with_more(&fixture.cache, &fixture.source, &one, Profile::Release).unwrap();
        let second = fixture.trees(&other);
        assert_eq!([&more, &second].map(changed), [changed(&first); 2]);
        write_atomically(&header(&more), b"other").unwrap();
        assert_eq!(fs::read(header(&first)).unwrap(), b"patched");
        assert!(!fixture.source.tree.join("header.h").exists());
    }

    #[test]
    fn each_checkout_has_trees_of_its_own_and_a_new_one_starts_with_the_objects_of_another() {
        let fixture = fixture();
        let [one, other] = ["one", "other"].map(|name| fixture.checkout(name));
        let first = fixture.trees(&one);
        let object = build_one(&first);
        let second = fixture.trees(&other);
        let copy = second.objects(Profile::Release).join("vmlinux");
        assert_eq!(fs::read(&copy).unwrap(), b"objects");
        fs::write(&copy, "others").unwrap();
        assert_eq!(fs::read(&object).unwrap(), b"objects");
        assert_ne!(first.source(), second.source());
        assert_eq!(
            first.seen_at(Profile::Release),
            second.seen_at(Profile::Release)
        );
        assert!(second.source().join("drivers/Kconfig").is_file());
        let kconfig = |tree: &Path| fs::read_to_string(tree.join("mm/Kconfig")).unwrap();
        assert!(!kconfig(&first.source()).contains(CONDITION));
        assert!(kconfig(&fixture.source.tree).contains(CONDITION));
    }

    #[test]
    fn more_handlers_have_trees_of_their_own_and_no_checkout_inherits_them() {
        let fixture = fixture();
        let one = fixture.checkout("one");
        let object = build_one(&fixture.trees(&one));
        let more = || {
            let (cache, source) = (&fixture.cache, &fixture.source);
            Trees::with_more(cache, source, &one, Profile::Release).unwrap()
        };
        let copy = more().objects(Profile::Release).join("vmlinux");
        assert_eq!(fs::read(&copy).unwrap(), b"objects");
        assert!(more().source().join("drivers/Kconfig").is_file());
        fs::write(&copy, "with more").unwrap();
        more();
        assert_eq!(fs::read(&copy).unwrap(), b"with more");
        assert_eq!(fs::read(&object).unwrap(), b"objects");

        let other = fixture.trees(&fixture.checkout("other"));
        let inherited = other.objects(Profile::Release).join("vmlinux");
        assert_eq!(fs::read(inherited).unwrap(), b"objects");
        fs::remove_dir(&one).unwrap();
        fixture.trees(&fixture.checkout("third"));
        assert!(!copy.exists() && !object.exists());
    }

    #[test]
    fn objects_of_a_cache_without_checkouts_are_taken_over_once() {
        let fixture = fixture();
        let objects = fixture.source.beside("build-release");
        fs::create_dir_all(&objects).unwrap();
        fs::write(objects.join(".config"), "").unwrap();
        let first = fixture.trees(&fixture.checkout("one"));
        assert!(first.objects(Profile::Release).join(".config").is_file());
        assert!(!objects.exists());
    }

    #[test]
    fn the_trees_of_a_checkout_that_is_gone_are_taken_over() {
        let fixture = fixture();
        let gone = fixture.checkout("gone");
        let old = fixture.trees(&gone);
        build_one(&old);
        fs::remove_dir(&gone).unwrap();
        let new = fixture.trees(&fixture.checkout("new"));
        assert!(new.objects(Profile::Release).join("vmlinux").is_file());
        assert!(!old.part().directory().exists());
    }
}
