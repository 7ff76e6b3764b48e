//! What happened lately: over a span of time, over the last calls, or fading.
//!
//! The common call, a quick success in a circuit that has seen no failure lately, must cost next
//! to nothing, also when two threads make such calls at once. So successes are counted in *lanes*,
//! a cache line for each of a few threads; failures and slow calls are counted in one place, as
//! they are rare where speed matters; and if nothing bad is in the window, nothing is added up.
//!
//! Each epoch of the circuit counts in a *bank* of its own, so that a straggler that was about to
//! count in the old one does not count in the new.

mod count;
mod ema;
mod time;

use arc_swap::ArcSwap;

use self::{count::CountRing, ema::Ema, time::TimeRing};
use super::config::Window as WindowConfig;
use crate::{
    clock::{Tick, nanos},
    sync::{AtomicU64, Mutex, Ordering},
};

/// Banks that epochs take in turns. To count in the wrong one, a straggler would have to sleep
/// between two instructions through a multiple of this many transitions.
pub(super) const BANKS: u64 = 4;

/// Lanes; threads share them by turns. Under loom one is enough, and all that it can bear.
pub(super) const LANES: usize = if cfg!(loom) { 1 } else { 4 };

/// What a window holds at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
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

/// One call, as a window sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) failed: bool,
    pub(super) slow: bool,
}

/// What is judged: how many calls, and which shares of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    pub(super) calls: u64,
    pub(super) failed: f64,
    pub(super) slow: f64,
}

/// What a judgement is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged {
    pub(super) rates: Rates,
    /// End of the bucket, and number of bad calls, that it was seen at.
    end: u64,
    bad: u64,
}

/// Sums that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sums {
    total: u64,
    failed: u64,
    slow: u64,
    /// Failed or slow or both, over all banks.
    bad: u64,
}

impl Sums {
    fn to_array(self) -> [u64; 4] {
        [self.total, self.failed, self.slow, self.bad]
    }
    fn from_array([total, failed, slow, bad]: [u64; 4]) -> Self {
        Self {
            total,
            failed,
            slow,
            bad,
        }
    }
    fn less(self, earlier: Self) -> Self {
        let [a, b] = [self.to_array(), earlier.to_array()];
        Self::from_array(std::array::from_fn(|i| a[i].saturating_sub(b[i])))
    }
    fn counts(self) -> Counts {
        let cap = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Counts {
            total: cap(self.total),
            failed: cap(self.failed.min(self.total)),
            slow: cap(self.slow.min(self.total)),
        }
    }
    fn rates(self) -> Rates {
        let share = |n: u64| n.min(self.total) as f64 / self.total.max(1) as f64;
        Rates {
            calls: self.total,
            failed: share(self.failed),
            slow: share(self.slow),
        }
    }
}

/// Calls counted by a few threads, on a line of their own.
#[derive(Debug)]
#[repr(align(64))]
struct Lane {
    /// Calls in windows, by bank.
    counted: [AtomicU64; BANKS as usize],
    /// Successes that no window counted: of probes, of a disabled circuit, of stragglers.
    uncounted: AtomicU64,
}

#[derive(Debug)]
enum Shape {
    Time(TimeRing),
    Count(u64, CountRing),
    Ema(u64, Ema),
}

/// The window of one circuit.
#[derive(Debug)]
pub(super) struct Window {
    /// End of the newest bucket; 0 before the first call, so that it looks. Windows that are not
    /// over time say [`NO_TIME`].
    end: AtomicU64,
    back: AtomicU64,
    /// The sums when the window of the newest bucket began: right as long as `end` is the same
    /// before and after they are read.
    begin: [AtomicU64; 4],
    bad: AtomicU64,
    /// The end and the bad of the last judgement that found the circuit well. As long as neither
    /// has changed, more good calls can only make it better.
    well: [AtomicU64; 2],
    bank: AtomicU64,
    failed: [AtomicU64; BANKS as usize],
    slow: [AtomicU64; BANKS as usize],
    shape: ArcSwap<Shape>,
    writer: Mutex<()>,
    lanes: [Lane; LANES],
}

const NO_TIME: u64 = u64::MAX;

