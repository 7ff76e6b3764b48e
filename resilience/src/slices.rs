//! Counts by slice of time, without locks: what windows are made of.
//!
//! A slot is one word, `slice id (40) | count (24)`. A writer that finds an older id replaces id and
//! count together, so there is no reset that another writer could race with and no update is lost.
//! Forty bits of id last for thousands of years of slices of 100 ms: a slot never comes back to
//! life by wrapping, however long nobody looked. A count stops at 16 777 215 a slice.

use crate::{
    due::SET_BACK,
    sync::{AtomicU64, Ordering},
};

const COUNT_BITS: u32 = 24;
pub(crate) const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const ID_MAX: u64 = (1 << (64 - COUNT_BITS)) - 1;

pub(crate) const fn pack(id: u64, count: u64) -> u64 {
    (if id < ID_MAX { id } else { ID_MAX }) << COUNT_BITS
        | if count < COUNT_MAX { count } else { COUNT_MAX }
}

pub(crate) const fn id_of(word: u64) -> u64 {
    word >> COUNT_BITS
}

pub(crate) const fn count_of(word: u64) -> u64 {
    word & COUNT_MAX
}

/// A ring of `N` slots; `N` is at least the number of slices that are looked back on.
///
/// What lies further ahead than a clock can be is of one that was set back since: it counts for
/// nothing and gives way.
#[derive(Debug)]
pub(crate) struct Slices<const N: usize> {
    slots: [AtomicU64; N],
    /// Slices that one thread's clock may be ahead of another's.
    ahead: u64,
}

impl<const N: usize> Slices<N> {
    /// `slice`: nanoseconds of one.
    pub(crate) fn new(slice: u64) -> Self {
        Self {
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
            ahead: slices_ahead(slice) + N as u64,
        }
    }

    fn slot(&self, id: u64) -> &AtomicU64 {
        &self.slots[(id % N as u64) as usize]
    }

    fn is_astray(&self, word: u64, id: u64) -> bool {
        id_of(word) > id.saturating_add(self.ahead)
    }

