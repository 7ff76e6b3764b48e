//! What a request carries from phase to phase: Pingora's `CTX`.
//!
//! Two levels of permits, because a request may take several tries: [`Admitted`] once a request,
//! [`Try`] once a try. Each gives itself back when it is dropped. So nothing leaks where Pingora
//! drops a request without a word: `logging` is not called then, but `CTX` is dropped.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use selvedge_resilience::{
    FailureClass, Outcome, Rejected, Rng,
    balance::{Pick, PickContext},
    breaker::{self, State},
    bulkhead,
    context::{AttemptNumber, CallContext, Deadline},
    retry::{
        Judgement, RetryConfig, RetryContext, Tries,
        budget::{Extra, Logical},
    },
};

use crate::policies::Upstream;

/// One request.
#[derive(Default)]
pub(crate) struct Call {
    pub(crate) arrived: Option<Instant>,
    pub(crate) admitted: Option<Admitted>,
    /// Who refused it, if anybody did.
    pub(crate) refused: Option<Rejected>,
}

/// A request that has passed the door.
pub(crate) struct Admitted {
    pub(crate) context: CallContext,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) upstream: Arc<Upstream>,
    /// A place among the requests under way.
    pub(crate) _place: bulkhead::Permit,
    pub(crate) tries: Tries,
    /// Counts on the upstream's budget, however many tries it takes.
    logical: Logical,
    /// What the try under way, or waited for, took from the budget; nothing for the first.
    extra: Option<Extra>,
    under_way: Option<Try>,
    /// To be waited before the next try.
    wait: Duration,
    /// Where it has been.
    tried: Vec<SocketAddr>,
    last_timed_out: bool,
}

/// One try.
struct Try {
    permit: breaker::Permit,
    pick: Pick<SocketAddr>,
    /// What the head of its answer came to. It ends with the body.
    head: Option<Outcome>,
}

impl Try {
    fn complete(self, outcome: Outcome, after: Option<Duration>, now: Instant) {
        self.permit.complete_with(outcome, now, after);
        self.pick.complete(outcome, now);
    }
}

impl Admitted {
    pub(crate) fn new(
        context: CallContext,
        deadline: Option<Deadline>,
        upstream: Arc<Upstream>,
        place: bulkhead::Permit,
        tries: Tries,
        now: Instant,
    ) -> Self {
        Self {
            context,
            deadline,
            logical: upstream.budget.begin(now),
            upstream,
            _place: place,
            tries,
            extra: None,
            under_way: None,
            wait: Duration::ZERO,
            tried: Vec::new(),
            last_timed_out: false,
        }
    }

    /// How long to wait before [`begin_try`](Self::begin_try). It ends before the deadline.
    pub(crate) fn take_wait(&mut self) -> Duration {
        std::mem::take(&mut self.wait)
    }

    /// Where the next try goes.
    ///
    /// # Errors
    /// [`Rejected`] by the breaker or the balancer. The try has cost nothing then.
    pub(crate) fn begin_try(&mut self, now: Instant) -> Result<SocketAddr, Rejected> {
        let upstream = &self.upstream;
        let begun = upstream.breaker.try_acquire(now).and_then(|permit| {
            let anybody_else = PickContext::at(now).avoid(&self.tried);
            Ok((permit, upstream.balancer.pick(&anybody_else)?))
        });
        let (permit, pick) = match begun {
            Ok(begun) => begun,
            Err(rejected) => {
                if let Some(extra) = self.extra.take() {
                    extra.forgive();
                }
                return Err(rejected);
            }
        };
        let addr = *pick.key();
        self.tried.push(addr);
        self.under_way = Some(Try {
            // Dropped after its deadline, it was no mere cancellation.
            permit: match self.deadline {
                Some(deadline) => permit.with_deadline(deadline.0),
                None => permit,
            },
            pick,
            head: None,
        });
        Ok(addr)
    }

    /// Which try is under way, and whether the one before it timed out.
    pub(crate) fn number(&self) -> (AttemptNumber, bool) {
        (AttemptNumber(self.tries.made()), self.last_timed_out)
    }

    /// The head of its answer has come; the body decides when it ends.
    pub(crate) fn has_answered(&mut self, outcome: Outcome) {
        if let Some(under_way) = &mut self.under_way {
            under_way.head = Some(outcome);
        }
    }

    /// The body of its answer has ended.
    pub(crate) fn body_ended(&mut self, now: Instant) {
        if let Some(ended) = self.under_way.take() {
            // No head, no body; but if it were so, nobody would know what to make of it.
            let outcome = ended.head.unwrap_or(Outcome::Ignored);
            ended.complete(outcome, None, now);
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn cancel(&mut self, now: Instant) {
        if let Some(Try { permit, pick, .. }) = self.under_way.take() {
            permit.cancel(now);
            pick.complete(Outcome::Cancelled, now);
        }
    }

    /// The try has failed.
    pub(crate) fn fail(&mut self, judgement: &Judgement, now: Instant) {
        let outcome = judgement.outcome;
        self.last_timed_out = outcome == Outcome::Failure(FailureClass::Timeout);
        if let Some(failed) = self.under_way.take() {
            failed.complete(outcome, judgement.after, now);
        }
    }

    /// Whether the try that [failed](Self::fail) is followed by another one. `replayable`: its body
    /// can be had again.
    pub(crate) fn may_try_again(
        &mut self,
        config: &RetryConfig,
        judgement: &Judgement,
        replayable: bool,
        now: Instant,
        rng: &Rng,
    ) -> bool {
        // It would be refused, and the answer at hand is gone once another try is asked for.
        if matches!(
            self.upstream.breaker.state(),
            State::Open | State::ForcedOpen
        ) {
            return false;
        }
        let elsewhere = self.upstream.balancer.len() > 1;
        let context = RetryContext::at(now)
            .deadline(self.deadline.map(|deadline| deadline.0))
            .replayable(replayable)
            .elsewhere(elsewhere);
        let Ok(wait) = self.tries.next_wait(config, judgement, &context, rng) else {
            return false;
        };
        // The one before is over; it must not count beside its successor.
        self.extra = None;
        // From here on: who waits for his turn is under way.
        let Ok(extra) = self.logical.try_extra(now) else {
            return false;
        };
        self.extra = Some(extra);
        self.tries.count();
        self.wait = wait;
        true
    }
}
