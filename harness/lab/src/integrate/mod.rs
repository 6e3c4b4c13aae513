// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Puts the kernel module and the crates it is built from into a kernel tree, and takes them out
//! again.
//!
//! ```text
//! KERNEL/drivers/luo_handlers/          kmod/
//!     luo_handler_api/                  luo-handler-api/src/
//!         luo_handler_api.rs            lib.rs: Kbuild wants the root named after the crate
//!     luo_handler_memfd/                handlers/memfd/src/
//!         kmod/                         handlers/memfd/kmod/: its Kconfig, its C
//!     Kconfig.handlers                  made here: one line for each handler
//!     Makefile.handlers
//!     luo-integrated                    what we put here: nothing else is overwritten or removed
//! KERNEL/drivers/Kconfig, Makefile      one line each
//! KERNEL/include/asm-generic/vmlinux.lds.h
//!                                       two lines: lld puts sections without a line after the end
//! KERNEL/rust/bindings/bindings_helper.h
//!                                       one line: mainline's interface, for our ops
//! KERNEL/mm/...                         what kmod/*.patch and handlers/*/kmod/*.patch change
//! ```
//!
//! Doing it twice changes nothing, not even a file's time, so that a rebuild builds only what is
//! new. If it is interrupted, doing it again, or removing, goes on from there.
//!
//! # Map
//!
//! - `crates`: what a handler's crate brings along; `plan`: what goes where
//! - `tree`, `lines`: the kernel's side; `interface`: what of it kmod/ is written for; `list`: what
//!   is ours in it
//! - `patches`: what a handler changes in the kernel's own files
//! - `change`: writes beside and renames
//! - `wanted`: what a configuration lacks

mod change;
mod crates;
mod interface;
mod lines;
mod list;
mod patches;
mod plan;
mod tree;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use change::Changes;
pub use crates::Selection;
use list::List;
use patches::{is_patch, Patched};
use plan::Plan;
pub use wanted::Missing;

/// What to do with files that somebody changed in the tree after we wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalEdits {
    /// Refuse, and name them.
    Refuse,
    /// Lose them.
    Overwrite,
}

/// What [`put`] did, and what the tree holds now.
#[derive(Debug)]
pub struct Integrated {
    /// Our directory.
    pub directory: PathBuf,
    /// The crates of the handlers in it.
    pub handlers: Vec<String>,
    /// How many files were written, and removed; both 0 if all was in place.
    pub changed: (usize, usize),
    /// The fragment of a kernel configuration that switches all of it on.
    pub fragment: String,
    /// Where each file is from, by its path in the kernel tree.
    pub sources: BTreeMap<PathBuf, PathBuf>,
}

impl Integrated {
    /// The Kconfig files, by their paths in the kernel tree.
    pub fn kconfigs(&self) -> impl Iterator<Item = &Path> {
        let files = self.sources.keys().map(PathBuf::as_path);
        files.filter(|file| file.file_name() == Some("Kconfig".as_ref()))
    }

    /// A compiler's output with the author's file wherever it names the copy of one in the tree.
    pub fn with_sources_named(&self, output: &str) -> String {
        let mut text = output.to_owned();
        for (copy, source) in &self.sources {
            text = with_path_replaced(&text, &copy.display().to_string(), source);
        }
        text
    }
}

/// Replaces each path that ends with `copy`.
fn with_path_replaced(text: &str, copy: &str, source: &Path) -> String {
    let is_in_path = |c: char| c.is_alphanumeric() || "/._-+~@".contains(c);
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find(copy) {
        let (before, after) = (&rest[..place], &rest[place + copy.len()..]);
        let prefix = before.trim_end_matches(is_in_path);
        // `Kconfig` is not the file in `Kconfig.handlers`, nor `x/drivers` in `adrivers`.
        let is_whole = !after.starts_with(is_in_path)
            && (before.is_empty() || prefix == before || before.ends_with('/'));
        match is_whole {
            true => replaced.extend([prefix, &source.display().to_string()]),
            false => replaced.extend([before, copy]),
        }
        rest = after;
    }
    replaced + rest
}

