// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Debian packages of another suite through the machine's own apt set-up: its mirrors, proxies and
//! keys, but package lists of our own, so that the machine's are left alone.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::cache::directory::Cache;
use crate::cache::progress::Progress;
use crate::namespace::is_root;

/// The suite whose compilers fit the kernel.
pub(crate) const SUITE: &str = "trixie";
/// The suite that has the kernel source.
pub(crate) const SOURCE_SUITE: &str = "trixie-backports";
/// The suite that has a systemd which knows the orchestrator.
pub(crate) const SYSTEMD_SUITE: &str = "sid";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian packages come from. Nothing is asked of the network before a step needs it.
#[derive(Debug)]
pub(crate) struct Mirror<'a> {
    cache: &'a Cache,
    given: Option<&'a str>,
    suites: &'a [&'a str],
    chosen: OnceCell<String>,
}

impl<'a> Mirror<'a> {
    /// The `given` mirror, else the first of the machine's own that has the suites. The package
    /// lists go into this part of the cache, which is that of these suites alone.
    pub(crate) fn new(cache: &'a Cache, given: Option<&'a str>, suites: &'a [&'a str]) -> Self {
        Self {
            cache,
            given,
            suites,
            chosen: OnceCell::new(),
        }
    }

    /// The line of a sources.list that names a suite.
    pub(crate) fn source_line(&self, suite: &str, progress: &Progress) -> Result<String> {
        Ok(source_line(self.uri(progress)?, suite))
    }

    /// `apt-get` or `apt-cache` on the lab's own package lists.
    pub(crate) fn command(&self, program: &str, progress: &Progress) -> Result<Command> {
        self.uri(progress)?;
        Ok(private_apt(self.cache, program))
    }

    fn uri(&self, progress: &Progress) -> Result<&str> {
        if let Some(uri) = self.chosen.get() {
            return Ok(uri);
        }
        let candidates = match self.given {
            Some(uri) => vec![uri.to_owned()],
            None => configured_mirrors()?,
        };
        let mut reasons = Vec::new();
        for candidate in candidates {
            match fetch_lists(self.cache, &candidate, self.suites, progress) {
                Ok(()) => return Ok(self.chosen.get_or_init(|| candidate)),
                Err(error) => reasons.push(format!("{candidate}: {error:#}")),
            }
        }
        bail!(
            "no Debian mirror in the machine's apt set-up has {}; name one with --mirror\n{}",
            self.suites.join(" and "),
            reasons.join("\n")
        )
    }
}

fn source_line(uri: &str, suite: &str) -> String {
    let signed_by = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    format!("deb {signed_by}{uri} {suite} main")
}

/// Fetches the package lists of the suites from one mirror.
fn fetch_lists(cache: &Cache, uri: &str, suites: &[&str], progress: &Progress) -> Result<()> {
    for directory in ["apt/state/lists/partial", "apt/cache/archives/partial"] {
        fs::create_dir_all(cache.path(directory))
            .with_context(|| format!("creating {directory} in the cache"))?;
    }
    let lines = suites.iter().map(|suite| source_line(uri, suite) + "\n");
    fs::write(cache.path("apt/sources.list"), lines.collect::<String>())
        .context("writing the lab's sources.list")?;
    progress.run(private_apt(cache, "apt-get").args(["--error-on=any", "update"]))
}

fn private_apt(cache: &Cache, program: &str) -> Command {
    let path = |relative: &str| cache.path(relative).display().to_string();
    let mut command = Command::new(program);
    for option in [
        format!("Dir::Etc::sourcelist={}", path("apt/sources.list")),
        "Dir::Etc::sourceparts=/dev/null".into(),
        format!("Dir::State={}", path("apt/state")),
        "Dir::State::status=/dev/null".into(),
        format!("Dir::Cache={}", path("apt/cache")),
        // The cache is often inside a home directory that apt's own download user may not enter.
        "APT::Sandbox::User=root".into(),
    ] {
        command.args(["-o", &option]);
    }
    command
}

/// The mirrors in the machine's apt set-up, security archives last.
fn configured_mirrors() -> Result<Vec<String>> {
    let mut mirrors = index_targets()?;
    if mirrors.is_empty() && is_root() && update_lists()? {
        mirrors = index_targets()?;
    }
    if mirrors.is_empty() {
        bail!(
            "apt knows no package lists yet; run `apt-get update` as root, or name a Debian \
               mirror with --mirror"
        );
    }
    Ok(mirrors)
}

fn index_targets() -> Result<Vec<String>> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
        ])
        .stdin(Stdio::null())
        .output()
        .context("asking apt for its mirrors")?;
    Ok(order_mirrors(&String::from_utf8_lossy(&output.stdout)))
}

fn order_mirrors(listing: &str) -> Vec<String> {
    let mut mirrors: Vec<String> = Vec::new();
    for uri in listing.lines().map(str::trim).filter(|uri| !uri.is_empty()) {
        if !mirrors.iter().any(|known| known == uri) {
            mirrors.push(uri.to_owned());
        }
    }
    mirrors.sort_by_key(|uri| uri.contains("security"));
    mirrors
}

/// Brings the machine's own package lists up to date.
pub(crate) fn update_lists() -> Result<bool> {
    let status = Command::new("apt-get")
        .arg("update")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    Ok(status.context("starting apt-get")?.success())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn each_mirror_is_tried_once_and_security_last() {
        let listing = "http://m/debian-security/\nhttp://m/debian/\n\nhttp://m/debian/\n";
        assert_eq!(
            order_mirrors(listing),
            ["http://m/debian/", "http://m/debian-security/"]
        );
    }
}
