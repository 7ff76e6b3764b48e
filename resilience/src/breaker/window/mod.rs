//! What happened lately: over a span of time, over the last calls, or fading.
//!
//! The common call, a quick success in a circuit that has seen no failure lately, must cost next
//! to nothing, also when two threads make such calls at once. So successes are counted in *lanes*,
//! a cache line for each of a few threads; failures and slow calls are counted in one place, as
//! they are rare where speed matters; and if nothing bad is in the window, nothing is added up: a
//! window over calls does not even see a success then, as all that it would put in the place of a
//! success is a success.
//!
//! Each epoch of the circuit counts in a *bank* of its own, so that a straggler that was about to
//! count in the old one does not count in the new.

mod count;
mod ema;
mod sums;

use arc_swap::ArcSwapOption;

pub use self::sums::Counts;
pub(super) use self::sums::{Judged, Rates, Sample};
use self::{
    count::CountRing,
    ema::Ema,
    sums::{BAD, Sums},
};
use super::config::Window as WindowConfig;
use crate::{
    clock::{Tick, nanos},
    lanes::{Lane, Lanes},
    sliding::{NO_TIME, Sliding},
    sync::{AtomicU64, Ordering},
};

/// Banks that epochs take in turns. To count in the wrong one, a straggler would have to sleep
/// between two instructions through a multiple of this many transitions.
pub(super) const BANKS: u64 = 4;

/// Calls that one lane's threads counted.
#[derive(Debug)]
struct Counted {
    /// In windows, by bank.
    banks: [AtomicU64; BANKS as usize],
    /// Successes that no window counted: of probes, of a disabled circuit, of stragglers.
    uncounted: AtomicU64,
}

/// What a window says in the place of a bucket's end, if it is over calls or fading.
const CALLS: u64 = NO_TIME;
const FADING: u64 = NO_TIME + 1;

/// Bits of [`Window::shapes`] in [`Window::spotless`].
const SHAPE_BITS: u32 = 16;

/// The last calls, in the bank of one epoch.
#[derive(Debug)]
struct Calls {
    bank: u64,
    ring: CountRing,
}

/// The window of one circuit.
#[derive(Debug)]
pub(super) struct Window {
    /// The window if it is over time; which kind it is otherwise.
    time: Sliding<4>,
    bad: AtomicU64,
    /// How often the window has begun anew or changed its shape.
    shapes: AtomicU64,
    /// `bad (48 bits) | shapes (16 bits)` when a window over calls was last seen without anything
    /// bad in it. It still is if neither has changed: whatever is bad is put into the window first
    /// and then counted in `bad`.
    spotless: AtomicU64,
    /// The end and the bad of the last judgement that found the circuit well. As long as neither
    /// has changed, more good calls can only make it better.
    well: [AtomicU64; 2],
    bank: AtomicU64,
    failed: [AtomicU64; BANKS as usize],
    slow: [AtomicU64; BANKS as usize],
    /// What had been counted when the window began, if it is over calls or fading.
    begun: [AtomicU64; BANKS as usize],
    calls: ArcSwapOption<Calls>,
    fading: Ema,
    lanes: Lanes<Counted>,
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

fn at(bank: u64) -> usize {
    (bank % BANKS) as usize
}

impl Window {
    pub(super) fn new(config: WindowConfig, buckets: u32) -> Self {
        let (span, buckets) = match config {
            WindowConfig::Time(span) => (nanos(span.0), buckets),
            // None that anybody sees.
            WindowConfig::Calls(_) | WindowConfig::Fading(_) => (1, 1),
        };
        let window = Self {
            time: Sliding::new(span, buckets),
            bad: AtomicU64::new(0),
            shapes: AtomicU64::new(0),
            spotless: AtomicU64::new(u64::MAX),
            well: zeros(),
            bank: AtomicU64::new(0),
            failed: zeros(),
            slow: zeros(),
            begun: zeros(),
            calls: ArcSwapOption::empty(),
            fading: Ema::new(1),
            lanes: Lanes::new(|| Counted {
                banks: zeros(),
                uncounted: AtomicU64::new(0),
            }),
        };
        window.begin(config, buckets, 0);
        window
    }

