// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A small memfd that crosses a kexec before the files that are measured.
//!
//! In a kernel that has just booted the handlers run for the first time. An emulated processor
//! translates code then, which takes longer than to run it, and the caches of any other are cold.
//! So a small file of the same kind is preserved and retrieved first, and does not count.

use anyhow::{Context, Result};
use luo_handler_api::Token;

use crate::case::Case;
use crate::subject::memfd::MakeError;
use crate::subject::Subject;
use crate::update::{Files, Update};

/// Its session.
pub(crate) const SESSION: &str = "luo-bench-rehearsal";
/// The first of a case, and all there is.
pub(crate) const FILE: Token = Token(1);
/// Enough for the handlers to use several processors, and for the huge pages that a processor has
/// set aside since boot, some of them in scratch.
const SIZE_MAX: u64 = 256 << 20;
/// No more than this part of what is measured.
const PART: u64 = 8;

/// A small file like those of `case`; none if it would not be like them, or cannot be made: who
/// makes the case finds out why.
///
/// Made before the files of the case it gets what is set aside in scratch, where nothing can stay.
/// It should be preserved after they are made, since it moves out of there then.
///
/// # Errors
///
/// Those of making a file.
pub(crate) fn make(case: &Case) -> Result<Files> {
    let Some(small) = small(case).filter(|_| has_pages(case)) else {
        return Ok(Files::new());
    };
    match Update::begin(&small, |_| ()) {
        Ok((_, files)) => Ok(files),
        Err(MakeError::Unavailable(_)) => Ok(Files::new()),
        Err(error) => Err(error).context("a small file that goes first"),
    }
}

/// Whether pages of hugetlbfs are left for it beside the files of the case.
fn has_pages(case: &Case) -> bool {
    match case.subject {
        Subject::Memfd { pages, .. } => pages.cannot_reserve(data_bytes(case)).is_none(),
        _ => true,
    }
}

/// Bytes of data in the files of a case, with the small one that goes first.
pub(crate) fn data_bytes(case: &Case) -> u64 {
    case.data_bytes() + small(case).map_or(0, |small| small.data_bytes())
}

/// A case like another one, with little in it; `None` if that would be nothing.
fn small(case: &Case) -> Option<Case> {
    let Subject::Memfd { size, pages, fill } = case.subject else {
        return None;
    };
    let all = size.saturating_mul(case.files.into());
    let size = (all / PART).min(SIZE_MAX) / pages.size() * pages.size();
    let small = Case {
        transport: case.transport,
        subject: Subject::Memfd { size, pages, fill },
        files: 1,
    };
    (size > 0 && small.data_bytes() > 0).then_some(small)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::fill::Fill;
    use crate::subject::pages::Pages;
    use crate::transport::Transport;

    fn size_of_small(subject: Subject, files: u32) -> Option<u64> {
        let case = Case {
            transport: Transport::Kexec,
            subject,
            files,
        };
        let expected = case.data_bytes() + small(&case).map_or(0, |it| it.data_bytes());
        assert_eq!(data_bytes(&case), expected);
        small(&case).map(|small| match small.subject {
            Subject::Memfd { size, .. } => size,
            other => panic!("{other} is no memfd"),
        })
    }

    const fn memfd(size: u64, pages: Pages, fill: Fill) -> Subject {
        Subject::Memfd { size, pages, fill }
    }

    #[test]
    fn it_is_small_and_of_whole_pages() {
        const MIB: u64 = 1 << 20;
        const GIGANTIC: Pages = Pages::HugetlbOf(1 << 30);
        let huge = Pages::HugetlbOf(2 * MIB);
        for (subject, files, expected) in [
            (
                memfd(4096 * MIB, Pages::Base, Fill::Shuffled),
                1,
                Some(SIZE_MAX),
            ),
            (memfd(64 * MIB, Pages::Base, Fill::Dense), 1, Some(8 * MIB)),
            (
                memfd(4 * MIB, Pages::Base, Fill::Dense),
                1000,
                Some(SIZE_MAX),
            ),
            (memfd(100 * MIB, huge, Fill::Dense), 1, Some(12 * MIB)),
            (memfd(4096, Pages::Base, Fill::Dense), 1, None),
            (memfd(4096 * MIB, GIGANTIC, Fill::Dense), 1, None),
            (
                memfd(8 * MIB, Pages::Base, "sparse:0.1%".parse().unwrap()),
                1,
                None,
            ),
            (Subject::Ioport, 4, None),
        ] {
            assert_eq!(size_of_small(subject.clone(), files), expected, "{subject}");
        }
    }
}
