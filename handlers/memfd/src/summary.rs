// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! What a record contains, for people.

use core::fmt;

use luo_handler_api::{Errno, Host, Pairs};

use crate::{
    extent::{Contents, FRAME_END},
    record::{
        Kind, Record, RecordHeader, SEAL_EXEC, SEAL_FUTURE_WRITE, SEAL_GROW, SEAL_SEAL,
        SEAL_SHRINK, SEAL_WRITE,
    },
};

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Shmem or hugetlb.
    pub kind: Kind,
    /// Size of its pages in bytes.
    pub page_bytes: u64,
    /// Size of the file in bytes.
    pub size: u64,
    /// File position in bytes.
    pub position: u64,
    /// Seals, as `F_GET_SEALS` returns them.
    pub seals: u32,
    /// Access mode and status flags; see [`luo_handler_api::status`].
    pub status: u32,
    /// Permission bits.
    pub mode: u32,
    /// The contents, where the record names their frames. Where they cross as a file, nobody looks
    /// at them before somebody copies them.
    pub contents_data: Option<Data>,
    /// Bytes that the host keeps for the record and its extents.
    pub metadata_bytes: u64,
    /// Handle of the contents, where they are in a file that the host keeps.
    pub contents: Option<u64>,
}

/// The contents that are there: what is not holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// Number of extents.
    pub extents: u64,
    /// Bytes of the pages that exist, the last one counted as a whole.
    pub bytes: u64,
}

impl Summary {
    /// Reads the record under `handle` and checks it and its extents, as retrieve does before it
    /// touches anything.
    ///
    /// # Errors
    ///
    /// As [`Record`] and [`Extents`](crate::chain::Extents) list them.
    pub fn read(host: Host<'_>, handle: u64) -> Result<Self, Errno> {
        let record = Record::read(host, handle)?;
        let mut metadata_bytes = RecordHeader::LENGTH as u64;
        let contents_data = match record.contents_in {
            Contents::File => None,
            Contents::Frames => {
                for extents in &record.chains(FRAME_END, host) {
                    extents.verify()?;
                    metadata_bytes += extents.metadata_bytes()?;
                }
                Some(Data {
                    extents: record.chain.extents + record.late.extents,
                    bytes: record.pages() << record.page_shift,
                })
            }
        };
        let attributes = &record.attributes;
        Ok(Self {
            kind: attributes.kind,
            page_bytes: 1 << attributes.file_page_shift,
            size: attributes.size,
            position: attributes.position,
            seals: attributes.seals,
            status: attributes.status,
            mode: attributes.mode,
            contents_data,
            metadata_bytes,
            contents: (record.contents_in == Contents::File).then_some(record.contents),
        })
    }

    /// Reports it, pair by pair.
    pub fn report(&self, pairs: &mut Pairs<'_>) {
        pairs.put("kind", self.kind);
        pairs.put("size_bytes", self.size);
        if let Some(data) = self.contents_data {
            pairs.put("data_bytes", data.bytes.min(self.size));
            pairs.put("extents", data.extents);
        }
        pairs.put("position", self.position);
        pairs.put("metadata_bytes", self.metadata_bytes);
        for seal in self.seal_names() {
            pairs.put("seals[]", seal);
        }
    }

    /// The seals by the kernel's names without `F_SEAL_`, such as `shrink`; in ascending order.
    pub fn seal_names(&self) -> impl Iterator<Item = &'static str> {
        seal_names(self.seals)
    }
}

pub(crate) fn seal_names(seals: u32) -> impl Iterator<Item = &'static str> {
    [
        (SEAL_SEAL, "seal"),
        (SEAL_SHRINK, "shrink"),
        (SEAL_GROW, "grow"),
        (SEAL_WRITE, "write"),
        (SEAL_FUTURE_WRITE, "future-write"),
        (SEAL_EXEC, "exec"),
    ]
    .into_iter()
    .filter(move |(seal, _)| seals & seal != 0)
    .map(|(_, name)| name)
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shmem => "shmem",
            Self::Hugetlb => "hugetlb",
        })
    }
}
