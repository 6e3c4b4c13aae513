// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Contents in a directory: survives the process and an ordinary reboot.
//!
//! ```text
//! DIR/current          a symbolic link to the one image that counts
//! DIR/image-RANDOM/    devicetree.dtb   what `dtc` and `luo inspect` read
//!                      memory           the memory file, see `memory_file`
//!                      manifest.json    lengths and checksums of the two, and which contents
//!                      contents-N       the memfd with handle N, see `layout`
//! ```
//!
//! An image is written beside the old one and synced; then `current` is replaced by a rename. A
//! crash at any point leaves the old image or the new one. What a crash left behind is removed by
//! the next save.
//!
//! [`save`] writes all of it while the program stands still. A [`Draft`] has the contents before,
//! and then writes only what changed since:
//!
//! ```
//! # use std::sync::Arc;
//! # use luo_handler_api::Token;
//! # use luo_handler_memfd as _;
//! # use luo_orchestrator::{orchestrator::Orchestrator, registry::Registry, transport::image};
//! # let directory = tempfile::tempdir()?;
//! # let memfd = memfd::MemfdOptions::default().create("memory")?;
//! let update = Orchestrator::new(Arc::new(Registry::linked()?));
//! update.preserve(Token(1), memfd.as_file())?;
//! update.prepare()?;
//! let mut draft = image::Draft::new(directory.path())?;
//! draft.copy(&update.held(), &|_| ())?; // the program runs
//! update.freeze()?; // it does not run
//! update.handover(|handover| Ok::<_, Error>(draft.finish(&handover, &|_| ())?))?;
//! # type Error = Box<dyn std::error::Error>;
//! # Ok::<(), Error>(())
//! ```
//!
//! Without more than that, the memory is read again while the program stands still, and compared.
//! Memory that is sealed is not, nor is memory that is [`Tracked`] and that nobody wrote to.
//!
//! Who reads an image holds a shared lock on its directory, and no save removes a directory that is
//! locked: what was loaded can be retrieved after later saves. The save after its reader is done
//! removes it.

mod contents;
mod copy;
mod error;
mod layout;
mod tracked;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use luo_handler_api::{Errno, Token};
use rayon::prelude::*;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::files::{FileSource, HeldFile};
use crate::handover::{Arrival, Handover};
use crate::incoming::Incoming;
use crate::reason;
use crate::sys::Identity;
use copy::Copy;
use error::at;

pub use contents::{hugetlb_size, Data};
pub use error::ImageError;
pub use layout::CHUNK_BYTES;
pub use tracked::Tracked;

const CURRENT: &str = "current";
const LOCK: &str = "lock";
const MANIFEST: &str = "manifest.json";
/// The devicetree's name inside an image.
pub const DEVICETREE: &str = "devicetree.dtb";
/// The memory file's name inside an image.
pub const MEMORY: &str = "memory";
const IMAGE_PREFIX: &str = "image-";
const SCHEMA: u32 = 3;
/// Those that can be read.
const SCHEMAS: RangeInclusive<u32> = 2..=SCHEMA;

/// What an image has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Bytes of contents, holes left out.
    pub contents_bytes: u64,
    /// Those of them that were written after freeze.
    pub late_bytes: u64,
    /// Bytes of everything else.
    pub metadata_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    schema: u32,
    devicetree: Checked,
    memory: Checked,
    contents: Vec<Stored>,
    /// Of the other fields.
    crc32c: u32,
}

/// Contents in an image, and the file that they are preserved for.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Stored {
    handle: u64,
    token: Option<u64>,
}

impl Manifest {
    fn checksum(&self) -> u32 {
        let others = (self.schema, &self.devicetree, &self.memory, &self.contents);
        crc32c::crc32c(&serde_json::to_vec(&others).unwrap_or_default())
    }
}

/// Length and crc32c of a file.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Checked {
    bytes: u64,
    crc32c: u32,
}

impl Checked {
    fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            crc32c: crc32c::crc32c(bytes),
        }
    }
}