/// What [`remove`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Removed {
    /// Files of the kernel that a line or a patch was taken out of.
    pub lines: Vec<PathBuf>,
    /// How many files were removed.
    pub files: usize,
    /// Files in our directory that are not from us.
    pub left: Vec<PathBuf>,
}

/// Puts kmod/ and the handlers of the `selection` into a kernel tree.
///
/// # Errors
///
/// What is wrong with the tree, the checkout or a handler's crate, found before anything is
/// changed; or a system call that failed, after which this can be repeated.
pub fn put(
    checkout: &Path,
    kernel: &Path,
    selection: &Selection,
    edits: LocalEdits,
) -> Result<Integrated> {
    tree::check(kernel)?;
    interface::check(checkout, kernel)?;
    let handlers = plan::handlers(checkout, selection)?;
    let names = handlers
        .iter()
        .map(|handler| handler.name.clone())
        .collect();
    let fragment = plan::fragment(checkout, &handlers)?;
    let plan = Plan::read(checkout, handlers)?;
    let _lock = tree::lock(kernel)?;
    let directory = kernel.join(tree::DIRECTORY);
    let changes = changes_to_put(kernel, &directory, &plan, edits)?;
    let changed = changes.count();
    changes.apply(&kernel.join(tree::STAGING))?;
    change::remove_empty_directories(&directory)?;
    let in_tree =
        |(name, source): (PathBuf, PathBuf)| (Path::new(tree::DIRECTORY).join(name), source);
    Ok(Integrated {
        directory,
        handlers: names,
        changed,
        fragment,
        sources: plan.sources.into_iter().map(in_tree).collect(),
    })
}

fn changes_to_put(
    kernel: &Path,
    directory: &Path,
    plan: &Plan,
    edits: LocalEdits,
) -> Result<Changes> {
    let present = List::read(directory)?;
    let is_listed = present.is_some();
    let present = present.unwrap_or_default();
    let mut next = List::default();
    plan.files
        .iter()
        .for_each(|(name, contents)| next.add(name, contents));

    let patched = Patched::read(kernel, &patches_in(directory, &present)?, &plan.patches()?)?;
    let mut writes = Changes::default();
    for (file, text) in patched.reversed() {
        writes.write(kernel.join(file), text.into());
    }
    let (mut foreign, mut edited) = (Vec::new(), Vec::new());
    for (name, contents) in &plan.files {
        refuse_links(directory, name)?;
        match tree::contents(&directory.join(name))? {
            Some(found) if found == *contents => continue,
            Some(_) if !present.has(name) => foreign.push(name),
            Some(found) if !present.is_unchanged(name, &found) => edited.push(name),
            _ => {}
        }
        writes.write(directory.join(name), contents.clone());
    }
    let stale: Vec<&PathBuf> = present.names().filter(|name| !next.has(name)).collect();
    edited.extend(edited_among(directory, &present, &stale)?);
    refuse_foreign(directory, &foreign, is_listed)?;
    refuse_edits(directory, &edited, edits)?;

    let abandoned = abandoned_directories(plan, &stale);
    for file in stale
        .into_iter()
        .map(|name| directory.join(name))
        .chain(products_in(directory, &abandoned)?)
    {
        writes.remove(file);
    }
    for (file, text) in tree::edited(kernel, |edit, text| edit.add(text))? {
        writes.write(kernel.join(file), text.into_bytes());
    }
    for (file, text) in patched.applied() {
        writes.write(kernel.join(file), text.into());
    }

    // The list comes first, with all that may be found if this stops on its way, and last, as it is
    // then.
    let file = directory.join(list::NAME);
    let mut changes = Changes::default();
    let both = present.and(&next).text();
    let found = tree::contents(&file)?;
    if !writes.is_empty() && found.as_deref() != Some(both.as_bytes()) {
        changes.write(file.clone(), both.clone().into_bytes());
    }
    let last = next.text();
    let on_disk = if writes.is_empty() {
        found
    } else {
        Some(both.into_bytes())
    };
    changes.append(writes);
    if on_disk.as_deref() != Some(last.as_bytes()) {
        changes.write(file, last.into_bytes());
    }
    let former = directory.join(list::FORMER_NAME);
    if former.exists() {
        changes.remove(former);
    }
    Ok(changes)
}

