// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! One update of a soak, on both sides of the jump.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use vfio_ioctls::VfioContainer;

use crate::soak::plan::{Abort, DeviceAccess, FilePlan, MemfdPlan, SessionPlan, Update};
use crate::soak::writer::{self, Writer};
use crate::tests::failing_freeze::{spoil, BAD_MEMFD};
use crate::tests::held_open::HeldOpen;
use crate::tests::vfio_client::{Client, Description};
use luo_bench::subject::ioport::PortFile;
use luo_handler_api::Token;
use luo_liveupdate::kexec::{self, KexecError};
use luo_liveupdate::{Device, Session};
use luo_orchestrator::holes::{self, reopen};

/// Beside the devices of a session: what they report of themselves.
const DESCRIPTIONS: Token = Token(u64::MAX);
const THP: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// A file, opened.
pub(crate) enum Opened {
    Memfd(File),
    Device(Client),
    Port(File),
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Memfd(file) | Self::Port(file) => file.as_fd(),
            Self::Device(device) => device.as_fd(),
        }
    }
}

/// A memfd that came with the last update.
pub(crate) struct Arrived {
    seed: u64,
    file: File,
}

/// Makes what crosses, has it fail and given up as planned, and leaves it ready for the jump.
/// Returns who is to write meanwhile.
pub(crate) fn depart(
    update: &Update,
    mut arrived: Vec<Arrived>,
    held: &mut HeldOpen,
) -> Result<Option<Writer>> {
    fs::write(THP, "advise").context("allowing huge pages")?;
    let container = Arc::new(VfioContainer::new(None)?);
    let mut files: Vec<Vec<Opened>> = Vec::new();
    for session in &update.sessions {
        let opened = session
            .files
            .iter()
            .map(|file| open(file, &mut arrived, &container));
        files.push(opened.collect::<Result<_>>()?);
    }
    let mut sessions = Vec::new();
    for (plan, files) in update.sessions.iter().zip(&files) {
        sessions.push(Some(preserve(plan, files)?));
    }
    for abort in &update.aborts {
        match *abort {
            Abort::Cancel { session } => {
                sessions[session] = None;
                verify_all(&update.sessions[session], &files[session])
                    .context("after a session was closed")?;
                sessions[session] = Some(preserve(&update.sessions[session], &files[session])?);
            }
            Abort::RefusedJump => refuse_jump()?,
        }
    }
    for (plan, files) in update.sessions.iter().zip(&files) {
        write_late(plan, files)?;
    }
    for session in sessions.iter().flatten() {
        held.hold(session)?;
    }
    let writer = update.writer.map(|access| writer::prepare(access, held));
    writer.transpose()
}

/// Retrieves and compares everything; returns the memfds.
pub(crate) fn arrive(update: &Update) -> Result<Vec<Arrived>> {
    let mut memfds = Vec::new();
    for plan in &update.sessions {
        let found = take(plan).with_context(|| format!("session {}", plan.name))?;
        memfds.extend(found);
    }
    if update.writer.is_some() {
        writer::verify()?;
    }
    Ok(memfds)
}

fn open(
    plan: &FilePlan,
    arrived: &mut Vec<Arrived>,
    container: &Arc<VfioContainer>,
) -> Result<Opened> {
    Ok(match plan {
        FilePlan::Memfd(plan) => Opened::Memfd(match plan.passed_on {
            true => pick(plan, arrived)?,
            false => plan.early.make(|_| ())?,
        }),
        FilePlan::Device { address, access } => Opened::Device(match access {
            DeviceAccess::Cdev => Client::by_cdev(address)?,
            DeviceAccess::Group => Client::by_group(address, container)?,
        }),
        FilePlan::Port { position, flags } => {
            let mut file = port_file(*position, *flags).open()?;
            file.seek(SeekFrom::Start(*position))?;
            Opened::Port(file)
        }
    })
}

fn port_file(position: u64, flags: rustix::fs::OFlags) -> PortFile {
    PortFile { position, flags }
}

fn pick(plan: &MemfdPlan, arrived: &mut Vec<Arrived>) -> Result<File> {
    let place = arrived
        .iter()
        .position(|found| found.seed == plan.early.seed);
    let place = place.context("a memfd that crosses again did not arrive")?;
    Ok(arrived.swap_remove(place).file)
}

