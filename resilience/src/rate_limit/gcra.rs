//! The number that a rate limit is: one atomic word and the arithmetic on it.

use std::time::Duration;

use crate::{
    clock::{Tick, nanos},
    config::Rate,
    due,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// A rate in the words of GCRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    /// Nanoseconds in which one cell comes back: *t*.
    pub(super) interval: u64,
    /// How far ahead of its time a cell may come: *τ* = `interval × (burst − 1)`.
    pub(super) tolerance: u64,
    pub(super) burst: u32,
    /// Grows with each change of the quota, so that a call which began under an old one is noticed.
    pub(super) generation: u64,
}

impl Quota {
    pub(super) fn new(rate: Rate, generation: u64) -> Self {
        let interval = (nanos(rate.per) / u64::from(rate.count.max(1))).max(1);
        let burst = rate.burst.max(1);
        Self {
            interval,
            tolerance: interval.saturating_mul(u64::from(burst) - 1),
            burst,
            generation,
        }
    }

    /// The latest arrival time that a call at `now` can leave behind.
    fn latest(&self, now: Tick) -> u64 {
        now.0
            .saturating_add(self.tolerance)
            .saturating_add(self.interval)
    }
}

/// The quota in force, for every call to read without a lock or a write.
///
/// The generation is odd while the words around it are being written: whoever reads the same even
/// one before and after them has read one quota. Writers take turns (their lock is elsewhere).
#[derive(Debug)]
pub(super) struct Published {
    generation: AtomicU64,
    interval: AtomicU64,
    tolerance: AtomicU64,
    burst: AtomicU32,
}

impl Published {
    pub(super) fn new(quota: &Quota) -> Self {
        Self {
            generation: AtomicU64::new(quota.generation),
            interval: AtomicU64::new(quota.interval),
            tolerance: AtomicU64::new(quota.tolerance),
            burst: AtomicU32::new(quota.burst),
        }
    }

    /// The quota; `None` while it is being changed.
    pub(super) fn read(&self) -> Option<Quota> {
        let generation = self.generation.load(Ordering::Acquire);
        // Acquired: whoever reads a new word sees that the generation is no longer this one.
        let quota = Quota {
            interval: self.interval.load(Ordering::Acquire),
            tolerance: self.tolerance.load(Ordering::Acquire),
            burst: self.burst.load(Ordering::Acquire),
            generation,
        };
        (generation.is_multiple_of(2) && self.generation() == generation).then_some(quota)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// One writer at a time; `quota.generation` is the next even one.
    pub(super) fn write(&self, quota: &Quota) {
        self.generation
            .store(quota.generation - 1, Ordering::Relaxed);
        self.interval.store(quota.interval, Ordering::Release);
        self.tolerance.store(quota.tolerance, Ordering::Release);
        self.burst.store(quota.burst, Ordering::Release);
        self.generation.store(quota.generation, Ordering::Release);
    }
}

/// What was taken, so that it can be given back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// Arrival time that the taking left behind.
    pub(super) tat: u64,
    /// By how much it moved on.
    pub(super) advance: u64,
    /// What had been given back until then.
    moved: u64,
}

/// A bucket. All zero is one that was never used.
#[derive(Debug)]
pub(super) struct Word {
    /// Theoretical arrival time of the next cell.
    tat: AtomicU64,
    /// How much was ever given back from before others.
    moved: AtomicU64,
}

impl Word {
    pub(super) fn new() -> Self {
        Self {
            tat: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    /// Takes `cells` (at most the burst) or says how long until they would conform.
    pub(super) fn take(&self, quota: &Quota, cells: u32, now: Tick) -> Result<Taken, Duration> {
        let advance = quota.interval.saturating_mul(u64::from(cells));
        // The last of n cells comes (n − 1) intervals early.
        let early = advance.saturating_sub(quota.interval);
        let mut tat = self.tat.load(Ordering::Relaxed);
        loop {
            let earliest = tat.saturating_add(early).saturating_sub(quota.tolerance);
            if now.0 < earliest {
                if self.is_astray(quota, now) {
                    self.cap(quota, now);
                    tat = self.tat.load(Ordering::Relaxed);
                    continue;
                }
                return Err(Duration::from_nanos(earliest - now.0));
            }
            let next = tat.max(now.0).saturating_add(advance);
            let moved = self.moved.load(Ordering::Acquire);
            // Ordered, for `cap_if_changed`: whoever writes after a cap must see its generation.
            match self
                .tat
                .compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Ok(Taken {
                        tat: next,
                        advance,
                        moved,
                    });
                }
                Err(seen) => tat = seen,
            }
        }
    }

    /// Gives back what of `taken` has not come back by itself.
    ///
    /// Time refills a bucket whether or not its cells were used. To give all of them back after a
    /// while would refill it twice; what is left of the debt is at most `taken.tat − now`. Less, if
    /// what was taken before it has been given back since: then its own turn to come back by itself
    /// was earlier. What was given back from between others counts as if it had been before all of
    /// them, so that some may come back late, and none twice.
    pub(super) fn give_back(&self, taken: Taken, now: Tick) {
        let mut told = 0;
        let mut tat = self.tat.load(Ordering::Acquire);
        loop {
            let moved = self.moved.load(Ordering::Acquire).wrapping_sub(taken.moved);
            let until = taken.tat.saturating_sub(moved.saturating_sub(told));
            let back = taken.advance.min(until.saturating_sub(now.0));
            if back == 0 {
                return;
            }
            // Those behind it move up; behind the last there is nobody.
            if tat != taken.tat && told == 0 {
                told = back;
                self.moved.fetch_add(back, Ordering::AcqRel);
                continue;
            }
            match self.tat.compare_exchange_weak(
                tat,
                tat.saturating_sub(back),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return,
                Err(seen) => tat = seen,
            }
        }
    }

    /// How far ahead of `now` the word is: the time until the bucket is full again.
    pub(super) fn ahead(&self, now: Tick) -> u64 {
        self.tat.load(Ordering::Relaxed).saturating_sub(now.0)
    }

    /// Whether the debt is more than `quota` can make: a clock has been set back since.
    pub(super) fn is_astray(&self, quota: &Quota, now: Tick) -> bool {
        let most = quota.tolerance.saturating_add(quota.interval);
        due::is_astray(self.tat.load(Ordering::Relaxed), most, now)
    }

    /// Forgets debt that `quota` cannot have made.
    pub(super) fn cap(&self, quota: &Quota, now: Tick) {
        self.tat.fetch_min(quota.latest(now), Ordering::AcqRel);
    }
}
