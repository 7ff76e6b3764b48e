//! What a try holds until its answer has ended.

use std::time::{Duration, Instant};

use http::Response;

use crate::{
    adaptive,
    balance::{Key, Pick},
    breaker, bulkhead,
    layer::{CallGuard, Completes, EitherBody, FixedBody, GuardedBody},
    outcome::Outcome,
    retry::{
        Judgement,
        budget::{Extra, Logical},
    },
    throttle,
};

/// What a call in flight holds: its permits, its endpoint, its place in the retry budget.
#[derive(Debug)]
pub struct Held<K> {
    pub(super) throttle: Option<throttle::Permit>,
    pub(super) breaker: Option<breaker::Permit>,
    pub(super) bulkhead: Option<bulkhead::Permit>,
    pub(super) concurrency: Option<adaptive::Permit>,
    pub(super) pick: Pick<K>,
    pub(super) paid: Option<Paid>,
}

/// What a call holds of the retry budget: itself under way, and its last retry.
pub(super) type Paid = (Option<Logical>, Option<Extra>);

impl<K> Completes for Held<K> {
    fn complete(self, outcome: Outcome, now: Instant, retry_after: Option<Duration>) {
        Completes::complete(self.throttle, outcome, now, retry_after);
        Completes::complete(self.breaker, outcome, now, retry_after);
        Completes::complete(self.bulkhead, outcome, now, retry_after);
        Completes::complete(self.concurrency, outcome, now, retry_after);
        Completes::complete(self.pick, outcome, now, retry_after);
    }
}

/// The answer of a stack: its body is the callee's, or one that a fault or a fallback has put in its
/// place, and holds the call's permits.
pub type Answer<K, RB> = Response<GuardedBody<EitherBody<RB, FixedBody>, Held<K>>>;

/// A try that every policy has let through.
#[derive(Debug)]
pub(super) struct Admitted<K>(CallGuard<Held<K>>);

impl<K: Key> Admitted<K> {
    pub(super) fn new(held: Held<K>) -> Self {
        Self(CallGuard::new(held))
    }

    /// Where it goes.
    pub(super) fn key(&self) -> &K {
        let held = self.0.held();
        held.expect("asked only before its end").pick.key()
    }

    /// It has ended at `now`.
    pub(super) fn end(&mut self, judgement: Judgement, now: tokio::time::Instant) {
        let failed = judgement.outcome.is_failure();
        let retry_after = judgement.after.filter(|_| failed);
        self.0
            .complete_at(judgement.outcome, now.into_std(), retry_after);
    }

    /// Hands the permits, and what the call has paid, to the answer's body.
    pub(super) fn into_guard(mut self, paid: Paid) -> CallGuard<Held<K>> {
        if let Some(held) = self.0.held_mut() {
            held.paid = Some(paid);
        }
        self.0
    }
}
