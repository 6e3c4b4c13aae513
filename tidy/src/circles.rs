// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Files of one crate that import each other in a circle.
//!
//! A file imports another if one of its paths leads to something that the other defines. A name
//! that a module only re-exports counts as an import of the file that defines it: a facade is not a
//! circle. What only tests import does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use syn::visit::{self, Visit};

use crate::modules::{is_test, of_crate, Module, ModulePath};

/// Longer chains of re-exports do not exist.
const REEXPORTS_MAX: usize = 16;

/// One line for each circle of the crate with this root file.
pub(crate) fn check(root: &Path, crate_root: &Path) -> Result<Vec<String>> {
    let modules = of_crate(root, crate_root)?;
    let circles = circles(&edges(&modules));
    Ok(circles
        .iter()
        .map(|circle| {
            let names: Vec<_> = circle
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            format!("files import each other in a circle: {}", names.join(", "))
        })
        .collect())
}

type Edges = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

fn edges(modules: &BTreeMap<ModulePath, Module>) -> Edges {
    let mut edges = Edges::new();
    for (path, module) in modules {
        let mut paths = Paths::default();
        for item in &module.items {
            paths.visit_item(item);
        }
        let used = module.imports.iter().map(|import| import.path.clone());
        for used in used.chain(paths.0) {
            let Some(file) = target(modules, path, &used, 0) else {
                continue;
            };
            if file != module.file {
                edges.entry(module.file.clone()).or_default().insert(file);
            }
        }
    }
    edges
}

/// The file that defines what `used` names in the module at `from`; `None` outside of the crate.
fn target(
    modules: &BTreeMap<ModulePath, Module>,
    from: &ModulePath,
    used: &[String],
    depth: usize,
) -> Option<PathBuf> {
    if depth > REEXPORTS_MAX {
        return None;
    }
    let (mut module, mut rest) = start(modules, from, used)?;
    while let Some((name, tail)) = rest.split_first() {
        let child: ModulePath = module.iter().cloned().chain([name.clone()]).collect();
        if modules.contains_key(&child) {
            (module, rest) = (child, tail);
            continue;
        }
        let imports = &modules[&module].imports;
        if let Some(import) = imports.iter().find(|import| import.name == *name) {
            let onward: Vec<String> = import.path.iter().chain(tail).cloned().collect();
            if onward != used || module != *from {
                if let Some(file) = target(modules, &module, &onward, depth + 1) {
                    return Some(file);
                }
                // It leads out of the crate.
                return None;
            }
        }
        break;
    }
    Some(modules[&module].file.clone())
}

/// The module that a path begins in, and the names after it.
fn start<'u>(
    modules: &BTreeMap<ModulePath, Module>,
    from: &ModulePath,
    used: &'u [String],
) -> Option<(ModulePath, &'u [String])> {
    let (first, rest) = used.split_first()?;
    match first.as_str() {
        "crate" => Some((Vec::new(), rest)),
        "self" => Some((from.clone(), rest)),
        "super" => {
            let mut module = from.clone();
            let mut rest = used;
            while rest.first().is_some_and(|name| name == "super") {
                module.pop()?;
                rest = &rest[1..];
            }
            Some((module, rest))
        }
        name => {
            let child: ModulePath = from.iter().cloned().chain([name.to_owned()]).collect();
            let imports = &modules.get(from)?.imports;
            let known = modules.contains_key(&child)
                || imports
                    .iter()
                    .any(|import| import.name == *name && import.path != used);
            known.then(|| (from.clone(), used))
        }
    }
}

/// The paths of more than one name in items.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl<'a> Visit<'a> for Paths {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes: &[syn::Attribute] = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            let names = path.segments.iter();
            self.0
                .push(names.map(|name| name.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

/// The sets of files from each of which every other one of the set is reached.
fn circles(edges: &Edges) -> Vec<BTreeSet<PathBuf>> {
    let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = edges
        .keys()
        .map(|file| (file, reach(edges, file)))
        .collect();
    let mut circles = BTreeSet::new();
    for (file, targets) in &reached {
        if targets.contains(file) {
            let mutual = targets
                .iter()
                .filter(|target| reached.get(*target).is_some_and(|back| back.contains(file)));
            circles.insert(mutual.map(|file| (*file).clone()).collect::<BTreeSet<_>>());
        }
    }
    circles.into_iter().collect()
}

fn reach<'e>(edges: &'e Edges, from: &PathBuf) -> BTreeSet<&'e PathBuf> {
    let mut reached = BTreeSet::new();
    let mut pending: Vec<&PathBuf> = edges[from].iter().collect();
    while let Some(file) = pending.pop() {
        if reached.insert(file) {
            pending.extend(edges.get(file).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is found in a crate of these files.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        check(root.path(), Path::new("lib.rs")).unwrap()
    }

    #[test]
    fn two_files_that_use_each_other_are_a_circle() {
        let found = found(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "pub struct B; fn f() { crate::a::g() }"),
        ]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("a.rs, b.rs"), "{found:?}");
    }

    #[test]
    fn a_parent_that_its_children_use_is_a_circle() {
        let found = found(&[
            ("lib.rs", "mod m;"),
            ("m/mod.rs", "mod c; pub struct M; fn f() { c::g() }"),
            ("m/c.rs", "use super::M; pub fn g() {}"),
        ]);
        assert!(found[0].contains("m/c.rs, m/mod.rs"), "{found:?}");
    }

    #[test]
    fn a_circle_of_three_is_one() {
        let found = found(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "use crate::c::{self as other, C};"),
            ("c.rs", "use super::a;"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn a_facade_is_not_a_circle() {
        let found = found(&[
            ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
            ("a.rs", "use crate::B; pub struct A;"),
            ("b.rs", "pub struct B; use std::fmt;"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_circle_through_a_facade_is_one() {
        let found = found(&[
            ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
            ("a.rs", "use crate::B; pub struct A;"),
            ("b.rs", "use crate::A as Other; pub struct B;"),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn tests_may_use_what_they_like() {
        let found = found(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            (
                "b.rs",
                "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }",
            ),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }
}
