// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! How long each part of a kexec took that systemd made, by the times of the kernels' logs.

use serde::Serialize;

use crate::systemd::driver::{KEXEC_BEGINS, SERVICES_ARE_UP};

/// A part of a kexec.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// What happens.
    pub name: &'static str,
    /// How long it takes; `None` if a log does not have its beginning or its end.
    pub seconds: Option<f64>,
}

/// What is in the log of the kernel that is left, in this order.
const LEAVING: [&str; 5] = [
    KEXEC_BEGINS,
    // systemd passes the descriptors to systemd-shutdown.
    "Serialized ",
    "All filesystems, swaps, loop devices",
    "Preserved fd stores in LUO session",
    "Starting new kernel",
];
/// What happens between two of them.
const LEAVING_PHASES: [&str; LEAVING.len() - 1] = [
    "services stop",
    "kill, sync, unmount",
    "prepare",
    "freeze, devices stop",
];

/// What is in the log of the next kernel, after its beginning.
const ARRIVING: [&str; 3] = [
    " running in system mode",
    "Queued start job for default target",
    SERVICES_ARE_UP,
];
const ARRIVING_PHASES: [&str; ARRIVING.len()] = [
    "next kernel boots",
    "systemd loads, retrieve",
    "services start and compare",
];

/// What the logs do not have.
const BETWEEN: &str = "between the kernels";

/// The parts of each kexec on a console; `totals` has how long each took.
pub(super) fn phases(console: &str, totals: &[f64]) -> Vec<Vec<Phase>> {
    let kernels: Vec<&str> = console.split(KERNEL_BEGINS).skip(1).collect();
    let pairs = kernels.windows(2).zip(totals);
    pairs
        .map(|(pair, total)| of_kexec(pair[0], pair[1], *total))
        .collect()
}

/// The first line of each kernel, after its time.
const KERNEL_BEGINS: &str = "Linux version ";

fn of_kexec(old: &str, new: &str, total: f64) -> Vec<Phase> {
    let left = times(old, &LEAVING);
    let mut arrived = vec![Some(0.0)];
    arrived.extend(times(new, &ARRIVING));
    let mut phases = between(&LEAVING_PHASES, &left);
    let before = elapsed(&left);
    let after = elapsed(&arrived);
    let seconds = before
        .zip(after)
        .map(|(before, after)| total - before - after);
    phases.push(Phase {
        name: BETWEEN,
        seconds,
    });
    phases.extend(between(&ARRIVING_PHASES, &arrived));
    phases.push(Phase {
        name: "all",
        seconds: Some(total),
    });
    phases
}

fn between(names: &[&'static str], times: &[Option<f64>]) -> Vec<Phase> {
    let pairs = names.iter().zip(times.windows(2));
    pairs
        .map(|(&name, pair)| Phase {
            name,
            seconds: elapsed(pair),
        })
        .collect()
}

/// From the first time to the last.
fn elapsed(times: &[Option<f64>]) -> Option<f64> {
    let (first, last) = times
        .first()
        .copied()
        .flatten()
        .zip(times.last().copied().flatten())?;
    Some(last - first)
}

/// When each of the texts was logged last.
fn times(log: &str, texts: &[&str]) -> Vec<Option<f64>> {
    let time = |text: &&str| {
        log.lines()
            .rev()
            .find(|line| line.contains(text))
            .and_then(time_of)
    };
    texts.iter().map(time).collect()
}

/// The seconds at the beginning of a line of the kernel's. What systemd asks the terminal may come
/// before them, in brackets as well.
fn time_of(line: &str) -> Option<f64> {
    line.split('[').skip(1).find_map(|part| {
        let (time, _) = part.split_once(']')?;
        time.trim().parse().ok()
    })
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn each_part_has_its_time_and_what_no_log_has_is_the_rest() {
        let console = "[    0.000000] Linux version 7.3.4\n\
            [   10.000000] luo-lab: systemctl kexec\n\
            [   12.500000] systemd[1]: Serialized 3 fd store entries for LUO.\n\
            [   13.000000] systemd-shutdown[1]: All filesystems, swaps, loop devices, MD devices \
            and DM devices detached.\n\
            [   13.250000] systemd-shutdown[1]: Preserved fd stores in LUO session 'systemd'.\n\
            [   13.500000] kexec_core: Starting new kernel\n\
            [    0.000000] Linux version 7.3.4\n\
            \x1b[18t\x1b[!p\x1b]104\x07[    1.000000] systemd[1]: systemd 262 running in system \
            mode (+PAM)\n\
            [    4.000000] luo-lab: the services are up\n";
        let phases = phases(console, &[8.5]);
        assert_eq!(phases.len(), 1);
        let seconds: Vec<Option<f64>> = phases[0].iter().map(|phase| phase.seconds).collect();
        let expected = [2.5, 0.5, 0.25, 0.25, 1.0, 1.0].map(Some);
        assert_eq!(seconds[..6], expected);
        assert_eq!(seconds[6..], [None, None, Some(8.5)], "one line is missing");
    }
}
