// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The kinds of pages that a memfd can be made of, and what this machine has of them.

use std::fmt;
use std::fs;
use std::io;
use std::str::FromStr;

use bytesize::ByteSize;
use rustix::param::page_size;
use serde::{Deserialize, Serialize};

use crate::memory::meminfo;

const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const THP_SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
const HUGETLB: &str = "/sys/kernel/mm/hugepages";
/// Of a transparent huge page, and of hugetlb's default, where the kernel does not report it.
const USUAL_HUGE_PAGE: u64 = 2 << 20;

/// Which pages a memfd is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Pages {
    /// The machine's base pages; 4 KiB on most.
    Base,
    /// Base pages, put into huge pages before prepare as far as the kernel can.
    Collapsed,
    /// Transparent huge pages of shmem.
    Thp,
    /// Pages of hugetlbfs, of the default huge page size.
    Hugetlb,
    /// Pages of hugetlbfs, each of as many bytes, a power of two.
    HugetlbOf(u64),
}

impl Pages {
    /// The size of a page, in bytes: what is filled or left out as a whole.
    pub fn size(self) -> u64 {
        match self {
            Self::Base | Self::Collapsed => page_size() as u64,
            Self::Thp => thp_size().unwrap_or(USUAL_HUGE_PAGE),
            Self::Hugetlb => meminfo("Hugepagesize:").unwrap_or(USUAL_HUGE_PAGE),
            Self::HugetlbOf(size) => size,
        }
    }

    /// Whether they are pages of hugetlbfs.
    pub const fn are_hugetlb(self) -> bool {
        matches!(self, Self::Hugetlb | Self::HugetlbOf(_))
    }

    /// Has the kernel reserve pages of hugetlbfs for so many bytes, as far as it can; for root.
    ///
    /// Those of 1 GiB take that much free memory in one piece, so a machine with memory to spare.
    /// The kernel parameter `hugepages=` cannot help after a kexec: a kernel that has taken a
    /// handover allocates from scratch memory alone at the time when it would reserve them.
    ///
    /// # Errors
    ///
    /// Those of writing to sysfs; without such pages there is nothing to write to.
    pub fn reserve(self, bytes: u64) -> io::Result<()> {
        let missing = |free: u64| bytes.div_ceil(self.size()).saturating_sub(free);
        let missing = self.free_hugetlb().map_or(0, missing);
        if missing == 0 {
            return Ok(());
        }
        let file = format!("{}/nr_hugepages", self.directory());
        let reserved = read_number(&file).unwrap_or(0);
        fs::write(file, (reserved + missing).to_string())
    }

    /// Why this kernel has no such pages, however many are free.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Hugetlb | Self::HugetlbOf(_) if self.free_hugetlb().is_none() => {
                self.hugetlb_obstacle(0)
            }
            _ => None,
        }
    }

    fn directory(self) -> String {
        format!("{HUGETLB}/hugepages-{}kB", self.size() >> 10)
    }

    /// Why this machine does not have `bytes` of them, with what to do about it.
    pub fn obstacle(self, bytes: u64) -> Option<String> {
        match self {
            Self::Base => None,
            Self::Collapsed => collapse_obstacle(),
            Self::Thp => thp_obstacle(),
            Self::Hugetlb | Self::HugetlbOf(_) => self.hugetlb_obstacle(bytes),
        }
    }

    fn hugetlb_obstacle(self, bytes: u64) -> Option<String> {
        let Some(free) = self.free_hugetlb() else {
            return Some(match self {
                Self::HugetlbOf(size) => format!(
                    "this machine has no huge pages of {}",
                    ByteSize(size).display().iec_short()
                ),
                _ => "this kernel has no hugetlbfs".to_owned(),
            });
        };
        self.too_few(free, bytes).map(|needed| {
            format!(
                "{free} huge pages are free, {needed} are needed; {}",
                self.advice(needed)
            )
        })
    }

    /// Why there are too few of them, after the kernel has reserved as many as it can.
    pub(crate) fn cannot_reserve(self, bytes: u64) -> Option<String> {
        let free = self.free_hugetlb()?;
        self.too_few(free, bytes).map(|needed| {
            format!(
                "memory has {free} of {needed} such huge pages in one piece; a machine with more \
                 memory may have them (in the lab, --memory)"
            )
        })
    }

    /// How many are needed, if that is more than are free.
    fn too_few(self, free: u64, bytes: u64) -> Option<u64> {
        let needed = bytes.div_ceil(self.size());
        (free < needed).then_some(needed)
    }

    /// Pages of hugetlbfs that nobody uses or has reserved; `None` if there is no such kind.
    fn free_hugetlb(self) -> Option<u64> {
        let directory = self.directory();
        let number = |name| read_number(&format!("{directory}/{name}"));
        match number("free_hugepages") {
            Some(free) => Some(free.saturating_sub(number("resv_hugepages").unwrap_or(0))),
            None if self == Self::Hugetlb => {
                meminfo("Hugepagesize:")?;
                meminfo("HugePages_Free:")
            }
            None => None,
        }
    }

    /// How to get so many pages of hugetlbfs.
    fn advice(self, needed: u64) -> String {
        match self {
            Self::HugetlbOf(size) => format!(
                "as root: echo {needed} > {HUGETLB}/hugepages-{}kB/nr_hugepages",
                size >> 10
            ),
            _ => format!("as root: sysctl vm.nr_hugepages={needed}"),
        }
    }
}

