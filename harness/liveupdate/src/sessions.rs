// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What the kernel's sessions hold, those of this kernel and those that came in, as our kernel
//! module shows them in debugfs.

use std::fs;
use std::io;
use std::path::Path;

use luo_handler_api::Token;

/// Where the module shows them; for root.
pub const SESSIONS_PATH: &str = "/sys/kernel/debug/luo_handlers/sessions";
const MOVED_PATH: &str = "/sys/kernel/debug/luo_handlers/moved_files";

/// Which side of a jump a session is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It goes to the next kernel.
    Outgoing,
    /// It came from the previous one.
    Incoming,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownSession {
    /// As it was created; what is not UTF-8 is replaced.
    pub name: String,
    /// Whether it came in.
    pub direction: Direction,
    /// `held`, `waiting` to be retrieved, `retrieved`, or `busy`: then its files are not known.
    pub state: String,
    /// Its files, in the order in which they were preserved.
    pub files: Vec<ShownFile>,
}

/// A file of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownFile {
    /// Its token.
    pub token: Token,
    /// `preserved`, `waiting`, `retrieved`, `failed`, or `missing` if this kernel lacks its
    /// handler.
    pub state: String,
    /// The format, which names the handler.
    pub compatible: String,
    /// What else is known: the `u64` that crosses, the open file, and what its handler reports.
    pub pairs: Vec<(String, String)>,
    /// Bytes that prepare moved to other memory, where the handler counts them.
    pub moved_bytes: Option<u64>,
}

impl ShownFile {
    /// The first value of a key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next()
    }

    /// All values of a key.
    pub fn values<'a, 'k>(&'a self, key: &'k str) -> impl Iterator<Item = &'a str> + use<'a, 'k> {
        let values = self.pairs.iter().filter(move |(its, _)| its == key);
        values.map(|(_, value)| value.as_str())
    }

    /// The first value of a key that is a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
    }

    /// Its size in bytes: by its record, or the open file's.
    pub fn size_bytes(&self) -> Option<u64> {
        self.number("size_bytes")
            .or_else(|| self.number("file_bytes"))
    }
}

/// Reads what the module shows. What came in is among it once somebody has opened
/// `/dev/liveupdate`.
///
/// # Errors
///
/// `ENOENT` if this kernel does not have our module, or debugfs is not mounted; `EACCES` for anyone
/// but root.
pub fn read() -> io::Result<Vec<ShownSession>> {
    read_from(SESSIONS_PATH.as_ref(), MOVED_PATH.as_ref())
}

fn read_from(sessions: &Path, moved: &Path) -> io::Result<Vec<ShownSession>> {
    let mut sessions = parse(&fs::read_to_string(sessions)?);
    // Only a kernel with our handler of memfds has it.
    let Ok(moved) = fs::read_to_string(moved) else {
        return Ok(sessions);
    };
    let moved: Vec<(&str, u64)> = moved
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let bytes = words.next()?.parse().ok()?;
            Some((words.next()?, bytes))
        })
        .collect();
    let outgoing = sessions
        .iter_mut()
        .filter(|it| it.direction == Direction::Outgoing);
    for file in outgoing.flat_map(|session| &mut session.files) {
        let inode = file.value("inode");
        let of_it = moved.iter().find(|(its, _)| Some(*its) == inode);
        file.moved_bytes = of_it.map(|(_, bytes)| *bytes);
    }
    Ok(sessions)
}

/// From the module's text; lines that are not known are left out.
pub fn parse(text: &str) -> Vec<ShownSession> {
    let mut sessions: Vec<ShownSession> = Vec::new();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("session", rest)) => sessions.extend(parse_session(rest)),
            Some(("file", rest)) => {
                if let (Some(session), Some(file)) = (sessions.last_mut(), parse_file(rest)) {
                    session.files.push(file);
                }
            }
            _ => {}
        }
    }
    sessions
}

fn parse_session(line: &str) -> Option<ShownSession> {
    let mut words = line.splitn(3, ' ');
    let direction = match words.next()? {
        "outgoing" => Direction::Outgoing,
        "incoming" => Direction::Incoming,
        _ => return None,
    };
    Some(ShownSession {
        direction,
        state: words.next()?.to_owned(),
        name: unescaped(words.next()?),
        files: Vec::new(),
    })
}

fn parse_file(line: &str) -> Option<ShownFile> {
    let mut words = line.split(' ');
    let token = words.next()?.strip_prefix("0x")?;
    let token = Token(u64::from_str_radix(token, 16).ok()?);
    let (state, compatible) = (words.next()?.to_owned(), unescaped(words.next()?));
    let pairs = words.filter_map(|word| word.split_once('='));
    Some(ShownFile {
        token,
        state,
        compatible,
        pairs: pairs
            .map(|(key, value)| (key.to_owned(), unescaped(value)))
            .collect(),
        moved_bytes: None,
    })
}

/// The text of which the module has written some bytes as `\xNN`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("\\x") {
        bytes.extend(&rest.as_bytes()[..place]);
        let digits = rest.get(place + 2..place + 4);
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => bytes.push(byte),
            None => return text.to_owned(),
        }
        rest = &rest[place + 4..];
    }
    bytes.extend(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "session outgoing held a\\x20b\n\
        file 0x1 preserved luo-handlers,memfd-v1 data=0x7 name=memfd:x inode=7 file_bytes=5 \
        kind=shmem size_bytes=4096 seals[]=grow seals[]=seal\n\
        file 0xff preserved memfd-v2 data=0x1000 name=memfd:\\xc3\\xa4 inode=8 file_bytes=9\n\
        session incoming busy c\n\
        session incoming waiting d\n\
        file 0x2 missing \\x1bx data=0x0\n\
        file nonsense\nothers\nsession sideways held e\n";

    #[test]
    fn what_the_module_shows_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = directory.path().join(name);
            fs::write(&file, text).unwrap();
            file
        };
        let (shown, moved) = (
            write("sessions", SHOWN),
            write("moved", "8192 7 x\n1 9 y\n"),
        );
        let sessions = read_from(&shown, &moved).unwrap();
        let names: Vec<_> = sessions
            .iter()
            .map(|it| (it.name.as_str(), it.files.len()))
            .collect();
        assert_eq!(names, [("a b", 2), ("c", 0), ("d", 1)]);
        let [first, second] = &sessions[0].files[..] else {
            panic!("two files")
        };
        assert_eq!((first.token, first.size_bytes()), (Token(1), Some(4096)));
        assert_eq!((first.moved_bytes, second.moved_bytes), (Some(8192), None));
        assert_eq!(
            first
                .pairs
                .iter()
                .filter(|(key, _)| key == "seals[]")
                .count(),
            2
        );
        assert_eq!(
            (second.value("name"), second.size_bytes()),
            (Some("memfd:ä"), Some(9))
        );
        assert_eq!(sessions[1].state, "busy");
        let missing = &sessions[2].files[0];
        assert_eq!(
            (missing.state.as_str(), missing.compatible.as_str()),
            ("missing", "\x1bx")
        );
        assert!(
            read_from(&shown, "/nonexistent".as_ref()).unwrap()[0].files[0]
                .moved_bytes
                .is_none()
        );
        assert!(read_from("/nonexistent".as_ref(), &moved).is_err());
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        for odd in ["a\\x", "\\x4", "\\xzz", "\\xä"] {
            assert_eq!(unescaped(odd), odd);
        }
    }
}