    /// Counts one good call of `bank`. Returns what the window holds now, unless that cannot reach
    /// a threshold: nothing bad is in it, or nothing but good calls has come since it was well.
    #[inline]
    pub(super) fn record_good(&self, lane: Lane, bank: u64, now: Tick) -> Option<Judged> {
        let end = self.turn(now);
        lane.add(&self.lanes.of(lane).banks[at(bank)], 1);
        let spotless = if end < NO_TIME {
            self.bad.load(Ordering::Acquire) == self.time.begin(BAD)
        } else {
            let shape = self.shapes.load(Ordering::Acquire);
            self.stamp(shape) == self.spotless.load(Ordering::Relaxed)
        };
        if spotless {
            return None;
        }
        self.record_among_bad(end, bank, now)
    }

    fn turn(&self, now: Tick) -> u64 {
        self.time
            .turn(now, || self.sums(self.bank.load(Ordering::Acquire)))
    }

    fn stamp(&self, shape: u64) -> u64 {
        self.bad.load(Ordering::Acquire) << SHAPE_BITS | shape & ((1 << SHAPE_BITS) - 1)
    }

    /// A good call in a window with something bad in it.
    #[inline(never)]
    fn record_among_bad(&self, end: u64, bank: u64, now: Tick) -> Option<Judged> {
        if end >= NO_TIME {
            return self.record_over_calls(end, bank, Sample::GOOD);
        }
        let bad = self.bad.load(Ordering::Acquire);
        let [well_end, well_bad] = &self.well;
        let well = end != 0
            && end == well_end.load(Ordering::Relaxed)
            && bad == well_bad.load(Ordering::Relaxed);
        (!well).then(|| self.weigh(bank, now, end, bad))
    }

    /// Counts any call of `bank`, as [`record_good`](Self::record_good) does a good one.
    pub(super) fn record(
        &self,
        lane: Lane,
        bank: u64,
        now: Tick,
        sample: Sample,
    ) -> Option<Judged> {
        if !sample.is_bad() {
            return self.record_good(lane, bank, now);
        }
        let end = self.turn(now);
        lane.add(&self.lanes.of(lane).banks[at(bank)], 1);
        if sample.failed {
            self.failed[at(bank)].fetch_add(1, Ordering::AcqRel);
        }
        if sample.slow {
            self.slow[at(bank)].fetch_add(1, Ordering::AcqRel);
        }
        if end >= NO_TIME {
            let judged = self.record_over_calls(end, bank, sample);
            self.bad.fetch_add(1, Ordering::AcqRel);
            return judged;
        }
        let bad = self.bad.fetch_add(1, Ordering::AcqRel) + 1;
        Some(self.weigh(bank, now, end, bad))
    }

    /// Adds up what the window of the bucket that lasts until `end` holds.
    #[inline(never)]
    fn weigh(&self, bank: u64, now: Tick, end: u64, bad: u64) -> Judged {
        let held = self.time.held_at(end, now, || self.sums(bank));
        Judged {
            rates: Sums::from_array(held).rates(),
            end,
            bad,
        }
    }

    /// Puts one call into a window over calls. `None` if nothing bad is in it.
    fn record_over_calls(&self, end: u64, bank: u64, sample: Sample) -> Option<Judged> {
        // Before the window is looked at: what has changed meanwhile makes it void.
        let stamp = self.stamp(self.shapes.load(Ordering::Acquire));
        let (rates, spotless) = if end == CALLS {
            let calls = self.calls.load();
            // Otherwise a straggler, or a window that has just changed its kind.
            let ring = calls.as_ref().filter(|calls| calls.bank == bank)?;
            ring.ring.record(sample);
            let counts = ring.ring.counts(self.since_begun(bank));
            (Sums::from(counts).rates(), ring.ring.is_spotless())
        } else {
            let (failed, slow) = self.fading.record(at(bank), sample);
            let rates = Rates {
                calls: self.since_begun(bank),
                failed: f64::from(failed),
                slow: f64::from(slow),
            };
            (rates, failed <= 0.0 && slow <= 0.0)
        };
        if spotless {
            self.spotless.store(stamp, Ordering::Relaxed);
            return None;
        }
        Some(Judged { rates, end, bad: 0 })
    }

    /// What was judged is well, with enough calls to say so.
    pub(super) fn is_well(&self, judged: Judged) {
        if judged.end < NO_TIME {
            let [well_end, well_bad] = &self.well;
            well_end.store(judged.end, Ordering::Relaxed);
            well_bad.store(judged.bad, Ordering::Relaxed);
        }
    }

    /// The thresholds have changed: what was well may not be.
    pub(super) fn judge_anew(&self) {
        self.well[0].store(0, Ordering::Relaxed);
    }