/// Takes out of a kernel tree what [`put`] put in.
///
/// # Errors
///
/// As those of [`put`].
pub fn remove(kernel: &Path, edits: LocalEdits) -> Result<Removed> {
    let _lock = tree::lock(kernel)?;
    let directory = kernel.join(tree::DIRECTORY);
    let list = List::read(&directory)?;
    let mut changes = Changes::default();
    let mut lines: Vec<PathBuf> = Vec::new();
    for (file, text) in tree::edited(kernel, |edit, text| Ok(edit.take_out(text)))? {
        changes.write(kernel.join(file), text.into_bytes());
        lines.push(file.into());
    }
    if let Some(list) = list {
        let patched = Patched::read(kernel, &patches_in(&directory, &list)?, &[])?;
        for (file, text) in patched.reversed() {
            changes.write(kernel.join(file), text.into());
            lines.push(file.to_owned());
        }
        let names: Vec<&PathBuf> = list.names().collect();
        for name in &names {
            refuse_links(&directory, name)?;
        }
        let edited = edited_among(&directory, &list, &names)?;
        refuse_edits(&directory, &edited, edits)?;
        let ours = names.into_iter().map(|name| directory.join(name));
        let products = products_in(&directory, &BTreeSet::from([PathBuf::new()]))?;
        let lists = [list::FORMER_NAME, list::NAME].map(|name| directory.join(name));
        for file in ours
            .chain(products)
            .chain(lists)
            .filter(|file| file.exists())
        {
            changes.remove(file);
        }
    }
    let (_, files) = changes.count();
    changes.apply(&kernel.join(tree::STAGING))?;
    let left = change::remove_empty_directories(&directory)?;
    Ok(Removed { lines, files, left })
}

/// What a kernel's configuration lacks for the handlers of the `selection`.
///
/// # Errors
///
/// What is wrong with the checkout or a handler's crate, and a file that cannot be read.
pub fn check_config(checkout: &Path, selection: &Selection, config: &Path) -> Result<Missing> {
    let handlers = plan::handlers(checkout, selection)?;
    let text =
        fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    if !text
        .lines()
        .any(|line| line.trim_start_matches("# ").starts_with("CONFIG_"))
    {
        bail!(
            "{} is not a kernel configuration: it has no CONFIG_ line",
            config.display()
        );
    }
    Ok(wanted::compare(
        &plan::fragment(checkout, &handlers)?,
        &handlers,
        &text,
    ))
}

/// A directory of ours that is a link leads to somebody else's files.
fn refuse_links(directory: &Path, name: &Path) -> Result<()> {
    let below = name
        .ancestors()
        .skip(1)
        .map(|parent| directory.join(parent));
    for parent in below {
        if parent.is_symlink() {
            bail!(
                "{} is a symbolic link; move it away first",
                parent.display()
            );
        }
    }
    Ok(())
}

/// The patches that are there.
fn patches_in(directory: &Path, list: &List) -> Result<Vec<(PathBuf, String)>> {
    let mut patches = Vec::new();
    for name in list.names().filter(|name| is_patch(name)) {
        if let Some(found) = tree::contents(&directory.join(name))? {
            patches.push((name.clone(), plan::text_of(name, found)?));
        }
    }
    Ok(patches)
}

/// Those of our files that somebody changed.
fn edited_among<'a>(
    directory: &Path,
    list: &List,
    names: &[&'a PathBuf],
) -> Result<Vec<&'a PathBuf>> {
    let mut edited = Vec::new();
    for name in names {
        if let Some(found) = tree::contents(&directory.join(name))? {
            if !list.is_unchanged(name, &found) {
                edited.push(*name);
            }
        }
    }
    Ok(edited)
}

fn refuse_foreign(directory: &Path, foreign: &[&PathBuf], is_listed: bool) -> Result<()> {
    let Some(first) = foreign.first() else {
        return Ok(());
    };
    let reason = match is_listed {
        true => "is not from us",
        false => "is not from us, or the list of what is, luo-integrated, was lost",
    };
    bail!(
        "{} {reason}; move it away first",
        directory.join(first).display()
    )
}

