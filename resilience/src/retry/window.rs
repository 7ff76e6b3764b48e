//! Tokens that are deposited, withdrawn, and forgotten after a while: the clockwork of the budget.
//!
//! A token bucket must answer "is there one left?" and take it in one step, or two threads take the
//! same one. A *windowed* bucket holds a count for each slice of time, which no single word can; so
//! tower's and Finagle's check first and take afterwards, or take a lock.
//!
//! # Idea
//! - Deposits are counted per slice, each thread in a ring of its own lane: every call makes one.
//!   They can only make the answer better, so reading them late is safe.
//! - Withdrawals of the *current* slice live in one word, `slice (40) | count (24)`, which every
//!   withdrawal must change by compare-and-swap: it fails if anybody else withdrew in between.
//! - Before that word moves on to a new slice, its old value is copied to the ring by `fetch_max`.
//!   Copying twice, late or by several threads changes nothing, so nobody waits for anybody.
//! - A deposit counts in the slice it falls in, a withdrawal in the *next* slice that begins: the
//!   first is forgotten no later than `ttl` after it happened, the second no earlier.
//!
//! # Guarantees
//! In any span of `ttl`, withdrawals ≤ what `allowed` says of the deposits in that span. Lock-free,
//! no allocation; a withdrawal reads all rings and makes one compare-and-swap. What a clock said
//! before it was set back by more than a minute counts for nothing from then on.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use crate::{
    clock::{Tick, nanos},
    due::is_astray,
    lanes::{Lane, Lanes},
    slices::{COUNT_MAX, Slices, count_of, id_of, pack, slices_ahead},
    sync::{AtomicU64, Ordering},
};

/// Slices of a window. Source: Finagle `TokenBucket.newLeakyBucket` (10).
#[cfg(not(loom))]
const LIVES: u64 = 10;
#[cfg(not(loom))]
const RING: usize = 16;
/// A ring that a model checker can walk through.
#[cfg(loom)]
const LIVES: u64 = 2;
#[cfg(loom)]
const RING: usize = 3;

#[derive(Debug)]
pub(crate) struct TokenWindow {
    /// Nanoseconds of a slice.
    slice: u64,
    /// Where slice 1 begins; 0 until the first use.
    origin: AtomicU64,
    deposits: Lanes<Slices<RING>>,
    withdrawn: Slices<RING>,
    /// The slice that withdrawals are booked in now, and how many there are.
    current: AtomicU64,
}

/// Proof of a withdrawal, to take it back with: the slice it is booked in, which is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slip(NonZeroU64);

impl TokenWindow {
    pub(crate) fn new(ttl: Duration) -> Self {
        let slice = (nanos(ttl) / LIVES).max(1);
        Self {
            slice,
            origin: AtomicU64::new(0),
            deposits: Lanes::new(|| Slices::new(slice)),
            withdrawn: Slices::new(slice),
            current: AtomicU64::new(0),
        }
    }

    pub(crate) fn deposit(&self, now: Instant) {
        let lane = self.deposits.of(Lane::here());
        lane.add(self.slices_at(now).0, 1);
    }

    /// Deposits that count at `slice`.
    fn deposited(&self, slice: u64) -> u64 {
        let lanes = self.deposits.iter();
        lanes.map(|lane| lane.sum(slice, LIVES, None)).sum()
    }

