// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One combination that is measured.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::format::times;
use crate::sample::Sample;
use crate::subject::Subject;
use crate::transport::Transport;

/// One combination of what is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The way over the jump.
    pub transport: Transport,
    /// What crosses.
    pub subject: Subject,
    /// How many such files there are.
    pub files: u32,
}

/// Whose code preserves the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Implementation {
    /// The handlers of this project.
    #[serde(rename = "luo-handlers")]
    Ours,
    /// The handler in C that the kernel brings along; it takes memfds alone.
    #[serde(rename = "mainline-c")]
    MainlineC,
}

impl Case {
    /// The files of this case, in the order of their tokens, which begin at 1.
    pub fn samples(&self) -> Vec<Sample> {
        let numbers = 1..=u64::from(self.files);
        let sample = |number| Sample::new(&self.subject, number);
        numbers.map(sample).collect()
    }

    /// Bytes of data in all files together.
    pub fn data_bytes(&self) -> u64 {
        self.samples().iter().map(Sample::data_bytes).sum()
    }
}

impl Implementation {
    /// The compatible of its handler of such files.
    pub const fn compatible(self, subject: &Subject) -> &'static str {
        match self {
            Self::Ours => subject.compatible(),
            Self::MainlineC => "memfd-v2",
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transport,
            subject,
            files,
        } = self;
        write!(f, "{transport} {subject}{}", times(*files))
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ours => "luo-handlers",
            Self::MainlineC => "mainline-c",
        })
    }
}