/// Writes an image into `directory`, in place of the one that is there. `progress` is called with
/// the bytes of contents as they are written, from any thread.
///
/// # Errors
///
/// Those of [`Draft::finish`].
pub fn save(
    handover: &Handover<'_>,
    directory: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Saved, ImageError> {
    let (saved, _lock) = Draft::new(directory)?.complete(handover, progress)?;
    // What cannot be removed now is a leftover for the next save.
    let _ = remove_all_but_current(directory);
    Ok(saved)
}

/// Removes every image but the one that counts and those that somebody reads. A draft does so when
/// it is begun, too.
///
/// # Errors
///
/// [`ImageError`] if one cannot be removed, or nobody knows which one counts.
pub fn remove_older(directory: &Path) -> Result<(), ImageError> {
    let _lock = lock(directory)?;
    remove_all_but_current(directory)
}

/// An image that does not count yet. If it is dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    directory: PathBuf,
    image: TempDir,
    copies: BTreeMap<u64, Copy>,
    tracked: Vec<Tracked>,
    /// Other saves wait.
    lock: File,
}

impl Draft {
    /// Begins an image in `directory`. Saves of others into the same directory wait until it is
    /// finished or dropped.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it cannot be created there.
    pub fn new(directory: &Path) -> Result<Self, ImageError> {
        create_directory(directory)?;
        let lock = lock(directory)?;
        remove_all_but_current(directory)?;
        let image = tempfile::Builder::new()
            .prefix(IMAGE_PREFIX)
            .tempdir_in(directory)
            .map_err(at("create an image in", directory))?;
        Ok(Self {
            directory: directory.to_owned(),
            image,
            copies: BTreeMap::new(),
            tracked: Vec::new(),
            lock,
        })
    }

    /// Relies on a mapping to know what is written to its part of a memfd. It helps from the second
    /// copy on.
    pub fn track(&mut self, mapping: Tracked) {
        self.tracked.push(mapping);
    }

    /// Copies contents while the program runs, those of
    /// [`Orchestrator::held`](crate::orchestrator::Orchestrator::held), and waits until they are on
    /// the disk. May be called again, to copy what changed meanwhile: then less is left to
    /// [`finish`](Self::finish). Returns the bytes that were written.
    ///
    /// `progress` is called with the bytes of contents that are done, from any thread.
    ///
    /// # Errors
    ///
    /// [`ImageError`]; the image that counts is untouched. This one can be finished nevertheless.
    pub fn copy(
        &mut self,
        files: &[(HeldFile, Arc<OwnedFd>)],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, ImageError> {
        let mut written_bytes = 0;
        for (held, file) in files {
            let mut copy = self.copy_of(held.handle, file)?;
            let updated = copy.update(&mut self.tracked, progress);
            self.copies.insert(held.handle, copy);
            written_bytes += updated?.written_bytes;
        }
        Ok(written_bytes)
    }

    /// Writes what changed since, and makes this the image that counts. The one before is not
    /// removed: that takes time, for gigabytes as much as a second. The next draft does it, or
    /// [`remove_older`] once the program runs again.
    ///
    /// # Errors
    ///
    /// [`ImageError`]; the image that was there before is untouched then. With one exception it is
    /// the one that counts: if the very last sync fails, the new image counts already, and is
    /// complete, but which of the two counts after a power failure is unknown. Both stay until the
    /// next save.
    pub fn finish(
        self,
        handover: &Handover<'_>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Saved, ImageError> {
        let (saved, _lock) = self.complete(handover, progress)?;
        Ok(saved)
    }

    /// The same, with the lock.
    fn complete(
        mut self,
        handover: &Handover<'_>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(Saved, File), ImageError> {
        let saved = self.write(handover, progress)?;
        let directory = &*self.directory;
        let name = self.image.path().file_name().unwrap_or_default().to_owned();
        // The link must not reach the disk before the directory that it names.
        sync_directory(directory)?;
        make_current(directory, &name)?;
        // From here on it is the image that counts, whatever else fails.
        let _ = self.image.keep();
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(at(
                "make sure that the new image outlives a power failure in",
                directory,
            ))?;
        Ok((saved, self.lock))
    }

    /// The copy of a file under its handle, or a new one: after a cancel the handle may stand for
    /// another file.
    fn copy_of(&mut self, handle: u64, file: &Arc<OwnedFd>) -> Result<Copy, ImageError> {
        if let Some(copy) = self.copies.remove(&handle) {
            if Identity::of(file.as_fd()).is_ok_and(|identity| identity == copy.identity()) {
                return Ok(copy);
            }
            copy.remove()?;
        }
        Copy::new(file, handle, self.image.path())
    }

    fn write(
        &mut self,
        handover: &Handover<'_>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Saved, ImageError> {
        let mut saved = Saved::default();
        let mut stored = Vec::new();
        handover
            .outgoing
            .each_file(|HeldFile { handle, token }, file| {
                let copy = self.copy_of(handle, file)?;
                let updated = copy.finish(&mut self.tracked, progress)?;
                saved.contents_bytes += updated.data_bytes;
                saved.late_bytes += updated.written_bytes;
                let token = token.map(|Token(token)| token);
                stored.push(Stored { handle, token });
                Ok::<_, ImageError>(())
            })?;
        // Of files that were withdrawn.
        let mut others = std::mem::take(&mut self.copies).into_values();
        others.try_for_each(Copy::remove)?;
        saved.metadata_bytes = write_metadata(handover, self.image.path(), stored)?;
        Ok(saved)
    }
}

/// Creates the directory and those above it, so that they outlive a power failure.
fn create_directory(directory: &Path) -> Result<(), ImageError> {
    let missing: Vec<_> = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    fs::create_dir_all(directory).map_err(at("create", directory))?;
    for created in missing.iter().rev() {
        match created.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent)?,
            _ => sync_directory(Path::new("."))?,
        }
    }
    Ok(())
}

