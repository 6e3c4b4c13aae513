// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A program that takes a file through its own exec with the handler of a plugin, which it gets as
//! a file: `cargo run --example plugin -- PLUGIN FILE`.

use std::error::Error;
use std::fs::{read_link, File};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use luo_handler_api::Token;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::transport::{exec, program::Program};
use luo_orchestrator::{plugin, registry::Registry};

const FILE: Token = Token(1);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [plugin, path] = &arguments[..] else {
        return Err("expected a plugin and a file".into());
    };
    // A registry of its own; Registry::linked() has the handlers of this program as well.
    let registry = Arc::new(Registry::new());
    plugin::load(plugin.as_ref(), &registry)?;
    if let Some(arrival) = exec::arrive()? {
        let update = Orchestrator::arrived(registry, arrival);
        let file = update.retrieve(FILE)?;
        let link = read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        println!("{} is open after the exec", link.display());
        update.finish()?;
        return Ok(());
    }
    let update = Orchestrator::new(registry);
    let handler = update.preserve(FILE, File::open(path)?)?;
    println!("{handler} takes the file");
    update.prepare()?;
    update.freeze()?;
    let mut program = Program::new(std::env::current_exe()?);
    program.args(&arguments);
    let failed = update.handover(|handover| {
        let departure = exec::Departure::new(&handover, &mut program)?;
        Ok::<_, Box<dyn Error>>(departure.jump()?)
    });
    match failed? {}
}
