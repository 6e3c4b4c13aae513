// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Where the lab keeps what it made: a directory of steps, each with a stamp that says what it was made from.
//!
//! A step is done when its stamp names the key of its present inputs. The stamp is written last and atomically, so an
//! interrupted step is simply not done. Nothing outside the directory is written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::kernel::Profile;

/// The lab's directory.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
}

/// A digest of everything a step is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key(String);

impl Key {
    /// The key of a list of inputs; where one ends and the next begins matters.
    pub(super) fn of<I: AsRef<[u8]>>(inputs: impl IntoIterator<Item = I>) -> Self {
        let mut digest = Sha256::new();
        for input in inputs {
            digest.update((input.as_ref().len() as u64).to_le_bytes());
            digest.update(input.as_ref());
        }
        Self(hex(&digest.finalize()))
    }

    /// The key of files and everything below directories: their names and contents.
    pub(super) fn of_trees<P: AsRef<Path>>(roots: impl IntoIterator<Item = P>) -> Result<Self> {
        let mut inputs: Vec<Vec<u8>> = Vec::new();
        for root in roots {
            for file in files_below(root.as_ref())? {
                inputs.push(file.to_string_lossy().into_owned().into_bytes());
                inputs
                    .push(fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
            }
        }
        Ok(Self::of(inputs))
    }

    /// As text, to be part of another key or of a file name.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All regular files at or below `root`, sorted; none if it does not exist.
pub(super) fn files_below(root: &Path) -> Result<Vec<PathBuf>> {
    if root.is_file() {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut files = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("listing {}", directory.display()))
            }
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if entry.file_type()?.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What is remembered of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stamp {
    /// What it was made from; none while it is not done.
    key: Option<Key>,
    /// How long it took when it last ran to its end.
    seconds: f64,
}

/// The paths of one kernel, for whoever wants to boot it.
#[derive(Debug, Serialize, Deserialize)]
struct Artefacts {
    kernel_image: PathBuf,
    kernel_tree: PathBuf,
    build_tree: PathBuf,
    initramfs: PathBuf,
}

/// What `luo lab status --json` answers.
#[derive(Serialize)]
struct Status {
    cache: PathBuf,
    kernels: BTreeMap<String, Artefacts>,
    parts: BTreeMap<String, u64>,
    total_bytes: u64,
}

impl Cache {
    /// The lab's directory below `$XDG_CACHE_HOME`, else below `~/.cache`. It need not exist yet.
    pub(super) fn open() -> Result<Self> {
        let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
            (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
            (_, Some(home)) => Path::new(&home).join(".cache"),
            _ => bail!(
                "neither XDG_CACHE_HOME nor HOME is set; set one, the lab keeps its files there"
            ),
        };
        Ok(Self {
            directory: base.join("luo-lab"),
        })
    }

    /// The directory itself.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path inside the directory.
    pub(super) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.join(relative)
    }

    /// Makes the directory and keeps other builds out of it until the answer is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("creating {}", self.directory.display()))?;
        let path = self.path("lock");
        let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!(
                "lab: another build is at work in {}; waiting for it",
                self.directory.display()
            );
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
                .context("locking the cache")?;
        }
        Ok(lock)
    }

    /// Runs `work` unless it was already done with the same `key`. Says which, and how long it took last time.
    pub(super) fn step(
        &self,
        name: &str,
        what: &str,
        key: &Key,
        work: impl FnOnce(&Progress) -> Result<()>,
    ) -> Result<()> {
        let previous = self.stamp(name);
        if previous
            .as_ref()
            .is_some_and(|stamp| stamp.key.as_ref() == Some(key))
        {
            return Ok(());
        }
        let seconds = previous.map(|stamp| stamp.seconds);
        if let Some(seconds) = seconds {
            self.write_stamp(name, &Stamp { key: None, seconds })?;
        }
        let progress = Progress::start(name, what, seconds, self.path(format!("logs/{name}.log")))?;
        let started = Instant::now();
        work(&progress)?;
        let seconds = started.elapsed().as_secs_f64();
        progress.done(seconds);
        self.write_stamp(
            name,
            &Stamp {
                key: Some(key.clone()),
                seconds,
            },
        )
    }

    /// Whether the step was done, whatever its inputs were.
    pub(super) fn is_done(&self, name: &str) -> bool {
        self.stamp(name).is_some_and(|stamp| stamp.key.is_some())
    }

    fn stamp(&self, name: &str) -> Option<Stamp> {
        self.read_json(format!("stamps/{name}.json"))
    }

    fn write_stamp(&self, name: &str, stamp: &Stamp) -> Result<()> {
        self.write_json(format!("stamps/{name}.json"), stamp)
    }

    /// What a file of the cache holds; none if it is missing or from another version of the lab.
    pub(super) fn read_json<T: for<'a> Deserialize<'a>>(
        &self,
        relative: impl AsRef<Path>,
    ) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(relative)).ok()?).ok()
    }

    /// Writes a file of the cache, whole or not at all.
    pub(super) fn write_json(
        &self,
        relative: impl AsRef<Path>,
        value: &impl Serialize,
    ) -> Result<()> {
        write_atomically(&self.path(relative), &serde_json::to_vec_pretty(value)?)
    }

    /// Remembers where the parts of a bootable kernel are.
    pub(super) fn record_artefacts(
        &self,
        profile: Profile,
        image: &Path,
        tree: &Path,
        build_tree: &Path,
        initramfs: &Path,
    ) -> Result<()> {
        let artefacts = Artefacts {
            kernel_image: image.into(),
            kernel_tree: tree.into(),
            build_tree: build_tree.into(),
            initramfs: initramfs.into(),
        };
        self.write_json(format!("artefacts-{}.json", profile.name()), &artefacts)
    }

    /// Removes the directory. Refuses while something is mounted in it, so that it never deletes through a mount.
    pub(super) fn remove(&self) -> Result<()> {
        if !self.directory.exists() {
            println!(
                "{} does not exist; nothing to remove",
                self.directory.display()
            );
            return Ok(());
        }
        let _lock = self.lock()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .context("reading the mounted file systems")?;
        if let Some(mount) = mount_below(&mounts, &self.directory) {
            bail!("{mount} is mounted inside the cache; unmount it first: umount {mount}");
        }
        let size = size_below(&self.directory)?;
        // Moved away first: an interrupted removal leaves no half a cache behind that looks whole.
        let doomed = self.directory.with_extension("removing");
        fs::rename(&self.directory, &doomed)
            .with_context(|| format!("moving {} away", self.directory.display()))?;
        remove_tree(&doomed)?;
        println!("removed {} ({})", self.directory.display(), human(size));
        Ok(())
    }
}

