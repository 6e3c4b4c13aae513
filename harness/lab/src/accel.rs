// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which accelerator really runs a guest here: tried out with a deadline, for a device that opens may still hang.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};

use crate::cache::{duration, Cache};
use crate::job::{Event, Job};
use crate::qemu::{Guest, Machine};
use crate::Built;

/// A working KVM boots the lab's kernel in about a second.
const KVM_DEADLINE: Duration = Duration::from_secs(15);
/// Without one it takes some seconds, more for the debug kernel on a busy machine.
const TCG_DEADLINE: Duration = Duration::from_secs(180);
const RECORD: &str = "accel.json";

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Accel {
    /// On the processor, by the host's kernel.
    Kvm,
    /// Translated, by QEMU itself.
    Tcg,
}

impl Accel {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    pub(super) fn qemu_arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    fn deadline(self) -> Duration {
        match self {
            Self::Kvm => KVM_DEADLINE,
            Self::Tcg => TCG_DEADLINE,
        }
    }
}

/// What was found out, good until the machine boots again.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    boot_id: String,
    accel: Accel,
    reason: String,
}

/// The accelerator to use, tried out at most once a boot; says which and why.
pub(super) fn choose(cache: &Cache, built: &Built) -> Result<Accel> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("reading the machine's boot id")?;
    let known: Option<Found> = cache.read_json(RECORD);
    let found = match known.filter(|found| found.boot_id == boot_id) {
        Some(found) => found,
        None => {
            let (accel, reason) = probe(cache, built)?;
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

fn probe(cache: &Cache, built: &Built) -> Result<(Accel, String)> {
    let kvm = if Path::new("/dev/kvm").exists() {
        eprintln!(
            "lab: trying out /dev/kvm, for at most {}",
            duration(KVM_DEADLINE.as_secs_f64())
        );
        try_out(cache, built, Accel::Kvm)?
    } else {
        Err("there is no /dev/kvm".into())
    };
    match kvm {
        Ok(reason) => Ok((Accel::Kvm, reason)),
        Err(no_kvm) => match try_out(cache, built, Accel::Tcg)? {
            Ok(reason) => Ok((Accel::Tcg, format!("{no_kvm}; emulation: {reason}"))),
            Err(no_tcg) => bail!("no guest runs here: {no_kvm}; emulation: {no_tcg}"),
        },
    }
}

fn is_up(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::Ready))
}

/// Boots a guest that says it runs and ends.
fn try_out(cache: &Cache, built: &Built, accel: Accel) -> Result<Result<String, String>> {
    let guest = Guest {
        image: &built.image,
        initramfs: &built.initramfs,
        machine: Machine::Plain,
        job: Job::Probe,
        parameters: built.profile.parameters().into(),
        memory: "1G",
        accel,
        directory: cache.path(format!("runs/probe-{}", accel.name())),
        timeout: Some(accel.deadline()),
    };
    let outcome = guest.run()?;
    let elapsed = duration(outcome.elapsed.as_secs_f64());
    Ok(match (is_up(&outcome.events), outcome.timed_out) {
        (true, false) => Ok(format!("a guest was up and down in {elapsed}")),
        (true, true) => Err(format!("{} hung at the guest's end", accel.name())),
        (false, true) => Err(format!(
            "{} opens, but a guest showed no life in {elapsed}",
            accel.name()
        )),
        (false, false) => Err(format!(
            "a guest on {} ended before it came up, see {}",
            accel.name(),
            outcome.console.display()
        )),
    })
}
