//! Slots, those who hold them and those who wait: what a bulkhead and an adaptive limit share.
//!
//! ```text
//! state: AtomicU64 = waiting (32 bits) | held (32 bits)
//! ```
//!
//! Taking and giving back is one compare-and-swap while nobody waits. Both counts are in one word,
//! so that the moment at which somebody begins to wait is a moment for the holders too: a release
//! either came before it, and the newcomer finds the slot, or sees that somebody waits, and hands
//! the slot over under the queue's lock. There is no third order, so no wake-up can be lost.

use std::{task::Waker, time::Duration};

use super::queue::{Fate, Order, Queue, Ticket};
use crate::{
    clock::{Tick, nanos},
    lanes::Line,
    outcome::Reason,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering},
};

/// How a queue behaves; see [`QueueConfig`](super::QueueConfig).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) max: u32,
    pub(crate) wait: Duration,
    pub(crate) order: Order,
    pub(crate) overload_after: Duration,
}

impl Rules {
    pub(crate) const NO_QUEUE: Self = Self {
        max: 0,
        wait: Duration::ZERO,
        order: Order::Fifo,
        overload_after: Duration::ZERO,
    };
}

/// What comes of asking for a slot.
pub(super) enum Entered {
    Taken,
    Waits(Ticket),
    Refused(Reason),
}

const ONE_WAITS: u64 = 1 << 32;

fn held(state: u64) -> u32 {
    state as u32
}

fn waiting(state: u64) -> u32 {
    (state >> 32) as u32
}

/// The word and the queue; opaque outside.
#[derive(Debug)]
pub struct Slots {
    state: Line<AtomicU64>,
    limit: AtomicU32,
    /// `waiting` in `state` changes only under this lock, and equals the queue's own count.
    queue: Mutex<Queue>,
}

impl Slots {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            state: Line(AtomicU64::new(0)),
            limit: AtomicU32::new(limit),
            queue: Mutex::new(Queue::new()),
        }
    }

    pub(crate) fn held(&self) -> u32 {
        held(self.state.load(Ordering::Relaxed))
    }

    pub(crate) fn waiting(&self) -> u32 {
        waiting(self.state.load(Ordering::Relaxed))
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn newest_first(&self) -> bool {
        let queue = self.queue.lock();
        queue.waiting() > 0 && queue.newest_first()
    }

    /// Takes a slot if one is free and nobody waits for it. Returns how many are held then.
    pub(crate) fn try_take(&self) -> Option<u32> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            // Not add-then-undo: that refuses callers who would have fitted.
            if waiting(state) > 0 || held(state) >= self.limit.load(Ordering::Relaxed) {
                return None;
            }
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(held(state) + 1),
                Err(seen) => state = seen,
            }
        }
    }

    /// Takes a slot beyond the limit; who may do so is decided elsewhere. Returns how many are held
    /// then.
    pub(crate) fn take_beyond(&self) -> u32 {
        held(self.state.fetch_add(1, Ordering::AcqRel)) + 1
    }

    /// Gives a slot back, or on to whoever waits.
    pub(crate) fn give_back(&self) {
        let mut state = self.state.load(Ordering::Relaxed);
        while waiting(state) == 0 {
            match self.state.compare_exchange_weak(
                state,
                state - 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(seen) => state = seen,
            }
        }
        self.hand_over();
    }

    #[cold]
    fn hand_over(&self) {
        let mut queue = self.queue.lock();
        let mut state = self.state.load(Ordering::Relaxed);
        let waker = loop {
            // Debt drains first: a limit that was lowered below what is held.
            let keeps = waiting(state) > 0 && held(state) <= self.limit.load(Ordering::Relaxed);
            let next = state - if keeps { ONE_WAITS } else { 1 };
            match self
                .state
                .compare_exchange(state, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) if keeps => break queue.grant(),
                Ok(_) => break None,
                Err(seen) => state = seen,
            }
        };
        drop(queue);
        wake(waker);
    }

    pub(super) fn enter(&self, rules: &Rules, now: Tick) -> Entered {
        if self.try_take().is_some() {
            return Entered::Taken;
        }
        if rules.max == 0 {
            return Entered::Refused(Reason::Full);
        }
        self.enter_queue(rules, now)
    }

    #[cold]
    fn enter_queue(&self, rules: &Rules, now: Tick) -> Entered {
        let mut queue = self.queue.lock();
        queue.arrive(rules.order, now, nanos(rules.overload_after));
        let full = queue.waiting() >= rules.max;
        if full && !queue.newest_first() {
            return Entered::Refused(Reason::QueueFull);
        }
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let free = waiting(state) == 0 && held(state) < self.limit.load(Ordering::Relaxed);
            // A newcomer takes the place of the oldest, who has the least hope left.
            let next = match (free, full) {
                (true, _) => state + 1,
                (false, false) => state + ONE_WAITS,
                (false, true) => state,
            };
            match self
                .state
                .compare_exchange(state, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) if free => return Entered::Taken,
                Ok(_) => break,
                Err(seen) => state = seen,
            }
        }
        let displaced = full.then(|| queue.displace_oldest()).flatten();
        let ticket = queue.push();
        drop(queue);
        wake(displaced);
        Entered::Waits(ticket)
    }

    /// Takes a new limit; who waits is served from what it adds.
    pub(crate) fn set_limit(&self, limit: u32) {
        // Under the lock: who has just read the old limit and goes to wait is seen below.
        let queue = self.queue.lock();
        self.limit.store(limit, Ordering::Relaxed);
        drop(queue);
        while self.serve_one() {}
    }

    /// Gives a free slot to whoever is next; false if there is none, or nobody waits.
    fn serve_one(&self) -> bool {
        let mut queue = self.queue.lock();
        let mut state = self.state.load(Ordering::Relaxed);
        let waker = loop {
            if waiting(state) == 0 || held(state) >= self.limit.load(Ordering::Relaxed) {
                return false;
            }
            match self.state.compare_exchange(
                state,
                state + 1 - ONE_WAITS,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break queue.grant(),
                Err(seen) => state = seen,
            }
        };
        drop(queue);
        wake(waker);
        true
    }

    pub(super) fn fate(&self, ticket: Ticket, waker: &Waker) -> Fate {
        let mut queue = self.queue.lock();
        let fate = queue.fate(ticket);
        let old = match fate {
            Fate::Waiting => queue.park(ticket, waker),
            Fate::Granted | Fate::Displaced => None,
        };
        drop(queue);
        drop(old);
        fate
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn is_granted(&self, ticket: Ticket) -> bool {
        self.queue.lock().fate(ticket) == Fate::Granted
    }

    pub(super) fn leave(&self, ticket: Ticket) -> Fate {
        let mut queue = self.queue.lock();
        let (fate, waker) = queue.leave(ticket);
        if fate == Fate::Waiting {
            self.state.fetch_sub(ONE_WAITS, Ordering::AcqRel);
        }
        drop(queue);
        drop(waker);
        fate
    }
}

/// Outside every lock: a waker may run anything.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(all(test, loom))]
mod models;
