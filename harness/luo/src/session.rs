// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! `luo session`: sessions of the kernel's Live Update Orchestrator, from the shell.
//!
//! A session lives as long as a process has it open, so what creates one stays and holds it: until
//! it is ended, which gives the session up, or until the kernel jumps, which takes the session
//! along.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use bytesize::ByteSize;
use clap::Subcommand;
use comfy_table::Table;
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{fcntl_get_seals, fstat};
use serde::Serialize;

use crate::bench_arguments::wrong_usage;
use crate::descriptor::Descriptor;
use crate::table::{printable, table};
use luo_bench::memory::allocated_bytes;
use luo_handler_api::Token;
use luo_liveupdate::sessions::{self, Direction, ShownSession, SESSIONS_PATH};
use luo_liveupdate::{Device, Session};
use luo_orchestrator::collapse::collapse;

/// The name of a session among a process's open files.
const LINK_PREFIX: &str = "anon_inode:[luo_session]";

/// What `luo session` can do.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Create an empty session and hold it until standard input ends, to see that this kernel can
    Create {
        /// Up to 63 bytes
        name: String,
    },
    /// Create a session, preserve files in it, and hold it until standard input ends or the kernel
    /// jumps
    Preserve {
        /// Return when all is preserved; a process in the background holds the session
        #[arg(long)]
        background: bool,
        /// Before that, put memfds of single pages into huge pages as far as the kernel can, while
        /// their programs run: it makes the update cheaper
        #[arg(long)]
        collapse: bool,
        /// Up to 63 bytes
        name: String,
        /// A number of your choice and the file: PID:FD for an open file of a running process, as
        /// it is, with its position and flags, or else a path to open. A path such as
        /// /proc/PID/fd/N counts as PID:FD. $$:3 is descriptor 3 of the shell
        #[arg(
            required = true,
            value_name = "TOKEN=PID:FD|FILE",
            value_parser = parse_session_file
        )]
        files: Vec<SessionFile>,
    },
    /// Take a session over after the jump, copy its files' contents or pass the files on, and
    /// finish it
    Retrieve {
        /// As it was created
        name: String,
        /// The number it was preserved under, and where the contents go: a file, or :N for no copy,
        /// but the file itself as descriptor N of the command
        #[arg(required = true, value_name = "TOKEN=FILE|:N", value_parser = parse_session_file)]
        files: Vec<SessionFile>,
        /// What to run with the retrieved files at last
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Hold the session that is the standard input
    #[command(hide = true)]
    Hold,
    /// Finish a session after the jump: what was not retrieved is released
    Finish {
        /// As it was created
        name: String,
    },
    /// List all sessions with their files: those that processes hold, and those that came from the
    /// previous kernel
    List {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
}

/// A file of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFile {
    token: Token,
    file: PathBuf,
}

fn parse_session_file(text: &str) -> Result<SessionFile, String> {
    let usage = || format!("{text:?} is not TOKEN=FILE, such as 0x10=4711:5");
    let (token, file) = text.split_once('=').ok_or_else(usage)?;
    let number = match token.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => token.parse(),
    };
    match (number, file) {
        (Err(_), _) | (_, "") => Err(usage()),
        (Ok(token), file) => Ok(SessionFile {
            token: Token(token),
            file: file.into(),
        }),
    }
}