    /// Takes one if `allowed(deposits that count)` is more than the withdrawals that count.
    pub(crate) fn try_withdraw(
        &self,
        now: Instant,
        allowed: impl Fn(u64) -> u64,
    ) -> Result<Slip, ()> {
        let (slice, next) = self.slices_at(now);
        // Acquire: whoever moved the word on has copied its old value to the ring before.
        let mut seen = self.current.load(Ordering::Acquire);
        loop {
            let known = self.unless_astray(seen, next);
            // Another thread's clock may be ahead of ours; time does not go back for that.
            let stamp = next.max(id_of(known));
            let slice = slice.max(id_of(known).saturating_sub(1));
            if self.taken(slice, known) >= allowed(self.deposited(slice)) {
                return Err(());
            }
            let new = if stamp > id_of(known) {
                if known != 0 {
                    self.withdrawn.raise(known);
                }
                pack(stamp, 1)
            } else if count_of(seen) < COUNT_MAX {
                seen + 1
            } else {
                return Err(());
            };
            match self
                .current
                .compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return NonZeroU64::new(stamp).map(Slip).ok_or(()),
                Err(now) => seen = now,
            }
        }
    }

    /// Takes a withdrawal back, as if it had not been made. A race with the end of its slice may
    /// leave it counted until it is forgotten; never the other way round.
    pub(crate) fn take_back(&self, slip: Slip) {
        let stamp = slip.0.get();
        let mut seen = self.current.load(Ordering::Acquire);
        while id_of(seen) == stamp && count_of(seen) > 0 {
            match self.current.compare_exchange_weak(
                seen,
                seen - 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        self.withdrawn.take_back(stamp);
    }

    /// Withdrawals that `allowed` has room for.
    pub(crate) fn balance(&self, now: Instant, allowed: impl Fn(u64) -> u64) -> u64 {
        let (slice, next) = self.slices_at(now);
        let known = self.unless_astray(self.current.load(Ordering::Acquire), next);
        allowed(self.deposited(slice)).saturating_sub(self.taken(slice, known))
    }

    /// `word`, or nothing if it is of a clock that was set back since.
    fn unless_astray(&self, word: u64, next: u64) -> u64 {
        let most = next.saturating_add(slices_ahead(self.slice) + LIVES);
        if id_of(word) > most { 0 } else { word }
    }

    fn taken(&self, slice: u64, current: u64) -> u64 {
        let older = self.withdrawn.sum(slice, LIVES, Some(id_of(current)));
        let alive = id_of(current) + LIVES > slice;
        older + if alive { count_of(current) } else { 0 }
    }

    /// The slice that `now` falls in, and the first that begins at `now` or later.
    fn slices_at(&self, now: Instant) -> (u64, u64) {
        let tick = Tick::at(now).0;
        let mut origin = self.origin.load(Ordering::Relaxed);
        if origin == 0 || is_astray(origin, 0, Tick(tick)) {
            origin = self.begin(tick);
        }
        let since = tick.saturating_sub(origin);
        // From 1: id 0 is a slot that was never written.
        let slice = since / self.slice + 1;
        (slice, slice + u64::from(!since.is_multiple_of(self.slice)))
    }

    /// Where the grid begins whose first call is at `tick`; a new one, if the old one begins after
    /// a clock that was set back since.
    #[cold]
    fn begin(&self, tick: u64) -> u64 {
        // Before the origin is looked at: if it is the old one still, so is this.
        let current = self.current.load(Ordering::Acquire);
        let origin = self.origin.load(Ordering::Acquire);
        if origin != 0 && !is_astray(origin, 0, Tick(tick)) {
            return origin;
        }
        // What was booked by the old grid is no hindrance to the new one. Whoever comes second
        // finds it booked by the new one already, and leaves it.
        self.current
            .compare_exchange(current, 0, Ordering::AcqRel, Ordering::Relaxed)
            .ok();
        // The grid starts with the first call, not with the process, so that the same calls come
        // to the same decisions whenever they are made. Two thirds into a slice: any phase is as
        // right, with this one twitter/util's recorded run comes out (BUD-2).
        let start = tick.saturating_sub(self.slice / 3 * 2).max(1);
        let begun =
            self.origin
                .compare_exchange(origin, start, Ordering::AcqRel, Ordering::Acquire);
        begun.map_or_else(|theirs| theirs, |_| start)
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    fn race(window: &Arc<TokenWindow>, at: [Instant; 2], limit: u64) -> u64 {
        let threads = at.map(|now| {
            let window = Arc::clone(window);
            thread::spawn(move || u64::from(window.try_withdraw(now, |_| limit).is_ok()))
        });
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .sum()
    }

    #[test]
    fn two_withdrawals_in_one_slice_never_take_one_token() {
        let now = std::time::Instant::now();
        loom::model(move || {
            let window = Arc::new(TokenWindow::new(Duration::from_secs(2)));
            assert_eq!(race(&window, [now, now], 1), 1);
            assert_eq!(window.balance(now, |_| 1), 0);
        });
    }

    /// The word moves on while another thread still books in the slice before: the copy to the ring
    /// must not lose either.
    #[test]
    fn two_withdrawals_over_the_end_of_a_slice_are_both_counted() {
        let now = std::time::Instant::now();
        let later = now + Duration::from_secs(1);
        loom::model(move || {
            let window = Arc::new(TokenWindow::new(Duration::from_secs(2)));
            assert!(window.try_withdraw(now, |_| 9).is_ok());
            assert_eq!(race(&window, [now, later], 3), 2);
            assert_eq!(window.balance(later, |_| 3), 0);
            assert!(window.try_withdraw(later, |_| 3).is_err());
        });
    }

    #[test]
    fn a_withdrawal_taken_back_while_another_is_made_never_makes_room_for_two() {
        let now = std::time::Instant::now();
        let later = now + Duration::from_secs(1);
        loom::model(move || {
            let window = Arc::new(TokenWindow::new(Duration::from_secs(2)));
            let slip = window.try_withdraw(now, |_| 1).expect("the first");
            let other = {
                let window = Arc::clone(&window);
                thread::spawn(move || window.try_withdraw(later, |_| 2).is_ok())
            };
            window.take_back(slip);
            assert!(other.join().expect("no panic"));
            let left = window.balance(later, |_| 2);
            assert!(left <= 1, "{left}");
        });
    }
}
