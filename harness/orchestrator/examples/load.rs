// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Puts the server under load, updates it, and prints how long it stood still and what was lost.
//!
//!     cargo build --examples && cargo run --example load -- --size 64M,1G,4G --by exec,spawn

use std::path::PathBuf;
use std::process::{Command, ExitCode};

#[path = "server/load.rs"]
mod load;

const USAGE: &str = "usage: load [--by exec,spawn] [--size 64M,1G,4G] [--updates 50] [--clients 8]
            [--idle 300] [--server PROGRAM]";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Box<dyn std::error::Error>> {
    let mut plan = load::Plan {
        by: "exec",
        bytes: 0,
        updates: 50,
        clients: 8,
        idle: 300,
    };
    let mut transports = vec!["exec", "spawn"];
    let mut sizes = vec![64 << 20, 1 << 30, 4 << 30];
    let mut server = std::env::current_exe()?.with_file_name("server");
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        let list = value.split(',');
        match name.as_str() {
            "--by" => transports = list.map(transport).collect::<Result<_, _>>()?,
            "--size" => sizes = list.map(size).collect::<Result<_, _>>()?,
            "--updates" => plan.updates = value.parse()?,
            "--clients" => plan.clients = value.parse()?,
            "--idle" => plan.idle = value.parse()?,
            "--server" => server = PathBuf::from(value),
            _ => return Err(USAGE.into()),
        }
    }
    let mut is_good = true;
    for &bytes in &sizes {
        for &by in &transports {
            let outcome = load::run(
                &load::Plan {
                    by,
                    bytes,
                    ..plan.clone()
                },
                Command::new(&server),
            )?;
            println!("{:>5} MiB  {by:<5}  {outcome}", bytes >> 20);
            is_good &= outcome.lost + outcome.errors + outcome.reconnects == 0;
        }
    }
    Ok(is_good)
}

fn transport(name: &str) -> Result<&'static str, &'static str> {
    let known = ["exec", "spawn"].into_iter().find(|known| *known == name);
    known.ok_or(USAGE)
}

fn size(text: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let (digits, shift) = match text.strip_suffix(['M', 'G']) {
        Some(digits) if text.ends_with('G') => (digits, 30),
        Some(digits) => (digits, 20),
        None => (text, 0),
    };
    let number: u64 = digits.parse()?;
    number
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == number)
        .ok_or(USAGE.into())
}
