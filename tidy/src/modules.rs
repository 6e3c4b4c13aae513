// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The modules of a crate: their files, and the names that each re-exports.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::{Attribute, Item, UseTree};

/// A path of names; empty for the crate's root.
pub(crate) type ModulePath = Vec<String>;

/// A module: a file of its own, or a block inside its parent's.
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    pub(crate) items: Vec<Item>,
    /// What each name that the module imports stands for, as written.
    pub(crate) imports: Vec<Import>,
}

/// One name of a `use`.
pub(crate) struct Import {
    /// The path as written, without a glob's star.
    pub(crate) path: Vec<String>,
    /// The name it has here; `*` for a glob.
    pub(crate) name: String,
}

/// The modules of the crate with this root file.
pub(crate) fn of_crate(root: &Path, crate_root: &Path) -> Result<BTreeMap<ModulePath, Module>> {
    let mut modules = BTreeMap::new();
    let directory = crate_root.parent().unwrap_or(Path::new(""));
    read_file(root, crate_root, directory, Vec::new(), &mut modules)?;
    Ok(modules)
}

fn read_file(
    root: &Path,
    file: &Path,
    directory: &Path,
    path: ModulePath,
    modules: &mut BTreeMap<ModulePath, Module>,
) -> Result<()> {
    let text = fs::read_to_string(root.join(file))
        .with_context(|| format!("reading {}", file.display()))?;
    let parsed = syn::parse_file(&text).with_context(|| format!("parsing {}", file.display()))?;
    add(root, file, directory, path, parsed.items, modules)
}

fn add(
    root: &Path,
    file: &Path,
    directory: &Path,
    path: ModulePath,
    items: Vec<Item>,
    modules: &mut BTreeMap<ModulePath, Module>,
) -> Result<()> {
    let mut own = Vec::new();
    let mut imports = Vec::new();
    for item in items {
        match item {
            Item::Mod(module) if is_test(&module.attrs) => {}
            Item::Mod(module) => {
                let name = module.ident.to_string();
                let child: ModulePath = path.iter().cloned().chain([name.clone()]).collect();
                let below = directory.join(&name);
                match module.content {
                    Some((_, items)) => add(root, file, &below, child, items, modules)?,
                    None => {
                        let flat = directory.join(format!("{name}.rs"));
                        let folder = below.join("mod.rs");
                        let found = if root.join(&flat).is_file() {
                            flat
                        } else {
                            folder
                        };
                        read_file(root, &found, &below, child, modules)?;
                    }
                }
            }
            Item::Use(import) if is_test(&import.attrs) => {}
            Item::Use(import) => flatten(&import.tree, &mut Vec::new(), &mut imports),
            item => own.push(item),
        }
    }
    let module = Module {
        file: file.to_owned(),
        items: own,
        imports,
    };
    modules.insert(path, module);
    Ok(())
}

/// Whether an item exists in tests alone.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && list.is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

fn flatten(tree: &UseTree, prefix: &mut Vec<String>, imports: &mut Vec<Import>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, imports);
            prefix.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, prefix, imports);
            }
        }
        UseTree::Glob(_) => imports.push(Import {
            path: prefix.clone(),
            name: "*".into(),
        }),
        UseTree::Name(name) => push(prefix, &name.ident.to_string(), None, imports),
        UseTree::Rename(rename) => push(
            prefix,
            &rename.ident.to_string(),
            Some(rename.rename.to_string()),
            imports,
        ),
    }
}

fn push(prefix: &[String], name: &str, alias: Option<String>, imports: &mut Vec<Import>) {
    let mut path = prefix.to_vec();
    let last = match name {
        "self" => prefix.last().cloned().unwrap_or_default(),
        _ => {
            path.push(name.to_owned());
            name.to_owned()
        }
    };
    imports.push(Import {
        path,
        name: alias.unwrap_or(last),
    });
}