    /// Adds `by` to slice `id`. A slice that was overtaken by a whole ring is past, so is `by`.
    pub(crate) fn add(&self, id: u64, by: u64) {
        let slot = self.slot(id);
        let mut seen = slot.load(Ordering::Relaxed);
        while id_of(seen) <= id || self.is_astray(seen, id) {
            let count = if id_of(seen) == id { count_of(seen) } else { 0 };
            let new = pack(id, count + by);
            match slot.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Raises the slot of `word` to `word`, by id and then by count; doing it twice changes nothing.
    pub(crate) fn raise(&self, word: u64) {
        let slot = self.slot(id_of(word));
        let mut seen = slot.load(Ordering::Acquire);
        while seen < word || self.is_astray(seen, id_of(word)) {
            match slot.compare_exchange_weak(seen, word, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Takes one from slice `id`, if it is still there and holds one.
    pub(crate) fn take_back(&self, id: u64) {
        let slot = self.slot(id);
        let mut seen = slot.load(Ordering::Relaxed);
        while id_of(seen) == id && count_of(seen) > 0 {
            match slot.compare_exchange_weak(seen, seen - 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// The largest of the `lives` slices up to `id`, and after it.
    #[cfg(any(test, feature = "tower"))]
    pub(crate) fn most(&self, id: u64, lives: u64) -> u64 {
        let words = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let alive = words.filter(|word| id_of(*word) + lives > id && !self.is_astray(*word, id));
        alive.map(count_of).max().unwrap_or(0)
    }

    /// What the `lives` slices up to `id` hold; slices after it count too, `except` does not.
    pub(crate) fn sum(&self, id: u64, lives: u64, except: Option<u64>) -> u64 {
        let mut sum = 0;
        for slot in &self.slots {
            let word = slot.load(Ordering::Relaxed);
            let alive = id_of(word) + lives > id && !self.is_astray(word, id);
            if alive && Some(id_of(word)) != except {
                sum += count_of(word);
            }
        }
        sum
    }
}

/// How many slices of so many nanoseconds a clock may seem to be ahead without having been set back.
pub(crate) fn slices_ahead(slice: u64) -> u64 {
    SET_BACK.div_ceil(slice.max(1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn slices_are_forgotten_one_by_one_and_never_come_back() {
        let slices = Slices::<4>::new(SET_BACK);
        for id in 1..=3 {
            slices.add(id, id);
        }
        assert_eq!(slices.sum(3, 3, None), 6);
        assert_eq!(slices.sum(4, 3, None), 5);
        assert_eq!(slices.sum(3, 3, Some(2)), 4);
        // A slot is reused, and a writer from long ago changes nothing.
        slices.add(5, 7);
        slices.add(1, 99);
        assert_eq!(slices.sum(5, 3, None), 3 + 7);
        for gap in [1 << 16, 1 << 24, 1 << 32, 1 << 39] {
            assert_eq!(slices.sum(5 + gap, 3, None), 0, "after {gap} slices");
        }
    }

    #[test]
    fn what_a_clock_said_before_it_was_set_back_gives_way() {
        let slices = Slices::<4>::new(SET_BACK);
        slices.add(1 << 30, 9);
        slices.raise(pack((1 << 30) + 1, 9));
        assert_eq!(slices.sum(1 << 30, 3, None), 18);
        assert_eq!((slices.sum(8, 3, None), slices.most(8, 3)), (0, 0));
        slices.add(8, 1);
        slices.raise(pack(9, 2));
        assert_eq!((slices.sum(9, 3, None), slices.most(9, 3)), (3, 2));
        // A thread that is ahead by less than a clock can be is believed: it has overtaken slice 9.
        slices.add(13, 5);
        slices.add(9, 1);
        assert_eq!(
            (slices.sum(9, 3, None), slices.sum(13, 3, None)),
            (1 + 5, 5)
        );
    }

    #[test]
    fn counts_saturate() {
        let slices = Slices::<2>::new(SET_BACK);
        slices.add(1, COUNT_MAX - 1);
        slices.add(1, 5);
        assert_eq!(slices.sum(1, 1, None), COUNT_MAX);
        slices.raise(pack(1, 3));
        assert_eq!(slices.sum(1, 1, None), COUNT_MAX, "only ever raised");
        assert_eq!((slices.most(1, 1), slices.most(2, 1)), (COUNT_MAX, 0));
        slices.take_back(1);
        assert_eq!(slices.sum(1, 1, None), COUNT_MAX - 1);
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use loom::thread;

    use super::*;

    /// Two threads, each with its own step; what is left for `look`.
    fn both(
        steps: [fn(&Slices<2>); 2],
        before: fn(&Slices<2>),
        look: fn(&Slices<2>),
    ) -> impl Fn() + Sync + Send {
        move || {
            let slices = Arc::new(Slices::<2>::new(SET_BACK));
            before(&slices);
            let threads = steps.map(|step| {
                let slices = Arc::clone(&slices);
                thread::spawn(move || step(&slices))
            });
            for thread in threads {
                thread.join().expect("no panic");
            }
            look(&slices);
        }
    }

    #[test]
    fn two_who_add_to_one_slice_or_turn_it_are_both_counted() {
        let (add, look): (fn(&Slices<2>), _) = (
            |it| it.add(3, 1),
            |it: &Slices<2>| {
                assert_eq!(it.sum(3, 1, None), 2);
            },
        );
        // The slot holds an older slice: whoever comes first turns it.
        loom::model(both([add, add], |it| it.add(1, 7), look));
        loom::model(both([add, add], |_| (), look));
    }

    #[test]
    fn who_is_late_for_a_slice_changes_nothing_and_undoes_nothing() {
        let (late, next): (fn(&Slices<2>), fn(&Slices<2>)) = (|it| it.add(1, 5), |it| it.add(3, 1));
        let look = |it: &Slices<2>| assert_eq!(it.sum(3, 1, None), 1);
        loom::model(both([late, next], |_| (), look));
    }

    #[test]
    fn the_highest_of_two_stays_and_what_is_taken_back_is_taken_once() {
        let (low, high): (fn(&Slices<2>), fn(&Slices<2>)) =
            (|it| it.raise(pack(3, 4)), |it| it.raise(pack(3, 9)));
        let look = |it: &Slices<2>| assert_eq!(it.most(3, 1), 9);
        loom::model(both([low, high], |_| (), look));
        let take: fn(&Slices<2>) = |it| it.take_back(3);
        let none = |it: &Slices<2>| assert_eq!(it.sum(3, 1, None), 0);
        loom::model(both([take, take], |it| it.add(3, 1), none));
    }
}
