//! Counts by slice of time, without locks: what windows are made of.
//!
//! A slot is one word, `slice id (40) | count (24)`. A writer that finds an older id replaces id and
//! count together, so there is no reset that another writer could race with and no update is lost.
//! Forty bits of id last for thousands of years of slices of 100 ms: a slot never comes back to
//! life by wrapping, however long nobody looked. A count stops at 16 777 215 a slice.

use crate::sync::{AtomicU64, Ordering};

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
#[derive(Debug)]
pub(crate) struct Slices<const N: usize>([AtomicU64; N]);

impl<const N: usize> Slices<N> {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn slot(&self, id: u64) -> &AtomicU64 {
        &self.0[(id % N as u64) as usize]
    }

    /// Adds `by` to slice `id`. A slice that was overtaken by a whole ring is past, so is `by`.
    pub(crate) fn add(&self, id: u64, by: u64) {
        let slot = self.slot(id);
        let mut seen = slot.load(Ordering::Relaxed);
        while id_of(seen) <= id {
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
        self.slot(id_of(word)).fetch_max(word, Ordering::AcqRel);
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
        let words = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        let alive = words.filter(|word| id_of(*word) + lives > id);
        alive.map(count_of).max().unwrap_or(0)
    }

    /// What the `lives` slices up to `id` hold; slices after it count too, `except` does not.
    pub(crate) fn sum(&self, id: u64, lives: u64, except: Option<u64>) -> u64 {
        let mut sum = 0;
        for slot in &self.0 {
            let word = slot.load(Ordering::Relaxed);
            if id_of(word) + lives > id && Some(id_of(word)) != except {
                sum += count_of(word);
            }
        }
        sum
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn slices_are_forgotten_one_by_one_and_never_come_back() {
        let slices = Slices::<4>::new();
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
    fn counts_saturate() {
        let slices = Slices::<2>::new();
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
