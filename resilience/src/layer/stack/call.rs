//! One call: as many tries as its policy, its budget and its time allow.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::time::Instant;

use super::{
    Answer, Attempt, Hook, RequestTimeout, Stack,
    attempt::{Time, copy, judge},
    held::{Admitted, Paid},
    plan::Plan,
    race::Start,
    retries::Retries,
    send::send,
};
use crate::{
    TrafficPolicy,
    balance::Key,
    classify::outcome_of_head,
    context::{Deadline, deadline},
    fallback::{Cause, FallbackConfig},
    layer::{
        BoxError, EitherBody, Error, Fixed, FixedBody, GuardedBody, Patience, ReplayBody,
        Transport,
        commands::{Command, Event},
        fallback::mark,
        replay::Replay,
    },
    outcome::{Policy, Reason, Rejected},
    retry::Judgement,
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
        let (command, now) = (self.0.commands.begin(), Instant::now());
        let mut took = Duration::ZERO;
        let result = match total_deadline(&plan.policy, &request, now) {
            Ok(deadline) => {
                let time = Time { now, deadline };
                let coalesce = plan.coalesce.as_ref();
                let asked = coalesce.and_then(|it| Some((it, it.key(&request)?)));
                if let Some(asked) = asked {
                    // Boxed, so that who does not coalesce does not pay for it.
                    let look = (&mut hook, &mut took);
                    Box::pin(self.coalesced(&plan, asked, transport, request, time, look)).await
                } else {
                    let mut way = UnderWay::begin(&plan, request, time);
                    let result = self.tried(&plan, transport, &mut way, &mut hook).await;
                    took = way.took;
                    result
                }
            }
            Err(rejected) => Err(rejected.into()),
        };
        if let Some(command) = &command {
            let judge =
                |answer: &Answer<K, T::Body>| outcome_of_head(answer.status(), answer.headers());
            command.ended(Event::of(&result, judge), took);
        }
        match (&plan.policy.fallback, &plan.instead) {
            (Some(config), Some(instead)) => {
                degrade(result, config, instead, &mut hook, command.as_ref())
            }
            _ => result,
        }
    }

    /// The call without its fallback.
    pub(super) async fn tried<B, T, H>(
        &self,
        plan: &Plan,
        transport: &T,
        way: &mut UnderWay<'_, K, B>,
        hook: &mut H,
    ) -> Result<Answer<K, T::Body>, Error<T::Error>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        T: Transport<K, B>,
        H: Hook<K>,
    {
        loop {
            let race = way.retries.race(way.time);
            let (head, body) = way.prepare(race.is_some());
            let (failed, time) = (&way.failed, &mut way.time);
            let admitted = self.admit(plan, &head, failed, time, Patience::Queue);
            let mut call = match admitted.await {
                Ok(call) => call,
                Err(rejected) => {
                    // Nothing was sent: it costs nothing, and asking again at once is no use.
                    way.retries.forgive();
                    return Err(rejected.into());
                }
            };
            let request = way.depart(&call, head, body, hook);
            let (result, judgement);
            if let (Some(race), Some(logical)) = (race, &way.retries.logical) {
                let start = Start {
                    plan,
                    transport,
                    retry: way.retries.config,
                    head: way.head.as_ref().expect("kept for hedges"),
                    body: &mut way.body,
                    failed: &way.failed,
                    logical,
                    race,
                    number: way.retries.number(),
                    time: way.time,
                };
                // Boxed, so that who does not hedge does not pay for it.
                let began = way.time.now;
                let round = Box::pin(self.race(start, call, request, hook)).await;
                (call, result, judgement) = (round.call, round.result, round.judgement);
                way.retries.hedged(round.tries, round.extra);
                way.time.now = Instant::now();
                way.took = way.time.now.saturating_duration_since(began);
            } else {
                result = send(plan, transport, call.key(), request, way.time).await;
                judgement = judge(&result, way.retries.config);
                let began = std::mem::replace(&mut way.time.now, Instant::now());
                way.took = way.time.now.saturating_duration_since(began);
                let attempt = way.attempt(call.key(), began);
                hook.ended(attempt, judgement.outcome, way.time.now);
            }
            let Some(wait) = way.next(&judgement, self) else {
                let paid = way.retries.take_paid();
                return finish(call, result, judgement, way.time, paid);
            };
            way.failed.push(call.key().clone());
            call.end(judgement, way.time.now);
            drop(result);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                way.time.now = Instant::now();
            }
        }
    }
}

