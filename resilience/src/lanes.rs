//! Counting without paying for it: lines of memory that threads do not fight over, and often need
//! not even lock.
//!
//! An atomic addition costs as much as everything else that a policy does to a call, and several
//! times that when two threads want the same line. But most counters are only ever *summed*, now
//! and then, by somebody who reads. So each thread has a [`Lane`]: a few threads have one for
//! themselves, where adding is a load and a store, as nobody else writes there; the threads that
//! came later take turns at the others, where it is an atomic addition.
//!
//! # Guarantees
//! - No addition is lost. A lane of one's own has one writer at a time: a thread gives it back when
//!   it ends, before another can take it.
//! - A sum over all lanes is exact when nobody is adding, and never counts what was not added.
//!
//! # What it does not do
//! Nothing but the owner may write to a word of an owned lane: a counter that begins anew, does so
//! by remembering what it was, not by a store.

use std::ops::Deref;

use crate::sync::{AtomicU64, Ordering};

/// Lanes with one writer at a time.
const OWNED: usize = if cfg!(loom) { 1 } else { 8 };
/// Lanes that any number of threads write to.
const SHARED: usize = if cfg!(loom) { 1 } else { 4 };
/// All of them.
pub(crate) const LANES: usize = OWNED + SHARED;

/// Where this thread counts. It must not be kept: another thread may own it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane(usize);

impl Lane {
    /// Adds to a word of this lane, which only [`add`](Self::add) writes to. Wraps around.
    #[inline]
    pub(crate) fn add(self, word: &AtomicU64, by: u64) {
        if self.0 < OWNED {
            let seen = word.load(Ordering::Relaxed);
            word.store(seen.wrapping_add(by), Ordering::Release);
        } else {
            word.fetch_add(by, Ordering::AcqRel);
        }
    }

    /// Which of `LANES` it is.
    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0
    }

    /// The lane of this thread.
    #[cfg(not(loom))]
    #[inline]
    pub(crate) fn here() -> Self {
        seats::here()
    }

    /// Lanes of their own are modelled where they are handed in.
    #[cfg(loom)]
    pub(crate) fn here() -> Self {
        Self(OWNED)
    }
}

/// One `T` for each lane, on lines of their own.
#[derive(Debug)]
pub(crate) struct Lanes<T>([Line<T>; LANES]);

/// A line of memory, of which what many threads write to is alone: what they only read does not go
/// back and forth with it.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Line<T>(pub(crate) T);

impl<T> Deref for Line<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Lanes<T> {
    pub(crate) fn new(mut make: impl FnMut() -> T) -> Self {
        Self(std::array::from_fn(|_| Line(make())))
    }

    #[inline]
    pub(crate) fn of(&self, lane: Lane) -> &T {
        &self.0[lane.0].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|line| &line.0)
    }

    /// The sum of one word of each lane. Wraps around, as the words do.
    #[inline]
    pub(crate) fn sum(&self, word: impl Fn(&T) -> &AtomicU64) -> u64 {
        self.iter().fold(0, |sum: u64, lane| {
            sum.wrapping_add(word(lane).load(Ordering::Acquire))
        })
    }
}

/// Who has which lane.
#[cfg(not(loom))]
mod seats {
    use std::cell::Cell;

    use super::{Lane, OWNED, SHARED};
    use crate::sync::plain::Mutex;

    /// This thread has not asked for a lane yet.
    const UNSEATED: usize = usize::MAX;

    thread_local! {
        /// Readable to the very end of a thread: it has no destructor.
        static HERE: Cell<usize> = const { Cell::new(UNSEATED) };
        static SEAT: Cell<Option<Seat>> = const { Cell::new(None) };
    }

    struct Seats {
        free: [bool; OWNED],
        turn: usize,
    }

    static SEATS: Mutex<Seats> = Mutex::new(Seats {
        free: [true; OWNED],
        turn: 0,
    });

    /// An owned lane; another thread may have it once this is dropped.
    struct Seat(usize);

    impl Drop for Seat {
        fn drop(&mut self) {
            // First: what this thread still counts on its way out, it counts among others.
            HERE.set(OWNED);
            SEATS.lock().free[self.0] = true;
        }
    }

    #[inline]
    pub(super) fn here() -> Lane {
        match HERE.get() {
            UNSEATED => take(),
            lane => Lane(lane),
        }
    }

