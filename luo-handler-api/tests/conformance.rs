// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `testing::conformance` lets a sound handler pass, and finds each fault of an unsound one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;

use luo_handler_api::testing::conformance;
use luo_handler_api::{
    record, Compatible, Crossed, Errno, FileHandler, FileRef, Host, OwnedFile, Prepared, Preserved,
};
use rustix::fs::{fstat, memfd_create, seek, MemfdFlags, SeekFrom};

const MAGIC: &[u8; 8] = b"places-1";

/// What is wrong with a handler.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Nothing,
    RefusesEverything,
    OneIdentity,
    TouchesTheFile,
    LeaksWhenPrepareFails,
    CallsPrepareOff,
    LeaksWhenFreezeFails,
    KeepsTheOldRecord,
    ReleasesBeforeFreeze,
    MissesTheChange,
    UnfreezeMovesTheFile,
    CancelLeaks,
    ForgetsToPlace,
    TrustsTheChecksum,
    TrustsTheLength,
    PanicsAtAnOddPlace,
    TakesAnything,
    LeaksWhatNobodyAskedFor,
    LeaksWhatFailed,
    NeverFinishes,
    ReleasesOthers,
    ReleasesWhatIsNoRecord,
    RemembersOneFile,
}

/// Preserves memfds with their position; every file of a test has an inode of its own.
struct Places {
    fault: Fault,
    last: Mutex<BTreeMap<(), u64>>,
}

struct Private {
    record: u64,
    file: u64,
}

fn position(file: BorrowedFd<'_>) -> u64 {
    seek(file, SeekFrom::Current(0)).unwrap()
}

impl Places {
    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn keep(&self, host: Host<'_>, place: u64, file: u64) -> Result<u64, Errno> {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[16..24].copy_from_slice(&place.to_le_bytes());
        bytes[24..].copy_from_slice(&file.to_le_bytes());
        record::keep(host, &mut bytes)
    }

    fn load(&self, data: u64, host: Host<'_>) -> Result<(u64, u64), Errno> {
        let mut bytes = [0; 32];
        if self.is(Fault::TrustsTheChecksum) {
            if host.bytes_len(data)? != 32 {
                return Err(Errno::EINVAL);
            }
            host.read_bytes(data, 0, &mut bytes)?;
        } else if self.is(Fault::TrustsTheLength) {
            let length = host.bytes_len(data)? as usize;
            host.read_bytes(data, 0, &mut bytes[..length])?;
            record::load(host, data, MAGIC, &mut bytes)?;
        } else {
            record::load(host, data, MAGIC, &mut bytes)?;
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (place, file) = (number(16), number(24));
        assert!(
            !self.is(Fault::PanicsAtAnOddPlace) || place != 6,
            "an odd place"
        );
        if place > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        Ok((place, file))
    }
}

impl FileHandler for Places {
    const COMPATIBLE: Compatible = Compatible::new("places-v1");
    type Private = Private;

    fn can_preserve(&self, _: FileRef<'_>) -> bool {
        !self.is(Fault::RefusesEverything)
    }

    fn file_id(&self, file: FileRef<'_>) -> Option<u64> {
        let own = fstat(file.as_fd()).unwrap().st_ino;
        Some(if self.is(Fault::OneIdentity) { 1 } else { own })
    }

    fn prepare(&self, file: FileRef<'_>, host: Host<'_>) -> Result<Prepared<Private>, Errno> {
        let place = position(file.as_fd());
        if self.is(Fault::TouchesTheFile) {
            seek(file.as_fd(), SeekFrom::Start(0))?;
        }
        let handle = host.preserve_file(file)?;
        let release = |_: &Errno| {
            if !self.is(Fault::LeaksWhenPrepareFails) {
                host.release_file(handle);
            }
        };
        let record = self.keep(host, place, handle).inspect_err(release)?;
        if self.is(Fault::CallsPrepareOff) {
            host.release_bytes(record);
            host.release_file(handle);
            return Err(Errno::EAGAIN);
        }
        self.last.lock().unwrap().insert((), place);
        let private = Private {
            record,
            file: handle,
        };
        Ok(Prepared {
            data: record,
            private,
        })
    }

    fn freeze(&self, file: Preserved<'_, Private>) -> Result<u64, Errno> {
        if self.is(Fault::MissesTheChange) {
            return Ok(file.data);
        }
        let mut place = position(file.file.as_fd());
        if self.is(Fault::RemembersOneFile) {
            place = *self.last.lock().unwrap().entry(()).or_insert(place);
        }
        if self.is(Fault::ReleasesBeforeFreeze) {
            file.host.release_bytes(file.private.record);
        }
        if self.is(Fault::LeaksWhenFreezeFails) {
            file.host.preserve_bytes(b"some more")?;
        }
        let record = self.keep(file.host, place, file.private.file)?;
        if !self.is(Fault::KeepsTheOldRecord) && !self.is(Fault::ReleasesBeforeFreeze) {
            file.host.release_bytes(file.private.record);
        }
        file.private.record = record;
        Ok(record)
    }

