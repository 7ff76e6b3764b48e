//! A slot of a limit, waited for if the limit has a queue.

use std::future::poll_fn;

use tokio::time::Instant;

use crate::{
    bulkhead::{Entry, Queued, Waiter},
    outcome::Rejected,
};

/// Whether a call waits for a slot where a limit has a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as the queue lets it.
    Queue,
    /// Not at all.
    None,
}

/// Takes a slot, at the latest at `deadline`; `now` is then when it had it. Cancel-safe.
pub(super) async fn slot<C: Queued>(
    core: &C,
    now: &mut Instant,
    deadline: Option<Instant>,
    patience: Patience,
) -> Result<C::Permit, Rejected> {
    match core.acquire(now.into_std())? {
        Entry::Admitted(permit) => Ok(permit),
        Entry::Waits(waiter) if patience == Patience::None => waiter.expire(now.into_std()),
        // Boxed, because it is rare, and would make every call's future larger.
        Entry::Waits(waiter) => Box::pin(wait(waiter, now, deadline)).await,
    }
}

async fn wait<C: Queued>(
    mut waiter: Waiter<C>,
    now: &mut Instant,
    deadline: Option<Instant>,
) -> Result<C::Permit, Rejected> {
    let until = earlier(waiter.deadline().map(Instant::from_std), deadline);
    let granted = poll_fn(|cx| waiter.poll(cx.waker(), Instant::now().into_std()));
    let granted = match until {
        Some(until) => tokio::time::timeout_at(until, granted).await.ok(),
        None => Some(granted.await),
    };
    *now = Instant::now();
    match granted {
        Some(result) => result,
        None => waiter.expire(now.into_std()),
    }
}

/// The earlier of two that may be there.
pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
