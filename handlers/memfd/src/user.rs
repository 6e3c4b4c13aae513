// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The backend of a process: files are file descriptors, and the host keeps them open.

use std::{
    fmt,
    fs::{File, Permissions},
    io::{Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{fchown, PermissionsExt},
    },
};

use luo_handler_api::{
    hosted::files::reopen, register_handler, status, Errno, FileRef, Host, OwnedFile,
};
use rustix::fs::{OFlags, SealFlags, Stat};

use crate::{
    backend::MemfdBackend,
    extent::{Contents, FRAME_END},
    handler::MemfdHandler,
    name::Name,
    record::{Attributes, Kind, Record, ALL_MODE, SEAL_EXEC},
};

register_handler!(
    /// The handler of this process.
    pub MEMFD: MemfdHandler<UserBackend> = MemfdHandler(UserBackend)
);

/// A process, with a host that keeps files.
#[derive(Clone, Copy, Debug)]
pub struct UserBackend;

impl MemfdBackend for UserBackend {
    type Kept = ();
    type Buffer = [u8; 0];

    fn contents_in(&self) -> Contents {
        Contents::File
    }

    fn page_shift(&self) -> u8 {
        rustix::param::page_size().trailing_zeros() as u8
    }

    fn frame_end(&self) -> u64 {
        FRAME_END
    }

