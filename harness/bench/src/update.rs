// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One measured live update, by any transport: the files are made, cross, are retrieved and
//! compared.
//!
//! [`Update`] is what crosses beside the files. The transports differ in how they prepare and jump;
//! what happens before and after that is the same for all.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{ensure, Result};
use luo_handler_api::Token;
use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::memory::allocated_bytes;
use crate::outcome::Outcome;
use crate::phase::Phase;
use crate::sample::Before;
use crate::subject::memfd::MakeError;

/// A live update under way: what its new side has to know.
#[derive(Debug, Serialize, Deserialize)]
pub struct Update {
    /// What is measured.
    pub case: Case,
    /// What was known of each file before the jump, in the order of their tokens.
    before: Vec<Before>,
    /// What came of it so far.
    pub outcome: Outcome,
}

/// The files of an update on its old side, by their tokens.
pub type Files = Vec<(Token, File)>;

/// The new side of a transport, on which files are retrieved.
pub trait NewSide {
    /// A file that was retrieved.
    type File: AsFd;

    /// Retrieves the file of a token.
    ///
    /// # Errors
    ///
    /// Those of the handler.
    fn retrieve(&self, token: Token) -> Result<Self::File>;

    /// Finishes the update; returns what a handler complained of, if one did.
    ///
    /// # Errors
    ///
    /// Those of the handlers.
    fn finish(&self) -> Result<Option<String>>;
}

impl Update {
    /// Makes the files of a case. `progress` gets the bytes as they are written.
    ///
    /// # Errors
    ///
    /// [`MakeError`] of the first that cannot be made.
    pub fn begin(case: &Case, progress: impl Fn(u64)) -> Result<(Self, Files), MakeError> {
        let mut update = Self {
            case: case.clone(),
            before: Vec::new(),
            outcome: Outcome::default(),
        };
        let mut files = Files::new();
        for sample in case.samples() {
            let file = sample.make(&progress)?;
            if case.subject.is_collapsed() {
                let collapse = update.outcome.collapse.get_or_insert_default();
                collapse.add(&file).map_err(|error| {
                    MakeError::Unavailable(format!("it cannot be collapsed: {error}"))
                })?;
            }
            update.before.push(sample.look(&file)?);
            files.push((sample.token, file));
        }
        let huge_pages = update.before.iter().map(Before::huge_page_bytes);
        update.outcome.huge_page_bytes = match &update.outcome.collapse {
            Some(collapse) => Some(collapse.collapsed_bytes),
            None => huge_pages.sum(),
        };
        update.outcome.data_bytes = case.data_bytes();
        Ok((update, files))
    }

    /// Retrieves the files, finishes and compares. What is not as it was before is noted.
    ///
    /// # Errors
    ///
    /// Those of the handlers.
    pub fn take_back(&mut self, side: &impl NewSide, progress: impl Fn(u64) + Sync) -> Result<()> {
        let samples = self.case.samples();
        ensure!(
            samples.len() == self.before.len(),
            "{} files crossed, {} were known before",
            samples.len(),
            self.before.len()
        );
        let phases = &mut self.outcome.phases;
        let files = phases.time(Phase::Retrieve, || {
            let tokens = samples.iter().map(|sample| sample.token);
            tokens
                .map(|token| side.retrieve(token))
                .collect::<Result<Vec<_>>>()
        })?;
        self.outcome.mismatch = phases.time(Phase::Finish, || side.finish())?;
        for ((sample, before), file) in samples.iter().zip(&self.before).zip(&files) {
            if let Err(mismatch) = sample.verify(before, file.as_fd(), &progress) {
                let mismatch = format!("{mismatch:#}");
                self.outcome.mismatch.get_or_insert(mismatch);
            }
        }
        Ok(())
    }
}

/// Bytes of memory that all of the files take.
///
/// # Errors
///
/// Those of `fstat(2)`.
pub fn allocated(files: &Files) -> Result<u64> {
    let mut bytes = 0;
    for (_, file) in files {
        bytes += allocated_bytes(file)?;
    }
    Ok(bytes)
}