fn refuse_edits(directory: &Path, edited: &[&PathBuf], edits: LocalEdits) -> Result<()> {
    if edited.is_empty() || edits == LocalEdits::Overwrite {
        return Ok(());
    }
    let names: Vec<_> = edited
        .iter()
        .map(|name| name.display().to_string())
        .collect();
    bail!(
        "changed in {} after they were put there: {}; take the changes to where the files are \
         from, then repeat this with --force",
        directory.display(),
        names.join(", ")
    )
}

/// Directories, by their names inside ours, in which nothing of ours is any more.
fn abandoned_directories(plan: &Plan, stale: &[&PathBuf]) -> BTreeSet<PathBuf> {
    let parents = stale.iter().flat_map(|name| name.ancestors().skip(1));
    parents
        .filter(|parent| !plan.has_below(parent))
        .map(Path::to_path_buf)
        .collect()
}

/// What builds and editors left at and below these directories.
fn products_in(directory: &Path, below: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut products = BTreeSet::new();
    let mut pending: Vec<PathBuf> = below.iter().map(|name| directory.join(name)).collect();
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue; // Not there: nothing was built in it.
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("listing {}", directory.display()))?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if crates::is_product(&entry.file_name()) {
                products.insert(entry.path());
            }
        }
    }
    Ok(products)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KCONFIG: &str = "drivers/Kconfig";
    const SHMEM: &str = "mm/shmem.c";
    const TEXTS: [(&str, &str); 5] = [
        (SHMEM, "one\ntwo\nthree\n"),
        (
            KCONFIG,
            "menu \"Device Drivers\"\n\nsource \"drivers/amba/Kconfig\"\n\nendmenu\n",
        ),
        ("drivers/Makefile", "obj-y\t+= amba/\n"),
        (
            "include/asm-generic/vmlinux.lds.h",
            "\t. = ALIGN(8);\t\\\n\tBOUNDED_SECTION_BY(__dyndbg_classes, ___dyndbg_classes)\t\\\n",
        ),
        (
            "rust/bindings/bindings_helper.h",
            "#include <linux/kref.h>\n#include <linux/mdio.h>\n",
        ),
    ];

    const HEADER: &str = "include/linux/liveupdate.h";
    const OPS: &str = "struct liveupdate_file_ops {\n\tint x;\n};\n";

    /// Of the checkout.
    const PATCH: &str = "handlers/memfd/kmod/shmem.patch";

    /// Puts a word after the first line of the kernel's file.
    fn patch(word: &str) -> String {
        format!("--- a/{SHMEM}\n+++ b/{SHMEM}\n@@ -1,3 +1,4 @@\n one\n+{word}\n two\n three\n")
    }

    struct Trees {
        _directory: tempfile::TempDir,
        checkout: PathBuf,
        kernel: PathBuf,
    }

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    fn write_handler(directory: &Path, package: &str, switch: &str) {
        write(
            directory.join("Cargo.toml"),
            &format!("[package]\nname = \"{package}\"\n"),
        );
        write(directory.join("src/lib.rs"), "// root\n");
        write(directory.join("src/record.rs"), "// record\n");
        write(
            directory.join("kmod/Kconfig"),
            &format!("config {switch}\n"),
        );
    }

    impl Trees {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (checkout, kernel) = (
                directory.path().join("checkout"),
                directory.path().join("linux"),
            );
            write(checkout.join("kmod/Kconfig"), "config LUO_HANDLERS\n");
            write(
                checkout.join("kmod/kernel.config"),
                "CONFIG_LUO_HANDLERS=y\n",
            );
            write(checkout.join("kmod/dispatch.rs"), "// dispatch\n");
            let interface = format!("=== {HEADER}\n{OPS}");
            write(checkout.join(interface::FILE), &interface);
            write(
                checkout.join("luo-handler-api/Cargo.toml"),
                "[package]\nname = \"luo-handler-api\"\n",
            );
            write(checkout.join("luo-handler-api/src/lib.rs"), "// api\n");
            for (name, switch) in [("memfd", "LUO_HANDLER_MEMFD"), ("vfio", "LUO_HANDLER_VFIO")] {
                let handler = checkout.join("handlers").join(name);
                write_handler(&handler, &format!("luo-handler-{name}"), switch);
            }
            write(checkout.join("handlers/memfd/kmod/shim.c"), "/* C */\n");
            write(checkout.join(PATCH), &patch("held"));
            for (file, word, _) in tree::NEEDED {
                write(kernel.join(file), word);
            }
            for (file, text) in TEXTS {
                write(kernel.join(file), text);
            }
            write(kernel.join(HEADER), OPS);
            Self {
                _directory: directory,
                checkout,
                kernel,
            }
        }

        fn put(&self, selection: &Selection) -> Result<Integrated> {
            put(&self.checkout, &self.kernel, selection, LocalEdits::Refuse)
        }

        fn put_all(&self) -> PathBuf {
            self.put(&Selection::All).unwrap().directory
        }

        fn refused(&self, selection: &Selection) -> String {
            format!("{:#}", self.put(selection).unwrap_err())
        }

        fn remove(&self) -> Removed {
            remove(&self.kernel, LocalEdits::Refuse).unwrap()
        }

        /// Every file below the kernel tree with what it holds.
        fn files(&self) -> BTreeMap<PathBuf, String> {
            let mut pending = vec![self.kernel.clone()];
            let mut files = BTreeMap::new();
            while let Some(path) = pending.pop() {
                if path.is_dir() {
                    pending.extend(
                        fs::read_dir(path)
                            .unwrap()
                            .map(|entry| entry.unwrap().path()),
                    );
                } else {
                    files.insert(path.clone(), read(path));
                }
            }
            files
        }
    }

    fn named(names: &[&str]) -> Selection {
        Selection::Named(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn putting_in_twice_changes_nothing_and_removing_restores_the_tree() {
        let trees = Trees::new();
        let untouched = trees.files();
        let place = trees.put_all();
        for file in [
            "luo_handler_memfd/luo_handler_memfd.rs",
            "luo_handler_memfd/record.rs",
            "luo_handler_memfd/kmod/shim.c",
            "luo_handler_api/luo_handler_api.rs",
            "dispatch.rs",
        ] {
            assert!(place.join(file).is_file(), "{file}");
        }
        assert!(read(place.join("Kconfig.handlers"))
            .contains("source \"drivers/luo_handlers/luo_handler_vfio/kmod/Kconfig\"\n"));
        assert!(read(place.join("Makefile.handlers")).contains(
            "$(eval $(call luo-handler,LUO_HANDLER_MEMFD,luo_handler_memfd,kmod/shim.o))\n"
        ));
        let present = trees.files();
        let times = || {
            let time = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
            present.keys().map(time).collect::<Vec<_>>()
        };
        let before = times();
        assert_eq!(trees.put(&Selection::All).unwrap().changed, (0, 0));
        assert_eq!((trees.files(), times()), (present.clone(), before));
        let removed = trees.remove();
        assert_eq!(removed.lines.len(), 5);
        assert_eq!(removed.left, Vec::<PathBuf>::new());
        assert!(removed.files > 8);
        assert_eq!(trees.files(), untouched);
        assert!(!place.exists());
        let nothing = Removed {
            lines: Vec::new(),
            files: 0,
            left: Vec::new(),
        };
        assert_eq!(trees.remove(), nothing);
    }

    #[test]
    fn the_list_is_as_sha256sum_has_it_and_not_ignored_by_git() {
        let trees = Trees::new();
        let place = trees.put_all();
        let mut check = std::process::Command::new("sha256sum");
        check
            .args(["--check", "--strict", "--quiet", list::NAME])
            .current_dir(&place);
        assert!(check.status().unwrap().success());
        assert!(!list::NAME.starts_with('.'));
    }

    #[test]
    fn a_handler_left_out_later_is_taken_out_with_its_objects() {
        let trees = Trees::new();
        let place = trees.put_all();
        write(place.join("luo_handler_vfio/luo_handler_vfio.o"), "object");
        write(place.join("luo_handler_vfio/kmod/.shim.o.cmd"), "command");
        trees.put(&named(&["memfd"])).unwrap();
        assert!(place.join("luo_handler_memfd").exists());
        assert!(!place.join("luo_handler_vfio").exists());
        assert!(!read(place.join("Kconfig.handlers")).contains("vfio"));
        let error = trees.refused(&named(&["nonesuch"]));
        assert!(
            error.contains("no handler nonesuch") && error.contains("memfd, vfio"),
            "{error}"
        );
    }

    #[test]
    fn a_crate_from_elsewhere_is_named_by_its_path() {
        let trees = Trees::new();
        let author = tempfile::tempdir().unwrap();
        write_handler(author.path(), "my-eventfd", "LUO_HANDLER_EVENTFD");
        write(
            author.path().join("kmod/kernel.config"),
            "CONFIG_EVENTFD=y\n",
        );
        let path = author.path().to_str().unwrap();
        let integrated = trees.put(&named(&["vfio", path])).unwrap();
        assert_eq!(integrated.handlers, ["luo_handler_vfio", "my_eventfd"]);
        assert_eq!(
            integrated.fragment,
            "CONFIG_LUO_HANDLERS=y\n\nCONFIG_LUO_HANDLER_VFIO=y\n\nCONFIG_EVENTFD=y\n\
             CONFIG_LUO_HANDLER_EVENTFD=y\n"
        );
        let target = Path::new("drivers/luo_handlers/my_eventfd/my_eventfd.rs");
        assert_eq!(integrated.sources[target], author.path().join("src/lib.rs"));
        assert!(trees
            .refused(&named(&[path, path]))
            .contains("two crates my_eventfd"));
    }

    #[test]
    fn a_crate_without_a_switch_is_refused_with_what_is_missing() {
        let trees = Trees::new();
        let untouched = trees.files();
        let author = tempfile::tempdir().unwrap();
        let path = author.path().to_str().unwrap();
        let refused = |lack: &str| {
            let error = trees.refused(&named(&[path]));
            assert!(error.contains(path) && error.contains(lack), "{error}");
        };
        refused("Cargo.toml");
        write(
            author.path().join("Cargo.toml"),
            "[package]\nname = \"mine\"\n",
        );
        fs::create_dir(author.path().join("src")).unwrap();
        refused("no src/lib.rs");
        write(author.path().join("src/lib.rs"), "");
        refused("kmod/Kconfig, which has the handler's switch");
        write(author.path().join("kmod/Kconfig"), "config MINE\n");
        refused("no switch: `config LUO_HANDLER_...`");
        write(
            author.path().join("kmod/Kconfig"),
            "config LUO_HANDLER_VFIO\n",
        );
        let error = trees.refused(&named(&["vfio", path]));
        assert!(
            error.contains("two handlers have the switch LUO_HANDLER_VFIO"),
            "{error}"
        );
        assert_eq!(trees.files(), untouched);
    }

    #[test]
    fn a_compilers_output_names_the_authors_file() {
        let trees = Trees::new();
        let integrated = trees.put(&Selection::All).unwrap();
        let place = "drivers/luo_handlers/luo_handler_memfd";
        let output = format!(
            "error[E0425]: x\n --> /c/linux/{place}/luo_handler_memfd.rs:7:1\n\
             ../linux/{place}/kmod/shim.c:3:2: error\n{place}/kmod/shim.o {place}/kmod/Kconfig.x\n"
        );
        let handler = trees.checkout.join("handlers/memfd");
        assert_eq!(
            integrated.with_sources_named(&output),
            format!(
                "error[E0425]: x\n --> {0}/src/lib.rs:7:1\n{0}/kmod/shim.c:3:2: error\n\
                 {place}/kmod/shim.o {place}/kmod/Kconfig.x\n",
                handler.display()
            )
        );
    }

    #[test]
    fn what_is_not_ours_stays_and_is_named() {
        let trees = Trees::new();
        let place = trees.put_all();
        for product in [
            "dispatch.o",
            ".dispatch.o.cmd",
            "Kconfig.orig",
            "dispatch.rs~",
            "built-in.a",
        ] {
            write(place.join(product), "product");
        }
        write(place.join("notes.txt"), "mine");
        assert_eq!(trees.remove().left, [place.join("notes.txt")]);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        write(place.join("Kconfig"), "somebody else's");
        let before = trees.files();
        let error = trees.refused(&Selection::All);
        assert!(error.contains("Kconfig is not from us"), "{error}");
        assert_eq!(trees.files(), before);
    }

    #[test]
    fn a_lost_list_is_made_again_if_all_else_is_whole() {
        let trees = Trees::new();
        let place = trees.put_all();
        let whole = trees.files();
        fs::remove_file(place.join(list::NAME)).unwrap();
        trees.put_all();
        assert_eq!(trees.files(), whole);
    }

    #[test]
    fn a_former_list_is_taken_over() {
        let trees = Trees::new();
        let place = trees.put_all();
        let list = read(place.join(list::NAME));
        let names: String = list
            .lines()
            .map(|line| format!("{}\n", &line[66..]))
            .collect();
        write(
            place.join(list::FORMER_NAME),
            &format!("{names}lab.config\n"),
        );
        fs::remove_file(place.join(list::NAME)).unwrap();
        write(place.join("dispatch.rs"), "// as it was then\n");
        write(place.join("lab.config"), "");
        trees.put_all();
        assert!(!place.join(list::FORMER_NAME).exists() && !place.join("lab.config").exists());
        assert_eq!(read(place.join("dispatch.rs")), "// dispatch\n");
        assert_eq!(read(place.join(list::NAME)), list);
    }

    #[test]
    fn what_was_changed_in_the_tree_is_not_lost_without_a_word() {
        let trees = Trees::new();
        let place = trees.put_all();
        write(place.join("dispatch.rs"), "// mine\n");
        write(trees.checkout.join("kmod/dispatch.rs"), "// newer\n");
        write(trees.checkout.join("kmod/added.rs"), "// newer\n");
        let before = trees.files();
        let error = trees.refused(&Selection::All);
        assert!(
            error.contains("dispatch.rs") && error.contains("--force"),
            "{error}"
        );
        let error = remove(&trees.kernel, LocalEdits::Refuse)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("dispatch.rs") && error.contains("--force"),
            "{error}"
        );
        assert_eq!(trees.files(), before);
        put(
            &trees.checkout,
            &trees.kernel,
            &Selection::All,
            LocalEdits::Overwrite,
        )
        .unwrap();
        assert_eq!(read(place.join("dispatch.rs")), "// newer\n");
        write(place.join("dispatch.rs"), "// mine\n");
        remove(&trees.kernel, LocalEdits::Overwrite).unwrap();
        assert!(!place.exists());
    }

    #[test]
    fn a_list_cannot_lead_out_of_the_directory() {
        let trees = Trees::new();
        let place = trees.put_all();
        let outside = trees.kernel.join("foreign");
        write(outside.join("file"), "foreign");
        let list = read(place.join(list::NAME));
        for line in [
            "../Kconfig",
            "/etc/passwd",
            "luo_handler_memfd/../../Kconfig",
        ] {
            write(place.join(list::NAME), &format!("{list}{line}\n"));
            let error = format!(
                "{:#}",
                remove(&trees.kernel, LocalEdits::Overwrite).unwrap_err()
            );
            assert!(error.contains("damaged"), "{error}");
            assert!(trees.refused(&Selection::All).contains("damaged"));
        }
        std::os::unix::fs::symlink(&outside, place.join("link")).unwrap();
        write(place.join(list::NAME), &format!("{list}link/file\n"));
        let error = remove(&trees.kernel, LocalEdits::Overwrite)
            .unwrap_err()
            .to_string();
        assert!(error.contains("symbolic link"), "{error}");
        assert_eq!(read(outside.join("file")), "foreign");
    }

    #[test]
    fn a_line_that_is_left_alone_is_removed_and_reported() {
        let trees = Trees::new();
        let untouched = trees.files();
        let with_line = tree::EDITS[0].add(TEXTS[1].1).unwrap();
        write(trees.kernel.join(KCONFIG), &with_line);
        let removed = trees.remove();
        assert_eq!(
            (removed.lines, removed.files),
            (vec![PathBuf::from(KCONFIG)], 0)
        );
        assert_eq!(trees.files(), untouched);
    }

    #[test]
    fn a_patch_is_replaced_by_its_next_version_and_goes_with_its_handler() {
        let trees = Trees::new();
        let shmem = || read(trees.kernel.join(SHMEM));
        trees.put_all();
        assert_eq!(shmem(), "one\nheld\ntwo\nthree\n");
        write(trees.checkout.join(PATCH), &patch("more"));
        trees.put_all();
        assert_eq!(shmem(), "one\nmore\ntwo\nthree\n");
        trees.put(&named(&["vfio"])).unwrap();
        assert_eq!(shmem(), "one\ntwo\nthree\n");
        trees.put_all();
        assert!(trees.remove().lines.contains(&PathBuf::from(SHMEM)));
        assert_eq!(shmem(), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_patch_for_another_kernel_is_refused_before_anything_changes() {
        let trees = Trees::new();
        write(trees.kernel.join(SHMEM), "something else\n");
        let before = trees.files();
        assert!(trees
            .refused(&Selection::All)
            .contains("does not fit mm/shmem.c"));
        assert_eq!(trees.files(), before);
    }

    #[test]
    fn the_permissions_of_the_kernels_files_stay() {
        use std::os::unix::fs::PermissionsExt;
        let trees = Trees::new();
        let file = trees.kernel.join(KCONFIG);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        trees.put_all();
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o640
        );
    }

    #[test]
    fn a_tree_of_hard_links_does_not_change_what_it_was_linked_from() {
        let trees = Trees::new();
        let untouched = trees.files();
        let linked = trees.kernel.with_file_name("linked");
        let mut copy = std::process::Command::new("cp");
        copy.args(["--archive", "--link"])
            .args([&trees.kernel, &linked]);
        assert!(copy.status().unwrap().success());
        put(
            &trees.checkout,
            &linked,
            &Selection::All,
            LocalEdits::Refuse,
        )
        .unwrap();
        assert_ne!(read(linked.join(KCONFIG)), TEXTS[1].1);
        assert_eq!(trees.files(), untouched);
    }

    #[test]
    fn only_one_at_a_time() {
        let trees = Trees::new();
        let _lock = tree::lock(&trees.kernel).unwrap();
        assert!(trees
            .refused(&Selection::All)
            .contains("another `luo integrate`"));
    }

    #[test]
    fn an_unsuitable_tree_is_refused_with_the_reason() {
        let trees = Trees::new();
        let header = trees.kernel.join(HEADER);
        write(header.clone(), &OPS.replace("int", "long"));
        let reason = "struct liveupdate_file_ops has `long x`";
        assert!(trees.refused(&Selection::All).contains(reason));
        fs::remove_file(&header).unwrap();
        let before = trees.files();
        assert!(trees.refused(&Selection::All).contains("take 7.2 or 7.3"));
        assert_eq!(trees.files(), before);
        write(header, OPS);
        write(trees.kernel.join("include/asm-generic/vmlinux.lds.h"), "");
        let before = trees.files();
        assert!(trees
            .refused(&Selection::All)
            .contains("to put a line before"));
        assert_eq!(trees.files(), before);
    }

    #[test]
    fn a_configuration_is_checked() {
        let trees = Trees::new();
        let config = trees.kernel.join(".config");
        write(
            config.clone(),
            "CONFIG_LUO_HANDLERS=y\n# CONFIG_LUO_HANDLER_MEMFD is not set\n",
        );
        let missing = check_config(&trees.checkout, &named(&["memfd"]), &config).unwrap();
        assert_eq!(missing.fragment, "CONFIG_LUO_HANDLER_MEMFD=y\n");
        write(config.clone(), "not one");
        let error = check_config(&trees.checkout, &Selection::All, &config).unwrap_err();
        assert!(
            error.to_string().contains("not a kernel configuration"),
            "{error}"
        );
    }
}