/// The first mount point below `directory` that a mountinfo file lists.
fn mount_below<'a>(mountinfo: &'a str, directory: &Path) -> Option<&'a str> {
    let mut points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.find(|point| Path::new(point).starts_with(directory))
}

fn remove_tree(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory)
        .or_else(|error| {
            // A build root made in a user namespace holds files of subordinate users, which only that namespace may remove.
            let status = super::toolchain::in_namespace("rm")
                .arg("-rf")
                .arg(directory)
                .status()?;
            if status.success() {
                Ok(())
            } else {
                Err(error)
            }
        })
        .with_context(|| format!("removing {}", directory.display()))
}

/// Writes a file by way of a temporary one beside it.
pub(super) fn write_atomically(path: &Path, contents: &[u8]) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let mut temporary = tempfile::NamedTempFile::new_in(parent)
        .with_context(|| format!("writing to {}", parent.display()))?;
    temporary
        .write_all(contents)
        .with_context(|| format!("writing {}", path.display()))?;
    temporary
        .persist(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// Shows that a step is at work, and keeps what its commands print.
#[derive(Debug)]
pub(super) struct Progress {
    name: String,
    bar: ProgressBar,
    log: PathBuf,
    log_file: RefCell<File>,
}

impl Progress {
    fn start(name: &str, what: &str, last_time: Option<f64>, log: PathBuf) -> Result<Self> {
        let last_time = last_time.map_or(String::new(), |seconds| {
            format!(" (took {} last time)", duration(seconds))
        });
        eprintln!("lab: {name}: {what}{last_time}");
        let parent = log.parent().context("a log has a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let log_file = RefCell::new(
            File::create(&log).with_context(|| format!("creating {}", log.display()))?,
        );
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(ProgressStyle::with_template(
            "{spinner} {elapsed} {wide_msg}",
        )?);
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Self {
            name: name.into(),
            bar,
            log,
            log_file,
        })
    }

    fn done(&self, seconds: f64) {
        self.bar.finish_and_clear();
        eprintln!("lab: {}: done in {}", self.name, duration(seconds));
    }

    /// Says something that stays on the screen.
    pub(super) fn say(&self, message: &str) {
        self.bar
            .suspend(|| eprintln!("lab: {}: {message}", self.name));
    }

    /// Runs a command; what it prints goes to the log, its latest line to the screen. If it fails, the error shows the end of the log.
    pub(super) fn run(&self, command: &mut Command) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (reader, writer) = std::io::pipe().context("making a pipe")?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        // Our copies of the pipe's write end live in the command; they have to go before the reader sees its end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut last = Vec::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            writeln!(self.log_file.borrow_mut(), "{line}")?;
            self.bar.set_message(line.clone());
            remember(&mut last, line, 25);
        }
        if !child.wait()?.success() {
            self.bar.finish_and_clear();
            bail!(
                "the step {} failed; the whole of its output is in {}, its end:\n{}",
                self.name,
                self.log.display(),
                last.join("\n")
            );
        }
        Ok(())
    }
}

