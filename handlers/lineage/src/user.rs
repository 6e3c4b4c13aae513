// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Which kernel a process runs on.

use luo_handler_api::register_subsystem;

use crate::{lineage::Lineage, record::Release};

register_subsystem!(
    /// The subsystem of this process.
    pub LINEAGE: Lineage = Lineage::new(this_kernel)
);

fn this_kernel() -> Release {
    parse(&rustix::system::uname().release().to_string_lossy())
}

/// The three numbers that a release such as `7.3.4-1-amd64` begins with; 0 for one that is missing.
fn parse(release: &str) -> Release {
    let mut numbers = release.splitn(3, '.').map(|part| {
        let digits = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        let number = part[..digits].parse().unwrap_or(0u32);
        u8::try_from(number).unwrap_or(u8::MAX)
    });
    let mut next = || numbers.next().unwrap_or(0);
    Release {
        major: next(),
        minor: next(),
        patch: next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_three_numbers() {
        for (release, expected) in [
            ("7.3.4-1-amd64", "7.3.4"),
            ("7.4-rc1", "7.4.0"),
            ("7.3.300", "7.3.255"),
            ("", "0.0.0"),
            ("x.y", "0.0.0"),
        ] {
            assert_eq!(parse(release).to_string(), expected);
        }
        assert_ne!(this_kernel().major, 0);
    }
}
