// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The program's own state, in a form that the next version of the program can read, and the one
//! before.
//!
//! A live update goes forward most of the time. It has to go back as well: the new version is bad,
//! and what it learned meanwhile must not be lost. So what crosses has two numbers: the version
//! that wrote it, and the oldest version that may read it. A version that only adds to the state
//! leaves the second number as it is; one that changes the meaning of what is there raises it, and
//! older programs refuse the state with a reason instead of misreading it.
//!
//! ```
//! use luo_orchestrator::envelope::{self, Versioned};
//! use serde::{Deserialize, Serialize};
//! use serde_json::Value;
//!
//! #[derive(Serialize, Deserialize)]
//! struct Sessions {
//!     names: Vec<String>,
//!     #[serde(default)] // since version 2; version 1 skips it
//!     idle_seconds: u64,
//! }
//!
//! impl Versioned for Sessions {
//!     const NAME: &'static str = "sessions";
//!     const VERSION: u32 = 2;
//!     const OLDEST_READER: u32 = 1;
//!
//!     fn upgrade(_from: u32, state: Value) -> Result<Value, String> {
//!         Ok(state) // the default of the new field is all that is missing
//!     }
//! }
//!
//! let sealed = envelope::seal(&Sessions { names: vec!["one".into()], idle_seconds: 3 })?;
//! let opened: Sessions = envelope::open(&sealed)?;
//! assert_eq!(opened.idle_seconds, 3);
//! # Ok::<(), envelope::EnvelopeError>(())
//! ```
//!
//! # Format
//!
//! Text that a person can read: a line of JSON that describes the state, then the state as JSON.
//!
//! ```text
//! {"envelope":1,"name":"sessions","version":2,"oldest_reader":1,"bytes":36,"crc32c":93412311}
//! {"names":["one"],"idle_seconds":3}
//! ```
//!
//! Nothing of it is trusted: lengths, checksum, name and versions are compared before the state is
//! parsed. Memory that a program works on belongs into a memfd of its own; an envelope has at most
//! [`STATE_MAX`] bytes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use memfd::MemfdOptions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The largest state, in bytes of JSON.
pub const STATE_MAX: usize = 256 << 20;

/// The longest first line, with its end.
const HEADER_MAX: usize = 4096;

/// The version of the first line.
const ENVELOPE: u32 = 1;

/// A state that crosses from one version of a program to another.
///
/// Fields are added with `#[serde(default)]`, and an older version skips those that it does not
/// know: so leave out `#[serde(deny_unknown_fields)]`.
pub trait Versioned: Serialize + DeserializeOwned {
    /// What it is the state of. Another name is refused.
    const NAME: &'static str;

    /// The version of what this program writes; raised with each change.
    const VERSION: u32;

    /// The oldest version of the program that can read what this one writes: where a downgrade
    /// ends.
    const OLDEST_READER: u32 = Self::VERSION;

    /// Makes a state of version `from` one of version `from + 1`; called once for each step up to
    /// [`VERSION`](Self::VERSION).
    ///
    /// # Errors
    ///
    /// Why such a state cannot be read any more, in words.
    fn upgrade(from: u32, state: Value) -> Result<Value, String> {
        let _ = state;
        Err(format!("there is no upgrade from version {from}"))
    }
}