fn collapse_obstacle() -> Option<String> {
    if thp_size().is_none() {
        return Some(format!("no transparent huge pages: no {THP_SIZE}"));
    }
    let modes = fs::read_to_string(SHMEM_ENABLED).ok()?;
    modes.contains("[deny]").then(|| {
        format!("huge pages are forbidden for shmem; as root: echo never > {SHMEM_ENABLED}")
    })
}

/// The size of a transparent huge page, in bytes, if this kernel has any.
pub fn thp_size() -> Option<u64> {
    read_number(THP_SIZE)
}

fn thp_obstacle() -> Option<String> {
    let modes = match fs::read_to_string(SHMEM_ENABLED) {
        Ok(modes) => modes,
        Err(error) => {
            return Some(format!(
                "no transparent huge pages: {SHMEM_ENABLED}: {error}"
            ))
        }
    };
    match modes.split(['[', ']']).nth(1) {
        Some("never" | "deny") | None => Some(format!(
            "transparent huge pages are off for shmem; as root: echo advise > {SHMEM_ENABLED}"
        )),
        Some(_) => None,
    }
}

/// The size of a transparent huge page, in bytes, if shmem has any on this machine.
pub fn shmem_huge_page() -> Option<u64> {
    match thp_obstacle() {
        None => thp_size(),
        Some(_) => None,
    }
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.pad("4k"),
            Self::Collapsed => f.pad("collapsed"),
            Self::Thp => f.pad("thp"),
            Self::Hugetlb => f.pad("hugetlb"),
            Self::HugetlbOf(size) => {
                let (number, unit) = match size.trailing_zeros() {
                    30.. => (size >> 30, 'G'),
                    20.. => (size >> 20, 'M'),
                    _ => (size >> 10, 'K'),
                };
                f.pad(&format!("hugetlb:{number}{unit}"))
            }
        }
    }
}

impl FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const USAGE: &str =
            "page kinds are 4k, collapsed, thp and hugetlb, and hugetlb:SIZE such as \
             hugetlb:2M or hugetlb:1G";
        match text {
            "4k" => return Ok(Self::Base),
            "collapsed" => return Ok(Self::Collapsed),
            "thp" => return Ok(Self::Thp),
            "hugetlb" => return Ok(Self::Hugetlb),
            _ => {}
        }
        let size = text.strip_prefix("hugetlb:").ok_or(USAGE)?;
        let (number, shift) = match size.as_bytes().last() {
            Some(b'k' | b'K') => (&size[..size.len() - 1], 10),
            Some(b'm' | b'M') => (&size[..size.len() - 1], 20),
            Some(b'g' | b'G') => (&size[..size.len() - 1], 30),
            _ => return Err(USAGE.to_owned()),
        };
        let number: u64 = number.parse().map_err(|_| USAGE)?;
        match number.checked_mul(1 << shift) {
            // The kernel takes the power of two as a number of six bits.
            Some(size) if size.is_power_of_two() => Ok(Self::HugetlbOf(size)),
            _ => Err(format!("{text}: the size of a huge page is a power of two")),
        }
    }
}

impl From<Pages> for String {
    fn from(pages: Pages) -> Self {
        pages.to_string()
    }
}

impl TryFrom<String> for Pages {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_kinds_read_back_as_they_print() {
        for text in [
            "4k",
            "collapsed",
            "thp",
            "hugetlb",
            "hugetlb:64K",
            "hugetlb:2M",
            "hugetlb:16G",
        ] {
            assert_eq!(text.parse::<Pages>().unwrap().to_string(), text);
        }
        assert_eq!("hugetlb:1024m".parse(), Ok(Pages::HugetlbOf(1 << 30)));
        for text in [
            "",
            "2M",
            "hugetlb:",
            "hugetlb:3M",
            "hugetlb:0M",
            "hugetlb:M",
            "hugetlb:99999999999G",
        ] {
            assert!(text.parse::<Pages>().is_err(), "{text}");
        }
    }

    #[test]
    fn huge_pages_that_no_machine_has_are_named_with_their_size() {
        let reason = Pages::HugetlbOf(1 << 50).obstacle(1).unwrap();
        assert!(reason.contains("no huge pages of"), "{reason}");
    }
}