fn preserve(plan: &SessionPlan, files: &[Opened]) -> Result<Session> {
    let session = Device::open()?.create_session(&plan.name)?;
    let mut descriptions = Vec::new();
    for ((token, plan), file) in (1..).map(Token).zip(&plan.files).zip(files) {
        if let (FilePlan::Memfd(plan), Opened::Memfd(file)) = (plan, file) {
            if plan.rewritten {
                overwrite(plan, file)?;
            }
        }
        if let Opened::Device(device) = file {
            descriptions.push(device.describe());
        }
        session.preserve(token, file.as_fd())?;
    }
    let memfd = File::from(rustix::fs::memfd_create(
        "descriptions",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    memfd.write_all_at(&serde_json::to_vec(&descriptions)?, 0)?;
    session.preserve(DESCRIPTIONS, memfd.as_fd())?;
    Ok(session)
}

/// Writes other bytes over the data of a memfd; its holes stay.
fn overwrite(plan: &MemfdPlan, file: &File) -> Result<()> {
    for data in holes::data_ranges(&reopen(file.as_fd())?, plan.early.size)? {
        let other = vec![0xa5; (data.end - data.start) as usize];
        file.write_all_at(&other, data.start)?;
    }
    Ok(())
}

/// Writes to the memfds between prepare and freeze: over their data, and into holes.
fn write_late(plan: &SessionPlan, files: &[Opened]) -> Result<()> {
    for (plan, file) in plan.files.iter().zip(files) {
        if let (FilePlan::Memfd(plan), Opened::Memfd(file)) = (plan, file) {
            if plan.rewritten || plan.late != plan.early {
                plan.late.write(file, |_| ())?;
            }
        }
    }
    Ok(())
}

/// After a cancel everything is as before.
fn verify_all(plan: &SessionPlan, files: &[Opened]) -> Result<()> {
    for (plan, file) in plan.files.iter().zip(files) {
        match (plan, file) {
            (FilePlan::Memfd(plan), Opened::Memfd(file)) if !plan.rewritten => {
                plan.early.verify(file.as_fd(), |_| ())?;
            }
            (FilePlan::Port { position, flags }, Opened::Port(file)) => {
                port_file(*position, *flags).verify(file.as_fd())?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Memory of another session goes bad, which refuses the jump; then that session is closed.
fn refuse_jump() -> Result<()> {
    let session = Device::open()?.create_session("soak-bad")?;
    let file = BAD_MEMFD.make(|_| ())?;
    session.preserve(Token(BAD_MEMFD.seed), file.as_fd())?;
    spoil(&file, 0)?;
    let refused = kexec::jump();
    ensure!(
        matches!(refused, KexecError::Refused(_)),
        "expected a refused jump, found: {refused}"
    );
    Ok(())
}

fn take(plan: &SessionPlan) -> Result<Vec<Arrived>> {
    let session = Device::open()?.retrieve_session(&plan.name)?;
    let mut memfds = Vec::new();
    let mut devices: Vec<(usize, Client)> = Vec::new();
    for &place in &plan.retrieved {
        let token = Token(place as u64 + 1);
        let descriptor = session.retrieve(token)?;
        let compare = || -> Result<()> {
            match &plan.files[place] {
                FilePlan::Memfd(plan) => {
                    let file = File::from(descriptor);
                    plan.late.verify(file.as_fd(), |_| ())?;
                    memfds.push(Arrived {
                        seed: plan.late.seed,
                        file,
                    });
                }
                FilePlan::Device { .. } => devices.push((place, Client::retrieved(descriptor)?)),
                FilePlan::Port { position, flags } => {
                    port_file(*position, *flags).verify(descriptor.as_fd())?;
                }
            }
            Ok(())
        };
        compare().with_context(|| format!("token {token}"))?;
    }
    let described = File::from(session.retrieve(DESCRIPTIONS)?);
    let described: Vec<Description> = serde_json::from_reader(described)?;
    let files = plan.files.iter().enumerate();
    let places = files.filter(|(_, file)| matches!(file, FilePlan::Device { .. }));
    for ((place, _), description) in places.zip(&described) {
        if let Some((_, device)) = devices.iter().find(|(found, _)| *found == place) {
            device
                .expect(description)
                .with_context(|| format!("token {}", place + 1))?;
        }
    }
    session.finish()?;
    Ok(memfds)
}