/// What the link to the current image contains.
enum Current {
    Missing,
    Image(OsString),
    /// It leads somewhere, but its last component is not a name: ".", "..", "/".
    Unnamed,
}

/// The name of the image that counts. If the link cannot be read it is an error: without a name to
/// spare, the good image would be removed as a leftover.
fn current_name(directory: &Path) -> Result<Current, ImageError> {
    let current = directory.join(CURRENT);
    match fs::read_link(&current) {
        Ok(target) => Ok(match target.file_name() {
            Some(name) => Current::Image(name.to_owned()),
            None => Current::Unnamed,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Current::Missing),
        Err(error) => Err(at("read the link", &current)(error)),
    }
}

/// One save at a time; released when dropped, also by a crash.
fn lock(directory: &Path) -> Result<File, ImageError> {
    let path = directory.join(LOCK);
    let file = File::create(&path).map_err(at("create", &path))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| at("lock", &path)(error.into()))?;
    Ok(file)
}

/// To be called under the lock.
fn remove_all_but_current(directory: &Path) -> Result<(), ImageError> {
    let name = match current_name(directory)? {
        Current::Image(name) => Some(name),
        Current::Missing => None,
        // Whichever image it stands for, none is removed before a new one is complete.
        Current::Unnamed => return Ok(()),
    };
    let current = name.as_deref();
    for entry in fs::read_dir(directory).map_err(at("read", directory))? {
        let entry = entry.map_err(at("read", directory))?;
        let name = entry.file_name();
        let is_image = name.to_string_lossy().starts_with(IMAGE_PREFIX);
        if !is_image || current == Some(&*name) {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(at("read", &path))?;
        // Held until it is gone. A symbolic link is removed itself, never what it names.
        let _lock = match kind.is_dir() {
            false => None,
            true => match lock_unread(&path)? {
                Some(lock) => Some(lock),
                None => continue,
            },
        };
        fs::remove_dir_all(&path).map_err(at("remove the leftover", &path))?;
    }
    Ok(())
}

/// Locks an image that nobody reads; `None` if somebody does.
fn lock_unread(image: &Path) -> Result<Option<File>, ImageError> {
    let directory = File::open(image).map_err(at("open the leftover", image))?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(at("lock the leftover", image)(error.into())),
    }
}