    #[cold]
    fn take() -> Lane {
        let mut seats = SEATS.lock();
        let free = seats.free.iter().position(|free| *free);
        let lane = if let Some(lane) = free {
            seats.free[lane] = false;
            lane
        } else {
            seats.turn = (seats.turn + 1) % SHARED;
            OWNED + seats.turn
        };
        drop(seats);
        HERE.set(lane);
        if lane < OWNED {
            let seat = Seat(lane);
            // A thread that is already being torn down drops it at once, and `HERE` says so.
            if SEAT.try_with(move |to| to.set(Some(seat))).is_err() {
                return Lane(HERE.get());
            }
        }
        Lane(lane)
    }

    #[cfg(test)]
    mod tests {
        use std::{
            sync::{
                Barrier,
                atomic::{AtomicU64, Ordering},
            },
            thread,
        };

        use super::*;

        #[test]
        fn a_lane_has_one_owner_at_a_time_and_is_owned_again() {
            let held: [AtomicU64; OWNED] = std::array::from_fn(|_| AtomicU64::new(0));
            let mut owned = 0;
            for _ in 0..20 {
                let barrier = Barrier::new(2 * OWNED);
                owned += thread::scope(|scope| {
                    let run = || {
                        let lane = here().index();
                        let owns = lane < OWNED;
                        let before = owns.then(|| held[lane].fetch_add(1, Ordering::SeqCst));
                        barrier.wait();
                        assert_eq!(here().index(), lane, "a thread stays in its lane");
                        if owns {
                            held[lane].fetch_sub(1, Ordering::SeqCst);
                            assert_eq!(before, Some(0), "lane {lane} had an owner");
                        }
                        // Nobody ends, and so gives its lane back, before all have looked.
                        barrier.wait();
                        u64::from(owns)
                    };
                    let threads: Vec<_> = (0..2 * OWNED).map(|_| scope.spawn(run)).collect();
                    let of = |thread: thread::ScopedJoinHandle<'_, u64>| {
                        thread.join().expect("no panic")
                    };
                    threads.into_iter().map(of).sum::<u64>()
                });
            }
            // Tests of other threads may own some meanwhile, but a lane that is not given back
            // would be owned once.
            assert!(owned > OWNED as u64, "{owned}");
        }

        /// What a thread counts in its last moments, when its lane is no longer its own.
        #[test]
        fn a_thread_that_is_torn_down_still_counts() {
            struct Last<'a>(&'a AtomicU64);
            impl Drop for Last<'_> {
                fn drop(&mut self) {
                    here().add(self.0, 1);
                }
            }
            static COUNT: AtomicU64 = AtomicU64::new(0);
            thread_local! {
                static LAST: Cell<Option<Last<'static>>> = const { Cell::new(None) };
            }
            for _ in 0..100 {
                // Before its lane and after it: destructors run in the order of first use or in
                // the other one.
                let early = thread::spawn(|| {
                    LAST.set(Some(Last(&COUNT)));
                    here();
                });
                early.join().expect("no panic");
                let late = thread::spawn(|| {
                    here();
                    LAST.set(Some(Last(&COUNT)));
                });
                late.join().expect("no panic");
            }
            assert_eq!(COUNT.load(Ordering::SeqCst), 200);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::rounds;

    #[test]
    fn no_addition_is_lost_by_more_threads_than_lanes() {
        let lanes = Lanes::new(|| AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 * LANES {
                scope.spawn(|| {
                    for _ in 0..rounds(10_000, 50) {
                        let lane = Lane::here();
                        lane.add(lanes.of(lane), 3);
                    }
                });
            }
        });
        assert_eq!(
            lanes.sum(|word| word),
            2 * LANES as u64 * 3 * rounds(10_000, 50)
        );
    }

    #[test]
    fn words_wrap_around_and_differences_do_not_mind() {
        let word = AtomicU64::new(u64::MAX - 1);
        for lane in [Lane(0), Lane(OWNED)] {
            let before = word.load(Ordering::Relaxed);
            lane.add(&word, 3);
            assert_eq!(word.load(Ordering::Relaxed).wrapping_sub(before), 3);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn an_owner_and_two_who_share_lose_nothing_and_a_sum_is_never_ahead() {
        loom::model(|| {
            let lanes = Arc::new(Lanes::new(|| AtomicU64::new(0)));
            let threads = [Lane(0), Lane(OWNED), Lane(OWNED)].map(|lane| {
                let lanes = Arc::clone(&lanes);
                thread::spawn(move || lane.add(lanes.of(lane), 1))
            });
            assert!(lanes.sum(|word| word) <= 3);
            for thread in threads {
                thread.join().expect("no panic");
            }
            assert_eq!(lanes.sum(|word| word), 3);
        });
    }
}
