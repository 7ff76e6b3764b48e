//! What a try holds until its answer has ended.

use std::time::Duration;

use http::Response;

use crate::{
    adaptive,
    balance::{Key, Pick},
    breaker, bulkhead,
    layer::{CallGuard, Completes, EitherBody, FixedBody, GuardedBody, Moment},
    outcome::Outcome,
    retry::{
        Judgement,
        budget::{Extra, Logical},
        cost::{Cost, CostBucket},
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
    pub(super) pick: Option<Pick<K>>,
    pub(super) paid: Option<Paid>,
}

impl<K> Default for Held<K> {
    fn default() -> Self {
        Self {
            throttle: None,
            breaker: None,
            bulkhead: None,
            concurrency: None,
            pick: None,
            paid: None,
        }
    }
}

/// What a call holds of the retry budget: itself under way, its last retry, and its account.
#[derive(Debug)]
pub(super) struct Paid {
    // Dropped with the rest when the call is over: that is all the budget wants to know.
    pub(super) _logical: Option<Logical>,
    pub(super) _extra: Option<Extra>,
    pub(super) account: Option<Account>,
}

impl Paid {
    /// The call has come to `outcome`.
    #[inline]
    pub(super) fn end(&mut self, outcome: Outcome) {
        if let (Some(account), Outcome::Success) = (&mut self.account, outcome) {
            account.bucket.succeeded(account.last.take());
        }
    }
}

/// The bucket of tokens that a call's retries are paid from, and what the last one took.
#[derive(Debug)]
pub(super) struct Account {
    bucket: CostBucket,
    last: Option<Cost>,
}

impl Account {
    pub(super) fn of(bucket: &CostBucket) -> Self {
        Self {
            bucket: bucket.clone(),
            last: None,
        }
    }

    /// Pays for a retry after a try that came to `outcome`; false if there is too little.
    pub(super) fn pay(&mut self, outcome: Outcome) -> bool {
        match self.bucket.try_take(outcome) {
            Ok(cost) => {
                self.last = Some(cost);
                true
            }
            Err(_) => false,
        }
    }

    /// The retry was not made.
    pub(super) fn give_back(&mut self) {
        if let Some(cost) = self.last.take() {
            self.bucket.give_back(cost);
        }
    }
}

impl<K> Held<K> {
    /// The call has ended. What is held is ended where it stands: it is large.
    fn end(&mut self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>) {
        if self.pick.is_none() {
            // Some policy has not let it through yet: it has nothing to say about the callee.
            return;
        }
        Completes::complete(self.throttle.take(), outcome, ended, retry_after);
        Completes::complete(self.breaker.take(), outcome, ended, retry_after);
        Completes::complete(self.bulkhead.take(), outcome, ended, retry_after);
        Completes::complete(self.concurrency.take(), outcome, ended, retry_after);
        Completes::complete(self.pick.take(), outcome, ended, retry_after);
        if let Some(paid) = &mut self.paid {
            paid.end(outcome);
        }
    }
}

impl<K> Completes for Box<Held<K>> {
    fn complete(mut self, outcome: Outcome, ended: &mut Moment, retry_after: Option<Duration>) {
        self.end(outcome, ended, retry_after);
    }
}

/// The answer of a stack: its body is the callee's, or one that a fault or a fallback has put in its
/// place, and holds the call's permits. They are boxed, because an answer is moved about, and most
/// that are small have ended their call when it begins.
pub type Answer<K, RB> = Response<GuardedBody<EitherBody<RB, FixedBody>, Box<Held<K>>>>;

/// A try: what it has acquired so far, and from its last policy on, where it goes. Dropped before
/// its end, it was cancelled.
///
/// It is filled and ended where it stands, because what it holds is large, and moving it costs as
/// much as acquiring it.
#[derive(Debug)]
pub(super) struct Entry<K>(Option<Held<K>>);

impl<K> Entry<K> {
    /// A try that holds nothing yet.
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// What it holds, to be added to. A try that was before has ended.
    pub(super) fn begin(&mut self) -> &mut Held<K> {
        self.0.insert(Held::default())
    }

    /// A policy has refused it: what it has acquired goes back, and says nothing of the callee.
    pub(super) fn refused(&mut self) {
        self.0 = None;
    }

    /// Where it goes.
    pub(super) fn key(&self) -> &K
    where
        K: Key,
    {
        let pick = self.0.as_ref().and_then(|held| held.pick.as_ref());
        pick.expect("asked only while it is under way").key()
    }

    /// It has ended at `now`.
    pub(super) fn end(&mut self, judgement: Judgement, now: tokio::time::Instant) {
        if let Some(held) = &mut self.0 {
            let failed = judgement.outcome.is_failure();
            let retry_after = judgement.after.filter(|_| failed);
            let mut ended = Moment::from(now.into_std());
            held.end(judgement.outcome, &mut ended, retry_after);
            self.0 = None;
        }
    }

    /// Hands the permits, and what the call has paid, to the answer's body.
    pub(super) fn hand_on(&mut self, paid: Paid) -> CallGuard<Box<Held<K>>> {
        self.0.take().map_or(CallGuard::none(), |mut held| {
            held.paid = Some(paid);
            CallGuard::new(Box::new(held))
        })
    }
}

impl<K> Drop for Entry<K> {
    fn drop(&mut self) {
        if let Some(held) = &mut self.0 {
            held.end(Outcome::Cancelled, &mut Moment::now(), None);
        }
    }
}
