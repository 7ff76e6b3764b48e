//! One try: asked for at every policy, sent to one endpoint, cut off in time.

use std::{future::Future, time::SystemTime};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::time::Instant;

use super::{
    Stack,
    held::{Admitted, Held},
    hook::HashKey,
    plan::Plan,
};
use crate::{
    balance::{HashOn, Key, PickContext, stable_hash},
    classify::{self, outcome_of_head},
    fault::Fault,
    layer::{
        EitherBody, Error, FixedBody, Injected, Patience, ReplayBody, Transport, TransportError,
        fault::aborted,
        slot::{earlier, slot},
    },
    outcome::{FailureClass, Outcome, Policy, Reason, Rejected},
    retry::{Judgement, RetryConfig},
};

/// When something happens, and when it must be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    pub now: Instant,
    pub deadline: Option<Instant>,
}

impl<K: Key> Stack<K> {
    /// Asks every policy that a try must pass. Waits only where a limit is reached and has a queue,
    /// and not past the deadline; `now` is then when the waiting was over.
    ///
    /// What is acquired goes back by itself where a later policy refuses: a cancelled try says
    /// nothing about the callee's health.
    pub(super) async fn admit(
        &self,
        plan: &Plan,
        head: &Parts,
        avoid: &[K],
        time: &mut Time,
        patience: Patience,
    ) -> Result<Admitted<K>, Rejected> {
        let now = time.now.into_std();
        let throttle = match &plan.throttle {
            Some(core) => Some(core.try_acquire(now)?),
            None => None,
        };
        let breaker = match &plan.breaker {
            Some(core) => Some(core.try_acquire(now)?),
            None => None,
        };
        let bulkhead = match &plan.bulkhead {
            Some(core) => Some(slot(core, &mut time.now, time.deadline, patience).await?),
            None => None,
        };
        let concurrency = match &plan.concurrency {
            Some(core) => Some(slot(core, &mut time.now, time.deadline, patience).await?),
            None => None,
        };
        let now = time.now.into_std();
        if let Some(core) = &plan.rate {
            core.try_acquire(now)?;
        }
        let mut context = PickContext::at(now).avoid(avoid);
        context.hash = hash_of(plan, head);
        let pick = self.0.balancer.pick(&context)?;
        Ok(Admitted::new(Held {
            throttle,
            breaker,
            bulkhead,
            concurrency,
            pick,
            paid: None,
        }))
    }

    /// Sends the request, unless a fault is injected; resolves with the head of the answer, or with
    /// the failure of a try whose time was up.
    pub(super) async fn send<B, T>(
        &self,
        plan: &Plan,
        transport: &T,
        key: &K,
        request: Request<ReplayBody<B>>,
        time: Time,
    ) -> Result<Response<EitherBody<T::Body, FixedBody>>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
    {
        let per_try = plan.policy.timeouts.backend_request;
        let per_try = per_try.and_then(|limit| time.now.checked_add(limit.0));
        let until = earlier(per_try, time.deadline);
        let faults = plan.faults.as_ref();
        if let Some(fault) = faults.and_then(|faults| faults.decide(request.headers())) {
            // Boxed, because it is rare, and would make every call's future larger.
            return Box::pin(timed(until, suffer(fault, transport, key, request))).await?;
        }
        let answer = timed(until, transport.send(key, request)).await?;
        answer
            .map(|answer| answer.map(EitherBody::own))
            .map_err(Error::Service)
    }
}

/// `work`, or that its time was up.
async fn timed<F: Future>(until: Option<Instant>, work: F) -> Result<F::Output, Rejected> {
    match until {
        Some(until) => tokio::time::timeout_at(until, work)
            .await
            .map_err(|_| Rejected::new(Policy::Deadline, Reason::Elapsed)),
        None => Ok(work.await),
    }
}

/// A try that something happens to on purpose. Innermost, so that every policy sees it.
async fn suffer<K, B, T: Transport<K, B>>(
    fault: Fault,
    transport: &T,
    key: &K,
    request: Request<ReplayBody<B>>,
) -> Result<Response<EitherBody<T::Body, FixedBody>>, Error<T::Error>> {
    if let Some(delay) = fault.delay {
        tokio::time::sleep(delay).await;
    }
    let injected = Injected {
        delay: fault.delay.is_some(),
        abort: fault.abort.is_some(),
    };
    let mut answer = match fault.abort {
        Some(abort) => aborted(abort)?.map(EitherBody::other),
        None => transport
            .send(key, request)
            .await
            .map_err(Error::Service)?
            .map(EitherBody::own),
    };
    answer.extensions_mut().insert(injected);
    Ok(answer)
}

/// What a hashing policy places the request by.
fn hash_of(plan: &Plan, head: &Parts) -> Option<u64> {
    let balance = &plan.policy.balance;
    if !balance.policy.hashes() {
        return None;
    }
    if let Some(own) = head.extensions.get::<HashKey>() {
        return Some(own.0);
    }
    match balance.hash_on.as_ref()? {
        HashOn::Header(name) => {
            let value = head.headers.get(name.as_str())?;
            Some(stable_hash(value.as_bytes()))
        }
        HashOn::Cookie(name) => {
            let cookies = head.headers.get_all(http::header::COOKIE);
            let value = cookies
                .iter()
                .find_map(|all| cookie(all.as_bytes(), name))?;
            Some(stable_hash(value))
        }
        HashOn::Path => Some(stable_hash(head.uri.path().as_bytes())),
        // Whoever knows the address puts a `HashKey` into the request.
        HashOn::Source => None,
    }
}

fn cookie<'a>(all: &'a [u8], name: &str) -> Option<&'a [u8]> {
    all.split(|byte| *byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    })
}

/// What a try's result means.
pub(super) fn judge<RB, E: TransportError>(
    result: &Result<Response<RB>, Error<E>>,
    retry: Option<&RetryConfig>,
) -> Judgement {
    match (result, retry) {
        (Ok(response), Some(retry)) => {
            retry.judge_head(response.status(), response.headers(), SystemTime::now())
        }
        (Ok(response), None) => Judgement {
            after: classify::retry_after(
                response.status(),
                response.headers(),
                SystemTime::now(),
                RETRY_AFTER_MAX,
            ),
            ..Judgement::last(outcome_of_head(response.status(), response.headers()))
        },
        (Err(Error::Service(error)), _) if error.is_callers_fault() => {
            Judgement::last(Outcome::Cancelled)
        }
        (Err(error), retry) => {
            // Only a deadline ends a try that was admitted, or a fault that looks like a break.
            let (class, unprocessed) = match error {
                Error::Rejected(rejected) if rejected.policy == Policy::Fault => {
                    (FailureClass::Reset, false)
                }
                Error::Rejected(_) => (FailureClass::Timeout, false),
                Error::Service(error) => (error.class(), error.is_unprocessed()),
            };
            retry.map_or(Judgement::last(Outcome::Failure(class)), |retry| {
                retry.judge_error(class, unprocessed)
            })
        }
    }
}

/// What a breaker believes of a `Retry-After` where no retry policy says so.
const RETRY_AFTER_MAX: std::time::Duration = std::time::Duration::from_secs(5);