/// Why a state could not be written or read.
#[derive(Debug, Error)]
pub enum EnvelopeError {
    /// The file could not be read.
    #[error("cannot read the state: {0}")]
    Read(#[from] io::Error),
    /// It has no first line that describes a state, or one of another format.
    #[error("not the state of a program: {0}")]
    Foreign(String),
    /// It is the state of something else.
    #[error("expected the state {expected:?}, found {found:?}")]
    Name {
        /// [`Versioned::NAME`].
        expected: &'static str,
        /// The name in the envelope.
        found: String,
    },
    /// It was truncated, or changed.
    #[error("the state {name:?} is damaged: {what}")]
    Damaged {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// This program is older than what may read it.
    #[error(
        "the state {name:?} is of version {version}, which programs from version {oldest_reader} \
         on can read; this one has version {ours}: go back no further than {oldest_reader}"
    )]
    TooNew {
        /// Its name.
        name: &'static str,
        /// The version that wrote it.
        version: u32,
        /// The oldest that can read it.
        oldest_reader: u32,
        /// [`Versioned::VERSION`].
        ours: u32,
    },
    /// This program does not read such an old state any more.
    #[error("the state {name:?} of version {version} cannot be upgraded to {ours}: {reason}")]
    TooOld {
        /// Its name.
        name: &'static str,
        /// The version that wrote it.
        version: u32,
        /// [`Versioned::VERSION`].
        ours: u32,
        /// Why.
        reason: String,
    },
    /// Its fields are not what this version expects.
    #[error("the state {name:?} of version {version} does not fit version {ours}: {source}")]
    Fields {
        /// Its name.
        name: &'static str,
        /// The version that wrote it.
        version: u32,
        /// [`Versioned::VERSION`].
        ours: u32,
        /// What is missing or of another type.
        source: serde_json::Error,
    },
    /// It has more than [`STATE_MAX`] bytes.
    #[error(
        "the state {name:?} has {bytes} bytes, more than {STATE_MAX}: use a memfd for its bulk"
    )]
    TooLarge {
        /// Its name.
        name: &'static str,
        /// Its bytes.
        bytes: u64,
    },
    /// It cannot be written as JSON.
    #[error("the state {name:?} cannot be written: {source}")]
    Write {
        /// Its name.
        name: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    envelope: u32,
    name: String,
    version: u32,
    oldest_reader: u32,
    bytes: u64,
    crc32c: u32,
}

/// The state as bytes.
///
/// # Errors
///
/// [`EnvelopeError::Write`] or [`EnvelopeError::TooLarge`].
pub fn seal<T: Versioned>(state: &T) -> Result<Vec<u8>, EnvelopeError> {
    const { assert!(T::OLDEST_READER <= T::VERSION) };
    let name = T::NAME;
    let payload =
        serde_json::to_vec(state).map_err(|source| EnvelopeError::Write { name, source })?;
    let bytes = payload.len() as u64;
    if payload.len() > STATE_MAX {
        return Err(EnvelopeError::TooLarge { name, bytes });
    }
    let header = Header {
        envelope: ENVELOPE,
        name: name.into(),
        version: T::VERSION,
        oldest_reader: T::OLDEST_READER,
        bytes,
        crc32c: crc32c::crc32c(&payload),
    };
    let mut sealed =
        serde_json::to_vec(&header).map_err(|source| EnvelopeError::Write { name, source })?;
    sealed.push(b'\n');
    sealed.extend_from_slice(&payload);
    Ok(sealed)
}

/// The state of these bytes, upgraded if an older version wrote it.
///
/// # Errors
///
/// [`EnvelopeError`], for anything that is not a state that this version can read.
pub fn open<T: Versioned>(sealed: &[u8]) -> Result<T, EnvelopeError> {
    let (header, payload) = split(sealed)?;
    let (name, version, ours) = (T::NAME, header.version, T::VERSION);
    if header.name != name {
        let found = header.name;
        return Err(EnvelopeError::Name {
            expected: name,
            found,
        });
    }
    let damaged = |what| EnvelopeError::Damaged { name, what };
    if header.bytes != payload.len() as u64 {
        let what = format!("expected {} bytes, found {}", header.bytes, payload.len());
        return Err(damaged(what));
    }
    if header.crc32c != crc32c::crc32c(payload) {
        return Err(damaged("its checksum is wrong".into()));
    }
    let oldest_reader = header.oldest_reader;
    if oldest_reader > version {
        return Err(damaged(format!(
            "version {version} cannot read what it wrote"
        )));
    }
    if oldest_reader > ours {
        return Err(EnvelopeError::TooNew {
            name,
            version,
            oldest_reader,
            ours,
        });
    }
    let fields = |source| EnvelopeError::Fields {
        name,
        version,
        ours,
        source,
    };
    if version >= ours {
        return serde_json::from_slice(payload).map_err(fields);
    }
    let mut state: Value = serde_json::from_slice(payload).map_err(fields)?;
    for from in version..ours {
        let too_old = |reason| EnvelopeError::TooOld {
            name,
            version,
            ours,
            reason,
        };
        state = T::upgrade(from, state).map_err(too_old)?;
    }
    serde_json::from_value(state).map_err(fields)
}