impl Window {
    pub(super) fn new(config: WindowConfig, buckets: u32) -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        let shape = Shape::new(config, buckets, 0, Sums::default());
        Self {
            end: AtomicU64::new(shape.end()),
            back: AtomicU64::new(0),
            begin: zeros(),
            bad: AtomicU64::new(0),
            well: std::array::from_fn(|_| AtomicU64::new(0)),
            bank: AtomicU64::new(0),
            failed: zeros(),
            slow: zeros(),
            shape: ArcSwap::from_pointee(shape),
            writer: Mutex::new(()),
            lanes: std::array::from_fn(|_| Lane {
                counted: zeros(),
                uncounted: AtomicU64::new(0),
            }),
        }
    }

    /// Counts one call of `bank`. Returns what the window holds now, unless that cannot reach a
    /// threshold: nothing bad is in it, or nothing but good calls has come since it was well.
    pub(super) fn record(
        &self,
        lane: usize,
        bank: u64,
        now: Tick,
        sample: Sample,
    ) -> Option<Judged> {
        let mut end = self.end.load(Ordering::Acquire);
        if end != NO_TIME && (now.0 >= end || now.0 < self.back.load(Ordering::Relaxed)) {
            self.advance(now);
            end = self.end.load(Ordering::Acquire);
        }
        let at = (bank % BANKS) as usize;
        self.lanes[lane].counted[at].fetch_add(1, Ordering::AcqRel);
        if sample.failed {
            self.failed[at].fetch_add(1, Ordering::AcqRel);
        }
        if sample.slow {
            self.slow[at].fetch_add(1, Ordering::AcqRel);
        }
        if end == NO_TIME {
            return self.record_calls(bank, sample);
        }
        let bad = if sample.failed || sample.slow {
            self.bad.fetch_add(1, Ordering::AcqRel) + 1
        } else {
            let bad = self.bad.load(Ordering::Acquire);
            let none = bad == self.begin[3].load(Ordering::Relaxed);
            let [well_end, well_bad] = &self.well;
            let well = || {
                end != 0
                    && end == well_end.load(Ordering::Relaxed)
                    && bad == well_bad.load(Ordering::Relaxed)
            };
            if none || well() {
                return None;
            }
            bad
        };
        Some(self.weigh(bank, now, end, bad))
    }

    /// Adds up what the window of the bucket that lasts until `end` holds.
    #[inline(never)]
    fn weigh(&self, bank: u64, now: Tick, end: u64, bad: u64) -> Judged {
        let begin = std::array::from_fn(|i| self.begin[i].load(Ordering::Acquire));
        // 0: somebody is just changing it.
        let held = if end != 0 && self.end.load(Ordering::Acquire) == end {
            self.sums(bank).less(Sums::from_array(begin))
        } else {
            self.held(now, bank)
        };
        Judged {
            rates: held.rates(),
            end,
            bad,
        }
    }

    /// The same where the window is over calls.
    #[inline(never)]
    fn record_calls(&self, bank: u64, sample: Sample) -> Option<Judged> {
        let rates = match &**self.shape.load() {
            Shape::Count(era, ring) if *era == bank => {
                ring.record(sample);
                (!ring.is_spotless()).then(|| Sums::from(ring.counts()).rates())
            }
            Shape::Ema(era, ema) if *era == bank => {
                ema.record(sample);
                Some(ema.rates())
            }
            // A straggler, or a window that has just changed its kind.
            Shape::Count(..) | Shape::Ema(..) | Shape::Time(_) => None,
        };
        rates.map(|rates| Judged {
            rates,
            end: NO_TIME,
            bad: 0,
        })
    }

    /// What was judged is well, with enough calls to say so.
    pub(super) fn is_well(&self, judged: Judged) {
        if judged.end != NO_TIME {
            let [well_end, well_bad] = &self.well;
            well_end.store(judged.end, Ordering::Relaxed);
            well_bad.store(judged.bad, Ordering::Relaxed);
        }
    }

    /// The thresholds have changed: what was well may not be.
    pub(super) fn judge_anew(&self) {
        self.well[0].store(0, Ordering::Relaxed);
    }

    #[cold]
    fn advance(&self, now: Tick) {
        // Somebody else at it: this call counts in the bucket that is just ending.
        let Some(_writer) = self.writer.try_lock() else {
            return;
        };
        if let Shape::Time(ring) = &**self.shape.load() {
            let bounds = ring.advance(now, self.sums(self.bank.load(Ordering::Acquire)));
            self.publish(bounds);
        }
    }

    fn publish(&self, bounds: time::Bounds) {
        // Changed first and last, so that a reader sees that it was being changed.
        self.end.store(0, Ordering::Release);
        self.back.store(bounds.back, Ordering::Relaxed);
        for (word, sum) in self.begin.iter().zip(bounds.begin.to_array()) {
            word.store(sum, Ordering::Release);
        }
        self.end
            .store(bounds.end.min(NO_TIME - 1), Ordering::Release);
    }

    fn held(&self, now: Tick, bank: u64) -> Sums {
        match &**self.shape.load() {
            Shape::Time(ring) => ring.held(now, || self.sums(bank)),
            Shape::Count(_, ring) => ring.counts().into(),
            Shape::Ema(_, ema) => ema.counts().into(),
        }
    }

    fn sums(&self, bank: u64) -> Sums {
        let at = (bank % BANKS) as usize;
        Sums {
            total: self
                .lanes
                .iter()
                .map(|lane| lane.counted[at].load(Ordering::Acquire))
                .sum(),
            failed: self.failed[at].load(Ordering::Acquire),
            slow: self.slow[at].load(Ordering::Acquire),
            bad: self.bad.load(Ordering::Acquire),
        }
    }

    /// Begins to count afresh, in `bank`.
    pub(super) fn restart(&self, bank: u64) {
        let _writer = self.writer.lock();
        self.bank.store(bank, Ordering::Release);
        let shape = self.shape.load_full();
        match &*shape {
            Shape::Time(ring) => {
                ring.forget(self.sums(bank));
                self.publish(ring.current());
            }
            Shape::Count(_, ring) => {
                self.shape.store(std::sync::Arc::new(Shape::Count(
                    bank,
                    CountRing::new(ring.size()),
                )));
            }
            Shape::Ema(_, ema) => {
                self.shape
                    .store(std::sync::Arc::new(Shape::Ema(bank, Ema::new(ema.span()))));
            }
        }
    }

    /// Takes another shape, with what the old one knew where that can be told in the new.
    pub(super) fn reshape(&self, config: WindowConfig, buckets: u32) {
        let _writer = self.writer.lock();
        let bank = self.bank.load(Ordering::Acquire);
        let sums = self.sums(bank);
        let shape = match (&*self.shape.load_full(), config) {
            (Shape::Time(old), WindowConfig::Time(span)) => {
                Shape::Time(old.reshaped(nanos(span.0), buckets, sums))
            }
            (Shape::Count(_, old), WindowConfig::Calls(size)) => {
                Shape::Count(bank, old.resized(size))
            }
            (Shape::Ema(_, old), WindowConfig::Fading(span)) => {
                Shape::Ema(bank, old.respanned(span))
            }
            _ => Shape::new(config, buckets, bank, sums),
        };
        let bounds = match &shape {
            Shape::Time(ring) => Some(ring.current()),
            Shape::Count(..) | Shape::Ema(..) => None,
        };
        self.shape.store(std::sync::Arc::new(shape));
        match bounds {
            Some(bounds) => self.publish(bounds),
            None => self.end.store(NO_TIME, Ordering::Release),
        }
    }

    /// What the window holds at `now`. Takes no lock and changes nothing.
    pub(super) fn counts(&self, now: Tick) -> Counts {
        self.held(now, self.bank.load(Ordering::Acquire)).counts()
    }

    /// A success that is none of the window's business.
    pub(super) fn pass_by(&self, lane: usize) {
        self.lanes[lane].uncounted.fetch_add(1, Ordering::Relaxed);
    }

    /// Successes ever passed by.
    pub(super) fn passed_by(&self) -> u64 {
        let of = |lane: &Lane| lane.uncounted.load(Ordering::Relaxed);
        self.lanes.iter().map(of).sum()
    }

    /// Calls ever counted, in all banks.
    pub(super) fn recorded(&self) -> u64 {
        let of =
            |lane: &Lane| -> u64 { lane.counted.iter().map(|n| n.load(Ordering::Relaxed)).sum() };
        self.lanes.iter().map(of).sum()
    }
}

impl From<Counts> for Sums {
    fn from(counts: Counts) -> Self {
        Self {
            total: counts.total.into(),
            failed: counts.failed.into(),
            slow: counts.slow.into(),
            bad: 0,
        }
    }
}

impl Shape {
    fn new(config: WindowConfig, buckets: u32, bank: u64, sums: Sums) -> Self {
        match config {
            WindowConfig::Time(span) => Self::Time(TimeRing::new(nanos(span.0), buckets, sums)),
            WindowConfig::Calls(size) => Self::Count(bank, CountRing::new(size)),
            WindowConfig::Fading(span) => Self::Ema(bank, Ema::new(span)),
        }
    }

    fn end(&self) -> u64 {
        match self {
            Self::Time(_) => 0,
            Self::Count(..) | Self::Ema(..) => NO_TIME,
        }
    }
}