/// Runs one command.
///
/// # Errors
///
/// Those of the kernel, with what to do about them where that is known.
pub fn run(command: SessionCommand) -> Result<ExitCode> {
    match command {
        SessionCommand::Create { name } => {
            let session = Device::open()?.create_session(&name)?;
            hold(&session)?;
        }
        SessionCommand::Preserve {
            background,
            collapse,
            name,
            files,
        } => preserve(&name, &files, background, collapse)?,
        SessionCommand::Retrieve {
            name,
            files,
            command,
        } => retrieve(&name, &files, &command)?,
        SessionCommand::Hold => hold_for_good()?,
        SessionCommand::Finish { name } => Device::open()?.retrieve_session(&name)?.finish()?,
        SessionCommand::List { json } => list(json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn preserve(name: &str, files: &[SessionFile], in_background: bool, collapses: bool) -> Result<()> {
    let session = Device::open()?.create_session(name)?;
    for SessionFile { token, file } in files {
        let offered = offered(file)?;
        if collapses {
            let started = Instant::now();
            // What cannot be collapsed can be preserved.
            let outcome = match collapse(offered.as_fd()) {
                Ok(collapsed) => format!("{collapsed}, after {:.3?}", started.elapsed()),
                Err(error) => format!("not collapsed: {error}"),
            };
            eprintln!("{token}: {}: {outcome}", file.display());
        }
        session
            .preserve(*token, offered.as_fd())
            .with_context(|| format!("preserving {}", file.display()))?;
        eprintln!("{token}: {}: preserved", file.display());
    }
    match in_background {
        true => hold_in_background(session),
        false => hold(&session),
    }
}

/// The file that is meant: an open one of a process, or one to be opened.
fn offered(file: &Path) -> Result<OwnedFd> {
    let named = file.to_str().and_then(|text| text.parse().ok());
    if let Some(descriptor) = named.or_else(|| Descriptor::behind(file)) {
        return Ok(descriptor.take()?);
    }
    let opened = File::options().read(true).write(true).open(file);
    // There is no other way to have a directory, or a file that only one side may use.
    let opened = opened.with_context(|| {
        format!(
            "opening {} to read and write; one that is opened another way is PID:FD of a process \
             that has it open",
            file.display()
        )
    })?;
    Ok(opened.into())
}

/// In a process of its own, which nobody waits for.
fn hold_in_background(session: Session) -> Result<()> {
    let name = session.name()?;
    let this = std::env::current_exe().context("finding this program")?;
    let holder = Command::new(this)
        .args(["session", "hold"])
        .stdin(OwnedFd::from(session))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("starting the process that holds the session")?;
    eprintln!(
        "process {} holds session {name}; its end gives the session up",
        holder.id()
    );
    Ok(())
}

fn hold_for_good() -> Result<()> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    let session = Session::from(input.context("duplicating the standard input")?);
    session.name()?;
    loop {
        thread::park();
    }
}

/// The session is given up when the caller drops it.
fn hold(session: &Session) -> Result<()> {
    eprintln!(
        "holding session {}; it is given up when standard input ends (Ctrl-D)",
        session.name()?
    );
    io::copy(&mut io::stdin().lock(), &mut io::sink()).context("waiting on standard input")?;
    Ok(())
}

fn retrieve(name: &str, files: &[SessionFile], command: &[String]) -> Result<()> {
    let is_passed_on = |file: &SessionFile| number_of(&file.file).is_some();
    if command.is_empty() && files.iter().any(is_passed_on) {
        wrong_usage("TOKEN=:N takes a command that has the file: ... -- COMMAND");
    }
    let session = Device::open()?.retrieve_session(name)?;
    let mut passed_on = Vec::new();
    for SessionFile { token, file } in files {
        let retrieved = session.retrieve(*token)?;
        match number_of(file) {
            Some(child_fd) => passed_on.push(FdMapping {
                parent_fd: retrieved,
                child_fd,
            }),
            None => copy_out(*token, &retrieved.into(), file)?,
        }
    }
    session.finish()?;
    match command.split_first() {
        None => Ok(()),
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).fd_mappings(passed_on)?;
            let error = command.exec();
            bail!("starting {program}: {error}")
        }
    }
}

/// The N of `:N`.
fn number_of(file: &Path) -> Option<RawFd> {
    let number = file.to_str()?.strip_prefix(':')?.parse().ok()?;
    (number >= 0).then_some(number)
}

fn copy_out(token: Token, retrieved: &File, file: &PathBuf) -> Result<()> {
    let stat = fstat(retrieved).context("looking at what was retrieved")?;
    copy(retrieved, file, stat.st_size as u64)
        .with_context(|| format!("copying token {token} to {}", file.display()))?;
    println!(
        "{token}: {} bytes, {} of memory, seals {:?}, copied to {}",
        stat.st_size,
        allocated_bytes(retrieved)?,
        fcntl_get_seals(retrieved).unwrap_or(rustix::fs::SealFlags::empty()),
        file.display()
    );
    Ok(())
}

/// From its beginning, not from its position.
fn copy(from: &File, to: &PathBuf, size: u64) -> io::Result<()> {
    let from = luo_orchestrator::holes::reopen(from.as_fd())?;
    io::copy(&mut from.take(size), &mut File::create(to)?)?;
    Ok(())
}

/// A session that a process holds.
#[derive(Debug, PartialEq, Eq)]
struct HeldSession {
    name: String,
    pid: u32,
    program: String,
}

/// A session of the kernel.
#[derive(Debug, Serialize)]
struct ListedSession {
    name: String,
    /// Whether it came from the previous kernel; unknown without our module.
    incoming: Option<bool>,
    state: String,
    pid: Option<u32>,
    program: Option<String>,
    /// Unknown without our module, and while the session is at work.
    files: Option<Vec<ListedFile>>,
}

