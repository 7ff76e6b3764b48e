//! Bulkhead: how many calls may be under way at once.
//!
//! One slow callee must not drown the whole ship: without a limit, every caller's task, socket and
//! buffer ends up waiting for it. A bulkhead gives each destination its own share and refuses the
//! rest at once, while there is still time to answer.
//!
//! A short queue before it takes the edge off bursts. Under *lasting* overload a queue that is fair
//! is the worst one: everybody waits for as long as anybody may, and each is served just when the
//! caller gives up. So the queue is bounded in length and in time, and turns round once it has
//! stood for a while: newest first, because the newest caller is the likeliest still to be there,
//! and the oldest make room.
//!
//! # Guarantees
//! - Never more permits out than the limit; a slot comes back on drop, whatever happened.
//! - Nobody waits: one compare-and-swap in, one out, no allocation. Who waits is served under a
//!   lock that is held for a few instructions.
//! - No lost wake-up, and a slot granted to a waiter that has gone is passed on (models of every
//!   interleaving in `slots.rs`). Newcomers never overtake those who wait in order.
//! - Lowering the limit below what is under way makes debt that drains; it never panics, underflows
//!   or cancels. Raising it serves who waits at once.
//!
//! # What it does not do
//! The core never waits: it hands out a [`Waiter`], and the layer's future holds it. Waiters of a
//! full newest-first queue are sent away to make room for newer ones.
//!
//! # Source
//! Nygard, *Release It!* (bulkheads). Maurer, "Fail at Scale", ACM Queue 13(8), 2015: adaptive LIFO
//! and controlled delay, after CoDel (Nichols and Jacobson, 2012): overload is a queue that has not
//! been empty for 100 ms. Netflix' `LifoBlockingLimiter` for the order.

mod config;
mod queue;
pub(crate) mod slots;
pub(crate) mod waiter;

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;

use self::slots::{Rules, Slots};
pub use self::{
    config::{BulkheadConfig, QueueConfig},
    queue::Order,
    waiter::{Entry, Queued, Waiter},
};
use crate::{
    config::PolicyError,
    lanes::Lane,
    outcome::{Policy, Reason, Rejected},
    shared::{Lent, Shared},
    sync::{AtomicU64, Ordering},
};

/// Refusals by reason.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    full: AtomicU64,
    queue_full: AtomicU64,
    queue_timeout: AtomicU64,
}

impl Refusals {
    pub(crate) fn count(&self, reason: Reason) {
        let counter = match reason {
            Reason::QueueFull => &self.queue_full,
            Reason::QueueTimeout => &self.queue_timeout,
            _ => &self.full,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> [u64; 3] {
        [&self.full, &self.queue_full, &self.queue_timeout].map(|n| n.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Core {
    slots: Slots,
    rules: ArcSwap<Rules>,
    refused: Refusals,
}

/// A limit on concurrent calls. Clones share one limit.
///
/// ```
/// use std::time::Instant;
/// use selvedge_resilience::bulkhead::Bulkhead;
///
/// let bulkhead = Bulkhead::new(1);
/// let permit = bulkhead.try_acquire().expect("free");
/// assert!(bulkhead.try_acquire().is_err());
/// drop(permit);
/// assert!(bulkhead.try_acquire().is_ok());
/// ```
#[derive(Debug, Clone)]
pub struct Bulkhead(Shared<Core>);

/// What a bulkhead is doing, read without a lock but for `newest_first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Calls under way.
    pub in_flight: u32,
    /// Calls that may be.
    pub limit: u32,
    /// Calls that wait.
    pub waiting: u32,
    /// Whether the queue has turned round.
    pub newest_first: bool,
    /// Refused because every slot was taken and nobody may wait.
    pub full: u64,
    /// Refused because as many waited as may, or displaced by a newer call.
    pub queue_full: u64,
    /// Refused after waiting.
    pub queue_timeout: u64,
}

impl Bulkhead {
    /// At most `limit` calls at once, and nobody waits; 0 refuses every call.
    pub fn new(limit: u32) -> Self {
        Self::build(limit, Rules::NO_QUEUE)
    }

    /// As configured.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work.
    pub fn with_config(config: &BulkheadConfig) -> Result<Self, PolicyError> {
        config.validate()?;
        Ok(Self::build(config.max, config.rules()))
    }

    fn build(limit: u32, rules: Rules) -> Self {
        Self(Shared::new(Core {
            slots: Slots::new(limit),
            rules: ArcSwap::from_pointee(rules),
            refused: Refusals::default(),
        }))
    }

    /// Takes a slot, now or not at all; whoever waits goes first.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Full`] if every slot is taken.
    pub fn try_acquire(&self) -> Result<Permit, Rejected> {
        if self.0.slots.try_take().is_some() {
            return Ok(self.taken());
        }
        self.0.refused.count(Reason::Full);
        Err(Rejected::new(Policy::Bulkhead, Reason::Full))
    }

    /// The permit of a slot that has been taken.
    fn taken(&self) -> Permit {
        Permit(self.0.lend(Lane::here()))
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.0.slots.held()
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        self.0.slots.limit()
    }

    /// Calls refused so far, for whatever reason.
    pub fn rejected(&self) -> u64 {
        self.0.refused.read().iter().sum()
    }

    /// Gauges and counters.
    pub fn status(&self) -> Status {
        let slots = &self.0.slots;
        let [full, queue_full, queue_timeout] = self.0.refused.read();
        Status {
            in_flight: slots.held(),
            limit: slots.limit(),
            waiting: slots.waiting(),
            newest_first: slots.newest_first(),
            full,
            queue_full,
            queue_timeout,
        }
    }

    /// Takes a new limit at once; calls under way stay, and who waits is served from what it adds.
    pub fn reconfigure(&self, limit: u32) {
        self.0.slots.set_limit(limit);
    }

    /// Takes a new limit and new rules for the queue. Who waits already waits by the old ones.
    ///
    /// # Errors
    /// [`PolicyError`] if it cannot work; nothing changes then.
    pub fn reconfigure_with(&self, config: &BulkheadConfig) -> Result<(), PolicyError> {
        config.validate()?;
        self.0.rules.store(Arc::new(config.rules()));
        self.0.slots.set_limit(config.max);
        Ok(())
    }
}

impl Queued for Bulkhead {
    type Permit = Permit;

    /// [`Reason::Full`] if every slot is taken and there is no queue, [`Reason::QueueFull`] if it
    /// is full too.
    fn acquire(&self, now: Instant) -> Result<Entry<Self>, Rejected> {
        if self.0.slots.try_take().is_some() {
            return Ok(Entry::Admitted(self.taken()));
        }
        waiter::enter(self, &self.0.rules.load(), now)
    }

    const POLICY: Policy = Policy::Bulkhead;

    fn slots(&self) -> &Slots {
        &self.0.slots
    }

    fn permit(&self, _: Instant) -> Permit {
        self.taken()
    }

    fn refused(&self, reason: Reason) {
        self.0.refused.count(reason);
    }
}

/// A slot; dropping it gives it back, or on to whoever waits.
#[derive(Debug)]
#[must_use = "a slot that is dropped at once limits nothing"]
pub struct Permit(Lent<Core>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.slots.give_back();
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
