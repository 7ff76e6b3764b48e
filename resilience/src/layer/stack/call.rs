//! One call: as many tries as its policy, its budget and its time allow.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::time::Instant;

use super::{
    Answer, Attempt, Hook, RequestTimeout, Stack,
    attempt::{Time, judge},
    held::{Admitted, Paid},
    plan::Plan,
};
use crate::{
    TrafficPolicy,
    balance::Key,
    context::{Deadline, deadline},
    fallback::{Cause, FallbackConfig},
    layer::{
        BoxError, EitherBody, Error, Fixed, FixedBody, GuardedBody, Transport, fallback::mark,
        replay::Replay,
    },
    outcome::{Policy, Reason, Rejected},
    retry::{
        Judgement, RetryConfig, Tries,
        budget::{Budget, Extra, Logical},
    },
    rng::Rng,
};

impl<K: Key> Stack<K> {
    /// Makes one call.
    ///
    /// Resolves with the head of the answer: the callee's own, also where it is an error that no
    /// retry could better. The call's permits live in the answer's body.
    ///
    /// Cancel-safe: dropping the future cancels the try under way and gives everything back.
    ///
    /// # Errors
    /// [`Error::Rejected`] if a policy refused the call or its time was up; [`Error::Service`] with
    /// the last try's error otherwise.
    pub async fn call<B, T, H>(
        &self,
        transport: &T,
        request: Request<B>,
        mut hook: H,
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let plan = self.0.plan.load_full();
        let result = self.tried(&plan, transport, request, &mut hook).await;
        match (&plan.policy.fallback, &plan.instead) {
            (Some(config), Some(instead)) => degrade(result, config, instead, &mut hook),
            _ => result,
        }
    }

    /// The call without its fallback.
    async fn tried<B, T, H>(
        &self,
        plan: &Plan,
        transport: &T,
        request: Request<B>,
        hook: &mut H,
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        let start = Instant::now();
        let deadline = total_deadline(&plan.policy, &request, start)?;
        let mut time = Time {
            now: start,
            deadline,
        };
        let (head, body) = request.into_parts();
        let mut retries = Retries::new(&plan.policy, plan.budget.as_ref(), &head, start);
        let mut body = Replay::new(body, retries.replay());
        let mut head = Some(head);
        let mut failed: Vec<K> = Vec::new();
        loop {
            let mut parts = match &head {
                Some(kept) if !retries.is_last() => copy(kept),
                _ => head.take().expect("only the last try takes the head"),
            };
            let view = body.view().expect("checked before each retry");
            let mut call = match self.admit(plan, &parts, &failed, &mut time).await {
                Ok(call) => call,
                Err(rejected) => {
                    // Nothing was sent: it costs nothing, and asking again at once is no use.
                    retries.forgive();
                    return Err(rejected.into());
                }
            };
            let (number, began) = (retries.made(), time.now);
            let attempt = |key| Attempt { number, key, began };
            hook.started(attempt(call.key()), &mut parts);
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(began);
                deadline::inject(&mut parts.headers, left);
            }
            let request = Request::from_parts(parts, view);
            let result = self.send(plan, transport, call.key(), request, time).await;
            let judgement = judge(&result, retries.config);
            time.now = Instant::now();
            hook.ended(attempt(call.key()), judgement.outcome, time.now);
            // Two endpoints: the next try goes to another one.
            let elsewhere = || self.0.balancer.len() > failed.len() + 1;
            let wait = retries.next(
                &judgement,
                || body.can_replay(),
                elsewhere,
                time,
                &self.0.rng,
            );
            let Some(wait) = wait else {
                return finish(call, result, judgement, deadline, retries.into_paid());
            };
            failed.push(call.key().clone());
            call.end(judgement);
            drop(result);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                time.now = Instant::now();
            }
        }
    }
}

/// The fallback's answer, where there would be none.
fn degrade<K, RB, E, H: Hook<K>>(
    result: Result<Answer<K, RB>, Error<E>>,
    config: &FallbackConfig,
    instead: &Fixed,
    hook: &mut H,
) -> Result<Answer<K, RB>, Error<E>> {
    let cause = match &result {
        Ok(answer) => Cause::Status(answer.status()),
        Err(Error::Rejected(rejected)) => Cause::Rejected(*rejected),
        Err(Error::Service(_)) => Cause::Failed,
    };
    if !config.applies(cause) {
        return result;
    }
    hook.degraded(cause);
    let mut answer = instead.response();
    mark(&mut answer, cause);
    Ok(answer.map(|body| GuardedBody::free(EitherBody::other(body))))
}

