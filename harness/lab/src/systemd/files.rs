// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A service that stores memfds of each kind. After each start it makes the same ones again, and
//! compares with them what came back.

use std::fs::{read_link, File, OpenOptions, Permissions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use anyhow::{Context, Result};
use luo_bench::subject::fill::Fill;
use luo_bench::subject::memfd::Workload;
use luo_bench::subject::pages::Pages;
use luo_orchestrator::holes::data_ranges;
use luo_orchestrator::transport::fdstore::FdStore;
use rustix::fs::{
    fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fcntl_setfl, memfd_create, open, seek,
    MemfdFlags, Mode, OFlags, SealFlags, SeekFrom,
};

use crate::systemd::client::{keep, ready, report, rest};
use crate::systemd::found::{Found, FoundFile};

/// The name of its unit, before the user.
pub(super) const UNIT: &str = "luo-files@";

/// What is compared in one go.
const BLOCK: u64 = 1 << 20;
const CONTENTS: &[u8] = b"what a service keeps";

/// A kind of memfd.
struct Kind {
    name: &'static str,
    make: fn(&str) -> Result<File>,
}

const fn kind(name: &'static str, make: fn(&str) -> Result<File>) -> Kind {
    Kind { name, make }
}

const KINDS: [Kind; 10] = [
    kind("dense", |_| workload(64 << 20, Fill::Dense, 1)),
    kind("sparse", |_| workload(256 << 20, Fill::sparse(100), 2)),
    kind("empty", |name| Ok(create(name, MemfdFlags::empty())?)),
    kind("sealed", |name| {
        let file = small(name, MemfdFlags::ALLOW_SEALING)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(file)
    }),
    kind("positioned", |name| {
        let file = small(name, MemfdFlags::empty())?;
        seek(&file, SeekFrom::Start(5))?;
        Ok(file)
    }),
    kind("read-only", |name| {
        let file = small(name, MemfdFlags::empty())?;
        Ok(File::from(open(
            path_of(&file),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?))
    }),
    kind("append", |name| with_flag(name, OFlags::APPEND)),
    kind("non-blocking", |name| with_flag(name, OFlags::NONBLOCK)),
    kind("noexec", |name| small(name, MemfdFlags::NOEXEC_SEAL)),
    kind("private", |name| {
        let file = small(name, MemfdFlags::EXEC)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(file)
    }),
];

/// A large one; it has seals and a position as well.
fn workload(size: u64, fill: Fill, seed: u64) -> Result<File> {
    let pages = Pages::Base;
    let workload = Workload {
        size,
        pages,
        fill,
        seed,
    };
    Ok(workload.make(|_| ())?)
}

fn create(name: &str, flags: MemfdFlags) -> io::Result<File> {
    Ok(File::from(memfd_create(name, flags | MemfdFlags::CLOEXEC)?))
}

fn small(name: &str, flags: MemfdFlags) -> Result<File> {
    let file = create(name, flags)?;
    file.write_all_at(CONTENTS, 0)?;
    Ok(file)
}

fn with_flag(name: &str, flag: OFlags) -> Result<File> {
    let file = small(name, MemfdFlags::empty())?;
    fcntl_setfl(&file, fcntl_getfl(&file)? | flag)?;
    Ok(file)
}

fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Stores the memfds, or compares those that came back; they stay in the store.
pub(super) fn serve() -> Result<()> {
    // Only what is passed is of interest: none of it has a name that begins so.
    let passed = FdStore::open("unused")?.others();
    let has_arrived = !passed.is_empty();
    let mut files = Vec::new();
    for kind in KINDS {
        let expected = (kind.make)(kind.name).with_context(|| format!("making {}", kind.name))?;
        let differences = if has_arrived {
            let mut found = passed.iter().filter(|(name, _)| name == kind.name);
            match (found.next(), found.next()) {
                (None, _) => vec!["missing".into()],
                (Some((_, found)), None) => compare(&expected, found)?,
                (Some(_), Some(_)) => vec!["there is more than one".into()],
            }
        } else {
            keep(kind.name, &expected)?;
            Vec::new()
        };
        files.push(FoundFile::new(kind.name, differences));
    }
    let user = match rustix::process::geteuid().is_root() {
        true => "root",
        false => crate::systemd::image::USER,
    };
    report(Found {
        unit: format!("{UNIT}{user}"),
        has_arrived,
        files,
        remarks: Vec::new(),
    })?;
    ready()?;
    rest()
}

/// All that a service can see of a memfd but its contents.
struct Look {
    /// What it is, and how it looks.
    aspects: Vec<(&'static str, String)>,
    size: u64,
    data: Vec<Range<u64>>,
}

impl Look {
    fn of(file: &File) -> Result<Self> {
        let status = file.metadata()?;
        let flags = OFlags::RWMODE | OFlags::APPEND | OFlags::NONBLOCK;
        let opened = |options: &mut OpenOptions| match options.open(path_of(file)) {
            Ok(_) => "allowed".into(),
            Err(error) => error.to_string(),
        };
        let size = status.len();
        let aspects = vec![
            ("size", size.to_string()),
            ("owner", format!("{}:{}", status.uid(), status.gid())),
            ("mode", format!("{:o}", status.mode() & 0o7777)),
            ("seals", format!("{:#x}", fcntl_get_seals(file)?.bits())),
            (
                "flags",
                format!("{:#o}", (fcntl_getfl(file)? & flags).bits()),
            ),
            ("position", rustix::fs::tell(file)?.to_string()),
            ("name", read_link(path_of(file))?.display().to_string()),
            ("opening it again", opened(OpenOptions::new().read(true))),
            (
                "opening it to write",
                opened(OpenOptions::new().read(true).write(true)),
            ),
        ];
        Ok(Self {
            aspects,
            size,
            data: data_ranges(&reopened(file)?, size)?,
        })
    }
}

/// Looking for holes moves the position, which belongs to who stored the file.
fn reopened(file: &File) -> io::Result<File> {
    match File::open(path_of(file)) {
        Ok(again) => Ok(again),
        // That it cannot be opened is one of the differences.
        Err(_) => file.try_clone(),
    }
}

fn compare(expected: &File, found: &OwnedFd) -> Result<Vec<String>> {
    let found = File::from(found.try_clone()?);
    let [before, after] = [expected, &found].map(Look::of);
    let (before, after) = (before?, after?);
    let mut differences = Vec::new();
    for ((what, before), (_, after)) in before.aspects.iter().zip(&after.aspects) {
        if before != after {
            differences.push(format!("{what} {after}, was {before}"));
        }
    }
    if before.size == after.size {
        if let Some(offset) = first_other_byte(expected, &found, before.size)? {
            differences.push(format!("contents differ from offset {offset} on"));
        }
        if before.data != after.data {
            differences.push("holes are filled".into());
        }
    }
    Ok(differences)
}

/// Where the contents differ, to the block.
fn first_other_byte(one: &File, other: &File, size: u64) -> Result<Option<u64>> {
    let mut blocks = [vec![0; BLOCK as usize], vec![0; BLOCK as usize]];
    let mut offset = 0;
    while offset < size {
        let length = BLOCK.min(size - offset) as usize;
        for (file, block) in [one, other].into_iter().zip(&mut blocks) {
            file.read_exact_at(&mut block[..length], offset)?;
        }
        if blocks[0][..length] != blocks[1][..length] {
            return Ok(Some(offset));
        }
        offset += BLOCK;
    }
    Ok(None)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_was_is_named() {
        let same = |kind: &Kind| compare(&(kind.make)(kind.name)?, &(kind.make)(kind.name)?.into());
        for kind in KINDS.iter().filter(|kind| kind.name != "sparse") {
            assert_eq!(same(kind).unwrap(), [""; 0], "{}", kind.name);
        }
        let made = |index: usize| (KINDS[index].make)("x").unwrap();
        let changed = made(4);
        changed.write_all_at(b"W", 0).unwrap();
        changed
            .set_permissions(Permissions::from_mode(0o640))
            .unwrap();
        seek(&changed, SeekFrom::Start(6)).unwrap();
        let differences = compare(&made(4), &changed.into()).unwrap();
        let expected = [
            "mode 640, was 777",
            "position 6, was 5",
            "contents differ from offset 0 on",
        ];
        assert_eq!(differences, expected);
    }
}
