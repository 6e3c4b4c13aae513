// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which accelerator really runs a guest here: tried out with a deadline, for a device that opens
//! may still hang.

use std::path::Path;

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};

use crate::build::built::Built;
use crate::cache::directory::Cache;
use crate::cache::runs::Runs;
use crate::event::Event;
use crate::job::Job;
use crate::units::duration;
use crate::vm::accel::Accel;
use crate::vm::machine::Machine;
use crate::vm::options::DEFAULT_CPUS;
use crate::vm::qemu::Guest;

/// Bytes of the guest that tries an accelerator.
const MEMORY: u64 = 1 << 30;
const RECORD: &str = "accel.json";

/// What was found out, good until the machine boots again.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    boot_id: String,
    accel: Accel,
    reason: String,
}

/// The accelerator to use, tried out at most once a boot; prints which and why.
pub(crate) fn choose(cache: &Cache, runs: &Runs, built: &Built) -> Result<Accel> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("reading the machine's boot id")?;
    let known: Option<Found> = cache.read_json(RECORD);
    let found = match known.filter(|found| found.boot_id == boot_id) {
        Some(found) => found,
        None => {
            let (accel, reason) = probe(runs, built)?;
            let found = Found {
                boot_id,
                accel,
                reason,
            };
            cache.write_json(RECORD, &found)?;
            found
        }
    };
    eprintln!(
        "lab: acceleration: {} ({})",
        found.accel.name(),
        found.reason
    );
    Ok(found.accel)
}

fn probe(runs: &Runs, built: &Built) -> Result<(Accel, String)> {
    let kvm = if Path::new("/dev/kvm").exists() {
        eprintln!(
            "lab: trying out /dev/kvm, for at most {}",
            duration(Accel::Kvm.deadline().as_secs_f64())
        );
        try_out(runs, built, Accel::Kvm)?
    } else {
        Err("/dev/kvm is missing".into())
    };
    match kvm {
        Ok(reason) => Ok((Accel::Kvm, reason)),
        Err(no_kvm) => match try_out(runs, built, Accel::Tcg)? {
            Ok(reason) => Ok((Accel::Tcg, format!("{no_kvm}; emulation: {reason}"))),
            Err(no_tcg) => bail!("no guest runs here: {no_kvm}; emulation: {no_tcg}"),
        },
    }
}

fn is_up(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::Ready))
}

/// Boots a guest that reports that it is up, and ends.
fn try_out(runs: &Runs, built: &Built, accel: Accel) -> Result<Result<String, String>> {
    let guest = Guest {
        image: &built.artefacts.kernel_image,
        initramfs: &built.artefacts.initramfs,
        machine: Machine::Plain,
        job: Job::Probe,
        parameters: built.profile.parameters(MEMORY),
        memory: MEMORY,
        cpus: DEFAULT_CPUS,
        accel,
        directory: runs.of(&format!("probe-{}", accel.name())),
        timeout: Some(accel.deadline()),
        gdb: false,
    };
    let run = guest.run()?;
    let elapsed = duration(run.elapsed.as_secs_f64());
    Ok(match (is_up(&run.events), run.timed_out) {
        (true, false) => Ok(format!("a guest was up and down in {elapsed}")),
        (true, true) => Err(format!("{} hung at the guest's end", accel.name())),
        (false, true) => Err(format!(
            "{} opens, but a guest showed no life in {elapsed}",
            accel.name()
        )),
        (false, false) => Err(format!(
            "a guest on {} ended before it came up, see {}",
            accel.name(),
            run.console.display()
        )),
    })
}
