// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What has to stay open until the jump.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};

/// What the init process holds open until the jump: closing a session gives its files up.
#[derive(Debug, Default)]
pub(crate) struct HeldOpen(Vec<OwnedFd>);

impl HeldOpen {
    /// Holds a session or a file.
    pub(crate) fn hold(&mut self, descriptor: impl AsFd) -> Result<()> {
        self.0.push(
            descriptor
                .as_fd()
                .try_clone_to_owned()
                .context("holding a descriptor open")?,
        );
        Ok(())
    }
}
