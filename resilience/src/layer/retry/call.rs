//! A call, and whether and how it is made again.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use super::{
    super::{
        BoxError, CallGuard, Error, GuardedBody, PeekedBody, ReplayBody, TransportError, peek,
        replay::Replay,
    },
    RetryBody,
    plan::{Begun, Plan, RetryHeld, add},
};
use crate::{
    context::{AttemptNumber, Deadline, deadline},
    outcome::{FailureClass, Outcome, Policy},
    retry::{Final, Judgement, RetryContext, Tries, budget::Extra, cost::Cost},
};

/// A call and what it needs to be made again.
pub(super) struct Call<S, B> {
    /// Until its answer's body has it.
    pub(super) begun: Option<Begun>,
    pub(super) service: S,
    pub(super) tries: Tries,
    pub(super) extra: Option<Extra>,
    pub(super) paid: Option<Cost>,
    /// For another try.
    pub(super) head: Option<Parts>,
    pub(super) body: Replay<B>,
    pub(super) deadline: Option<Deadline>,
    pub(super) after_timeout: bool,
}

pub(super) type Result_<S, B, RB> =
    Result<Response<PeekedBody<RB>>, <S as Service<Request<ReplayBody<B>>>>::Error>;

impl<S, B, RB> Call<S, B>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<RB>> + Clone,
    S::Error: TransportError,
    B: Body<Data = Bytes> + Unpin,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    pub(super) fn plan(&self) -> &Plan {
        &self.begun.as_ref().expect("a body has it at the end").plan
    }

    fn may_continue(&self) -> bool {
        self.tries.may_continue(&self.plan().config)
    }

    /// Tries once more. The service has been polled ready.
    pub(super) fn send(&mut self) -> S::Future {
        let mut head = match &self.head {
            Some(head) if self.may_continue() => head.clone(),
            _ => self.head.take().expect("only the last try takes the head"),
        };
        let number = AttemptNumber(self.tries.made());
        let config = &self.plan().config;
        config.announce(number, self.after_timeout, &mut head);
        if let Some(deadline) = self.deadline {
            deadline::inject(&mut head.headers, deadline.left(Instant::now().into_std()));
        }
        let body = self.body.view().expect("checked before each retry");
        self.service.call(Request::from_parts(head, body))
    }

    /// Whether the verdict may be in the trailers, and waiting for them can hurt nobody: a caller
    /// that still sends may wait for the head before it sends more.
    pub(super) fn should_peek(&self, response: &Response<RB>) -> bool {
        self.may_continue()
            && peek::is_due(response, self.plan().config.grpc_trailers)
            && self.body.is_complete()
    }

    pub(super) fn judge_error(&self, error: &S::Error) -> Judgement {
        if error.is_callers_fault() {
            return Judgement::last(Outcome::Cancelled);
        }
        let config = &self.plan().config;
        match error.rejected() {
            // One try took too long: a timeout further in.
            Some(rejected) if rejected.policy == Policy::Deadline => {
                config.judge_error(FailureClass::Timeout, false)
            }
            Some(_) => Judgement::last(Outcome::Cancelled),
            None => config.judge_error(error.class(), error.is_unprocessed()),
        }
    }

    /// How long to wait for the next try, which is paid for; `None`: this result is the last.
    pub(super) fn next(&mut self, judgement: &Judgement, cx: &mut Context<'_>) -> Option<Duration> {
        if !judgement.worth_a_retry {
            return None;
        }
        let Plan { config, cost, core } = &*self.begun.as_ref()?.plan;
        let stats = &core.stats;
        let now = Instant::now().into_std();
        let context = RetryContext::at(now)
            .deadline(self.deadline.map(|deadline| deadline.0))
            .replayable(self.body.can_replay());
        let next = self.tries.next_wait(config, judgement, &context, &core.rng);
        let wait = match next {
            Ok(wait) => wait,
            Err(why) => {
                match why {
                    Final::Body => add(&stats.body),
                    Final::Deadline => add(&stats.deadline),
                    _ => {}
                }
                return None;
            }
        };
        // Asked of a clone that is dropped again: readiness is not held while we wait.
        if !matches!(self.service.clone().poll_ready(cx), Poll::Ready(Ok(()))) {
            add(&stats.overflow);
            return None;
        }
        // The last retry is over, and its place is this one's.
        self.extra = None;
        let paid = core.budget.try_extra(now).and_then(|extra| {
            let bucket = cost.as_ref();
            let cost = bucket.map(|bucket| bucket.try_take(judgement.outcome));
            match cost.transpose() {
                Ok(cost) => Ok((extra, cost)),
                Err(rejected) => {
                    extra.forgive();
                    Err(rejected)
                }
            }
        });
        let Ok((extra, cost)) = paid else {
            add(&stats.refused);
            return None;
        };
        (self.extra, self.paid) = (Some(extra), cost);
        self.after_timeout = judgement.outcome == Outcome::Failure(FailureClass::Timeout);
        self.tries.count();
        add(&stats.retries);
        Some(wait)
    }

    /// Hands the result to the caller, and the call's place in the budget to its body. Where it
    /// stands: a call is large.
    pub(super) fn finish(
        &mut self,
        result: Result_<S, B, RB>,
        outcome: Outcome,
    ) -> Result<Response<RetryBody<RB>>, Error<S::Error>> {
        match result {
            Ok(response) => {
                let begun = self.begun.take().expect("a call has one answer");
                if self.tries.made() > 1 && outcome == Outcome::Success {
                    add(&begun.plan.core.stats.recovered);
                }
                let guard = CallGuard::new(RetryHeld {
                    begun,
                    _extra: self.extra.take(),
                    paid: self.paid.take(),
                });
                Ok(response.map(|body| GuardedBody::new(body, guard, outcome, None)))
            }
            Err(error) => {
                // Refused by a policy further in: the callee never saw it.
                if error
                    .rejected()
                    .is_some_and(|r| r.policy != Policy::Deadline)
                {
                    self.forgive();
                }
                Err(Error::Service(error))
            }
        }
    }

    pub(super) fn forgive(&mut self) {
        if let Some(extra) = self.extra.take() {
            extra.forgive();
        }
        let paid = self.paid.take();
        if let (Some(bucket), Some(cost)) = (&self.plan().cost, paid) {
            bucket.give_back(cost);
        }
    }
}