/// A file of a session.
#[derive(Debug, Serialize)]
struct ListedFile {
    token: String,
    state: String,
    compatible: String,
    size_bytes: Option<u64>,
    moved_bytes: Option<u64>,
    /// What its handler reports of it.
    record: Vec<(String, String)>,
}

fn list(json: bool) -> Result<()> {
    let (sessions, unknown) = listed_sessions()?;
    match json {
        true => println!("{}", serde_json::to_string_pretty(&sessions)?),
        false => print_list(&sessions, unknown.as_deref()),
    }
    Ok(())
}

/// Prints all that is known of this kernel's sessions.
///
/// # Errors
///
/// If processes cannot be listed.
pub fn inspect(json: bool) -> Result<()> {
    let (sessions, unknown) = listed_sessions()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&sessions)?);
        return Ok(());
    }
    if let Some(unknown) = unknown {
        println!("{unknown}");
    }
    println!("this kernel has {} sessions", sessions.len());
    for session in &sessions {
        println!("{}", session.text());
    }
    Ok(())
}

/// All sessions that are known, and why there may be more.
fn listed_sessions() -> Result<(Vec<ListedSession>, Option<String>)> {
    // The kernel looks at what came in once somebody opens the device. Who has it open has done so.
    drop(Device::open());
    let mut held = held_sessions()?;
    let shown = match sessions::read() {
        Ok(shown) => shown,
        Err(error) => {
            let unknown = format!(
                "what sessions hold, and what came from the previous kernel, is not known: \
                 {SESSIONS_PATH}: {error}"
            );
            return Ok((held.into_iter().map(of_process).collect(), Some(unknown)));
        }
    };
    let mut listed = Vec::new();
    for session in shown {
        let is_it = |it: &HeldSession| it.name == session.name;
        let is_open = session.state != "waiting";
        let holder = held.iter().position(is_it).filter(|_| is_open);
        listed.push(of_kernel(session, holder.map(|place| held.remove(place))));
    }
    Ok((listed, None))
}

fn of_process(held: HeldSession) -> ListedSession {
    ListedSession {
        name: held.name,
        incoming: None,
        state: "held".to_owned(),
        pid: Some(held.pid),
        program: Some(held.program),
        files: None,
    }
}

fn of_kernel(session: ShownSession, holder: Option<HeldSession>) -> ListedSession {
    let is_known = session.state != "busy";
    let files = session.files.into_iter().map(|file| ListedFile {
        size_bytes: file.size_bytes(),
        token: file.token.to_string(),
        state: file.state,
        compatible: file.compatible,
        moved_bytes: file.moved_bytes,
        record: file.pairs,
    });
    ListedSession {
        name: session.name,
        incoming: Some(session.direction == Direction::Incoming),
        state: session.state,
        pid: holder.as_ref().map(|holder| holder.pid),
        program: holder.map(|holder| holder.program),
        files: is_known.then(|| files.collect()),
    }
}

fn print_list(sessions: &[ListedSession], unknown: Option<&str>) {
    if let Some(unknown) = unknown {
        println!("{unknown}");
    }
    if sessions.is_empty() {
        println!("there is no session");
        return;
    }
    println!("{}", listing(sessions));
}

fn listing(sessions: &[ListedSession]) -> Table {
    let mut table = table([
        "session", "state", "token", "file", "handler", "size", "moved",
    ]);
    let bytes = |bytes: Option<u64>| bytes.map_or(String::new(), |it| ByteSize(it).to_string());
    for session in sessions {
        let mut row = vec![printable(&session.name), session.state_text()];
        if let Some(files) = &session.files {
            row.extend([String::new(), format!("{} files", files.len())]);
        }
        table.add_row(row);
        for file in session.files.iter().flatten() {
            table.add_row([
                String::new(),
                file.state.clone(),
                file.token.clone(),
                printable(file.name().unwrap_or("")),
                printable(&file.compatible),
                bytes(file.size_bytes),
                bytes(file.moved_bytes),
            ]);
        }
    }
    table
}

impl ListedSession {
    fn state_text(&self) -> String {
        let direction = match self.incoming {
            Some(true) => "came in, ",
            _ => "",
        };
        let holder = match (&self.program, self.pid) {
            (Some(program), Some(pid)) => format!(" by {} ({pid})", printable(program)),
            _ => String::new(),
        };
        format!("{direction}{}{holder}", self.state)
    }

