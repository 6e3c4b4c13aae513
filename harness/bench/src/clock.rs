// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! A clock that runs on while one kernel ends and the next one begins.
//!
//! Each kernel counts its own time from zero. What goes on counting is the processor's time stamp
//! counter, at a rate that each side can find out by comparing it with its own clock; and the
//! machine's battery clock, in whole seconds: good enough to notice a counter that was set back.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{ensure, Context, Result};
use rustix::time::{clock_gettime, ClockId};
use serde::{Deserialize, Serialize};

use crate::sys::ticks;

/// Where the battery clock is read, if the kernel has a driver for it.
const BATTERY_CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";
/// Both kernels take whole seconds from the battery clock.
const WALL_CLOCK_ERROR: Duration = Duration::from_secs(3);
/// On a busy machine an emulated guest's clocks drift apart; by less than one part in so many.
const WALL_CLOCK_DRIFT: u32 = 4;

/// A moment, on all the clocks.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Moment {
    ticks: u64,
    /// Since the epoch.
    wall: Duration,
    /// Since this kernel's boot, unaffected by corrections.
    own_ns: u64,
}

impl Moment {
    /// Now. The battery clock is read before the counter: that may take milliseconds, which do not
    /// belong to a blackout that begins here.
    ///
    /// # Errors
    ///
    /// A wall clock before 1970.
    pub fn now() -> Result<Self> {
        let wall = wall_clock()?;
        let own = clock_gettime(ClockId::MonotonicRaw);
        Ok(Self {
            ticks: ticks(),
            wall,
            own_ns: own.tv_sec as u64 * 1_000_000_000 + own.tv_nsec as u64,
        })
    }

    /// Ticks in a nanosecond, from this moment to a later one of the same kernel.
    ///
    /// # Errors
    ///
    /// If no counter runs.
    pub fn rate_until(&self, later: &Self) -> Result<f64> {
        let (ticks, nanoseconds) = (
            later.ticks.wrapping_sub(self.ticks),
            later.own_ns.saturating_sub(self.own_ns),
        );
        ensure!(
            nanoseconds > 0 && ticks > 0,
            "the time stamp counter does not run"
        );
        Ok(ticks as f64 / nanoseconds as f64)
    }

    /// Nanoseconds from this moment to a later one of the next kernel, at a rate in ticks a
    /// nanosecond.
    ///
    /// # Errors
    ///
    /// If the two clocks contradict each other.
    pub fn nanoseconds_until(&self, later: &Self, rate: f64) -> Result<u64> {
        let ticks = later.ticks.checked_sub(self.ticks);
        let ticks = ticks.context("the time stamp counter was set back by the jump")?;
        let elapsed = Duration::from_nanos((ticks as f64 / rate) as u64);
        let by_wall = later.wall.saturating_sub(self.wall);
        ensure!(
            elapsed.abs_diff(by_wall) <= WALL_CLOCK_ERROR + by_wall / WALL_CLOCK_DRIFT,
            "by the time stamp counter the jump took {elapsed:?}, by the battery clock {by_wall:?}"
        );
        Ok(elapsed.as_nanos() as u64)
    }
}

/// The battery clock. Without a driver for it, the kernel's wall clock, which was taken from it at
/// boot.
fn wall_clock() -> Result<Duration> {
    let battery = fs::read_to_string(BATTERY_CLOCK)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    match battery {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .context("the wall clock is before 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(ticks: u64, seconds: u64) -> Moment {
        Moment {
            ticks,
            wall: Duration::from_secs(seconds),
            own_ns: seconds * 1_000_000_000,
        }
    }

    #[test]
    fn ticks_become_nanoseconds_and_the_wall_clock_agrees() {
        let rate = moment(0, 0).rate_until(&moment(5_000_000_000, 2)).unwrap();
        assert_eq!(rate, 2.5);
        let jump = moment(1_000_000_000, 100);
        let arrival = moment(6_000_000_000, 102);
        assert_eq!(
            jump.nanoseconds_until(&arrival, rate).unwrap(),
            2_000_000_000
        );
        assert!(arrival.nanoseconds_until(&jump, rate).is_err());
        let long_after = moment(41_000_000_000, 120);
        assert!(
            jump.nanoseconds_until(&long_after, rate).is_ok(),
            "16 s of 20"
        );
        assert!(jump
            .nanoseconds_until(&moment(6_000_000_000, 120), rate)
            .is_err());
    }
}
