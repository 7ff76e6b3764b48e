//! A call's side of a limit: it is admitted, or waits for its slot, or leaves.

use std::{
    fmt,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    queue::{Fate, Ticket},
    slots::{Entered, Rules, Slots},
};
use crate::{
    clock::Tick,
    outcome::{Policy, Reason, Rejected},
};

/// A handle on a core whose calls may wait for their slots: a
/// [`Bulkhead`](super::Bulkhead) or an [`AdaptiveLimit`](crate::adaptive::AdaptiveLimit).
///
/// Nobody else can implement it: only this crate makes slots.
pub trait Queued: Clone {
    /// What a call holds.
    type Permit;

    /// Asks for a slot, or for a place in the queue.
    ///
    /// # Errors
    /// [`Rejected`] if there is neither.
    fn acquire(&self, now: Instant) -> Result<Entry<Self>, Rejected>;

    #[doc(hidden)]
    const POLICY: Policy;
    #[doc(hidden)]
    fn slots(&self) -> &Slots;
    /// Makes the permit of a call that has got its slot.
    #[doc(hidden)]
    fn permit(&self, now: Instant) -> Self::Permit;
    /// Counts a refusal.
    #[doc(hidden)]
    fn refused(&self, reason: Reason);
}

/// Asks for a slot of `core`, or for a place in its queue.
pub(crate) fn enter<C: Queued>(
    core: &C,
    rules: &Rules,
    now: Instant,
) -> Result<Entry<C>, Rejected> {
    let tick = Tick::at(now);
    match core.slots().enter(rules, tick) {
        Entered::Taken => Ok(Entry::Admitted(core.permit(now))),
        Entered::Waits(ticket) => Ok(Entry::Waits(Waiter {
            core: core.clone(),
            ticket: Some(ticket),
            // Further than the clock goes is for ever.
            deadline: now.checked_add(rules.wait),
            since: tick,
        })),
        Entered::Refused(reason) => Err(refuse(core, reason)),
    }
}

fn refuse<C: Queued>(core: &C, reason: Reason) -> Rejected {
    core.refused(reason);
    Rejected::new(C::POLICY, reason)
}

/// Admitted, or to wait.
#[derive(Debug)]
pub enum Entry<C: Queued> {
    /// There was a slot.
    Admitted(C::Permit),
    /// There is a place in the queue.
    Waits(Waiter<C>),
}

/// A place in the queue. Dropping it leaves the queue; a slot that was granted meanwhile goes on to
/// the next.
#[must_use = "a place in the queue that is dropped at once waits for nothing"]
pub struct Waiter<C: Queued> {
    core: C,
    /// `None` once it has left the queue.
    ticket: Option<Ticket>,
    deadline: Option<Instant>,
    since: Tick,
}

impl<C: Queued> Waiter<C> {
    /// When waiting ends; `None` is never. Call [`expire`](Self::expire) then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How long it has waited at `now`.
    pub fn waited(&self, now: Instant) -> Duration {
        Tick::at(now).since(self.since)
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn is_granted(&self) -> bool {
        let ticket = self.ticket.expect("has not left the queue yet");
        self.core.slots().is_granted(ticket)
    }

    /// The permit, if the slot has been granted; otherwise `waker` is woken when there is news.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::QueueFull`] if a newer call took the place.
    pub fn poll(&mut self, waker: &Waker, now: Instant) -> Poll<Result<C::Permit, Rejected>> {
        let ticket = self
            .ticket
            .expect("a waiter is not polled after it is ready");
        match self.core.slots().fate(ticket, waker) {
            Fate::Waiting => Poll::Pending,
            Fate::Granted | Fate::Displaced => Poll::Ready(self.end(Reason::QueueFull, now)),
        }
    }

    /// Leaves the queue because the time is up; with the permit, if it was granted in that moment.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::QueueTimeout`].
    pub fn expire(mut self, now: Instant) -> Result<C::Permit, Rejected> {
        self.end(Reason::QueueTimeout, now)
    }

    fn end(&mut self, otherwise: Reason, now: Instant) -> Result<C::Permit, Rejected> {
        let ticket = self.ticket.take().expect("has not left the queue yet");
        match self.core.slots().leave(ticket) {
            Fate::Granted => Ok(self.core.permit(now)),
            Fate::Displaced => Err(refuse(&self.core, Reason::QueueFull)),
            Fate::Waiting => Err(refuse(&self.core, otherwise)),
        }
    }
}

impl<C: Queued> Drop for Waiter<C> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && self.core.slots().leave(ticket) == Fate::Granted
        {
            self.core.slots().give_back();
        }
    }
}

impl<C: Queued> fmt::Debug for Waiter<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter")
            .field("ticket", &self.ticket)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
