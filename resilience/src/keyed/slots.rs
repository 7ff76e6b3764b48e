//! How many entries exist: a bound that no race exceeds.

use crate::sync::{AtomicU32, Ordering};

/// Counts entries up to a capacity that may change while it runs.
///
/// A place is *reserved* before the entry exists and released after it is gone, so the entries are
/// never more than the places, and the places never more than the capacity was when each was taken.
#[derive(Debug)]
pub(super) struct Slots {
    capacity: AtomicU32,
    taken: AtomicU32,
}

impl Slots {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity: AtomicU32::new(capacity),
            taken: AtomicU32::new(0),
        }
    }

    /// A place, if one is free; it comes back unless [`Place::keep`] is called.
    pub(super) fn reserve(&self) -> Option<Place<'_>> {
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            // Not add-then-undo: that would turn away a key for which there was room.
            if taken >= self.capacity() {
                return None;
            }
            match self.taken.compare_exchange_weak(
                taken,
                taken + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Place(self)),
                Err(seen) => taken = seen,
            }
        }
    }

    /// The place of an entry that has just been removed, for another to take. `None`, and the place
    /// given back, if the capacity has been lowered below what is taken.
    pub(super) fn inherit(&self) -> Option<Place<'_>> {
        let place = Place(self);
        (self.taken() <= self.capacity()).then_some(place)
    }

    /// An entry is gone.
    pub(super) fn release(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Relaxed)
    }

    pub(super) fn set_capacity(&self, capacity: u32) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }
}

/// A reserved place; dropped (by a panic in a user's constructor, say) it is free again.
#[derive(Debug)]
#[must_use = "a place that is dropped is free again"]
pub(super) struct Place<'a>(&'a Slots);

impl Place<'_> {
    /// The entry exists now and gives the place back itself.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(loom)]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    #[test]
    fn two_threads_never_take_more_places_than_there_are() {
        loom::model(|| {
            let slots = Arc::new(Slots::new(1));
            let other = {
                let slots = Arc::clone(&slots);
                thread::spawn(move || slots.reserve().map(Place::keep).is_some())
            };
            let mine = slots.reserve().map(Place::keep).is_some();
            let theirs = other.join().expect("no panic");
            assert!(mine ^ theirs, "one place, one owner");
            assert_eq!(slots.taken(), 1);
        });
    }

    #[test]
    fn a_place_given_back_is_not_lost() {
        loom::model(|| {
            let slots = Arc::new(Slots::new(1));
            let other = {
                let slots = Arc::clone(&slots);
                thread::spawn(move || drop(slots.reserve()))
            };
            drop(slots.reserve());
            other.join().expect("no panic");
            assert_eq!(slots.taken(), 0);
            assert!(slots.reserve().map(Place::keep).is_some());
        });
    }
}