    fn sums(&self, bank: u64) -> [u64; 4] {
        let at = at(bank);
        let sums = Sums {
            total: self.lanes.sum(|lane| &lane.banks[at]),
            failed: self.failed[at].load(Ordering::Acquire),
            slow: self.slow[at].load(Ordering::Acquire),
            bad: self.bad.load(Ordering::Acquire),
        };
        sums.to_array()
    }

    /// Calls of `bank` since its window began, where that is not over time.
    fn since_begun(&self, bank: u64) -> u64 {
        let begun = self.begun[at(bank)].load(Ordering::Acquire);
        let [total, ..] = self.sums(bank);
        total.saturating_sub(begun)
    }

    /// Begins to count afresh, in `bank`.
    pub(super) fn restart(&self, bank: u64) {
        let change = self.time.change();
        self.bank.store(bank, Ordering::Release);
        let sums = self.sums(bank);
        self.begun[at(bank)].store(sums[0], Ordering::Release);
        match self.time.end() {
            CALLS => {
                let size = self
                    .calls
                    .load()
                    .as_ref()
                    .map_or(1, |calls| calls.ring.size());
                self.set_calls(bank, CountRing::new(size));
            }
            FADING => self.fading.forget(at(bank)),
            _ => change.forget(sums),
        }
        self.shapes.fetch_add(1, Ordering::AcqRel);
    }

    fn set_calls(&self, bank: u64, ring: CountRing) {
        self.calls
            .store(Some(std::sync::Arc::new(Calls { bank, ring })));
    }

    /// Begins with another shape that knows nothing yet.
    fn begin(&self, config: WindowConfig, buckets: u32, bank: u64) {
        let change = self.time.change();
        let sums = self.sums(bank);
        self.begun[at(bank)].store(sums[0], Ordering::Release);
        match config {
            WindowConfig::Time(span) => change.replace(nanos(span.0), buckets, sums),
            WindowConfig::Calls(size) => {
                self.set_calls(bank, CountRing::new(size));
                change.halt(CALLS);
            }
            WindowConfig::Fading(span) => {
                self.fading.set_span(span);
                self.fading.forget(at(bank));
                change.halt(FADING);
            }
        }
        self.shapes.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes another shape, with what the old one knew where that can be told in the new.
    pub(super) fn reshape(&self, config: WindowConfig, buckets: u32) {
        let bank = self.bank.load(Ordering::Acquire);
        match (self.time.end(), config) {
            (CALLS, WindowConfig::Calls(size)) => self.resize(bank, size),
            (FADING, WindowConfig::Fading(span)) => self.fading.set_span(span),
            (0..NO_TIME, WindowConfig::Time(span)) => {
                let change = self.time.change();
                change.reshape(nanos(span.0), buckets, self.sums(bank));
            }
            _ => self.begin(config, buckets, bank),
        }
    }

    /// Another size, and as many of the latest outcomes as fit.
    fn resize(&self, bank: u64, size: u32) {
        let _change = self.time.change();
        if let Some(old) = self.calls.load_full() {
            let remembered = self.since_begun(bank).min(old.ring.size().min(size).into());
            let [total, ..] = self.sums(bank);
            let ring = old.ring.resized(size);
            self.begun[at(bank)].store(total - remembered, Ordering::Release);
            self.set_calls(bank, ring);
        }
        self.shapes.fetch_add(1, Ordering::AcqRel);
    }

    /// What the window holds at `now`. Takes no lock and changes nothing.
    pub(super) fn counts(&self, now: Tick) -> Counts {
        let bank = self.bank.load(Ordering::Acquire);
        match self.time.end() {
            CALLS => match self.calls.load().as_ref() {
                Some(calls) => calls.ring.counts(self.since_begun(bank)),
                None => Counts::default(),
            },
            FADING => self.fading.counts(at(bank), self.since_begun(bank)),
            _ => Sums::from_array(self.time.held(now, || self.sums(bank))).counts(),
        }
    }

    /// A success that is none of the window's business.
    pub(super) fn pass_by(&self, lane: Lane) {
        lane.add(&self.lanes.of(lane).uncounted, 1);
    }

    /// Successes ever passed by.
    pub(super) fn passed_by(&self) -> u64 {
        self.lanes.sum(|lane| &lane.uncounted)
    }

    /// Calls ever counted, in all banks.
    pub(super) fn recorded(&self) -> u64 {
        (0..BANKS as usize)
            .map(|at| self.lanes.sum(|lane| &lane.banks[at]))
            .sum()
    }
}

#[cfg(all(test, loom))]
mod models;