    /// No extents are shown.
    fn buffer(&self, _: usize) -> Result<[u8; 0], Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// As mainline's `memfd_luo_can_preserve`: a file of shmem, here also of hugetlbfs, that has no
    /// name any more. Only these have seals.
    fn can_preserve(&self, file: FileRef<'_>) -> bool {
        let fd = file.as_fd();
        seals(fd).is_ok() && stat(fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    fn keep(&self, file: FileRef<'_>, host: Host<'_>) -> Result<(u64, ()), Errno> {
        Ok((host.preserve_file(file)?, ()))
    }

    fn release(&self, _: FileRef<'_>, contents: u64, (): &mut (), host: Host<'_>) {
        host.release_file(contents);
    }

    fn attributes(&self, file: FileRef<'_>) -> Result<Attributes, Errno> {
        attributes(file.as_fd())
    }

    /// A memfd cannot be renamed, and the file that crosses has its name.
    fn name(&self, _: FileRef<'_>) -> Name {
        Name::EMPTY
    }

    fn restore(&self, record: &Record, host: Host<'_>) -> Result<OwnedFile, Errno> {
        let file = File::from(OwnedFd::from(host.take_file(record.contents)?));
        let wanted = &record.attributes;
        let found = memfd_attributes(file.as_fd()).ok_or_else(|| {
            host.refuse(
                Errno::EINVAL,
                format_args!("the file that crossed for it is not a memfd"),
            )
        })?;
        check_kind(&found, wanted, host)?;
        let file = if is_bare(&found) {
            apply(file, &found, wanted)?
        } else {
            file
        };
        let changes = Changes {
            frozen: wanted,
            found: &attributes(file.as_fd())?,
        };
        if changes.frozen != changes.found {
            host.explain(format_args!("changed since freeze: {changes}"));
        }
        Ok(OwnedFd::from(file).into())
    }

    fn discard(&self, record: &Record, host: Host<'_>) {
        host.release_file(record.contents);
    }
}

fn attributes(fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    let stat = stat(fd)?;
    let (kind, file_page_shift) = kind(fd)?;
    Ok(Attributes {
        size: stat.st_size as u64,
        position: rustix::fs::tell(fd).map_err(errno)?,
        seals: seals(fd)?,
        status: status_of(fd)?,
        mode: stat.st_mode & ALL_MODE,
        uid: stat.st_uid,
        gid: stat.st_gid,
        kind,
        file_page_shift,
    })
}

/// What a file is made of, and the binary logarithm of its pages in bytes.
fn kind(fd: BorrowedFd<'_>) -> Result<(Kind, u8), Errno> {
    let statfs = rustix::fs::fstatfs(fd).map_err(errno)?;
    let kind = match statfs.f_type {
        libc::TMPFS_MAGIC => Kind::Shmem,
        libc::HUGETLBFS_MAGIC => Kind::Hugetlb,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    Ok((kind, statfs.f_bsize.trailing_zeros() as u8))
}

/// The attributes of a memfd, or of a file like one; `None` of any other.
fn memfd_attributes(fd: BorrowedFd<'_>) -> Option<Attributes> {
    let is_nameless = stat(fd).ok()?.st_nlink == 0;
    attributes(fd).ok().filter(|_| is_nameless)
}

/// Whether a file is made of what the recorded one is made of.
fn check_kind(found: &Attributes, wanted: &Attributes, host: Host<'_>) -> Result<(), Errno> {
    let pages = |of: &Attributes| (of.kind, 1u64 << of.file_page_shift);
    let (wanted, found) = (pages(wanted), pages(found));
    if wanted == found {
        return Ok(());
    }
    Err(host.refuse(
        Errno::EINVAL,
        format_args!(
            "expected a memfd of {} with pages of {} bytes, found {} with {}",
            wanted.0, wanted.1, found.0, found.1
        ),
    ))
}

/// Whether a file may have been made a moment ago, by a host that carries contents and not files.
/// The kernel may have sealed its execute bits: see `vm.memfd_noexec`.
fn is_bare(found: &Attributes) -> bool {
    found.position == 0 && found.seals & !SEAL_EXEC == 0 && found.status == OFlags::RDWR.bits()
}

/// What became of a file between freeze and retrieve, for people.
struct Changes<'a> {
    frozen: &'a Attributes,
    found: &'a Attributes,
}

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (frozen, found) = (self.frozen, self.found);
        let mut separator = "";
        for (name, before, now) in [
            ("size", frozen.size, found.size),
            ("position", frozen.position, found.position),
        ] {
            if before != now {
                write!(f, "{separator}{name} {before} to {now}")?;
                separator = ", ";
            }
        }
        for (name, before, now) in [
            ("seals", frozen.seals, found.seals),
            ("status flags", frozen.status, found.status),
            ("mode", frozen.mode, found.mode),
        ] {
            if before != now {
                write!(f, "{separator}{name} {before:#o} to {now:#o}")?;
                separator = ", ";
            }
        }
        for (name, before, now) in [
            ("owner", frozen.uid, found.uid),
            ("group", frozen.gid, found.gid),
        ] {
            if before != now {
                write!(f, "{separator}{name} {before} to {now}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// Makes a bare `file` what `wanted` says, with the seals last: they may forbid all the rest.
fn apply(file: File, found: &Attributes, wanted: &Attributes) -> Result<File, Errno> {
    let access = wanted.status & status::ACCESS;
    let reopened = if access == found.status & status::ACCESS {
        None
    } else {
        Some(open_again(&file, access)?)
    };
    let mut result = reopened.as_ref().unwrap_or(&file);
    if (found.uid, found.gid) != (wanted.uid, wanted.gid) {
        fchown(result, Some(wanted.uid), Some(wanted.gid))?;
    }
    if found.mode != wanted.mode {
        result.set_permissions(Permissions::from_mode(wanted.mode))?;
    }
    set_status(result.as_fd(), wanted.status)?;
    if wanted.position != 0 {
        result.seek(SeekFrom::Start(wanted.position))?;
    }
    // Seals are added through a description that may write: the bare one.
    add_seals(file.as_fd(), wanted.seals & !found.seals)?;
    Ok(reopened.unwrap_or(file))
}

/// Opens a memfd again with an access mode, through `/proc`. `EOPNOTSUPP` where that is not
/// mounted; `EACCES` if the permission bits of the memfd forbid it.
fn open_again(file: &File, access: u32) -> Result<File, Errno> {
    reopen(file, OFlags::from_bits_retain(access)).map_err(|error| match errno(error) {
        Errno::ENOENT => Errno::EOPNOTSUPP,
        errno => errno,
    })
}

fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    rustix::fs::fstat(fd).map_err(errno)
}

fn seals(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(errno)?;
    Ok(seals.bits())
}

fn add_seals(fd: BorrowedFd<'_>, seals: u32) -> Result<(), Errno> {
    let seals = SealFlags::from_bits_retain(seals);
    if seals.is_empty() {
        return Ok(());
    }
    rustix::fs::fcntl_add_seals(fd, seals).map_err(errno)
}

/// Access mode and status flags as a record has them.
fn status_of(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let flags = rustix::fs::fcntl_getfl(fd).map_err(errno)?;
    Ok(status::from_flags(flags.bits()))
}

/// Sets the status flags that a record has, and leaves others as they are.
fn set_status(fd: BorrowedFd<'_>, wanted: u32) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd).map_err(errno)?.bits();
    let changed = flags & !status::to_flags(status::ALL) | status::to_flags(wanted);
    if changed != flags {
        rustix::fs::fcntl_setfl(fd, OFlags::from_bits_retain(changed)).map_err(errno)?;
    }
    Ok(())
}

fn errno(error: rustix::io::Errno) -> Errno {
    std::io::Error::from(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{handler::Private, record::*, summary::Summary};
    use luo_handler_api::hosted::files::each_data_range;
    use luo_handler_api::testing::{conformance, FakeHost};
    use luo_handler_api::{crc32c, Crossed, FileHandler, Prepared, Preserved};
    use memfd::{HugetlbSize, MemfdOptions};
    use proptest::prelude::*;
    use std::{
        io::{Read, Write},
        ops::Range,
        os::unix::fs::FileExt,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
    };

    const MIB: u64 = 1 << 20;

    fn memfd() -> File {
        MemfdOptions::new()
            .allow_sealing(true)
            .create("test")
            .unwrap()
            .into_file()
    }

    /// A memfd of `size` bytes with a page's worth of its own number at each of `places`.
    fn sparse(size: u64, places: &[u64]) -> File {
        let file = memfd();
        file.set_len(size).unwrap();
        for &place in places {
            let bytes = [1 + (place >> 12) as u8 % 255; 4096];
            let length = (size - place).min(4096) as usize;
            file.write_all_at(&bytes[..length], place).unwrap();
        }
        file
    }

    fn prepare(file: &File, host: &FakeHost) -> Result<Prepared<Private<()>>, Errno> {
        MEMFD.prepare(file.as_fd().into(), host.lend())
    }

    fn freeze(file: &File, prepared: &mut Prepared<Private<()>>, host: &FakeHost) -> u64 {
        let preserved = Preserved {
            file: file.as_fd().into(),
            data: prepared.data,
            private: &mut prepared.private,
            host: host.lend(),
        };
        MEMFD.freeze(preserved).unwrap()
    }

    fn retrieve(data: u64, host: &FakeHost) -> Result<File, Errno> {
        let file = MEMFD.retrieve(data, host.lend())?;
        Ok(File::from(OwnedFd::from(file)))
    }

    fn finish(data: u64, file: Option<&File>, host: &FakeHost) {
        MEMFD.finish(Crossed {
            data,
            retrieved: file.map(|file| file.as_fd().into()).into(),
            host: host.lend(),
        });
        assert!(host.is_empty());
    }

    fn inspect(data: u64, host: Host<'_>) -> Result<Summary, Errno> {
        Summary::read(host, data)
    }

    /// Where a file has data, in bytes.
    fn ranges(file: &File) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let size = file.metadata().unwrap().len();
        let scout = reopen(file, OFlags::RDONLY).unwrap();
        each_data_range(scout, size, |range| {
            ranges.push(range);
            Ok::<_, Errno>(())
        })
        .unwrap();
        ranges
    }

    /// A new memfd with the contents of `file` and nothing else of it, as a host makes it that
    /// carries contents instead of files.
    fn bare_copy(file: &File) -> File {
        let copy = memfd();
        copy.set_len(file.metadata().unwrap().len()).unwrap();
        let source = reopen(file, OFlags::RDONLY).unwrap();
        for range in ranges(file) {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            source.read_exact_at(&mut bytes, range.start).unwrap();
            copy.write_all_at(&bytes, range.start).unwrap();
        }
        copy
    }

    /// Takes `file` across, once as the same open file and once as a bare copy; shows both to
    /// `check`, with the attributes that the file had.
    fn cross_both_ways(file: &File, check: impl Fn(&File, &Attributes)) {
        for copied in [false, true] {
            let host = FakeHost::default();
            let before = attributes(file.as_fd()).unwrap();
            let mut prepared = prepare(file, &host).unwrap();
            let data = freeze(file, &mut prepared, &host);
            if copied {
                let record = Record::read(host.lend(), data).unwrap();
                host.replace_file(record.contents, bare_copy(file).into());
            }
            let retrieved = retrieve(data, &host).unwrap();
            assert_eq!(attributes(retrieved.as_fd()), Ok(before));
            assert_eq!(host.reason(), "", "nothing changed");
            assert_eq!(attributes(file.as_fd()), Ok(before), "the workload's own");
            check(&retrieved, &before);
            finish(data, Some(&retrieved), &host);
        }
    }

    fn assert_same_contents(file: &File, other: &File) {
        assert_eq!(ranges(file), ranges(other));
        let again = |file: &File| reopen(file, OFlags::RDONLY).unwrap();
        let (file, other) = (again(file), again(other));
        for range in ranges(&file) {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let mut others = bytes.clone();
            file.read_exact_at(&mut bytes, range.start).unwrap();
            other.read_exact_at(&mut others, range.start).unwrap();
            assert!(bytes == others, "{range:?}");
        }
    }

    #[test]
    fn it_conforms() {
        conformance(
            &MEMFD,
            || sparse(MIB, &[0, MIB / 2]),
            |file| {
                let file = File::from(file.try_clone_to_owned().unwrap());
                file.set_len(2 * MIB).unwrap();
                file.write_all_at(b"more", MIB).unwrap();
                add_seals(file.as_fd(), SEAL_SHRINK).unwrap();
                rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(7)).unwrap();
            },
            |fd| {
                let file = File::from(fd.try_clone_to_owned().unwrap());
                let mut contents = vec![0; file.metadata().unwrap().len() as usize];
                file.read_exact_at(&mut contents, 0).unwrap();
                (attributes(fd).unwrap(), crc32c(0, &contents))
            },
        );
    }

    #[test]
    fn contents_size_and_holes_cross() {
        let page = 4096;
        let cases: [(u64, &[u64]); 10] = [
            (0, &[]),
            (1, &[]),
            (1, &[0]),
            (page - 1, &[0]),
            (page + 1, &[0]),
            (page + 1, &[page]),
            (MIB, &[]),
            (MIB, &[MIB - page]),
            (MIB + 5, &[0, 3 * page, 4 * page, MIB]),
            (MIB, &[5 * page, 9 * page]),
        ];
        for (size, places) in cases {
            let file = sparse(size, places);
            cross_both_ways(&file, |retrieved, _| assert_same_contents(&file, retrieved));
        }
    }

    #[test]
    fn sixty_four_gib_with_one_mib_in_it_are_one_mib() {
        let step = (64 << 30) / 256;
        let places: Vec<u64> = (0..256).map(|place| place * step).collect();
        let file = sparse(64 << 30, &places);
        let host = FakeHost::default();
        let data = prepare(&file, &host).unwrap().data;
        let summary = inspect(data, host.lend()).unwrap();
        assert_eq!((summary.size, summary.metadata_bytes), (64 << 30, 368));
        let found = ranges(&file);
        assert_eq!(found.len(), 256);
        let bytes: u64 = found.iter().map(|range| range.end - range.start).sum();
        assert_eq!(bytes, MIB);
        cross_both_ways(&file, |retrieved, _| assert_same_contents(&file, retrieved));
    }

    #[test]
    fn position_and_status_flags_cross() {
        let both = OFlags::APPEND | OFlags::NONBLOCK;
        for flags in [OFlags::empty(), OFlags::APPEND, OFlags::NONBLOCK, both] {
            let mut file = sparse(MIB, &[0]);
            file.seek(SeekFrom::Start(4321)).unwrap();
            rustix::fs::fcntl_setfl(&file, flags).unwrap();
            cross_both_ways(&file, |mut retrieved, before| {
                assert_eq!(before.position, 4321);
                assert_eq!(retrieved.stream_position().unwrap(), 4321);
                let now = rustix::fs::fcntl_getfl(retrieved.as_fd()).unwrap();
                assert_eq!(now & both, flags);
            });
        }
    }

    #[test]
    fn a_position_beyond_the_end_crosses() {
        let mut file = sparse(10, &[0]);
        file.seek(SeekFrom::Start(1 << 40)).unwrap();
        cross_both_ways(&file, |_, _| ());
    }

    #[test]
    fn the_access_mode_crosses() {
        for access in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
            let original = sparse(MIB, &[0, 8192]);
            add_seals(original.as_fd(), SEAL_GROW).unwrap();
            let file = reopen(&original, access).unwrap();
            cross_both_ways(&file, |mut retrieved, _| {
                let mut byte = [7];
                assert_eq!(retrieved.read(&mut byte).is_ok(), access != OFlags::WRONLY);
                assert_eq!(retrieved.write(&byte).is_ok(), access != OFlags::RDONLY);
                retrieved.rewind().unwrap();
                assert_same_contents(retrieved, &original);
            });
        }
    }

    #[test]
    fn every_set_of_seals_crosses() {
        for wanted in 0..=ALL_SEALS {
            let file = sparse(MIB, &[0]);
            // With an execute bit the exec seal would bring others along.
            file.set_permissions(Permissions::from_mode(0o640)).unwrap();
            add_seals(file.as_fd(), wanted).unwrap();
            cross_both_ways(&file, |retrieved, before| {
                assert_eq!(before.seals, wanted);
                assert_eq!(seals(retrieved.as_fd()), Ok(wanted));
            });
        }
    }

    #[test]
    fn seals_that_the_exec_seal_implies_cross() {
        let file = sparse(MIB, &[0]);
        file.set_permissions(Permissions::from_mode(0o700)).unwrap();
        add_seals(file.as_fd(), SEAL_EXEC).unwrap();
        cross_both_ways(&file, |_, before| assert!(before.seals & SEAL_WRITE != 0));
    }

    #[test]
    fn the_seal_that_every_plain_memfd_has_crosses() {
        let file = MemfdOptions::new().create("test").unwrap().into_file();
        assert_eq!(seals(file.as_fd()), Ok(SEAL_SEAL));
        cross_both_ways(&file, |_, _| ());
    }

    #[test]
    fn what_changes_after_prepare_crosses_too() {
        let file = sparse(MIB, &[0]);
        let host = FakeHost::default();
        let mut prepared = prepare(&file, &host).unwrap();
        file.set_len(2 * MIB).unwrap();
        file.write_all_at(&[1; 4096], MIB + 8192).unwrap();
        (&file).write_all(b"moved").unwrap();
        add_seals(file.as_fd(), SEAL_SHRINK).unwrap();
        let data = freeze(&file, &mut prepared, &host);
        let summary = inspect(data, host.lend()).unwrap();
        assert_eq!((summary.size, summary.position), (2 * MIB, 5));
        assert_eq!(summary.seals, SEAL_SHRINK);
        let retrieved = retrieve(data, &host).unwrap();
        assert_eq!(ranges(&retrieved), [0..4096, MIB + 8192..MIB + 12288]);
        finish(data, Some(&retrieved), &host);
    }

    #[test]
    fn a_workload_may_go_on_during_prepare() {
        let mut file = sparse(MIB, &[]);
        file.seek(SeekFrom::Start(77)).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut round = 0;
                while !stop.load(Relaxed) {
                    round += 1;
                    file.write_all_at(&[1; 9000], round * 12_345 % MIB).unwrap();
                    if round % 16 == 0 {
                        file.set_len(round % MIB).unwrap();
                    }
                    assert_eq!(rustix::fs::tell(&file), Ok(77));
                }
            });
            let host = FakeHost::default();
            for _ in 0..300 {
                let data = prepare(&file, &host).unwrap().data;
                inspect(data, host.lend()).unwrap();
                finish(data, None, &host);
            }
            stop.store(true, Relaxed);
            writer.join().unwrap();
        });
    }

    /// What comes of a record of a sparse memfd if the host hands `other` out for it, with what is
    /// reported.
    fn retrieve_instead(other: File) -> (Result<File, Errno>, String) {
        let host = FakeHost::default();
        let data = prepare(&sparse(MIB, &[0, 8192]), &host).unwrap().data;
        let record = Record::read(host.lend(), data).unwrap();
        host.replace_file(record.contents, other.into());
        let retrieved = retrieve(data, &host);
        let reason = host.reason();
        finish(data, retrieved.as_ref().ok(), &host);
        (retrieved, reason)
    }

    #[test]
    fn a_file_of_another_kind_is_not_taken_for_the_recorded_one() {
        let mut others = vec![
            tempfile::tempfile_in("/").unwrap(),
            File::open("/dev/null").unwrap(),
            File::open("/").unwrap(),
        ];
        if let Ok(huge) = MemfdOptions::new()
            .hugetlb(Some(HugetlbSize::Huge2MB))
            .create("test")
        {
            others.push(huge.into_file());
        }
        for other in others {
            let name = format!("{other:?}");
            let (retrieved, reason) = retrieve_instead(other);
            assert_eq!(retrieved.unwrap_err(), Errno::EINVAL, "{name}");
            assert!(reason.contains("memfd"), "{name}: {reason}");
        }
    }

    /// A change of a file between freeze and retrieve, by whoever shares it.
    type Change = fn(&mut File);

    fn punch(file: &File, offset: u64, length: u64) {
        use rustix::fs::{fallocate, FallocateFlags};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, flags, offset, length).unwrap();
    }

    #[test]
    fn a_file_that_changed_after_freeze_is_handed_over_as_it_is() {
        let changes: [(Change, &str); 9] = [
            (
                |file| file.set_len(3 * MIB).unwrap(),
                "size 1048576 to 3145728",
            ),
            (|file| file.set_len(5).unwrap(), "size 1048576 to 5"),
            // Nobody looked at the contents, so nothing is known to have changed.
            (|file| punch(file, 0, 4096), ""),
            (|file| file.write_all_at(&[7; 4096], 4096).unwrap(), ""),
            (
                |file| _ = file.seek(SeekFrom::Start(99)).unwrap(),
                "position 1 to 99",
            ),
            (
                |file| add_seals(file.as_fd(), SEAL_GROW).unwrap(),
                "seals 0o0 to 0o4",
            ),
            (
                |file| rustix::fs::fcntl_setfl(file, OFlags::NONBLOCK).unwrap(),
                "status flags 0o2 to 0o4002",
            ),
            (
                |file| file.set_permissions(Permissions::from_mode(0o600)).unwrap(),
                "mode 0o777 to 0o600",
            ),
            (
                |file| {
                    file.set_len(2 * MIB).unwrap();
                    add_seals(file.as_fd(), SEAL_SHRINK | SEAL_SEAL).unwrap();
                },
                "size 1048576 to 2097152, seals 0o0 to 0o3",
            ),
        ];
        for (change, report) in changes {
            let mut file = sparse(MIB, &[0, 8192]);
            file.set_permissions(Permissions::from_mode(0o777)).unwrap();
            file.seek(SeekFrom::Start(1)).unwrap();
            let host = FakeHost::default();
            let mut prepared = prepare(&file, &host).unwrap();
            let data = freeze(&file, &mut prepared, &host);
            change(&mut file);
            let now = attributes(file.as_fd()).unwrap();
            let retrieved = retrieve(data, &host).unwrap();
            let expected = match report {
                "" => String::new(),
                changes => format!("changed since freeze: {changes}"),
            };
            assert_eq!(host.reason(), expected);
            assert_eq!(attributes(retrieved.as_fd()), Ok(now));
            assert_eq!(attributes(file.as_fd()), Ok(now), "nobody touched it");
            assert_same_contents(&file, &retrieved);
            finish(data, Some(&retrieved), &host);
        }
    }

    #[test]
    fn a_file_that_is_gone_is_not_found() {
        let host = FakeHost::default();
        let data = prepare(&sparse(MIB, &[0]), &host).unwrap().data;
        let record = Record::read(host.lend(), data).unwrap();
        host.lend().release_file(record.contents);
        assert_eq!(retrieve(data, &host).unwrap_err(), Errno::ENOENT);
        finish(data, None, &host);
    }

    #[test]
    fn memfds_are_taken_and_other_files_are_not() {
        let can = |file: &File| MEMFD.can_preserve(file.as_fd().into());
        assert!(can(&memfd()));
        assert!(can(&MemfdOptions::new()
            .create("test")
            .unwrap()
            .into_file()));
        assert!(!can(&File::open("/dev/null").unwrap()));
        assert!(!can(&File::open("/").unwrap()));
        assert!(!can(&tempfile::NamedTempFile::new().unwrap().into_file()));
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!can(&File::from(OwnedFd::from(socket))));
    }

    #[test]
    fn a_named_file_of_tmpfs_is_not_taken() {
        let Ok(named) = tempfile::NamedTempFile::new_in("/dev/shm") else {
            eprintln!("skipped: no file can be made in /dev/shm");
            return;
        };
        assert!(!MEMFD.can_preserve(named.as_file().as_fd().into()));
        let file = named.into_file();
        assert_eq!(stat(file.as_fd()).unwrap().st_nlink, 0);
        assert_eq!(
            MEMFD.can_preserve(file.as_fd().into()),
            seals(file.as_fd()).is_ok()
        );
    }

    /// A hugetlb memfd of two pages of 2 MiB, or why there is none.
    fn huge() -> Result<File, String> {
        let memfd = MemfdOptions::new()
            .allow_sealing(true)
            .hugetlb(Some(HugetlbSize::Huge2MB))
            .create("test")
            .map_err(|error| format!("no hugetlb memfd: {error}"))?;
        let file = memfd.into_file();
        file.set_len(4 * MIB)
            .map_err(|error| format!("no size for a hugetlb memfd: {error}"))?;
        Ok(file)
    }

    /// Fills the first huge page of `file`.
    fn fill(file: &File) -> Result<(), String> {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 2 << 20)
            .map_err(|errno| format!("no huge page of 2 MiB is free: {errno}"))
    }

    #[test]
    fn an_empty_hugetlb_memfd_is_a_hole() {
        let file = match huge() {
            Ok(file) => file,
            Err(reason) => return eprintln!("skipped: {reason}"),
        };
        let host = FakeHost::default();
        let data = prepare(&file, &host).unwrap().data;
        let summary = inspect(data, host.lend()).unwrap();
        assert_eq!((summary.kind, summary.page_bytes), (Kind::Hugetlb, 2 * MIB));
        assert_eq!(summary.size, 4 * MIB);
        let retrieved = retrieve(data, &host).unwrap();
        assert_eq!(stat(retrieved.as_fd()).unwrap().st_blocks, 0);
        finish(data, Some(&retrieved), &host);
    }

    #[test]
    fn a_hugetlb_memfd_with_a_page_is_data() {
        let file = match huge().and_then(|file| fill(&file).map(|()| file)) {
            Ok(file) => file,
            Err(reason) => return eprintln!("skipped: {reason}"),
        };
        let host = FakeHost::default();
        add_seals(file.as_fd(), SEAL_SHRINK).unwrap();
        let data = prepare(&file, &host).unwrap().data;
        let retrieved = retrieve(data, &host).unwrap();
        assert_eq!(stat(retrieved.as_fd()).unwrap().st_blocks, 4096);
        assert_eq!(seals(retrieved.as_fd()), Ok(SEAL_SHRINK));
        finish(data, Some(&retrieved), &host);
    }

    #[test]
    fn a_hugetlb_memfd_may_end_within_a_page() {
        let odd = |file: File| {
            fill(&file)?;
            let all = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, all, 4 * MIB, 5)
                .map_err(|errno| format!("no huge page of 2 MiB is free: {errno}"))?;
            Ok(file)
        };
        let file = match huge().and_then(odd) {
            Ok(file) => file,
            Err(reason) => return eprintln!("skipped: {reason}"),
        };
        let host = FakeHost::default();
        let data = prepare(&file, &host).unwrap().data;
        let summary = inspect(data, host.lend()).unwrap();
        assert_eq!((summary.kind, summary.size), (Kind::Hugetlb, 4 * MIB + 5));
        let retrieved = retrieve(data, &host).unwrap();
        assert_eq!(retrieved.metadata().unwrap().len(), 4 * MIB + 5);
        finish(data, Some(&retrieved), &host);
    }

    #[test]
    fn the_handler_is_registered() {
        let found = luo_handler_api::registry::registered_handlers()
            .filter(|ops| ops.origin() == "luo_handler_memfd")
            .map(|ops| ops.compatible().unwrap())
            .collect::<Vec<_>>();
        assert_eq!(found, [MemfdHandler::<UserBackend>::COMPATIBLE]);
    }

    #[test]
    fn the_record_uses_the_numbers_of_the_system() {
        let seals = [
            (SealFlags::SEAL, SEAL_SEAL),
            (SealFlags::SHRINK, SEAL_SHRINK),
            (SealFlags::GROW, SEAL_GROW),
            (SealFlags::WRITE, SEAL_WRITE),
            (SealFlags::FUTURE_WRITE, SEAL_FUTURE_WRITE),
            (
                SealFlags::from_bits_retain(libc::F_SEAL_EXEC as u32),
                SEAL_EXEC,
            ),
        ];
        assert!(seals.iter().all(|&(theirs, ours)| theirs.bits() == ours));
        assert_eq!(OFlags::RWMODE.bits(), status::ACCESS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_pattern_of_pages_crosses(
            pages in prop::collection::btree_set(0u64..200, 0..60),
            tail in 0u64..4097,
        ) {
            let size = pages.last().map_or(0, |page| (page << 12) + 1) + tail;
            let places: Vec<u64> = pages.iter().map(|page| page << 12).collect();
            let file = sparse(size, &places);
            cross_both_ways(&file, |retrieved, _| assert_same_contents(&file, retrieved));
            let found: Vec<u64> = ranges(&file)
                .into_iter()
                .flat_map(|range| range.start >> 12..range.end.div_ceil(4096))
                .collect();
            prop_assert!(found.into_iter().eq(pages));
        }
    }
}
