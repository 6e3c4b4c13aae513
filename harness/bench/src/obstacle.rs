// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Why this machine cannot measure a case here and now, as far as that is known before its files
//! are made.

use bytesize::ByteSize;

use crate::case::Case;
use crate::memory::available_bytes;
use crate::place::Place;
use crate::sample::Sample;
use crate::subject::pages::Pages;
use crate::subject::{vfio, Subject};
use crate::transport::Transport;

/// Room for what an image has beside the contents of its files, in bytes.
const METADATA_ROOM: u64 = 1 << 20;

/// Bytes that the image of a case takes, or the file that it is compared with.
pub fn image_bytes(case: &Case) -> u64 {
    match case.transport {
        Transport::Image => case.data_bytes().saturating_add(METADATA_ROOM),
        Transport::Exec | Transport::Kexec => 0,
    }
}

/// Why a case cannot be measured. `place` is where its image would go.
pub fn obstacle(case: &Case, place: Option<&Place>) -> Option<String> {
    match case.subject {
        Subject::Program(_) => None,
        Subject::Memfd { pages, .. } => memfds_obstacle(case, pages, place),
        Subject::Vfio if case.transport == Transport::Image => Some(
            "an image holds contents, which a device does not have; exec passes open files on"
                .into(),
        ),
        Subject::Vfio => {
            let (needed, found) = (case.files as usize, vfio::bound_devices().len());
            (found < needed).then(|| vfio::too_few_devices(needed, found))
        }
        Subject::Ioport => {
            let port = Sample::new(&case.subject, 1).make(|_| ());
            port.err().map(|error| error.to_string())
        }
    }
}

fn memfds_obstacle(case: &Case, pages: Pages, place: Option<&Place>) -> Option<String> {
    if case.transport == Transport::Image {
        let (needed, place) = (image_bytes(case), place?);
        if place.room < needed {
            return Some(format!(
                "the image needs {} of room, {} are left in {}; --image-dir names another \
                 directory",
                ByteSize(needed),
                ByteSize(place.room),
                place.parent().display()
            ));
        }
    }
    // A kexec bench is root's, and switches huge pages of shmem on and reserves others itself.
    let is_kexec = case.transport == Transport::Kexec;
    let reason = match is_kexec {
        true => pages.missing(),
        false => pages.obstacle(case.data_bytes()),
    };
    if reason.is_some() || (pages.are_hugetlb() && !is_kexec) {
        return reason;
    }
    // An image in memory is there beside the memfds.
    let copies = match place {
        Some(place) if place.is_in_memory && case.transport == Transport::Image => 2,
        _ => 1,
    };
    let needed = case.data_bytes().saturating_mul(copies);
    let available = available_bytes()?;
    (needed > available).then(|| {
        format!(
            "it needs {} of memory, {} are available",
            ByteSize(needed),
            ByteSize(available)
        )
    })
}
