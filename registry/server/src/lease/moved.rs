//! What is left of leases that have moved away.
//!
//! Another server has taken a lease over, and its word of that may come late: until then the
//! instance is heard here, as if nothing had happened. To let that go with the lease is to lose the
//! only proof of life that there is. So it is kept until the lease would have been over, for the
//! server that asks before it ends the lease on its side.
//!
//! Bounded by the leases that move within a lease's time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use parking_lot::Mutex;

use crate::catalogue::Key;

#[derive(Debug, Default)]
struct State {
    /// Life and end of each, on the clock of the leases.
    ends: HashMap<Key, (u64, u64)>,
    timers: BinaryHeap<Reverse<(u64, Key)>>,
}

/// Leases that this server no longer keeps, and that would not be over yet.
#[derive(Debug, Default)]
pub(super) struct Moved(Mutex<State>);

impl Moved {
    pub(super) fn note(&self, key: &Key, incarnation: u64, deadline: u64) {
        let mut state = self.0.lock();
        state.ends.insert(key.clone(), (incarnation, deadline));
        state.timers.push(Reverse((deadline, key.clone())));
    }

    /// When the lease of this life would be over.
    pub(super) fn deadline(&self, key: &Key, incarnation: u64) -> Option<u64> {
        let state = self.0.lock();
        let (life, deadline) = *state.ends.get(key)?;
        (life == incarnation).then_some(deadline)
    }

    /// Forgets those that are over at `now`.
    pub(super) fn advance(&self, now: u64) {
        let mut state = self.0.lock();
        while state.timers.peek().is_some_and(|t| t.0.0 <= now) {
            let Some(Reverse((_, key))) = state.timers.pop() else {
                return;
            };
            // Noted again since, it has a later timer.
            if state.ends.get(&key).is_some_and(|(_, end)| *end <= now) {
                state.ends.remove(&key);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().ends.len()
    }
}