/// Hands the permits to the answer's body, or ends the call with its error.
fn finish<K: Key, RB, E>(
    mut call: Admitted<K>,
    result: Result<Response<EitherBody<RB, FixedBody>>, Error<E>>,
    judgement: Judgement,
    deadline: Option<Instant>,
    paid: Paid,
) -> Result<Answer<K, RB>, Error<E>>
where
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    match result {
        Ok(response) => {
            // What a callee asks for is in its head, and should be heard before its body ends.
            if judgement.outcome.is_failure() && judgement.after.is_some() {
                call.end(judgement);
            }
            let guard = call.into_guard(paid);
            let outcome = judgement.outcome;
            Ok(response.map(|body| GuardedBody::new(body, guard, outcome, deadline)))
        }
        Err(error) => {
            call.end(judgement);
            Err(error)
        }
    }
}

/// The retries of one call: what they may be, and what they hold of the budget.
struct Retries<'a> {
    config: Option<&'a RetryConfig>,
    tries: Option<Tries>,
    logical: Option<Logical>,
    extra: Option<Extra>,
}

impl<'a> Retries<'a> {
    fn new(policy: &'a TrafficPolicy, budget: Option<&Budget>, head: &Parts, now: Instant) -> Self {
        let config = policy.retry.as_ref().filter(|retry| retry.attempts > 0);
        Self {
            config,
            tries: config.map(|retry| {
                let safety = retry.safety(&head.method, &head.headers, &head.extensions);
                Tries::new(retry, safety)
            }),
            logical: config
                .and(budget)
                .map(|budget| budget.begin(now.into_std())),
            extra: None,
        }
    }

    /// Bytes of the request's body to keep.
    fn replay(&self) -> usize {
        self.config.map_or(0, |retry| retry.replay.as_usize())
    }

    fn made(&self) -> u32 {
        self.tries.as_ref().map_or(1, Tries::made)
    }

    /// Whether the try under way cannot be followed by another one.
    fn is_last(&self) -> bool {
        match (&self.tries, self.config) {
            (Some(tries), Some(config)) => !tries.may_continue(config),
            _ => true,
        }
    }

    /// How long to wait before the next try, which is paid for; `None`: there is none.
    fn next(
        &mut self,
        judgement: &Judgement,
        replayable: impl FnOnce() -> bool,
        elsewhere: impl FnOnce() -> bool,
        time: Time,
        rng: &Rng,
    ) -> Option<Duration> {
        let (config, tries) = (self.config?, self.tries.as_mut()?);
        if !judgement.worth_a_retry {
            return None;
        }
        let now = time.now.into_std();
        let deadline = time.deadline.map(Instant::into_std);
        let next = tries.next(
            config,
            judgement,
            replayable(),
            elsewhere(),
            (now, deadline),
            rng,
        );
        let wait = next.ok()?;
        // The last retry is over; its place is this one's.
        self.extra = None;
        self.extra = Some(self.logical.as_ref()?.try_extra(now).ok()?);
        tries.count();
        Some(wait)
    }

    /// The try that was paid for was not made.
    fn forgive(self) {
        if let Some(extra) = self.extra {
            extra.forgive();
        }
    }

    fn into_paid(self) -> Paid {
        (self.logical, self.extra)
    }
}

/// When the call must be over: the request's or the policy's word, or the caller's deadline,
/// whichever is earlier.
fn total_deadline<B>(
    policy: &TrafficPolicy,
    request: &Request<B>,
    now: Instant,
) -> Result<Option<Instant>, Rejected> {
    let total = match request.extensions().get::<RequestTimeout>() {
        Some(own) => (!own.0.is_zero()).then_some(own.0),
        None => policy.timeouts.total(),
    };
    let own = request.extensions().get::<Deadline>();
    let caller = match own {
        // Read on arrival; what the service itself took is off already.
        Some(deadline) => Some(deadline.left(now.into_std())),
        None => deadline::extract(request.headers()),
    };
    let left = match (total, caller) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
    match left {
        Some(left) if left.is_zero() => Err(Rejected::new(Policy::Deadline, Reason::Expired)),
        // Further than the clock goes is for ever.
        Some(left) => Ok(now.checked_add(left)),
        None => Ok(None),
    }
}

/// The head for a try that may not be the last. Extensions stay behind: a connection's upgrade can
/// be handed on only once, with the try that keeps the head itself.
fn copy(head: &Parts) -> Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    if let Some(hash) = head.extensions.get::<super::HashKey>() {
        copy.extensions.insert(*hash);
    }
    copy
}
