// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A jump within one process, for tests and benches of handlers: nothing ends, files are
//! duplicates.

use std::io::{self, Read, Seek};

use memfd::MemfdOptions;

use crate::files::OpenFiles;
use crate::handover::{Arrival, Handover};
use crate::incoming::Incoming;

/// Takes a handover to a new side that is this process.
///
/// # Errors
///
/// Those of making and duplicating files.
pub fn cross(handover: &Handover<'_>) -> io::Result<Arrival> {
    let memfd = MemfdOptions::default().create("luo-memory");
    let mut file = memfd.map_err(io::Error::other)?.into_file();
    handover.outgoing.write_memory(&file)?;
    let mut memory = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut memory)?;
    let incoming = Incoming::new(memory, files(handover)?);
    Ok(Arrival {
        devicetree: handover.devicetree.clone(),
        incoming: incoming.map_err(io::Error::other)?,
    })
}

/// The files of a handover alone.
///
/// # Errors
///
/// Those of duplicating files.
pub fn files(handover: &Handover<'_>) -> io::Result<OpenFiles> {
    let mut files = Vec::new();
    handover.outgoing.each_file(|held, file| {
        files.push((held, file.try_clone()?));
        Ok::<_, io::Error>(())
    })?;
    Ok(files.into_iter().collect())
}
