// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A guest for a job.

use crate::build::built::Built;
use crate::cache::runs::Runs;
use crate::job::Job;
use crate::vm::accel::Accel;
use crate::vm::machine::Machine;
use crate::vm::options::{GuestOptions, DEFAULT_CPUS};
use crate::vm::qemu::Guest;

/// A guest that does this job, on the plain machine, within the time that the user gives it.
pub(crate) fn guest<'a>(
    runs: &Runs,
    built: &'a Built,
    options: &GuestOptions,
    accel: Accel,
    job: Job,
    name: &str,
) -> Guest<'a> {
    let memory = options.memory_with(built.profile);
    let nokaslr = if options.gdb { "nokaslr" } else { "" };
    Guest {
        image: &built.artefacts.kernel_image,
        initramfs: &built.artefacts.initramfs,
        machine: Machine::Plain,
        job,
        parameters: format!(
            "{} {nokaslr} {}",
            built.profile.parameters(memory),
            options.append
        ),
        memory,
        cpus: options.cpus.unwrap_or(DEFAULT_CPUS),
        accel,
        directory: runs.of(name),
        timeout: options.timeout,
        gdb: options.gdb,
    }
}
