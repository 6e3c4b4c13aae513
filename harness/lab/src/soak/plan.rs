// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What crosses in each update of a soak, made from the seed and the number of the update.

use fastrand::Rng;
use rustix::fs::OFlags;

use crate::soak::options::SoakOptions;
use crate::vm::machine::VFIO_DEVICES;
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;

/// The number of ports of an x86, which is also the last position in a file of them.
const PORTS: u64 = 1 << 16;
/// Data of one memfd: emulated, it is filled and compared a few times for each jump.
const MEMFD_MAX: u64 = 8 << 20;
const MEMFDS_MAX: usize = 8;
const SESSIONS_MAX: usize = 3;
/// So many of the files that crossed cross again.
const PASSED_ON_MAX: usize = 2;
const PORT_FILES_MAX: usize = 3;

/// One live update.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Update {
    pub(crate) sessions: Vec<SessionPlan>,
    /// What fails or is given up before the jump, in this order.
    pub(crate) aborts: Vec<Abort>,
    /// How somebody writes while the kernel freezes and jumps, if anybody does.
    pub(crate) writer: Option<Access>,
}

/// One session, and what crosses in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionPlan {
    pub(crate) name: String,
    /// In the order in which they are preserved. A token is a place in this list and one.
    pub(crate) files: Vec<FilePlan>,
    /// The places of the files that are retrieved, in the order in which they are.
    pub(crate) retrieved: Vec<usize>,
}

/// A file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FilePlan {
    Memfd(MemfdPlan),
    Device {
        address: &'static str,
        access: DeviceAccess,
    },
    Port {
        position: u64,
        flags: OFlags,
    },
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DeviceAccess {
    Cdev,
    Group,
}

/// A memfd, before and after it is written to between prepare and the jump.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemfdPlan {
    pub(crate) early: Workload,
    /// Fills all that `early` fills, and perhaps more.
    pub(crate) late: Workload,
    /// How much of `late` is filled, in hundredths of a percent, if that is not all of it.
    pub(crate) part: Option<u32>,
    /// Whether its data is something else until prepare.
    pub(crate) rewritten: bool,
    /// It came with the last update and crosses again.
    pub(crate) passed_on: bool,
}

/// What fails or is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Abort {
    /// A session is closed, and its files are preserved again in a new one.
    Cancel { session: usize },
    /// Memory of another session goes bad: the jump is refused.
    RefusedJump,
}

/// How somebody writes to a memfd.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Access {
    Mapping,
    Pwrite,
}

/// The updates of a soak, one after another: what crosses again depends on what crossed.
pub(crate) fn updates(options: SoakOptions) -> impl Iterator<Item = Update> {
    let mut number = 0;
    let first = update(options, number, Vec::new());
    std::iter::successors(Some(first), move |last| {
        number += 1;
        Some(update(options, number, passed_on(options, number, last)))
    })
    .take(options.jumps)
}

fn random(options: SoakOptions, number: u64, purpose: u64) -> Rng {
    let mut seeds = Rng::with_seed(options.seed);
    let [one, other] = [(); 2].map(|()| seeds.u64(..));
    Rng::with_seed(one.wrapping_mul(number + 1) ^ other.wrapping_mul(purpose + 1))
}

/// The memfds of the last update that cross again, as they were in the end.
fn passed_on(options: SoakOptions, number: u64, last: &Update) -> Vec<MemfdPlan> {
    let mut random = random(options, number, 1);
    let sessions = last.sessions.iter();
    let retrieved = sessions.flat_map(|session| {
        let files = session.retrieved.iter();
        files.map(|&place| &session.files[place])
    });
    let mut memfds: Vec<MemfdPlan> = retrieved
        .filter_map(|file| match file {
            FilePlan::Memfd(memfd) if memfd.late.pages == Pages::Base => {
                let again = plan_of(memfd.late.clone(), memfd.part, &mut random);
                Some(MemfdPlan {
                    rewritten: false,
                    passed_on: true,
                    ..again
                })
            }
            _ => None,
        })
        .collect();
    random.shuffle(&mut memfds);
    memfds.truncate(random.usize(..=PASSED_ON_MAX));
    memfds
}

fn update(options: SoakOptions, number: u64, passed_on: Vec<MemfdPlan>) -> Update {
    let mut random = random(options, number, 0);
    let mut files: Vec<FilePlan> = passed_on.into_iter().map(FilePlan::Memfd).collect();
    for _ in 0..random.usize(1..=MEMFDS_MAX) {
        files.push(FilePlan::Memfd(memfd(&mut random)));
    }
    let mut addresses = VFIO_DEVICES;
    random.shuffle(&mut addresses);
    let devices = random.usize(..=VFIO_DEVICES.len());
    files.extend(addresses.into_iter().take(devices).map(|address| {
        let access = match random.bool() {
            true => DeviceAccess::Cdev,
            false => DeviceAccess::Group,
        };
        FilePlan::Device { address, access }
    }));
    for _ in 0..random.usize(..=PORT_FILES_MAX) {
        files.push(port_file(&mut random));
    }
    random.shuffle(&mut files);
    let sessions = sessions(files, &mut random);
    let aborts = (0..random.usize(..=2)).map(|_| match random.bool() {
        true => Abort::RefusedJump,
        false => Abort::Cancel {
            session: random.usize(..sessions.len()),
        },
    });
    let aborts = aborts.collect();
    let access = match random.bool() {
        true => Access::Mapping,
        false => Access::Pwrite,
    };
    Update {
        sessions,
        aborts,
        writer: options.writes_during_freeze.then_some(access),
    }
}

