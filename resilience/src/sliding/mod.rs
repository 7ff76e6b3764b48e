//! Sums over a window of time, for which a call pays two comparisons.
//!
//! Whoever counts only ever adds; a window is what the sums are now less what they were when it
//! began. So a call must know only whether the newest bucket is still the one it falls in, and to
//! judge, what the sums were when its window began. Both are kept here, where no call needs a lock
//! or the ring of all buckets; the first call of each bucket turns the page for all others.

mod ring;

use arc_swap::ArcSwap;

use self::ring::{Bounds, TimeRing, less};
use crate::{
    clock::Tick,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering},
};

/// Ends of buckets from here on say that the window is not over time.
pub(crate) const NO_TIME: u64 = u64::MAX - 1;

/// A sliding window over `N` sums that somebody else keeps and that only grow.
#[derive(Debug)]
pub(crate) struct Sliding<const N: usize> {
    /// End of the newest bucket; 0 before the first call, so that it looks, and while it is being
    /// changed.
    end: AtomicU64,
    /// Before this tick a clock counts as set back.
    back: AtomicU64,
    /// The sums when the window of the newest bucket began: right as long as `end` is the same
    /// before and after they are read.
    begin: [AtomicU64; N],
    ring: ArcSwap<TimeRing<N>>,
    writer: Mutex<()>,
    /// How often it was changed by more than time: sums that were read before are of another window.
    changes: AtomicU64,
}

impl<const N: usize> Sliding<N> {
    /// `span` nanoseconds in `buckets` steps.
    pub(crate) fn new(span: u64, buckets: u32) -> Self {
        Self {
            end: AtomicU64::new(0),
            back: AtomicU64::new(0),
            begin: std::array::from_fn(|_| AtomicU64::new(0)),
            ring: ArcSwap::from_pointee(TimeRing::new(span, buckets, [0; N])),
            writer: Mutex::new(()),
            changes: AtomicU64::new(0),
        }
    }

    /// The end of the bucket that `now` falls in, which is the newest one then, or of the newest
    /// if another thread is just changing it. `sums` are asked if it is a new one.
    #[inline]
    pub(crate) fn turn(&self, now: Tick, sums: impl Fn() -> [u64; N]) -> u64 {
        let end = self.end.load(Ordering::Acquire);
        if now.0 < end && now.0 >= self.back.load(Ordering::Relaxed) {
            return end;
        }
        if end < NO_TIME {
            self.advance(now, sums);
        }
        self.end.load(Ordering::Acquire)
    }

    #[cold]
    fn advance(&self, now: Tick, sums: impl Fn() -> [u64; N]) {
        // Before the lock: whoever finds it taken goes on and counts after this, and so in the bucket
        // that begins. What is counted in between, by whoever is here with the same page, counts
        // there too.
        let changes = self.changes.load(Ordering::Acquire);
        let mut known = sums();
        let Some(_writer) = self.writer.try_lock() else {
            return;
        };
        if self.changes.load(Ordering::Acquire) != changes {
            known = sums();
        }
        if self.end.load(Ordering::Acquire) < NO_TIME {
            self.publish(&self.ring.load().advance(now, known));
        }
    }

    fn publish(&self, bounds: &Bounds<N>) {
        // Changed first and last, so that a reader sees that it was being changed.
        self.end.store(0, Ordering::Release);
        self.back.store(bounds.back, Ordering::Relaxed);
        for (word, sum) in self.begin.iter().zip(bounds.begin) {
            word.store(sum, Ordering::Release);
        }
        self.end
            .store(bounds.end.min(NO_TIME - 1), Ordering::Release);
    }

    /// End of the newest bucket, or what [`halt`](Change::halt) said.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// One of the sums when the window began. A hint while others turn the page.
    #[inline]
    pub(crate) fn begin(&self, which: usize) -> u64 {
        self.begin[which].load(Ordering::Relaxed)
    }

    /// What the window holds whose newest bucket ends at `end`, as [`turn`](Self::turn) said.
    #[inline]
    pub(crate) fn held_at(&self, end: u64, now: Tick, sums: impl Fn() -> [u64; N]) -> [u64; N] {
        let begin = std::array::from_fn(|i| self.begin[i].load(Ordering::Acquire));
        // 0: somebody is just changing it.
        if end != 0 && self.end.load(Ordering::Acquire) == end {
            less(sums(), begin)
        } else {
            self.held(now, sums)
        }
    }

    /// What the window holds at `now`. Changes nothing; takes no lock.
    pub(crate) fn held(&self, now: Tick, sums: impl Fn() -> [u64; N]) -> [u64; N] {
        self.ring.load().held(now, sums)
    }

    /// Only one thread changes it at a time.
    pub(crate) fn change(&self) -> Change<'_, N> {
        Change {
            window: self,
            _writer: self.writer.lock(),
        }
    }
}

