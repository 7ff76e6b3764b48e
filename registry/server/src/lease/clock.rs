//! Time as leases count it, and how well this process keeps it.
//!
//! A process that was stopped (SIGSTOP, a paused virtual machine, swapping) heard nobody for that
//! long, and must not hold it against anybody. So leases are timed by a clock that stands still
//! while the process does: nothing has to be moved when it wakes. A process that is merely slow
//! counts how slow, and gives everybody as many times longer.
//!
//! # Source
//! Lifeguard (Dadgar, Phillips, Currey: arXiv 1707.00788): a member that is slow itself trusts its
//! own suspicions less.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Nobody looked at the clock for so long: the process stood still. Ten times the sweep's interval.
const STOOD_STILL_MS: u64 = 1_000;
/// A tick that is late by so many of its intervals is counted against ourselves. Source: the
/// reference's "more than twice".
const LATE: u32 = 2;
/// The highest score: deadlines are eight times as long. Source: Lifeguard's maximum.
const MAX_SCORE: u32 = 7;
/// Ticks in time that take one point back: five seconds of them.
const FORGIVEN_AFTER: u32 = 50;

/// A clock in milliseconds that stands still while the process does.
#[derive(Debug)]
pub struct LeaseClock {
    base: Instant,
    /// When it was last looked at, in milliseconds after `base`.
    seen: AtomicU64,
    /// How long it has stood still.
    still: AtomicU64,
    score: AtomicU32,
    in_time: AtomicU32,
}

impl LeaseClock {
    /// One that begins at zero.
    pub fn new(now: Instant) -> Self {
        Self {
            base: now,
            seen: AtomicU64::new(0),
            still: AtomicU64::new(0),
            score: AtomicU32::new(0),
            in_time: AtomicU32::new(0),
        }
    }

    /// What it shows. Wait-free. The sweep looks at it ten times a second; a longer gap was a
    /// standstill, found by whoever looks first. One who looks at the same moment may miss that,
    /// and gives a lease that is longer by it.
    pub fn now(&self, now: Instant) -> u64 {
        let wall = now.saturating_duration_since(self.base).as_millis() as u64;
        let gap = wall.saturating_sub(self.seen.fetch_max(wall, Ordering::Relaxed));
        if gap > STOOD_STILL_MS {
            self.still.fetch_add(gap, Ordering::Relaxed);
        }
        wall.saturating_sub(self.still.load(Ordering::Relaxed))
    }

    /// How long it has stood still in all, in milliseconds.
    pub fn stood_still(&self) -> u64 {
        self.still.load(Ordering::Relaxed)
    }

    /// The sweep, due every `every`, came `after` the last one.
    pub fn ticked(&self, after: Duration, every: Duration) {
        if after > every * (1 + LATE) {
            self.in_time.store(0, Ordering::Relaxed);
            let more = (self.score() + 1).min(MAX_SCORE);
            self.score.store(more, Ordering::Relaxed);
        } else if self.score() > 0
            && self.in_time.fetch_add(1, Ordering::Relaxed) + 1 >= FORGIVEN_AFTER
        {
            self.in_time.store(0, Ordering::Relaxed);
            self.score.store(self.score() - 1, Ordering::Relaxed);
        }
    }

    /// How slow this process is: deadlines are `1 + score` times as long.
    pub fn score(&self) -> u32 {
        self.score.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_with_the_process() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let clock = LeaseClock::new(start);
        for (what, ms, want) in [
            ("runs", 100, 100),
            ("a long tick is a long tick", 1_100, 1_100),
            ("a minute asleep", 61_100, 1_100),
            ("runs again", 61_200, 1_200),
            ("does not go back", 61_000, 1_000),
        ] {
            assert_eq!(clock.now(at(ms)), want, "{what}");
        }
        assert_eq!(clock.stood_still(), 60_000);
    }

    #[test]
    fn late_ticks_count_and_are_forgiven() {
        let clock = LeaseClock::new(Instant::now());
        let every = Duration::from_millis(100);
        clock.ticked(every * 3, every);
        assert_eq!(clock.score(), 0, "late, but not by more than twice");
        for _ in 0..20 {
            clock.ticked(every * 4, every);
        }
        assert_eq!(clock.score(), 7);
        for _ in 0..49 {
            clock.ticked(every, every);
        }
        assert_eq!(clock.score(), 7);
        clock.ticked(every, every);
        assert_eq!(clock.score(), 6);
    }
}
