//! The last N calls: a ring of outcomes that really slides.

use super::{Counts, Sample};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Two bits an outcome: failed, slow.
const PER_WORD: u64 = 32;
const FAILED: u64 = 1;
const SLOW: u64 = 2;

/// A ring of N outcomes and running sums over it.
///
/// A call takes the next place, swaps its outcome in and corrects the sums by the difference to
/// what it swapped out. Whoever was there is gone: a window that only ever adds is an average over
/// a lifetime. When nobody is between two of these steps the sums are exactly those of the ring.
///
/// Success over success changes no bit, so as long as nothing bad is in the ring, successes need not
/// be put into it at all: a bad call leaves when N more have come after it, not before.
///
/// Source: resilience4j `FixedSizeSlidingWindowMetrics`, without its lock.
#[derive(Debug)]
pub(crate) struct CountRing {
    size: u32,
    next: AtomicU64,
    failed: AtomicU32,
    slow: AtomicU32,
    words: Box<[AtomicU64]>,
}

impl CountRing {
    pub(crate) fn new(size: u32) -> Self {
        let words = u64::from(size).div_ceil(PER_WORD);
        Self {
            size,
            next: AtomicU64::new(0),
            failed: AtomicU32::new(0),
            slow: AtomicU32::new(0),
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// A ring of another size that remembers as many of the latest outcomes as fit.
    pub(crate) fn resized(&self, size: u32) -> Self {
        let resized = Self::new(size);
        let next = self.next.load(Ordering::Acquire);
        for at in next.saturating_sub(u64::from(self.size.min(size)))..next {
            let place = at % u64::from(self.size);
            let word = self.words[(place / PER_WORD) as usize].load(Ordering::Relaxed);
            let bits = word >> (place % PER_WORD * 2);
            resized.record(Sample {
                failed: bits & FAILED != 0,
                slow: bits & SLOW != 0,
            });
        }
        resized
    }

    pub(crate) fn record(&self, sample: Sample) {
        let place = self.next.fetch_add(1, Ordering::AcqRel) % u64::from(self.size);
        let word = &self.words[(place / PER_WORD) as usize];
        let shift = place % PER_WORD * 2;
        let bits = if sample.failed { FAILED } else { 0 } | if sample.slow { SLOW } else { 0 };
        let mut seen = word.load(Ordering::Relaxed);
        let old = loop {
            let old = seen >> shift & 3;
            if old == bits {
                break old;
            }
            let next = seen & !(3 << shift) | bits << shift;
            match word.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break old,
                Err(now) => seen = now,
            }
        };
        correct(&self.failed, old & FAILED != 0, sample.failed);
        correct(&self.slow, old & SLOW != 0, sample.slow);
    }

    /// Whether anything failed or was slow: if not, no threshold can be reached.
    pub(crate) fn is_spotless(&self) -> bool {
        self.failed.load(Ordering::Acquire) == 0 && self.slow.load(Ordering::Acquire) == 0
    }

    /// What the ring holds after `calls` calls, those that were not put into it included.
    pub(crate) fn counts(&self, calls: u64) -> Counts {
        let total = calls.min(u64::from(self.size)) as u32;
        // A sum may be below zero for as long as another thread has swapped but not corrected.
        let sum =
            |of: &AtomicU32| (of.load(Ordering::Acquire) as i32).clamp(0, total as i32) as u32;
        Counts {
            total,
            failed: sum(&self.failed),
            slow: sum(&self.slow),
        }
    }
}

fn correct(sum: &AtomicU32, was: bool, is: bool) {
    match (was, is) {
        (false, true) => {
            sum.fetch_add(1, Ordering::AcqRel);
        }
        (true, false) => {
            sum.fetch_sub(1, Ordering::AcqRel);
        }
        _ => {}
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    const BAD: Sample = Sample {
        failed: true,
        slow: false,
    };
    const GOOD: Sample = Sample {
        failed: false,
        slow: false,
    };

    #[test]
    fn sums_are_exact_when_quiescent_even_when_two_writers_meet_in_one_place() {
        loom::model(|| {
            let ring = Arc::new(CountRing::new(1));
            let other = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || ring.record(BAD))
            };
            ring.record(GOOD);
            ring.record(BAD);
            other.join().expect("no panic");
            let bit = (ring.words[0].load(Ordering::Acquire) & 1) as u32;
            let counts = ring.counts(3);
            assert_eq!((counts.total, counts.failed), (1, bit));
        });
    }

    #[test]
    fn neighbours_in_one_word_do_not_undo_each_other() {
        loom::model(|| {
            let ring = Arc::new(CountRing::new(2));
            let other = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || ring.record(BAD))
            };
            ring.record(BAD);
            other.join().expect("no panic");
            assert_eq!(ring.counts(2).failed, 2);
        });
    }
}