    fn unfreeze(&self, file: Preserved<'_, Private>) {
        if self.is(Fault::UnfreezeMovesTheFile) {
            seek(file.file.as_fd(), SeekFrom::Start(1)).unwrap();
        }
    }

    fn cancel(&self, file: Preserved<'_, Private>) {
        file.host.release_bytes(file.private.record);
        if !self.is(Fault::CancelLeaks) {
            file.host.release_file(file.private.file);
        }
    }

    fn retrieve(&self, data: u64, host: Host<'_>) -> Result<OwnedFile, Errno> {
        if self.is(Fault::TakesAnything) && host.bytes_len(data) == Ok(0) {
            return Ok(memfd().into());
        }
        let (place, file) = self.load(data, host)?;
        let file = OwnedFd::from(host.take_file(file)?);
        // The position of another file that was opened since.
        let place = if self.is(Fault::ForgetsToPlace) {
            3
        } else {
            place
        };
        seek(&file, SeekFrom::Start(place))?;
        Ok(file.into())
    }

    fn can_finish(&self, file: Crossed<'_>) -> bool {
        !(self.is(Fault::NeverFinishes) && file.retrieved.was_asked())
    }

    fn finish(&self, file: Crossed<'_>) {
        let leaks = match file.retrieved.was_asked() {
            false => self.is(Fault::LeaksWhatNobodyAskedFor),
            true => self.is(Fault::LeaksWhatFailed),
        };
        if file.retrieved.file().is_none() && !leaks {
            if let Ok((_, held)) = self.load(file.data, file.host) {
                file.host.release_file(held);
            } else if self.is(Fault::ReleasesOthers) {
                (0..10).for_each(|handle| file.host.release_bytes(handle));
            }
        }
        if self.is(Fault::ReleasesWhatIsNoRecord) {
            file.host.release_bytes(file.data);
        }
        record::release(file.host, file.data, MAGIC);
    }
}

fn memfd() -> OwnedFd {
    memfd_create("places", MemfdFlags::CLOEXEC).unwrap()
}

/// What `conformance` makes of it: the message of its panic.
fn outcome(handler: &'static impl FileHandler) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        conformance(
            handler,
            memfd,
            |file| {
                seek(file, SeekFrom::Current(7)).unwrap();
            },
            position,
        );
    }));
    result.map_err(|thrown| match thrown.downcast::<String>() {
        Ok(message) => *message,
        Err(thrown) => thrown.downcast::<&str>().unwrap().to_string(),
    })
}

fn with(fault: Fault) -> Result<(), String> {
    let last = Mutex::default();
    outcome(Box::leak(Box::new(Places { fault, last })))
}

#[test]
fn a_sound_handler_conforms() {
    with(Fault::Nothing).unwrap();
}

#[test]
fn every_fault_is_found_and_its_step_named() {
    use Fault::*;
    for (fault, parts) in [
        (RefusesEverything, ["a new file", "can_preserve is false"]),
        (OneIdentity, ["a new file", "file_id"]),
        (TouchesTheFile, ["Cancel", "it is 0, and was 7"]),
        (
            LeaksWhenPrepareFails,
            ["call 2 of the host in prepare", "still holds"],
        ),
        (
            CallsPrepareOff,
            ["prepare, 0 times freeze", "prepare failed"],
        ),
        (
            LeaksWhenFreezeFails,
            ["prepare, 0 times freeze", "still holds"],
        ),
        (
            KeepsTheOldRecord,
            ["prepare, 0 times freeze", "still holds"],
        ),
        (
            ReleasesBeforeFreeze,
            [
                "call 1 of the host in freeze",
                "under 0x2 are released twice",
            ],
        ),
        (MissesTheChange, ["a change after 0", "it is 0, and was 7"]),
        (UnfreezeMovesTheFile, ["after unfreeze", "it is 1"]),
        (CancelLeaks, ["Cancel", "files under [1]"]),
        (ForgetsToPlace, ["Retrieve", "after the jump it is 3"]),
        (TrustsTheChecksum, ["byte 16 of 32", "it was not refused"]),
        (TrustsTheLength, ["instead of", "retrieve panicked"]),
        (
            PanicsAtAnOddPlace,
            ["with a right checksum", "retrieve panicked"],
        ),
        (TakesAnything, ["instead of", "retrieve succeeded"]),
        (LeaksWhatNobodyAskedFor, ["NotAsked", "files under"]),
        (LeaksWhatFailed, ["Failed", "files under"]),
        (NeverFinishes, ["can_finish", "false for good"]),
        (ReleasesOthers, ["instead of", "what it held for others"]),
        (
            ReleasesWhatIsNoRecord,
            ["instead of", "what it held for others"],
        ),
        (RemembersOneFile, ["a change after", "after the jump"]),
    ] {
        let message = with(fault).expect_err(&format!("{fault:?} is not found"));
        assert!(
            message.starts_with("places-v1, called directly: "),
            "{message}"
        );
        for part in parts {
            assert!(message.contains(part), "{fault:?}: {message}");
        }
    }
}