/// Writes everything but the contents; returns its bytes.
fn write_metadata(
    handover: &Handover<'_>,
    image: &Path,
    contents: Vec<Stored>,
) -> Result<u64, ImageError> {
    let memory = image.join(MEMORY);
    let file = File::create_new(&memory).map_err(at("create", &memory))?;
    handover
        .outgoing
        .write_memory(&file)
        .and_then(|()| file.sync_all())
        .map_err(at("write", &memory))?;
    let memory = fs::read(&memory).map_err(at("read", &memory))?;

    write_synced(&image.join(DEVICETREE), &handover.devicetree)?;
    let mut manifest = Manifest {
        schema: SCHEMA,
        devicetree: Checked::of(&handover.devicetree),
        memory: Checked::of(&memory),
        contents,
        crc32c: 0,
    };
    manifest.crc32c = manifest.checksum();
    let manifest = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    write_synced(&image.join(MANIFEST), &manifest)?;
    sync_directory(image)?;
    Ok((memory.len() + handover.devicetree.len()) as u64)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    use std::io::Write;
    File::create_new(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(at("write", path))
}

fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(at("sync", path))
}

/// The one step that counts: a rename replaces the link, atomically.
fn make_current(directory: &Path, name: &OsStr) -> Result<(), ImageError> {
    let link = directory.join("current.new");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(name, &link).map_err(at("create", &link))?;
    let current = directory.join(CURRENT);
    fs::rename(&link, &current).map_err(at("replace", &current))
}

/// Reads the image in `directory`. Contents are read, checked and made into memfds when their
/// handlers take them. `progress` is called with the bytes of contents as they are read.
///
/// # Errors
///
/// [`ImageError`] if the image as a whole cannot be used.
pub fn load(
    directory: &Path,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Arrival, ImageError> {
    let image = Image::current(directory)?;
    let (manifest, devicetree) = image.read()?;
    // The memory file is not compared as a whole: its blocks have checksums of their own, and a bad
    // one costs its file alone.
    let memory = image.path.join(MEMORY);
    let memory = fs::read(&memory).map_err(at("read", &memory))?;
    let contents = manifest.contents.iter();
    let files = Contents {
        image,
        held: Mutex::new(contents.map(Stored::held).collect()),
        progress: Box::new(progress),
    };
    Ok(Arrival {
        devicetree,
        incoming: Incoming::new(memory, files)?,
    })
}

/// Contents of an image, and whether they can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentsState {
    /// What they are.
    pub held: HeldFile,
    /// What they hold; `EBADMSG` if they are missing or not what was written.
    pub result: Result<Data, Errno>,
}

/// An image that no save removes while this is there.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    /// The directory, with a shared lock.
    _lock: File,
}

