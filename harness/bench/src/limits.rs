// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Limits of this process.

use anyhow::{Context, Result};
use rustix::process::{getrlimit, setrlimit, Resource};

/// Raises the limit of open files as far as an ordinary user may; returns it.
///
/// # Errors
///
/// Those of `setrlimit(2)`.
pub fn allow_many_files() -> Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")?;
    Ok(limit.current.unwrap_or(u64::MAX))
}
