//! A window over time that really slides: ten buckets of atomics, no lock to reset them.

use std::time::Duration;

use crate::{
    clock::{Tick, nanos},
    sync::{AtomicU64, Ordering},
};

/// Buckets in a window. Source: Hystrix, `metrics.rollingStats.numBuckets = 10`.
const BUCKETS: u64 = 10;

/// What a window holds at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that count.
    pub total: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that took longer than the slow threshold.
    pub slow: u32,
}

impl Counts {
    /// Share of failed calls; `None` below `min_calls`.
    pub fn failure_ratio(&self, min_calls: u32) -> Option<f64> {
        (self.total >= min_calls.max(1)).then(|| f64::from(self.failed) / f64::from(self.total))
    }

    /// Share of slow calls; `None` below `min_calls`.
    pub fn slow_ratio(&self, min_calls: u32) -> Option<f64> {
        (self.total >= min_calls.max(1)).then(|| f64::from(self.slow) / f64::from(self.total))
    }
}

/// Counts calls, failures and slow calls over the last `span`, in steps of a tenth of it.
///
/// Each word is `bucket id (32 bits) | count (32 bits)`. A writer that finds an old id swaps in
/// the new id together with its own sample, so there is no reset to race with and no lost update.
/// An id comes round again after 2³² buckets: 136 years at a second each, 497 days at 10 ms.
#[derive(Debug)]
pub(super) struct TimeWindow {
    width: u64,
    total: [AtomicU64; BUCKETS as usize],
    failed: [AtomicU64; BUCKETS as usize],
    slow: [AtomicU64; BUCKETS as usize],
}

impl TimeWindow {
    /// `span` is raised to 10 ns if shorter: a bucket is at least one nanosecond wide.
    pub(super) fn new(span: Duration) -> Self {
        let word = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            width: (nanos(span) / BUCKETS).max(1),
            total: word(),
            failed: word(),
            slow: word(),
        }
    }

    /// Ids start at 1, so that the zeroed words of a new window belong to no bucket.
    fn id(&self, now: Tick) -> u64 {
        (now.0 / self.width).wrapping_add(1) & 0xFFFF_FFFF
    }

    pub(super) fn record(&self, now: Tick, failed: bool, slow: bool) {
        let id = self.id(now);
        let at = (id % BUCKETS) as usize;
        add(&self.total[at], id);
        if failed {
            add(&self.failed[at], id);
        }
        if slow {
            add(&self.slow[at], id);
        }
    }

    pub(super) fn counts(&self, now: Tick) -> Counts {
        let id = self.id(now);
        Counts {
            total: sum(&self.total, id),
            failed: sum(&self.failed, id),
            slow: sum(&self.slow, id),
        }
    }

    /// Only the failures: enough to know that a success cannot open the circuit.
    pub(super) fn has_failures(&self, now: Tick) -> bool {
        sum(&self.failed, self.id(now)) > 0
    }

    pub(super) fn clear(&self) {
        for word in self.total.iter().chain(&self.failed).chain(&self.slow) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

fn add(word: &AtomicU64, id: u64) {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let next = match age(id, seen >> 32) {
            // A straggler whose clock is behind: its bucket is gone, the sample with it.
            age if age > u64::from(u32::MAX) / 2 => return,
            0 => (id << 32) | (seen & 0xFFFF_FFFF).saturating_add(1).min(0xFFFF_FFFF),
            _ => (id << 32) | 1,
        };
        match word.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

fn age(id: u64, bucket: u64) -> u64 {
    id.wrapping_sub(bucket) & 0xFFFF_FFFF
}

fn sum(words: &[AtomicU64], id: u64) -> u32 {
    let mut sum = 0u32;
    for word in words {
        let seen = word.load(Ordering::Relaxed);
        if age(id, seen >> 32) < BUCKETS {
            sum = sum.saturating_add(seen as u32);
        }
    }
    sum
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(ms: u64) -> Tick {
        Tick(1_000_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn slides_bucket_by_bucket() {
        let window = TimeWindow::new(Duration::from_secs(10));
        for second in 0..10 {
            window.record(at(second * 1000), second % 2 == 0, false);
        }
        assert_eq!(
            window.counts(at(9_000)),
            Counts {
                total: 10,
                failed: 5,
                slow: 0
            }
        );
        assert_eq!(
            window.counts(at(10_000)),
            Counts {
                total: 9,
                failed: 4,
                slow: 0
            }
        );
        assert_eq!(window.counts(at(18_000)).total, 1);
        assert_eq!(window.counts(at(19_000)).total, 0);
    }

    #[test]
    fn an_idle_window_is_empty_however_long_the_gap() {
        let window = TimeWindow::new(Duration::from_millis(100));
        window.record(at(0), true, true);
        for gap in [101, 1_000, 1_000_000, 10_000_000_000] {
            assert_eq!(window.counts(at(gap)), Counts::default(), "after {gap} ms");
        }
        window.record(at(1_000_000), true, false);
        assert_eq!(window.counts(at(1_000_000)).total, 1);
    }

    #[test]
    fn a_straggler_does_not_wipe_a_newer_bucket() {
        let window = TimeWindow::new(Duration::from_secs(10));
        window.record(at(20_000), false, false);
        window.record(at(10_000), true, false);
        assert_eq!(
            window.counts(at(20_000)),
            Counts {
                total: 1,
                failed: 0,
                slow: 0
            }
        );
    }
}
