// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What makes a memfd besides its contents: each flag of `memfd_create`, open files of each kind,
//! owner, mode and name; and files that are not memfds.

use std::fs::{self, read_link, File, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{fchown, FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{ensure, Context, Result};
use luo_handler_api::Token;
use luo_liveupdate::Session;
use luo_orchestrator::SharedMapping;
use rustix::fs::{
    fcntl_add_seals, fcntl_get_seals, fcntl_getfl, fcntl_setfl, memfd_create, open, MemfdFlags,
    Mode, OFlags, SealFlags,
};
use rustix::io::Errno;
use rustix::mount::{mount, MountFlags};

use crate::guest::programs::{program, BUSYBOX};
use crate::tests::case::Case;
use crate::tests::expect::expect_errno;

pub(super) static CASES: &[Case] = &[
    Case::new(
        "create_flags",
        "each flag of memfd_create, with vm.memfd_noexec 0 and 1",
        send_created,
        take_created,
    ),
    Case::new(
        "open_files",
        "append, non-blocking and read-only descriptions",
        send_open_files,
        take_open_files,
    ),
    Case::new(
        "owner_and_name",
        "owner, mode without set-id bits, and name; the owner can open it again",
        send_owned,
        take_owned,
    ),
    Case::local(
        "other_files",
        "files of tmpfs and hugetlbfs without a name and shared memory without a file are refused",
        refuse_others,
    ),
];

const BYTES: &[u8] = b"bytes";

fn memfd(name: &str, flags: MemfdFlags) -> Result<File> {
    let file = File::from(memfd_create(name, flags | MemfdFlags::CLOEXEC)?);
    file.write_all_at(BYTES, 0)?;
    Ok(file)
}

const NOEXEC: &str = "/proc/sys/vm/memfd_noexec";
/// `F_SEAL_EXEC`
const SEAL_EXEC: SealFlags = SealFlags::from_bits_retain(0x20);

/// Flags of memfd_create, and mode and seals of what comes of them with vm.memfd_noexec 0 and 1.
const CREATED: [(MemfdFlags, [(u32, SealFlags); 2]); 5] = {
    let (exec, noexec) = (0o777, 0o666);
    let unsealed = SealFlags::empty();
    let sealed = (noexec, SEAL_EXEC);
    [
        (MemfdFlags::empty(), [(exec, SealFlags::SEAL), sealed]),
        (MemfdFlags::ALLOW_SEALING, [(exec, unsealed), sealed]),
        (MemfdFlags::NOEXEC_SEAL, [sealed, sealed]),
        (
            MemfdFlags::EXEC,
            [(exec, SealFlags::SEAL), (exec, SealFlags::SEAL)],
        ),
        (
            MemfdFlags::EXEC.union(MemfdFlags::ALLOW_SEALING),
            [(exec, unsealed), (exec, unsealed)],
        ),
    ]
};

/// Each of them with its token.
fn created() -> impl Iterator<Item = (Token, usize, MemfdFlags, (u32, SealFlags))> {
    let each = CREATED.iter().enumerate();
    each.flat_map(|(number, (flags, expected))| {
        expected.iter().enumerate().map(move |(noexec, expected)| {
            let token = Token((10 * noexec + number) as u64);
            (token, noexec, *flags, *expected)
        })
    })
}

fn expect_created(file: &File, (mode, seals): (u32, SealFlags)) -> Result<()> {
    let found = (file.metadata()?.mode() & 0o7777, fcntl_get_seals(file)?);
    ensure!(
        found == (mode, seals),
        "mode and seals are {:o} and {:?}, expected {mode:o} and {seals:?}",
        found.0,
        found.1
    );
    Ok(())
}

fn send_created(session: &Session) -> Result<()> {
    for (token, noexec, flags, expected) in created() {
        fs::write(NOEXEC, noexec.to_string()).context("setting vm.memfd_noexec")?;
        let file = memfd("created", flags)?;
        expect_created(&file, expected).context("before the jump")?;
        session.preserve(token, file.as_fd())?;
    }
    Ok(fs::write(NOEXEC, "0")?)
}

fn take_created(session: &Session) -> Result<()> {
    for (token, noexec, flags, expected) in created() {
        // It must not change what comes back.
        fs::write(NOEXEC, (1 - noexec).to_string())?;
        let file = File::from(session.retrieve(token)?);
        expect_created(&file, expected).with_context(|| format!("{flags:?}"))?;
        file.write_all_at(b"B", 0).context("writing to it")?;
        let seals = fcntl_add_seals(&file, SealFlags::SHRINK);
        ensure!(
            seals.is_ok() != expected.1.contains(SealFlags::SEAL),
            "{flags:?}: adding a seal: {seals:?}"
        );
    }
    fs::write(NOEXEC, "0")?;
    Ok(session.finish()?)
}

/// Access mode and status flags.
const OPENED: [OFlags; 4] = [
    OFlags::RDWR.union(OFlags::APPEND),
    OFlags::RDWR.union(OFlags::NONBLOCK),
    OFlags::RDONLY,
    OFlags::RDONLY.union(OFlags::NONBLOCK),
];

fn path_of(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn send_open_files(session: &Session) -> Result<()> {
    for (token, flags) in (0..).map(Token).zip(OPENED) {
        let file = memfd("opened", MemfdFlags::empty())?;
        let access = flags & OFlags::RWMODE;
        let again = open(
            path_of(file.as_fd()),
            access | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        fcntl_setfl(&again, flags)?;
        session.preserve(token, again.as_fd())?;
    }
    Ok(())
}

fn take_open_files(session: &Session) -> Result<()> {
    for (token, flags) in (0..).map(Token).zip(OPENED) {
        let file = File::from(session.retrieve(token)?);
        let looked_at = OFlags::RWMODE | OFlags::APPEND | OFlags::NONBLOCK;
        let found = fcntl_getfl(&file)? & looked_at;
        ensure!(
            found == flags,
            "the flags are {found:?}, expected {flags:?}"
        );
        let mut bytes = [0; BYTES.len()];
        file.read_exact_at(&mut bytes, 0)?;
        ensure!(bytes == BYTES, "other bytes came back");
        let written = rustix::io::write(&file, b"more");
        match flags & OFlags::RWMODE {
            OFlags::RDONLY => ensure!(written == Err(Errno::BADF), "it can be written to"),
            _ => ensure!(written == Ok(4), "writing to it: {written:?}"),
        }
        if flags.contains(OFlags::APPEND) {
            let size = file.metadata()?.len();
            ensure!(
                size == BYTES.len() as u64 + 4,
                "it was not appended to: {size}"
            );
        }
    }
    Ok(session.finish()?)
}

/// Bytes of a mapping.
const MAPPED: u64 = 1 << 16;
const OWNED: Token = Token(7);
const OWNER: (u32, u32) = (1000, 1001);
const NAME: &str = "a name of its own";

fn send_owned(session: &Session) -> Result<()> {
    let file = memfd(NAME, MemfdFlags::empty())?;
    fchown(&file, Some(OWNER.0), Some(OWNER.1))?;
    file.set_permissions(Permissions::from_mode(0o6600))?;
    Ok(session.preserve(OWNED, file.as_fd())?)
}

fn take_owned(session: &Session) -> Result<()> {
    let file = File::from(session.retrieve(OWNED)?);
    let status = file.metadata()?;
    let found = (status.uid(), status.gid());
    ensure!(found == OWNER, "the owner is {found:?}, expected {OWNER:?}");
    let mode = status.mode() & 0o7777;
    ensure!(mode == 0o600, "the mode is {mode:o}");
    let link = read_link(path_of(file.as_fd()))?;
    let expected = format!("/memfd:{NAME} (deleted)");
    ensure!(
        link.as_os_str() == expected.as_str(),
        "it is called {}",
        link.display()
    );
    let opened = program(BUSYBOX, &["cat", "/proc/self/fd/0"])
        .stdin(Stdio::from(file))
        .uid(OWNER.0)
        .gid(OWNER.1)
        .current_dir("/")
        .output()
        .context("starting busybox as the owner")?;
    ensure!(
        opened.stdout == BYTES,
        "the owner cannot open it again: {}",
        String::from_utf8_lossy(&opened.stderr)
    );
    Ok(session.finish()?)
}

/// Of the mount that memfds are of, as SysV and DRM memory is; only map_files leads to its file.
fn shared_without_file() -> Result<OwnedFd> {
    let zero = File::options().read(true).write(true).open("/dev/zero")?;
    let mapping = SharedMapping::new(&zero, 0..MAPPED).context("mapping shared memory")?;
    let start = mapping.as_ptr() as u64;
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + MAPPED);
    let name = read_link(&path).context("the mapping's file")?;
    ensure!(name.as_os_str() == "/dev/zero (deleted)", "it is {name:?}");
    Ok(open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

fn refuse_others(session: &Session) -> Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = open("/dev/shm", flags, Mode::RUSR | Mode::WUSR).context("making a file")?;
    expect_errno(
        session.preserve(Token(1), file.as_fd()),
        Errno::OPNOTSUPP,
        "preserving a file of another tmpfs mount",
    )?;
    let shared = shared_without_file()?;
    expect_errno(
        session.preserve(Token(3), shared.as_fd()),
        Errno::OPNOTSUPP,
        "preserving shared memory that is no memfd",
    )?;
    let mount_point = "/tmp/huge";
    fs::create_dir_all(mount_point)?;
    mount("none", mount_point, c"hugetlbfs", MountFlags::empty(), None).context("mounting")?;
    let huge = open(mount_point, flags, Mode::RUSR | Mode::WUSR).context("making a huge file")?;
    expect_errno(
        session.preserve(Token(2), huge.as_fd()),
        Errno::OPNOTSUPP,
        "preserving a file of another hugetlbfs mount",
    )
}
