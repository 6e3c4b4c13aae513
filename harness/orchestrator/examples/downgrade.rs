// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A program that goes to its next version and back, and does not lose what it counted.
//!
//!     cargo run --example downgrade -- 1 2 1 2 3 1
//!
//! The arguments are the versions that it becomes, one after the other, each by an exec. Version 2
//! adds to the state, and version 1 can read it still. Version 3 changes what the state means, so
//! version 1 refuses it: the last step fails, and the message names the versions.

use std::sync::Arc;

use luo_handler_api::Token;
use luo_handler_memfd as _;
use luo_orchestrator::envelope::{self, Versioned};
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::{exec, program::Program};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const STATE: Token = Token(1);

#[derive(Debug, Default, Serialize, Deserialize)]
struct First {
    count: u64,
}

/// Adds the name of who counted last.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Second {
    count: u64,
    #[serde(default)]
    last: Option<String>,
}

/// Counts by name.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Third {
    counts: std::collections::BTreeMap<String, u64>,
}

impl Versioned for First {
    const NAME: &'static str = "counter";
    const VERSION: u32 = 1;
}

impl Versioned for Second {
    const NAME: &'static str = "counter";
    const VERSION: u32 = 2;
    const OLDEST_READER: u32 = 1;

    fn upgrade(_: u32, state: Value) -> std::result::Result<Value, String> {
        Ok(state)
    }
}

impl Versioned for Third {
    const NAME: &'static str = "counter";
    const VERSION: u32 = 3;

    fn upgrade(from: u32, state: Value) -> std::result::Result<Value, String> {
        match from {
            1 => Second::upgrade(from, state),
            _ => Ok(json!({ "counts": { "before": state["count"] } })),
        }
    }
}

fn main() -> Result<()> {
    let mut versions = std::env::args().skip(1);
    let version = versions.next().unwrap_or_else(|| "1".into());
    let versions = versions.collect();
    match version.as_str() {
        "1" => live(versions, |state: &mut First| state.count += 1),
        "2" => live(versions, |state: &mut Second| {
            state.count += 1;
            state.last = Some("version 2".into());
        }),
        "3" => live(versions, |state: &mut Third| {
            *state.counts.entry("version 3".into()).or_default() += 1;
        }),
        _ => Err("the versions are 1, 2 and 3".into()),
    }
}

/// The life of one version: takes the state over, counts, and becomes the next one.
fn live<T>(versions: Vec<String>, count: impl Fn(&mut T)) -> Result<()>
where
    T: Versioned + Default + std::fmt::Debug,
{
    let registry = Arc::new(Registry::linked()?);
    let mut state = match exec::arrive()? {
        Some(arrival) => {
            let update = Orchestrator::arrived(registry.clone(), arrival);
            let state = envelope::from_file(&*update.retrieve(STATE)?)?;
            update.finish()?;
            state
        }
        None => T::default(),
    };
    count(&mut state);
    println!("version {}: {state:?}", T::VERSION);
    if versions.is_empty() {
        return Ok(());
    }
    let file = envelope::to_memfd(&state)?;
    let update = Orchestrator::new(registry);
    update.preserve(STATE, &file)?;
    update.prepare()?;
    update.freeze()?;
    let mut program = Program::new(std::env::current_exe()?);
    program.args(versions);
    update.handover(|handover| {
        exec::Departure::new(&handover, &mut program)?.jump()?;
        Ok(())
    })
}