/// Deals the files to sessions, each of which has at least one.
fn sessions(files: Vec<FilePlan>, random: &mut Rng) -> Vec<SessionPlan> {
    let count = random.usize(1..=SESSIONS_MAX).min(files.len());
    let mut dealt: Vec<Vec<FilePlan>> = vec![Vec::new(); count];
    for (number, file) in files.into_iter().enumerate() {
        dealt[number % count].push(file);
    }
    let sessions = dealt.into_iter().enumerate();
    let plan = sessions.map(|(number, files)| {
        let mut retrieved: Vec<usize> = (0..files.len()).collect();
        random.shuffle(&mut retrieved);
        // Some sessions are finished before everything was retrieved.
        let leaves_some = random.u8(..4) == 0;
        retrieved.retain(|_| !leaves_some || random.bool());
        SessionPlan {
            name: format!("soak-{number}"),
            files,
            retrieved,
        }
    });
    plan.collect()
}

fn memfd(random: &mut Rng) -> MemfdPlan {
    let pages = match random.u8(..4) {
        0 => Pages::Thp,
        _ => Pages::Base,
    };
    let data = random.u64(1..=MEMFD_MAX);
    // From nothing to nearly all, in hundredths of a percent; mostly not much.
    let part = [0, 1, 50, 500, 3000, 9000][random.usize(..6)];
    let (fill, part) = match random.u8(..8) {
        0 | 1 => (Fill::Dense, None),
        2 => (Fill::Shuffled, None),
        _ => (Fill::sparse(part), Some(part)),
    };
    // Holes cost nothing: what has few pages is large.
    let size = match part {
        Some(0) => random.u64(..=1 << 32),
        Some(part @ ..=500) => data * 5_000 / u64::from(part).max(50) + 1,
        _ => data,
    };
    let early = Workload {
        size,
        pages,
        fill,
        seed: random.u64(1..),
    };
    plan_of(early, part, random)
}

/// A memfd, more of whose holes are filled later. What is made of huge pages is left as it is.
fn plan_of(early: Workload, part: Option<u32>, random: &mut Rng) -> MemfdPlan {
    let is_base = early.pages == Pages::Base;
    let part = match part {
        Some(part @ 1..) if is_base => Some((part * random.u32(1..=3)).min(10_000)),
        part => part,
    };
    let late = Workload {
        fill: part.map_or(early.fill, Fill::sparse),
        ..early.clone()
    };
    MemfdPlan {
        early,
        late,
        part,
        rewritten: is_base && random.bool(),
        passed_on: false,
    }
}

fn port_file(random: &mut Rng) -> FilePlan {
    let access = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR];
    let mut flags = access[random.usize(..access.len())];
    for flag in [OFlags::NONBLOCK, OFlags::APPEND] {
        flags.set(flag, random.bool());
    }
    FilePlan::Port {
        position: random.u64(..=PORTS),
        flags,
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    const OPTIONS: SoakOptions = SoakOptions {
        jumps: 100,
        seed: 7,
        writes_during_freeze: true,
    };

    #[test]
    fn the_same_seed_makes_the_same_updates_and_another_one_others() {
        let once: Vec<Update> = updates(OPTIONS).collect();
        assert_eq!(once.len(), OPTIONS.jumps);
        assert_eq!(once, updates(OPTIONS).collect::<Vec<_>>());
        let other = SoakOptions { seed: 8, ..OPTIONS };
        assert_ne!(once, updates(other).collect::<Vec<_>>());
        // A longer soak begins with the shorter one.
        let longer = SoakOptions {
            jumps: 101,
            ..OPTIONS
        };
        assert!(updates(longer).take(100).eq(once));
    }

    #[test]
    fn everything_happens_somewhere_and_fits_into_a_guest() {
        let updates: Vec<Update> = updates(OPTIONS).collect();
        let sessions = || updates.iter().flat_map(|update| &update.sessions);
        let files = || sessions().flat_map(|session| &session.files);
        let memfds = || {
            files().filter_map(|file| match file {
                FilePlan::Memfd(memfd) => Some(memfd),
                _ => None,
            })
        };
        assert!(memfds().any(|memfd| memfd.passed_on));
        assert!(memfds().any(|memfd| memfd.rewritten));
        assert!(memfds().any(|memfd| memfd.late.pages == Pages::Thp));
        assert!(memfds().any(|memfd| memfd.late != memfd.early));
        let devices = files().filter_map(|file| match file {
            FilePlan::Device { access, .. } => Some(*access),
            _ => None,
        });
        let accesses: Vec<DeviceAccess> = devices.collect();
        assert!(accesses.contains(&DeviceAccess::Cdev));
        assert!(accesses.contains(&DeviceAccess::Group));
        assert!(files().any(|file| matches!(file, FilePlan::Port { .. })));
        assert!(sessions().any(|session| session.retrieved.len() < session.files.len()));
        let aborts = || updates.iter().flat_map(|update| &update.aborts);
        assert!(aborts().any(|abort| *abort == Abort::RefusedJump));
        assert!(aborts().any(|abort| matches!(abort, Abort::Cancel { .. })));
        for update in &updates {
            let data: u64 = update
                .sessions
                .iter()
                .flat_map(|session| &session.files)
                .map(|file| match file {
                    FilePlan::Memfd(memfd) => memfd.late.data_bytes(),
                    _ => 0,
                })
                .sum();
            assert!(data <= 256 << 20, "{data} bytes cross");
            assert!(update
                .sessions
                .iter()
                .all(|session| !session.files.is_empty()));
        }
    }

    #[test]
    fn nobody_writes_during_freeze_unless_asked_to() {
        let quiet = SoakOptions {
            writes_during_freeze: false,
            ..OPTIONS
        };
        assert!(updates(quiet).all(|update| update.writer.is_none()));
        assert!(updates(OPTIONS).all(|update| update.writer.is_some()));
    }
}
