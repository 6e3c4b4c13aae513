// SPDX-License-Identifier: GPL-2.0-only
//! What all sessions hold, those of this kernel and those that came in, as text:
//!
//! ```text
//! session outgoing held NAME
//! file 0x1 preserved luo-handlers,memfd-v1 data=0x… name=memfd:guest inode=7 size_bytes=4096 …
//! session incoming waiting NAME
//! file 0x2 missing ioport-v1 data=0x…
//! ```
//!
//! A session is `held`, `waiting` to be retrieved, `retrieved`, or `busy`: then its files are not
//! shown. A file is `preserved`, `waiting`, `retrieved`, `failed`, or its handler is `missing`.
//! What stands after its data is the open file's, and after that what its handler reports of the
//! record. In names, what is not a printing character of ASCII is written as `\xNN`.
//!
//! What came in is known to mainline once somebody has opened /dev/liveupdate.

#![allow(unsafe_code)] // an edge: a callback and texts of C

use core::ffi::{c_char, c_void, CStr};

use kernel::{fmt, prelude::*};
use luo_handler_api::{
    kernel::{Around, HandlerEntry},
    Pairs,
};

use crate::{shim, RegisteredHandler};

/// The handlers, which know what their records are.
pub(crate) struct Sessions(pub(crate) KVec<(&'static RegisteredHandler, &'static HandlerEntry)>);

impl Sessions {
    /// Writes them.
    pub(crate) fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for incoming in [false, true] {
            let mut list = List {
                sessions: self,
                incoming,
                f: &mut *f,
                written: Ok(()),
            };
            let context = (&raw mut list).cast();
            // SAFETY: `show` expects a List as its context; this one lives until the call returns,
            // which is when the last call of `show` has returned.
            if unsafe { shim::luo_show_sessions(incoming, show, context) } != 0 {
                return Err(fmt::Error);
            }
            list.written?;
        }
        Ok(())
    }
}

/// A list on its way to the reader.
struct List<'a, 'f> {
    sessions: &'a Sessions,
    incoming: bool,
    f: &'a mut fmt::Formatter<'f>,
    written: fmt::Result,
}

/// # Safety
///
/// `context` is a [`List`] that nobody else uses during the call. The texts of `item`, where they
/// are not NULL, end with a zero and stay for the call.
unsafe extern "C" fn show(item: *const shim::SessionItem, context: *mut c_void) {
    // SAFETY: by the safety section it is a List, and used here alone.
    let list = unsafe { &mut *context.cast::<List<'_, '_>>() };
    if list.written.is_ok() {
        // SAFETY: by the safety section the item and its texts stay for the call.
        let (item, [session, compatible, name]) = unsafe {
            let item = &*item;
            (
                item,
                [item.session, item.compatible, item.name].map(|text| text_of(text)),
            )
        };
        list.written = match compatible {
            None => list.session(item, session.unwrap_or(b"")),
            Some(compatible) => list.file(item, compatible, name),
        };
    }
}

/// # Safety
///
/// `text` is NULL, or ends with a zero and stays for `'a`.
unsafe fn text_of<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: by the safety section it ends with a zero and stays.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A text of which every byte can be read, without spaces.
struct Escaped<'a>(&'a [u8]);

impl core::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for &byte in self.0 {
            match byte {
                b'\\' => f.write_str("\\x5c")?,
                byte if byte.is_ascii_graphic() => f.write_char(byte.into())?,
                byte => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl List<'_, '_> {
    fn session(&mut self, item: &shim::SessionItem, name: &[u8]) -> fmt::Result {
        let (direction, state) = match (self.incoming, item.busy, item.session_retrieved) {
            (false, true, _) => ("outgoing", "busy"),
            (false, false, _) => ("outgoing", "held"),
            (true, true, _) => ("incoming", "busy"),
            (true, false, true) => ("incoming", "retrieved"),
            (true, false, false) => ("incoming", "waiting"),
        };
        writeln!(self.f, "session {direction} {state} {}", Escaped(name))
    }

    fn file(
        &mut self,
        item: &shim::SessionItem,
        compatible: &[u8],
        name: Option<&[u8]>,
    ) -> fmt::Result {
        let state = match (self.incoming, item.status) {
            (false, _) => "preserved",
            _ if item.stand_in => "missing",
            (true, 0) => "waiting",
            (true, 1..) => "retrieved",
            (true, _) => "failed",
        };
        let (token, data, compatible) = (item.token, item.data, Escaped(compatible));
        write!(
            self.f,
            "file {token:#x} {state} {compatible} data={data:#x}"
        )?;
        if item.status < 0 {
            write!(self.f, " errno={}", item.status.unsigned_abs())?;
        }
        if let Some(name) = name {
            let (inode, size) = (item.inode, item.size);
            write!(
                self.f,
                " name={} inode={inode} file_bytes={size}",
                Escaped(name)
            )?;
        }
        if !item.stand_in {
            self.record(item.data, compatible.0)?;
        }
        writeln!(self.f)
    }

    /// What the handler reports of a record, if it is one of ours.
    fn record(&mut self, data: u64, compatible: &[u8]) -> fmt::Result {
        let is_its = |(handler, _): &&(&RegisteredHandler, _)| {
            handler.state.compatible().as_str().as_bytes() == compatible
        };
        let Some((handler, entry)) = self.sessions.0.iter().find(is_its) else {
            return Ok(());
        };
        let (f, mut written) = (&mut *self.f, Ok(()));
        let mut sink = |key: &str, value: &str| {
            let value = Escaped(value.as_bytes());
            written = written.and_then(|()| write!(f, " {key}={value}"));
        };
        let host = match self.incoming {
            true => handler.state.incoming(),
            false => handler.state.outgoing(),
        };
        let described = (entry.describe)(data, host, &mut Pairs::new(&mut sink));
        written?;
        match described {
            Ok(()) => Ok(()),
            Err(errno) => write!(self.f, " bad_record={}", errno.code()),
        }
    }
}
