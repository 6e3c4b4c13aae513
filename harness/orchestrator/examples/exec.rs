// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A program that takes a memfd through its own exec, twice: `cargo run --example exec`.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::id;
use std::sync::Arc;

use luo_handler_api::Token;
use luo_handler_memfd as _; // links the handler in, so that the registry finds it
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;
use luo_orchestrator::transport::{exec, program::Program};

/// The name of the memfd on both sides.
const NOTES: Token = Token(1);

fn main() -> Result<(), Box<dyn Error>> {
    let registry = Arc::new(Registry::linked()?);
    let mut notes = match exec::arrive()? {
        Some(arrival) => take_over(Orchestrator::arrived(registry.clone(), arrival))?,
        None => memfd::MemfdOptions::default().create("notes")?.into_file(),
    };

    let mut text = String::new();
    notes.rewind()?;
    notes.read_to_string(&mut text)?;
    let generation = text.lines().count() + 1;
    writeln!(notes, "generation {generation} was here, process {}", id())?;
    if generation == 3 {
        text.clear();
        notes.rewind()?;
        notes.read_to_string(&mut text)?;
        print!("{text}");
        return Ok(());
    }

    let update = Orchestrator::new(registry);
    update.preserve(NOTES, &notes)?;
    update.prepare()?; // here a server still serves
    update.freeze()?; // here it does not
    let mut program = Program::new(std::env::current_exe()?);
    let failed = update.handover(|handover| {
        let departure = exec::Departure::new(&handover, &mut program)?;
        Ok::<_, Box<dyn Error>>(departure.jump()?)
    });
    // Only a jump that failed gets here: a server unfreezes, cancels and serves on.
    update.cancel()?;
    match failed? {}
}

fn take_over(update: Orchestrator) -> Result<File, Box<dyn Error>> {
    let notes = update.retrieve(NOTES)?;
    update.finish()?;
    Ok(File::from(notes.try_clone()?))
}