/// A call between its tries.
///
/// Apart from the future that makes them, which is as large as all that it holds across an await
/// and is moved about with it.
pub(super) struct UnderWay<'a, K, B> {
    /// Until the last try takes it.
    head: Option<Parts>,
    body: Replay<B>,
    retries: Retries<'a>,
    /// Where it failed, for the next try to go elsewhere.
    failed: Vec<K>,
    time: Time,
    /// How long the last try took.
    pub(super) took: Duration,
}

impl<'a, K: Key, B: Body<Data = Bytes> + Unpin> UnderWay<'a, K, B> {
    pub(super) fn begin(plan: &'a Plan, request: Request<B>, time: Time) -> Self {
        let (head, body) = request.into_parts();
        let retries = Retries::new(plan, &head, time.now);
        Self {
            body: Replay::new(body, retries.replay()),
            head: Some(head),
            retries,
            failed: Vec::new(),
            time,
            took: Duration::ZERO,
        }
    }

    /// Head and body of the next try. `race`: hedges may follow it.
    fn prepare(&mut self, race: bool) -> (Parts, ReplayBody<B>) {
        let head = match &self.head {
            Some(kept) if race || !self.retries.is_last() => copy(kept),
            _ => self.head.take().expect("only the last try takes the head"),
        };
        let body = self.body.view().expect("checked before each retry");
        (head, body)
    }

    /// The request of a try that every policy has let through.
    fn depart<H: Hook<K>>(
        &self,
        call: &Admitted<K>,
        mut head: Parts,
        body: ReplayBody<B>,
        hook: &mut H,
    ) -> Request<ReplayBody<B>> {
        let began = self.time.now;
        hook.started(self.attempt(call.key(), began), &mut head);
        if let Some(deadline) = self.time.deadline {
            let left = deadline.saturating_duration_since(began);
            deadline::inject(&mut head.headers, left);
        }
        Request::from_parts(head, body)
    }

    /// The try that is about to begin, or under way.
    fn attempt<'k>(&self, key: &'k K, began: Instant) -> Attempt<'k, K> {
        Attempt {
            number: self.retries.number(),
            key,
            began,
        }
    }

    /// How long to wait before the next try, which is paid for; `None`: there is none.
    fn next(&mut self, judgement: &Judgement, stack: &Stack<K>) -> Option<Duration> {
        let (body, failed) = (&self.body, &self.failed);
        // Two endpoints: the next try goes to another one.
        let elsewhere = || stack.0.balancer.len() > failed.len() + 1;
        let replayable = || body.can_replay();
        let rng = &stack.0.rng;
        self.retries
            .next(judgement, replayable, elsewhere, self.time, rng)
    }
}

/// The fallback's answer, where there would be none.
fn degrade<K, RB, E, H: Hook<K>>(
    result: Result<Answer<K, RB>, Error<E>>,
    config: &FallbackConfig,
    instead: &Fixed,
    hook: &mut H,
    command: Option<&Command<'_>>,
) -> Result<Answer<K, RB>, Error<E>> {
    let cause = match &result {
        Ok(answer) => Cause::Status(answer.status()),
        Err(Error::Rejected(rejected)) if rejected.policy == Policy::Coalesce => Cause::Failed,
        Err(Error::Rejected(rejected)) => Cause::Rejected(*rejected),
        Err(Error::Service(_)) => Cause::Failed,
    };
    if !config.applies(cause) {
        return result;
    }
    hook.degraded(cause);
    if let Some(command) = command {
        command.fell_back();
    }
    let mut answer = instead.response();
    mark(&mut answer, cause);
    Ok(answer.map(|body| GuardedBody::free(EitherBody::other(body))))
}

/// Hands the permits to the answer's body, or ends the call with its error.
fn finish<K: Key, RB, E>(
    mut call: Admitted<K>,
    result: Result<Response<EitherBody<RB, FixedBody>>, Error<E>>,
    judgement: Judgement,
    time: Time,
    paid: Paid,
) -> Result<Answer<K, RB>, Error<E>>
where
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    let response = match result {
        Ok(response) => response,
        Err(error) => {
            call.end(judgement, time.now);
            return Err(error);
        }
    };
    let outcome = judgement.outcome;
    // What a callee asks for is in its head, and should be heard before its body ends.
    let asks = outcome.is_failure() && judgement.after.is_some();
    if asks || response.body().is_end_stream() {
        call.end(judgement, time.now);
    }
    if response.body().is_end_stream() {
        // Nothing is left to hold, and to hand it on is not free.
        drop(paid);
        return Ok(response.map(GuardedBody::free));
    }
    let guard = call.into_guard(paid);
    Ok(response.map(|body| GuardedBody::new(body, guard, outcome, time.deadline)))
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
