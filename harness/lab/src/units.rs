// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! Sizes and durations as a person reads them.

/// Bytes as a person reads them.
pub(crate) fn human(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

/// Seconds as a person reads them.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {} s", seconds as u64 / 60, seconds as u64 % 60)
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(human(512), "512 B");
        assert_eq!(human(3 << 20), "3.0 MiB");
        assert_eq!(duration(1.25), "1.2 s");
        assert_eq!(duration(510.0), "8 min 30 s");
    }
}
