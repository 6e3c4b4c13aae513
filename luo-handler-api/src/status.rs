// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Access mode and status flags of an open file, the same in every record on every architecture.
//!
//! Preserved are the access mode and what `F_SETFL` can change. `O_SYNC` and the like, `O_ASYNC`
//! and the flags that only matter to `open` do not cross.

/// Access mode within the status, as in every architecture: `O_RDONLY`, `O_WRONLY` or `O_RDWR`; 3
/// is not a mode.
pub const ACCESS: u32 = 0o3;
/// `O_APPEND` with its value of `include/uapi/asm-generic/fcntl.h`, as the next three.
pub const APPEND: u32 = 0o2000;
/// `O_NONBLOCK`.
pub const NONBLOCK: u32 = 0o4000;
/// `O_DIRECT`.
pub const DIRECT: u32 = 0o40000;
/// `O_NOATIME`.
pub const NOATIME: u32 = 0o1_000_000;

/// All that is preserved.
pub const ALL: u32 = ACCESS | APPEND | NONBLOCK | DIRECT | NOATIME;

/// The flags as this architecture has them, and as they are preserved.
#[cfg(luo_kernel)]
const FLAGS: [(u32, u32); 4] = {
    use ::kernel::bindings::{O_APPEND, O_DIRECT, O_NOATIME, O_NONBLOCK};
    [
        (O_APPEND, APPEND),
        (O_NONBLOCK, NONBLOCK),
        (O_DIRECT, DIRECT),
        (O_NOATIME, NOATIME),
    ]
};
/// The flags as this architecture has them, and as they are preserved.
#[cfg(not(luo_kernel))]
const FLAGS: [(u32, u32); 4] = {
    use rustix::fs::OFlags;
    [
        (OFlags::APPEND.bits(), APPEND),
        (OFlags::NONBLOCK.bits(), NONBLOCK),
        (OFlags::DIRECT.bits(), DIRECT),
        (OFlags::NOATIME.bits(), NOATIME),
    ]
};

/// What is preserved of flags of this architecture, as `F_GETFL` or `f_flags` report them.
pub fn from_flags(flags: u32) -> u32 {
    let preserved = FLAGS.iter().filter(|(flag, _)| flags & flag == *flag);
    preserved.fold(flags & ACCESS, |status, (_, bit)| status | bit)
}

/// The flags of this architecture for what was preserved; bits that mean nothing here are left out.
pub fn to_flags(status: u32) -> u32 {
    let set = FLAGS.iter().filter(|(_, bit)| status & bit != 0);
    set.fold(status & ACCESS, |flags, (flag, _)| flags | flag)
}

/// Whether a file can have this status: a known access mode, and no bit that is not preserved.
pub const fn is_possible(status: u32) -> bool {
    status & ACCESS != ACCESS && status & !ALL == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_kept_comes_back(status in any::<u32>()) {
            let flags = to_flags(status);
            prop_assert_eq!(from_flags(flags), status & ALL);
            prop_assert_eq!(is_possible(from_flags(flags)), status & ACCESS != 3);
        }
    }

    #[test]
    fn other_flags_are_not_kept() {
        let flags = (libc::O_RDWR | libc::O_APPEND | libc::O_CLOEXEC | libc::O_ASYNC) as u32;
        assert_eq!(from_flags(flags), 2 | APPEND);
        assert!(!is_possible(2 | 0o10_000_000) && !is_possible(3));
    }
}
