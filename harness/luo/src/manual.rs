// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Man pages and completions for shells, made from the definition of the command line.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::{generate, Shell};

/// The shells, each with the place where it looks for completions.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/luo"),
    (Shell::Zsh, "zsh/site-functions/_luo"),
    (Shell::Fish, "fish/vendor_completions.d/luo.fish"),
];
/// Where man(1) looks for pages of commands.
const MAN_PAGES: &str = "man/man1";

/// Writes the pages and completions below `share`, the `share` of a prefix such as `/usr/local`.
///
/// # Errors
///
/// A file that cannot be written.
pub fn write(mut command: Command, share: &Path) -> Result<()> {
    let pages = share.join(MAN_PAGES);
    create(&pages)?;
    clap_mangen::generate_to(command.clone(), &pages)
        .with_context(|| format!("writing man pages to {}", pages.display()))?;
    for (shell, file) in COMPLETIONS {
        let file = share.join(file);
        create(file.parent().unwrap_or(share))?;
        let mut text = Vec::new();
        generate(shell, &mut command, "luo", &mut text);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))
}