impl Image {
    /// The image that counts in `directory`.
    pub fn current(directory: &Path) -> Result<Self, ImageError> {
        let current = directory.join(CURRENT);
        loop {
            let target = fs::read_link(&current).ok();
            let path = match fs::canonicalize(&current) {
                Ok(path) => path,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Before a save removes an image, it replaces the link to it.
                    if fs::read_link(&current).ok() != target {
                        continue;
                    }
                    return Err(ImageError::NoImage(directory.to_owned()));
                }
                Err(error) => return Err(at("find", &current)(error)),
            };
            if let Some(image) = Self::lock(path, &current)? {
                return Ok(image);
            }
        }
    }

    /// The image that `path` itself is.
    pub fn at(path: &Path) -> Result<Self, ImageError> {
        Self::lock(path.to_owned(), path)?.ok_or_else(|| ImageError::NoImage(path.to_owned()))
    }

    /// Whether `path` is an image, and not a directory with images in it.
    pub fn is_at(path: &Path) -> bool {
        path.join(MANIFEST).exists()
    }

    /// Locks `path`; `None` if `known_as` no longer leads there. A save may have replaced and
    /// removed it before there was a lock, and cannot do so afterwards.
    fn lock(path: PathBuf, known_as: &Path) -> Result<Option<Self>, ImageError> {
        let directory = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(at("open", &path))?,
        };
        rustix::fs::flock(&directory, FlockOperation::LockShared)
            .map_err(|error| at("lock", &path)(error.into()))?;
        let locked = directory.metadata().map_err(at("read", &path))?;
        let known = match fs::metadata(known_as) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            known => known.map_err(at("find", known_as))?,
        };
        let same = (locked.dev(), locked.ino()) == (known.dev(), known.ino());
        Ok(same.then_some(Self {
            path,
            _lock: directory,
        }))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the manifest and the devicetree, and checks both.
    fn read(&self) -> Result<(Manifest, Vec<u8>), ImageError> {
        let path = self.path.join(MANIFEST);
        let manifest = fs::read(&path).map_err(at("read", &path))?;
        let damaged = |what| ImageError::Damaged {
            path: path.clone(),
            what,
        };
        let manifest: Manifest =
            serde_json::from_slice(&manifest).map_err(|error| damaged(error.to_string()))?;
        if !SCHEMAS.contains(&manifest.schema) {
            let (oldest, newest) = SCHEMAS.into_inner();
            let found = manifest.schema;
            let what = format!("its schema is {found}, this program reads {oldest} to {newest}");
            return Err(damaged(what));
        }
        if manifest.crc32c != manifest.checksum() {
            return Err(damaged("its checksum differs".to_owned()));
        }
        let devicetree = read_checked(&self.path.join(DEVICETREE), &manifest.devicetree)?;
        Ok((manifest, devicetree))
    }

    /// Reads all of the image and compares it with its checksums; returns the state of the
    /// contents, by handle in ascending order.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if the image as a whole cannot be used.
    pub fn check(&self) -> Result<Vec<ContentsState>, ImageError> {
        let (mut manifest, _) = self.read()?;
        manifest
            .contents
            .sort_unstable_by_key(|stored| stored.handle);
        let states = manifest.contents.par_iter().map(|stored| ContentsState {
            held: stored.held().1,
            result: contents::check(&self.path, stored.handle),
        });
        Ok(states.collect())
    }
}

fn read_checked(path: &Path, expected: &Checked) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(at("read", path))?;
    if Checked::of(&bytes) != *expected {
        return Err(ImageError::Damaged {
            path: path.to_owned(),
            what: "length or checksum differ from the manifest".to_owned(),
        });
    }
    Ok(bytes)
}

impl Stored {
    /// By its handle.
    fn held(&self) -> (u64, HeldFile) {
        let held = HeldFile {
            handle: self.handle,
            token: self.token.map(Token),
        };
        (self.handle, held)
    }
}

/// The contents of an image, as files that crossed.
struct Contents {
    image: Image,
    held: Mutex<BTreeMap<u64, HeldFile>>,
    progress: Box<dyn Fn(u64) + Send + Sync>,
}

impl Contents {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, HeldFile>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl FileSource for Contents {
    fn take(&self, handle: u64) -> Result<OwnedFd, Errno> {
        let held = self.lock().remove(&handle).ok_or(Errno::ENOENT)?;
        let image = self.image.path();
        contents::restore(image, handle, &*self.progress).inspect_err(|errno| {
            reason::report(&contents_reason(image, handle, *errno));
            // It may be that there was no room for it now.
            self.lock().insert(handle, held);
        })
    }

    fn release(&self, handle: u64) {
        self.lock().remove(&handle);
    }

    fn held(&self) -> Vec<HeldFile> {
        self.lock().values().copied().collect()
    }
}

/// What is wrong with contents, in words.
pub(crate) fn contents_reason(image: &Path, handle: u64, errno: Errno) -> String {
    let path = layout::path_of(image, handle);
    match errno {
        Errno::EBADMSG => format!("{} is missing or not what was written", path.display()),
        errno => format!("{} cannot be restored: {errno}", path.display()),
    }
}
