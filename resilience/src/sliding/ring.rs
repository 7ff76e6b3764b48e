//! The last span of time: sums that only grow, and what they were at each bucket's beginning.

use crate::{
    clock::Tick,
    due::SET_BACK,
    sync::{AtomicU64, Ordering},
};

/// Ids begin here, so that none below is needed for the buckets before the first.
const FIRST: u64 = 1 << 16;
/// The origin before the first call.
const UNSET: u64 = u64::MAX;

#[derive(Debug)]
struct Snap<const N: usize> {
    id: AtomicU64,
    sums: [AtomicU64; N],
}

/// What the ever-growing sums were when each bucket of the window began.
///
/// What a window holds is the sums now less the sums when it began. So recording is one addition
/// that knows nothing of buckets, nothing is ever reset, and the ids are as wide as the clock: an
/// old bucket cannot come back to life after a gap, however long. Only the first call in a new
/// bucket does more: it writes down the sums (one writer at a time; who finds another at it goes
/// on, and its call counts in the bucket that begins).
///
/// The first bucket begins with the first call.
///
/// Source: Hystrix for ten buckets; Sentinel's `LeapArray` for absolute ids.
#[derive(Debug)]
pub(super) struct TimeRing<const N: usize> {
    width: u64,
    buckets: u64,
    origin: AtomicU64,
    newest: AtomicU64,
    snaps: Box<[Snap<N>]>,
}

/// Until when the newest bucket lasts, and before which tick a clock counts as set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds<const N: usize> {
    pub(super) end: u64,
    pub(super) back: u64,
    /// The sums when the window began whose newest bucket this is.
    pub(super) begin: [u64; N],
}

impl<const N: usize> TimeRing<N> {
    /// `span` nanoseconds in `buckets` steps; at least a nanosecond each.
    pub(super) fn new(span: u64, buckets: u32, sums: [u64; N]) -> Self {
        let buckets = u64::from(buckets.max(1));
        // One more than the window needs, and one for the writer, so that the beginning which a
        // reader looks up is not the one being written.
        let ring = Self {
            width: (span / buckets).max(1),
            buckets,
            origin: AtomicU64::new(UNSET),
            newest: AtomicU64::new(FIRST),
            snaps: (0..buckets + 2)
                .map(|_| Snap {
                    id: AtomicU64::new(0),
                    sums: std::array::from_fn(|_| AtomicU64::new(0)),
                })
                .collect(),
        };
        ring.forget(sums);
        ring
    }

    /// Empties the window. Writers only.
    pub(super) fn forget(&self, sums: [u64; N]) {
        self.origin.store(UNSET, Ordering::Release);
        for back in 0..self.snaps.len() as u64 {
            self.write(FIRST - back, sums);
        }
        self.newest.store(FIRST, Ordering::Release);
    }

    fn write(&self, id: u64, sums: [u64; N]) {
        let snap = &self.snaps[(id % self.snaps.len() as u64) as usize];
        for (word, sum) in snap.sums.iter().zip(sums) {
            word.store(sum, Ordering::Relaxed);
        }
        snap.id.store(id, Ordering::Release);
    }

    fn id(&self, origin: u64, now: Tick) -> u64 {
        FIRST.saturating_add(now.0.saturating_sub(origin) / self.width)
    }

    /// Makes the bucket of `now` the newest. Writers only: one at a time.
    pub(super) fn advance(&self, now: Tick, sums: [u64; N]) -> Bounds<N> {
        let mut origin = self.origin.load(Ordering::Acquire);
        if origin == UNSET || now.0 < self.bounds(origin).back {
            self.forget(sums);
            origin = now.0.min(UNSET - 1);
            self.origin.store(origin, Ordering::Release);
            return self.bounds(origin);
        }
        let id = self.id(origin, now);
        let newest = self.newest.load(Ordering::Acquire);
        let skipped = id.saturating_sub(self.snaps.len() as u64);
        for next in (newest.max(skipped) + 1)..=id {
            self.write(next, sums);
            self.newest.store(next, Ordering::Release);
        }
        self.bounds(origin)
    }

    fn bounds(&self, origin: u64) -> Bounds<N> {
        let newest = self.newest.load(Ordering::Acquire);
        let begin = origin.saturating_add((newest - FIRST).saturating_mul(self.width));
        let first = self.at(newest + 1 - self.buckets);
        Bounds {
            end: begin.saturating_add(self.width),
            back: begin
                .saturating_sub(self.width.saturating_mul(self.buckets))
                .saturating_sub(SET_BACK),
            begin: first.unwrap_or([0; N]),
        }
    }

    /// The sums when bucket `id` began, if that is still written down.
    fn at(&self, id: u64) -> Option<[u64; N]> {
        let snap = &self.snaps[(id % self.snaps.len() as u64) as usize];
        let sums = std::array::from_fn(|i| snap.sums[i].load(Ordering::Acquire));
        (snap.id.load(Ordering::Acquire) == id).then_some(sums)
    }

    /// What the window holds at `now`, if the sums are `sums`. Changes nothing; takes no lock.
    pub(super) fn held(&self, now: Tick, sums: impl Fn() -> [u64; N]) -> [u64; N] {
        // A writer meanwhile is rare, and at most a few steps away from its end.
        for _ in 0..64 {
            let newest = self.newest.load(Ordering::Acquire);
            let origin = self.origin.load(Ordering::Acquire);
            let id = if origin == UNSET {
                newest
            } else {
                self.id(origin, now).max(newest)
            };
            let first = id.saturating_sub(self.buckets - 1);
            if first > newest {
                return [0; N];
            }
            let begin = self.at(first);
            if self.newest.load(Ordering::Acquire) != newest {
                continue;
            }
            if let Some(begin) = begin {
                return less(sums(), begin);
            }
        }
        [0; N]
    }

    /// A ring of another shape that holds what this one held, as far as both reach back.
    pub(super) fn reshaped(&self, span: u64, buckets: u32, sums: [u64; N]) -> Self {
        let other = Self::new(span, buckets, sums);
        let origin = self.origin.load(Ordering::Acquire);
        if origin == UNSET {
            return other;
        }
        let newest = self.newest.load(Ordering::Acquire);
        let begin = origin.saturating_add((newest - FIRST).saturating_mul(self.width));
        other.origin.store(begin, Ordering::Release);
        let oldest = newest + 1 - self.buckets;
        for back in 0..other.snaps.len() as u64 {
            // What had been counted when that bucket would have begun; older than this window
            // reaches back is forgotten.
            let ours = newest.saturating_sub(back.saturating_mul(other.width).div_ceil(self.width));
            if let Some(then) = self.at(ours.max(oldest)) {
                other.write(FIRST - back, then);
            }
        }
        other
    }

    /// The bounds of the newest bucket; `end` is 0 before the first call.
    pub(super) fn current(&self) -> Bounds<N> {
        match self.origin.load(Ordering::Acquire) {
            UNSET => Bounds {
                end: 0,
                back: 0,
                begin: [0; N],
            },
            origin => self.bounds(origin),
        }
    }
}

/// What has come since `earlier`.
pub(super) fn less<const N: usize>(now: [u64; N], earlier: [u64; N]) -> [u64; N] {
    std::array::from_fn(|i| now[i].saturating_sub(earlier[i]))
}
