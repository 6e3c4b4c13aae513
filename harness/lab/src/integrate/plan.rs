// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What goes into our directory: the sources, and the lines that pull each handler in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use super::crates::{self, HandlerCrate, Selection, Source};
use super::patches::is_patch;
use super::tree;

/// Everything that our directory holds.
#[derive(Debug)]
pub(super) struct Plan {
    /// What each file holds, by its name inside the directory.
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    /// Where it is from; generated files are from nowhere.
    pub(super) sources: BTreeMap<PathBuf, PathBuf>,
}

impl Plan {
    /// Reads a checkout and the crates of the handlers.
    pub(super) fn read(checkout: &Path, handlers: Vec<HandlerCrate>) -> Result<Self> {
        let kmod = checkout.join("kmod");
        if !kmod.is_dir() {
            bail!(
                "{} has no kmod/; name a checkout of luo-handlers with --checkout",
                checkout.display()
            );
        }
        let mut plan = Self {
            files: BTreeMap::new(),
            sources: BTreeMap::new(),
        };
        plan.generate("Kconfig.handlers", "#", &kconfig_lines(&handlers));
        plan.generate("Makefile.handlers", "#", &makefile_lines(&handlers));
        plan.add("", crates::sources_below(&kmod)?);
        let (api, sources) = crates::read_crate(&checkout.join("luo-handler-api"))?;
        plan.add(&api, sources);
        for handler in handlers {
            plan.add(&handler.name, handler.sources);
        }
        Ok(plan)
    }

    fn add(&mut self, directory: &str, sources: Vec<Source>) {
        for source in sources {
            let target = Path::new(directory).join(source.target);
            self.sources.insert(target.clone(), source.file);
            self.files.insert(target, source.contents);
        }
    }

    fn generate(&mut self, name: &str, comment: &str, lines: &str) {
        let text = format!(
            "{comment} SPDX-License-Identifier: GPL-2.0-only\n\
             {comment} Made by `luo integrate`, which makes it again.\n{lines}"
        );
        self.files.insert(name.into(), text.into_bytes());
    }

    /// What the handlers change in the kernel's own files.
    pub(super) fn patches(&self) -> Result<Vec<(PathBuf, String)>> {
        let patches = self.files.iter().filter(|(name, _)| is_patch(name));
        patches
            .map(|(name, contents)| Ok((name.clone(), text_of(name, contents.clone())?)))
            .collect()
    }

    /// Whether one of the files is in this directory of ours, or below it.
    pub(super) fn has_below(&self, directory: &Path) -> bool {
        self.files.keys().any(|name| name.starts_with(directory))
    }
}

/// The contents of a file of text.
pub(super) fn text_of(name: &Path, contents: Vec<u8>) -> Result<String> {
    String::from_utf8(contents).with_context(|| format!("{} is not text", name.display()))
}

fn kconfig_lines(handlers: &[HandlerCrate]) -> String {
    let line = |handler: &HandlerCrate| {
        let kconfig = Path::new(tree::DIRECTORY)
            .join(&handler.name)
            .join(HandlerCrate::kconfig());
        format!("source \"{}\"\n", kconfig.display())
    };
    handlers.iter().map(line).collect()
}

fn makefile_lines(handlers: &[HandlerCrate]) -> String {
    let line = |handler: &HandlerCrate| {
        let HandlerCrate { switch, name, .. } = handler;
        format!(
            "$(eval $(call luo-handler,{switch},{name},{}))\n",
            handler.objects().join(" ")
        )
    };
    handlers.iter().map(line).collect()
}

/// The configuration that the module and these handlers want: a fragment, as the kernel's
/// `merge_config.sh` takes it.
pub(super) fn fragment(checkout: &Path, handlers: &[HandlerCrate]) -> Result<String> {
    let mut text = crates::wants_of_module(checkout)?;
    for handler in handlers {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{}CONFIG_{}=y\n", handler.wants, handler.switch);
    }
    Ok(text)
}

/// The handlers of a selection.
pub(super) fn handlers(checkout: &Path, selection: &Selection) -> Result<Vec<HandlerCrate>> {
    crates::select(checkout, selection)
}