fn split(sealed: &[u8]) -> Result<(Header, &[u8]), EnvelopeError> {
    let foreign = |what: String| EnvelopeError::Foreign(what);
    let start = &sealed[..sealed.len().min(HEADER_MAX)];
    let end = start.iter().position(|&byte| byte == b'\n');
    let end = end.ok_or_else(|| foreign("it has no first line that describes it".into()))?;
    let header: Header =
        serde_json::from_slice(&sealed[..end]).map_err(|error| foreign(error.to_string()))?;
    if header.envelope != ENVELOPE {
        let found = header.envelope;
        return Err(foreign(format!(
            "expected envelope {ENVELOPE}, found {found}"
        )));
    }
    Ok((header, &sealed[end + 1..]))
}

/// The state in a new memfd, for [`preserve`](crate::orchestrator::Orchestrator::preserve).
///
/// # Errors
///
/// Those of [`seal`], and of making the memfd.
pub fn to_memfd<T: Versioned>(state: &T) -> Result<File, EnvelopeError> {
    let sealed = seal(state)?;
    let memfd = MemfdOptions::default()
        .create(T::NAME)
        .map_err(io::Error::other)?;
    memfd.as_file().write_all(&sealed)?;
    Ok(memfd.into_file())
}

/// The state in a file that crossed, wherever its position is.
///
/// # Errors
///
/// Those of [`open`], and of reading the file.
pub fn from_file<T: Versioned>(file: impl AsFd) -> Result<T, EnvelopeError> {
    let file = File::from(file.as_fd().try_clone_to_owned()?);
    let bytes = file.metadata()?.len();
    if bytes > (STATE_MAX + HEADER_MAX) as u64 {
        return Err(EnvelopeError::TooLarge {
            name: T::NAME,
            bytes,
        });
    }
    let mut sealed = vec![0; bytes as usize];
    file.read_exact_at(&mut sealed, 0)?;
    open(&sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct First {
        names: Vec<String>,
    }

    impl Versioned for First {
        const NAME: &'static str = "sessions";
        const VERSION: u32 = 1;
    }

    /// Adds a field.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Second {
        names: Vec<String>,
        #[serde(default)]
        idle: u64,
    }

    impl Versioned for Second {
        const NAME: &'static str = "sessions";
        const VERSION: u32 = 2;
        const OLDEST_READER: u32 = 1;

        fn upgrade(_: u32, state: Value) -> Result<Value, String> {
            Ok(state)
        }
    }

    /// Changes what a field means.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Third {
        sessions: Vec<(String, u64)>,
    }

    impl Versioned for Third {
        const NAME: &'static str = "sessions";
        const VERSION: u32 = 3;

        fn upgrade(from: u32, state: Value) -> Result<Value, String> {
            match from {
                1 => Ok(json!({ "names": state["names"], "idle": 7 })),
                2 => {
                    let names = state["names"].as_array().ok_or("no names")?;
                    let idle = &state["idle"];
                    let sessions = names.iter().map(|name| json!([name, idle]));
                    Ok(json!({ "sessions": sessions.collect::<Vec<_>>() }))
                }
                _ => Err("no".into()),
            }
        }
    }

    fn first() -> First {
        First {
            names: vec!["one".into(), "two".into()],
        }
    }

    fn second() -> Second {
        Second {
            names: first().names,
            idle: 5,
        }
    }

    #[test]
    fn the_next_version_reads_it_and_so_does_the_one_before() {
        let sealed = seal(&second()).unwrap();
        assert_eq!(open::<Second>(&sealed).unwrap(), second());
        assert_eq!(open::<First>(&sealed).unwrap(), first());
        let upgraded = open::<Second>(&seal(&first()).unwrap()).unwrap();
        assert_eq!(
            upgraded,
            Second {
                idle: 0,
                ..second()
            }
        );
    }

    #[test]
    fn an_upgrade_takes_every_step() {
        let sessions = |idle| vec![("one".into(), idle), ("two".into(), idle)];
        let from_first = open::<Third>(&seal(&first()).unwrap()).unwrap();
        assert_eq!(
            from_first,
            Third {
                sessions: sessions(7)
            }
        );
        let from_second = open::<Third>(&seal(&second()).unwrap()).unwrap();
        assert_eq!(
            from_second,
            Third {
                sessions: sessions(5)
            }
        );
    }

    fn refused<T: Versioned + std::fmt::Debug>(sealed: &[u8]) -> String {
        open::<T>(sealed).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_versions() {
        let sealed = seal(&Third { sessions: vec![] }).unwrap();
        for message in [refused::<First>(&sealed), refused::<Second>(&sealed)] {
            assert!(message.contains("is of version 3"), "{message}");
            assert!(message.contains("go back no further than 3"), "{message}");
        }
        #[derive(Debug, Serialize, Deserialize)]
        struct Fifth {}
        impl Versioned for Fifth {
            const NAME: &'static str = "sessions";
            const VERSION: u32 = 5;
        }
        let message = refused::<Fifth>(&sealed);
        assert!(message.contains("of version 3 cannot be upgraded to 5: there is no upgrade"));
        #[derive(Debug, Serialize, Deserialize)]
        struct Other {}
        impl Versioned for Other {
            const NAME: &'static str = "other";
            const VERSION: u32 = 3;
        }
        let message = refused::<Other>(&sealed);
        assert!(
            message.contains("expected the state \"other\", found \"sessions\""),
            "{message}"
        );
    }

    #[test]
    fn hostile_bytes_are_refused_with_a_reason() {
        let sealed = seal(&first()).unwrap();
        for length in 0..sealed.len() {
            assert!(open::<First>(&sealed[..length]).is_err(), "{length}");
        }
        let text = String::from_utf8(sealed).unwrap();
        let line = |from: &str, to: &str| text.replacen(from, to, 1).into_bytes();
        for (bytes, part) in [
            (
                line("\"envelope\":1", "\"envelope\":2"),
                "expected envelope 1, found 2",
            ),
            (
                line("\"version\":1", "\"version\":0"),
                "cannot read what it wrote",
            ),
            (
                line("\"version\":1", "\"version\":-1"),
                "not the state of a program",
            ),
            (line("one", "two"), "checksum"),
            (vec![b'{'; HEADER_MAX + 1], "no first line"),
        ] {
            let message = refused::<First>(&bytes);
            assert!(message.contains(part), "{message}");
        }
        let payload = b"[]";
        let forged = format!(
            "{{\"envelope\":1,\"name\":\"sessions\",\"version\":1,\"oldest_reader\":1,\
             \"bytes\":2,\"crc32c\":{}}}\n[]",
            crc32c::crc32c(payload)
        );
        let message = refused::<Second>(forged.as_bytes());
        assert!(message.contains("does not fit version 2"), "{message}");
    }

    #[test]
    fn it_is_read_from_a_file_and_a_large_one_is_not() {
        let file = to_memfd(&second()).unwrap();
        assert_eq!(from_file::<Second>(&file).unwrap(), second());
        file.set_len(1 << 40).unwrap();
        let error = from_file::<Second>(&file).unwrap_err();
        assert!(matches!(error, EnvelopeError::TooLarge { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, place: prop::sample::Index, byte: u8) {
            let _ = open::<Second>(&bytes);
            bytes = seal(&second()).unwrap();
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _ = open::<Third>(&bytes);
        }
    }
}