/// Keeps the last `limit` lines.
pub(super) fn remember(lines: &mut Vec<String>, line: String, limit: usize) {
    if lines.len() == limit {
        lines.remove(0);
    }
    lines.push(line);
}

/// Prints what is cached.
pub(super) fn print_status(cache: &Cache, json: bool) -> Result<()> {
    let status = status(cache)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    println!(
        "cache         {}  {}",
        status.cache.display(),
        human(status.total_bytes)
    );
    for (part, bytes) in &status.parts {
        println!("  {part:<36} {:>10}", human(*bytes));
    }
    if status.kernels.is_empty() {
        println!("no kernel built yet; run `luo lab build`");
    }
    for (profile, artefacts) in &status.kernels {
        println!("{profile} kernel");
        println!("  kernel image  {}", artefacts.kernel_image.display());
        println!("  kernel tree   {}", artefacts.kernel_tree.display());
        println!("  build tree    {}", artefacts.build_tree.display());
        println!("  initramfs     {}", artefacts.initramfs.display());
    }
    Ok(())
}

fn status(cache: &Cache) -> Result<Status> {
    let mut parts = BTreeMap::new();
    if cache.directory.exists() {
        for entry in fs::read_dir(&cache.directory).context("listing the cache")? {
            let entry = entry?;
            parts.insert(
                entry.file_name().to_string_lossy().into_owned(),
                size_below(&entry.path())?,
            );
        }
    }
    let kernels = Profile::ALL.iter().filter_map(|profile| {
        let artefacts: Artefacts = cache.read_json(format!("artefacts-{}.json", profile.name()))?;
        artefacts
            .initramfs
            .exists()
            .then(|| (profile.name().to_owned(), artefacts))
    });
    Ok(Status {
        cache: cache.directory.clone(),
        kernels: kernels.collect(),
        total_bytes: parts.values().sum(),
        parts,
    })
}

/// The disk space that a file or a tree takes, as far as it may be read.
fn size_below(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata =
        fs::symlink_metadata(path).with_context(|| format!("reading {}", path.display()))?;
    let mut size = metadata.blocks() * 512;
    if metadata.is_dir() {
        let Ok(entries) = fs::read_dir(path) else {
            return Ok(size);
        };
        for entry in entries {
            // A build at work makes and removes files while we look.
            size += size_below(&entry?.path()).unwrap_or(0);
        }
    }
    Ok(size)
}

/// Bytes as a person reads them.
pub(super) fn human(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

/// Seconds as a person reads them.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {} s", seconds as u64 / 60, seconds as u64 % 60)
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache {
            directory: directory.path().join("luo-lab"),
        };
        (directory, cache)
    }

    #[test]
    fn a_key_knows_where_an_input_ends() {
        assert_ne!(Key::of(["ab", "c"]), Key::of(["a", "bc"]));
        assert_eq!(Key::of(["ab", "c"]), Key::of(["ab", "c"]));
    }

    #[test]
    fn a_step_runs_once_a_key_and_again_after_a_failure() {
        let (_directory, cache) = scratch();
        let mut runs = 0;
        let mut step = |key: &str, fails: bool| {
            let result = cache.step("step", "counting", &Key::of([key]), |_| {
                runs += 1;
                if fails {
                    bail!("on purpose")
                } else {
                    Ok(())
                }
            });
            (result.is_ok(), runs)
        };
        assert_eq!(step("one", false), (true, 1));
        assert_eq!(step("one", false), (true, 1));
        assert_eq!(step("two", true), (false, 2));
        assert_eq!(
            step("one", false),
            (true, 3),
            "a failed step has undone what was there"
        );
        assert!(cache.is_done("step"));
    }

    #[test]
    fn a_failing_command_shows_the_end_of_its_output() {
        let (_directory, cache) = scratch();
        let error = cache
            .step("step", "failing", &Key::of(["x"]), |progress| {
                progress.run(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]))
            })
            .unwrap_err();
        assert!(error.to_string().contains("one\ntwo"), "{error}");
    }

    #[test]
    fn mounts_below_the_cache_are_seen() {
        let mountinfo = "22 1 254:0 / / rw - ext4 /dev/vda rw\n40 22 0:5 / /c/luo-lab/tree/dev rw - devtmpfs dev rw\n";
        assert_eq!(
            mount_below(mountinfo, Path::new("/c/luo-lab")),
            Some("/c/luo-lab/tree/dev")
        );
        assert_eq!(mount_below(mountinfo, Path::new("/c/luo-lab-other")), None);
    }

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(human(512), "512 B");
        assert_eq!(human(3 << 20), "3.0 MiB");
        assert_eq!(duration(1.25), "1.2 s");
        assert_eq!(duration(510.0), "8 min 30 s");
    }
}