/// The right to change a window.
pub(crate) struct Change<'a, const N: usize> {
    window: &'a Sliding<N>,
    _writer: MutexGuard<'a, ()>,
}

impl<const N: usize> Drop for Change<'_, N> {
    /// At its end, and still under the lock: sums that were read before that may be of the old window.
    fn drop(&mut self) {
        self.window.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl<const N: usize> Change<'_, N> {
    /// Empties the window; the sums are `sums`.
    pub(crate) fn forget(&self, sums: [u64; N]) {
        let ring = self.window.ring.load();
        ring.forget(sums);
        self.window.publish(&ring.current());
    }

    /// Takes another shape, with what the old one held as far as both reach back.
    pub(crate) fn reshape(&self, span: u64, buckets: u32, sums: [u64; N]) {
        let ring = self.window.ring.load().reshaped(span, buckets, sums);
        self.take(ring);
    }

    /// Takes another shape, and is empty.
    pub(crate) fn replace(&self, span: u64, buckets: u32, sums: [u64; N]) {
        self.take(TimeRing::new(span, buckets, sums));
    }

    fn take(&self, ring: TimeRing<N>) {
        let bounds = ring.current();
        self.window.ring.store(std::sync::Arc::new(ring));
        self.window.publish(&bounds);
    }

    /// From now on the window is not over time: every call is told `code`, [`NO_TIME`] or above.
    pub(crate) fn halt(&self, code: u64) {
        self.window.end.store(code, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    /// Two calls at once, as the first ever, or as the first after nobody called for long: whoever
    /// finds the other at it goes on and counts, and is not taken for a call from before.
    #[test]
    fn calls_that_turn_the_page_together_are_both_in_the_window() {
        for (before, at) in [(0, 5), (1, 1_000)] {
            loom::model(move || {
                let sum = Arc::new(AtomicU64::new(0));
                let window = Arc::new(Sliding::<1>::new(10, 1));
                let call = |window: &Sliding<1>, sum: &AtomicU64, at| {
                    window.turn(Tick(at), || [sum.load(Ordering::Acquire)]);
                    sum.fetch_add(1, Ordering::AcqRel);
                };
                for _ in 0..before {
                    call(&window, &sum, 5);
                }
                let other = {
                    let (sum, window) = (Arc::clone(&sum), Arc::clone(&window));
                    thread::spawn(move || call(&window, &sum, at))
                };
                call(&window, &sum, at);
                other.join().expect("no panic");
                assert_eq!(window.held(Tick(at), || [sum.load(Ordering::Acquire)]), [2]);
            });
        }
    }

    /// The window is emptied, for sums of another kind, while somebody turns the page.
    #[test]
    fn a_page_that_is_turned_while_the_window_is_emptied_knows_the_sums_of_after() {
        loom::model(|| {
            let bank = Arc::new(AtomicU64::new(0));
            let banks = Arc::new([AtomicU64::new(5), AtomicU64::new(0)]);
            let window = Arc::new(Sliding::<1>::new(10, 1));
            let sums = |bank: &AtomicU64, banks: &[AtomicU64; 2]| {
                let bank = bank.load(Ordering::Acquire) as usize;
                [banks[bank].load(Ordering::Acquire)]
            };
            let emptier = {
                let (bank, window) = (Arc::clone(&bank), Arc::clone(&window));
                thread::spawn(move || {
                    let change = window.change();
                    bank.store(1, Ordering::Release);
                    change.forget([0]);
                })
            };
            window.turn(Tick(5), || sums(&bank, &banks));
            emptier.join().expect("no panic");
            window.turn(Tick(5), || sums(&bank, &banks));
            banks[1].fetch_add(1, Ordering::AcqRel);
            assert_eq!(window.held(Tick(5), || sums(&bank, &banks)), [1]);
        });
    }

    /// Whoever adds up while the page is turned sees the window before it or the one after it.
    #[test]
    fn a_window_that_is_turned_while_it_is_read_is_read_as_one() {
        loom::model(|| {
            let sum = Arc::new(AtomicU64::new(0));
            let window = Arc::new(Sliding::<2>::new(10, 1));
            // Both sums are the same, so a mixture of two windows shows.
            let sums = |sum: &AtomicU64| [sum.load(Ordering::Acquire); 2];
            let end = window.turn(Tick(5), || sums(&sum));
            sum.fetch_add(3, Ordering::AcqRel);
            let turner = {
                let (sum, window) = (Arc::clone(&sum), Arc::clone(&window));
                thread::spawn(move || window.turn(Tick(15), || sums(&sum)))
            };
            let held = window.held_at(end, Tick(5), || sums(&sum));
            assert!(held == [3, 3] || held == [0, 0], "{held:?}");
            assert_eq!(turner.join().expect("no panic"), 25);
            assert_eq!(window.held(Tick(15), || sums(&sum)), [0, 0]);
        });
    }
}
