// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a worker reports, as lines of JSON on its standard output.

use std::io::Write;

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

/// What a worker reports.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// So many bytes more were filled, written, read or compared.
    Bytes(u64),
    /// The machine cannot do it.
    Skipped(String),
    /// The update is finished.
    Done(Box<Outcome>),
}

impl Message {
    /// Sends it to the process that started this one.
    pub fn send(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            // Without a reader the run is of no use.
            if writeln!(std::io::stdout(), "{line}").is_err() {
                std::process::exit(1);
            }
        }
    }
}

/// Sends that so many bytes more are done.
pub fn send_bytes(bytes: u64) {
    Message::Bytes(bytes).send();
}
