// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Hostile handovers: a devicetree and a memory file, taken through retrieve and finish.
//!
//! The first two bytes of the input are the length of the devicetree; the memory file follows. Half
//! of the inputs get the right header, so that the blocks after it are reached.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use luo_handler_memfd as _;
use luo_orchestrator::files::NoFiles;
use luo_orchestrator::handover::Arrival;
use luo_orchestrator::incoming::Incoming;
use luo_orchestrator::orchestrator::Orchestrator;
use luo_orchestrator::registry::Registry;

fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length));
    let (devicetree, memory) = rest.split_at(length.min(rest.len()));
    let mut memory = memory.to_vec();
    if length % 2 == 0 && memory.len() >= 16 {
        let bytes = memory.len() as u64;
        memory[..8].copy_from_slice(b"LUOMEM1\0");
        memory[8..16].copy_from_slice(&bytes.to_le_bytes());
    }
    let Ok(incoming) = Incoming::new(memory, NoFiles) else {
        return;
    };
    let registry = Arc::new(Registry::linked().expect("the handlers linked in are usable"));
    let orchestrator = Orchestrator::arrived(
        registry,
        Arrival {
            devicetree: devicetree.to_vec(),
            incoming,
        },
    );
    let Ok(files) = orchestrator.files() else {
        return;
    };
    for file in files {
        assert!(
            orchestrator.retrieve(file.token).is_err(),
            "no file crossed"
        );
    }
    orchestrator.finish().expect("nobody objects");
});