    /// All of it, a line for the session and one for each file.
    fn text(&self) -> String {
        let mut lines = vec![format!("{}: {}", printable(&self.name), self.state_text())];
        for file in self.files.iter().flatten() {
            let mut line = format!("  {}: {}, {}", file.token, file.compatible, file.state);
            for (key, value) in &file.record {
                line.push_str(&format!(", {} {value}", key.trim_end_matches("[]")));
            }
            if let Some(bytes) = file.moved_bytes {
                line.push_str(&format!(", moved_bytes {bytes}"));
            }
            lines.push(printable(&line));
        }
        lines.join("\n")
    }
}

impl ListedFile {
    /// The open file's name.
    fn name(&self) -> Option<&str> {
        let name = self.record.iter().find(|(key, _)| key == "name");
        name.map(|(_, name)| name.as_str())
    }
}

/// The kernel does not tell who holds a session, but each is an open file of somebody.
fn held_sessions() -> Result<Vec<HeldSession>> {
    let mut sessions = Vec::new();
    for process in fs::read_dir("/proc").context("listing processes")? {
        let process = process.context("listing processes")?;
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process may end meanwhile, or be somebody else's.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for file in files.flatten() {
            let Ok(link) = fs::read_link(file.path()) else {
                continue;
            };
            if let Some(name) = session_name(&link.to_string_lossy()) {
                let program = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                sessions.push(HeldSession {
                    name: name.to_owned(),
                    pid,
                    program: program.trim().to_owned(),
                });
            }
        }
    }
    sessions.sort_by(|one, other| (&one.name, one.pid).cmp(&(&other.name, other.pid)));
    Ok(sessions)
}

fn session_name(link: &str) -> Option<&str> {
    link.strip_prefix(LINK_PREFIX).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::WIDTH;

    #[test]
    fn a_table_fits_a_terminal() {
        let file = |token: u64, state: &str| ListedFile {
            token: Token(token).to_string(),
            state: state.into(),
            compatible: "luo-handlers,memfd-v1".into(),
            size_bytes: Some(3 << 30),
            moved_bytes: (token == 1).then_some(5 << 20),
            record: vec![("name".into(), "memfd:guest memory".into())],
        };
        let session = |name: &str, files| ListedSession {
            name: name.into(),
            incoming: Some(false),
            state: "held".into(),
            pid: Some(4711),
            program: Some("a-program".into()),
            files,
        };
        let files = vec![file(1, "preserved"), file(u64::MAX, "preserved")];
        let sessions = [
            session(&"long".repeat(15), Some(files)),
            session("busy\x1b", None),
        ];
        let text = listing(&sessions).to_string();
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= WIDTH.into()),
            "{text}"
        );
        for part in [
            "2 files",
            "5.0 MiB",
            "3.0 GiB",
            "0x1 ",
            "busy\\u{1b",
            "(4711)",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let text = sessions[0].text();
        let line = "\n  0x1: luo-handlers,memfd-v1, preserved, name memfd:guest memory";
        assert!(text.contains(line));
    }

    #[test]
    fn entries_have_a_token_and_a_file() {
        let entry = |token, file: &str| SessionFile {
            token: Token(token),
            file: file.into(),
        };
        assert_eq!(parse_session_file("0x10=/a=b"), Ok(entry(16, "/a=b")));
        assert_eq!(parse_session_file("7=x"), Ok(entry(7, "x")));
        for wrong in ["", "7", "=x", "x=7", "7=", "-1=x", "0xg=x"] {
            assert!(parse_session_file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_descriptor_is_offered_as_it_is_and_a_path_is_opened() {
        use std::io::{Seek, SeekFrom};
        use std::os::fd::AsRawFd;

        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.as_file_mut().seek(SeekFrom::Start(3)).unwrap();
        let (pid, fd) = (std::process::id(), file.as_raw_fd());
        for (name, position) in [
            (format!("{pid}:{fd}"), 3),
            (format!("/proc/{pid}/fd/{fd}"), 3),
            (format!("/dev/fd/{fd}"), 3),
            (file.path().display().to_string(), 0),
        ] {
            let mut offered = File::from(offered(name.as_ref()).unwrap());
            assert_eq!(offered.stream_position().unwrap(), position, "{name}");
        }
        let error = format!("{:#}", offered("/".as_ref()).unwrap_err());
        assert!(error.contains("PID:FD"), "{error}");
    }

    #[test]
    fn a_number_after_a_colon_is_a_descriptor_of_the_command() {
        assert_eq!(number_of(":3".as_ref()), Some(3));
        for path in ["3", "./:3", ":", ":-1", ":x", "1:3"] {
            assert_eq!(number_of(path.as_ref()), None, "{path}");
        }
    }
}
